"""Who has to agree before something counts as decided."""

import msgspec

from exo.shared.types.ids import NodeId


class Voters(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that elect the master and whose copies make a decision count. All other members observe.

    A majority of `voters` has to have a decision on disk, and every one of `replicas` as well. There are replicas
    with a single voter only: a cluster of two nodes, whose second node holds a copy of everything that counts for as
    long as it is in sync. A replica neither votes nor stands for election.
    """

    voters: tuple[NodeId, ...] = ()
    """Sorted."""
    replicas: tuple[NodeId, ...] = ()

    @property
    def members(self) -> frozenset[NodeId]:
        """Everybody whose disk counts."""
        return frozenset((*self.voters, *self.replicas))

    @property
    def majority(self) -> int:
        """How many of the voters are enough."""
        return len(self.voters) // 2 + 1
