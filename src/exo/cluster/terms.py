"""What this node does when another one leads, or none, or it does itself."""

from collections import Counter
from collections.abc import Callable

from exo.cluster.board import Board
from exo.cluster.dispatch import Dispatch
from exo.cluster.electorate import Electorate
from exo.cluster.hosting import Hosting
from exo.cluster.joining import Joining
from exo.cluster.lane import Lane
from exo.cluster.proposals import Proposals
from exo.cluster.raft.steps import RoleChanged
from exo.cluster.roll import Roll
from exo.cluster.signal import Signal
from exo.cluster.situation import Situation
from exo.cluster.uplink import Uplink
from exo.shared.types.events import ClusterFormed, Decision, TermOpened
from exo.shared.types.ids import ClusterId


class Terms:
    """Carries the core's changes of role to the parts of the node that have to do with followers or a master."""

    def __init__(
        self,
        situation: Situation,
        board: Board,
        *,
        proposals: Proposals,
        dispatch: Dispatch,
        joining: Joining,
        lane: Lane,
        uplink: Uplink,
        hosting: Hosting,
        roll: Roll,
        electorate: Electorate,
        prospects: Signal,
        counts: Counter[str],
        new_id: Callable[[], str],
    ) -> None:
        self._situation = situation
        self._board = board
        self._proposals = proposals
        self._dispatch = dispatch
        self._joining = joining
        self._lane = lane
        self._uplink = uplink
        self._hosting = hosting
        self._roll = roll
        self._electorate = electorate
        self._prospects = prospects
        self._counts = counts
        self._new_id = new_id

    def role_changed(self, change: RoleChanged) -> None:
        self._counts["role_changed"] += 1
        if change.role == "leader":
            self._lead()
        else:
            if change.role == "candidate":
                self._counts["candidacy"] += 1
            if self._hosting.is_hosting:
                self._hosting.close_all("it leads no longer")
                self._proposals.pause()
            if change.leader is not None and change.leader != self._situation.master_node_id:
                self._uplink.leave("another node leads now")
        self._prospects.fire()
        self._board.announce()

    def _lead(self) -> None:
        situation = self._situation
        self._counts["term_led"] += 1
        self._uplink.leave("this node leads now")
        self._proposals.pause()
        is_new = situation.core.log.last_index == 0
        if situation.cluster_id is None:
            situation.cluster_id = ClusterId(self._new_id())
        self._roll.close()
        self._electorate.begin()
        self._lane.ring.clear()
        # What is submitted first comes last of these: the opening of the term goes before everything, even before what
        # was sent to an earlier master and is in doubt, and then this node as a member.
        self._dispatch.begin_numbers()
        self._joining.ensure_member()
        opening: tuple[Decision, ...] = (TermOpened(master_node_id=situation.node_id),)
        if is_new:
            formed = ClusterFormed(
                cluster_id=situation.cluster_id,
                namespace=situation.namespace,
                voters=situation.core.voters,
            )
            opening = (formed, *opening)
        self._dispatch.submit(opening, f"term-{situation.core.term}", is_first=True)
        self._dispatch.send()
