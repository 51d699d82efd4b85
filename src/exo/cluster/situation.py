"""Who this node is, which cluster it is part of, and what it knows: asked by everybody, changed by the kernel."""

from typing import Literal

from loguru import logger

from exo.cluster.board import Board
from exo.cluster.boot import Boot
from exo.cluster.coordinator import Leadership
from exo.cluster.facts import ClusterFacts, Removal
from exo.cluster.judging import is_word_of_removal
from exo.cluster.raft.core import Core
from exo.shared.types.access import Access
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.shared.types.state import State
from exo.shared.types.voters import Voters

Standing = Literal["leader", "follower", "orphan"]
"""An orphan has no master that it can reach: it may be about to elect one."""

Farewell = Literal["dissolved", "outlived", "removed"]
"""Why this node's cluster, or its part in it, is over."""


class Situation:
    """Questions about the present moment; nothing here waits or sends."""

    def __init__(self, identity: NodeIdentity, namespace: str, board: Board, core: Core) -> None:
        self.identity = identity
        """As of this boot, with the devices and models that changed since."""
        self.namespace = namespace
        self.node_id = identity.node_id
        self.boot_id = identity.boot_id
        self.core = core
        self.cluster_id: ClusterId | None = None
        self.master_node_id: NodeId | None = None
        """The master that has taken this node in, while they are connected."""
        self.master_term = 0
        """Of the newest master that this node follows or followed."""
        self.is_joining = False
        """This node leads, and is asking another cluster to take it in."""
        self.is_leaving = False
        """This node is about to stop."""
        self.farewell: Farewell | None = None
        """The cluster that this node was part of is no more, or not for it."""
        self.removed_from: Removal | None = None
        """The cluster that has put this node out, until another one, or the same, takes it in."""
        self.redirected_to: HostPort | None = None
        self._board = board
        self._guess: State | None = None
        """As if all of the log on disk were committed; until a master says what is."""
        self._may_be_spare = False

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._board.state

    @property
    def standing(self) -> Standing:
        if self.core.leading is not None:
            return "leader"
        return "follower" if self.master_node_id is not None else "orphan"

    @property
    def term(self) -> int:
        return max(self.core.term, self.master_term)

    @property
    def incarnation(self) -> int:
        return max(self.core.incarnation, self.state.incarnation)

    @property
    def is_open(self) -> bool:
        """This node leads, and its term is opened: it knows everything that was ever committed."""
        return (
            self.core.leading is not None
            and self.core.is_term_committed
            and self.state.term == self.core.term
        )

    @property
    def voters(self) -> Voters:
        """Who has to agree, by the newest that this node knows: it may have learned as an observer that it does not."""
        return self.core.voters if self.core.log.last_index >= self.state.index else self.state.voters

    @property
    def is_agreeing(self) -> bool:
        """This node's disk counts for the others, as far as it knows."""
        return self.node_id in self.voters.members

    @property
    def leadership(self) -> Leadership:
        master = self.master_node_id
        if self.core.leading is not None:
            master = self.node_id if self.is_open else None
        return Leadership(
            master_node_id=master,
            term=self.term,
            incarnation=self.incarnation,
            is_self=self.core.leading is not None and master == self.node_id,
        )

    @property
    def last_known(self) -> State:
        """The state, or what was on disk when this node started until it hears what of that is committed."""
        return self.state if self._guess is None else self._guess

    @property
    def is_spare(self) -> bool:
        """This node has a copy of a log in which it does not count, and has not found its master since it started.

        It may have come to count since: the change may not have reached it before it stopped.
        """
        return self._may_be_spare and self.standing == "orphan" and not self.is_agreeing

    @property
    def is_homeless(self) -> bool:
        """This node is part of no cluster, or of one in which it does not count and whose master it cannot find."""
        return self.is_spare or (self.cluster_id is None and not self.core.voters.voters)

    @property
    def is_member(self) -> bool:
        """The state knows this boot of this node as a connected member."""
        node = self.state.nodes.get(self.node_id)
        return node is not None and node.is_connected and node.identity.boot_id == self.boot_id

    @property
    def has_something_to_lose(self) -> bool:
        """As far as this node knows, its cluster has instances, or it was decided who belongs to it."""
        return bool(self.last_known.instances) or _is_decided(self.last_known.access)

    def facts(self) -> ClusterFacts:
        """Return what this node tells others of itself."""
        master_node_id = self.leadership.master_node_id
        return ClusterFacts(
            exo_version=self.identity.exo_version,
            namespace=self.namespace,
            node_id=self.node_id,
            boot_id=self.boot_id,
            name=self.identity.name,
            cluster_address=self.identity.cluster_address,
            cluster_id=self.cluster_id,
            incarnation=self.incarnation,
            term=self.term,
            index=self.state.index,
            master_node_id=master_node_id,
            master_address=None if master_node_id is None else self.address_of(master_node_id),
            member_count=len(self.state.nodes),
            instance_count=len(self.state.instances),
            is_established=_is_decided(self.state.access),
            is_voteless=not self.core.may_vote,
        )

    def address_of(self, node_id: NodeId) -> HostPort | None:
        if node_id == self.node_id:
            return self.identity.cluster_address
        node = self.state.nodes.get(node_id) or self.last_known.nodes.get(node_id)
        return None if node is None else node.identity.cluster_address

    def peers_to_link(self) -> dict[NodeId, HostPort]:
        """Return whom this node should be linked to, to agree with them, and where they are."""
        wanted: set[NodeId] = set()
        if self.core.leading is not None:
            wanted.update(self.core.leading.peers)
        elif self.is_agreeing:
            wanted.update(self.voters.members)
        wanted.discard(self.node_id)
        found = {node_id: self.address_of(node_id) for node_id in wanted}
        return {node_id: address for node_id, address in found.items() if address is not None}

    # --- which cluster this node is part of ---------------------------------------------------------------------

    def begin(self, boot: Boot, core: Core) -> None:
        """Go on from what was on disk."""
        self.core = core
        self.cluster_id = boot.guess.cluster_id
        self._guess = boot.guess if boot.guess.index > boot.state.index else None
        self._may_be_spare = boot.guess.index > 0 and not boot.is_of_use_to(self.node_id)

    def forsake(self, core: Core) -> None:
        """Be part of no cluster."""
        self.core = core
        self.cluster_id = None
        self.farewell = None
        self._guess = None
        self._may_be_spare = False

    def taken_in(self) -> None:
        """A master takes this node in."""
        self.redirected_to = None
        self.removed_from = None
        self._may_be_spare = False

    def moved_on(self) -> None:
        """The state is what was committed: there is nothing to guess."""
        self._guess = None

    def end(self, farewell: Farewell) -> bool:
        """Say whether this is news: this node's cluster, or its part in it, is over. Announcing is left to you."""
        if self.farewell is not None:
            return False
        self.farewell = farewell
        return True

    def removed(self, reason: str) -> None:
        """This node was put out of its cluster."""
        assert self.cluster_id is not None
        logger.warning(
            "this node was removed from its cluster ({}); to join it again: exo token create on one of its nodes, "
            "then here: exo join TOKEN",
            reason,
        )
        self.farewell = "removed"
        self.removed_from = Removal(
            cluster_id=self.cluster_id, authority_pem=self.last_known.access.authority_pem, reason=reason
        )

    def told_of_removal(self, facts: ClusterFacts) -> None:
        """A master says that this node is no member."""
        if self.farewell is not None or self.core.leading is not None:
            return
        if is_word_of_removal(self.facts(), facts):
            self.removed("while it was away")
            self._board.announce()


def _is_decided(access: Access) -> bool:
    """Somebody has decided who may come in. One who put a node out does not want to be part of that node's cluster."""
    return access.authority_pem is not None or bool(access.keys or access.removed)
