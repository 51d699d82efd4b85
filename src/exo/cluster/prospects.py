"""Whom a node would join: its own master where it can be found, then others whom it has reason to follow."""

from collections.abc import Callable, Collection

from exo.cluster.facts import ClusterFacts, is_senior
from exo.cluster.judging import Judgement, judge
from exo.cluster.raft.quorum import has_majority
from exo.cluster.sightings import Sightings
from exo.cluster.situation import Situation
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort


class Prospects:
    """Judges everybody who was noticed by what this node is and knows at the moment.

    Args:
        situation: This node.
        sightings: Who was noticed.
        clock: Monotonic seconds.
        patience_s: How long a node with nothing to lose waits for a master that is lost.
    """

    def __init__(
        self, situation: Situation, sightings: Sightings, clock: Callable[[], float], *, patience_s: float
    ) -> None:
        self.silent_master: NodeId | None = None
        """The last one, if it fell silent: others may know more by now, and dialling it takes long."""
        self.orphan_since_s: float | None = None
        """When the last master was lost; None: there is one, or there was none."""
        self._situation = situation
        self._sightings = sightings
        self._clock = clock
        self._patience_s = patience_s

    def judge(self, own: ClusterFacts, facts: ClusterFacts) -> Judgement:
        """Say what follows from what another node says of itself. `own` are this node's facts as of now."""
        return judge(own, facts, is_waiting=self._is_waiting(facts))

    def wanted(self, own_addresses: Collection[HostPort]) -> list[HostPort]:
        """Return the addresses worth joining, best first; who was merely heard of is not at `own_addresses`."""
        standing = self._situation.standing
        if standing == "follower":
            return []
        certain = self._known_to_have_led() if standing == "orphan" else []
        own = self._situation.facts()
        seniors: list[ClusterFacts] = []
        for facts in self._sightings.fresh_facts():
            if self.judge(own, facts).join is not None:
                position = sum(is_senior(other, facts) for other in seniors)
                seniors.insert(position, facts)
        heard = (facts.master_address for facts in seniors)
        hinted = [one for one in heard if one is not None and one not in own_addresses]
        # Where a member is, the log says; what this node has heard of itself does not count against that.
        return list(dict.fromkeys([*certain, *hinted]))

    def _known_to_have_led(self) -> list[HostPort]:
        """Return where this node was sent, then where the log says that those are who lead, or may know who does."""
        situation = self._situation
        certain = [situation.redirected_to] if situation.redirected_to is not None else []
        # The leader that this node's peers know, else the last master, and those who may have elected another.
        known = [situation.core.leader_id]
        if situation.core.leader_id is None:
            known.append(situation.last_known.master_node_id)
        if not situation.is_agreeing:
            known += situation.last_known.voters.voters
        if self.silent_master in known:
            known.remove(self.silent_master)
            known.append(self.silent_master)
        addresses = (
            situation.address_of(node_id) for node_id in known if node_id not in (None, situation.node_id)
        )
        own_address = situation.identity.cluster_address
        return [*certain, *(address for address in addresses if address not in (None, own_address))]

    def _is_waiting(self, facts: ClusterFacts) -> bool:
        """Say whether an orphan goes on waiting for its master in spite of these facts."""
        situation = self._situation
        if situation.cluster_id is None:
            return False
        if situation.has_something_to_lose:
            return True
        if facts.node_id in situation.last_known.nodes and facts.cluster_id != situation.cluster_id:
            return self._may_elect()
        if situation.is_agreeing:
            return True
        since_s = self.orphan_since_s
        return since_s is None or self._clock() - since_s < self._patience_s

    def _may_elect(self) -> bool:
        """Say whether so many of this node's cluster may be left that they can agree on a master."""
        situation = self._situation
        voters = situation.voters if situation.voters.voters else situation.last_known.voters
        elsewhere = {
            facts.node_id
            for facts in self._sightings.fresh_facts()
            if facts.cluster_id not in (None, situation.cluster_id)
        }
        return has_majority(voters, {*voters.voters} - elsewhere)
