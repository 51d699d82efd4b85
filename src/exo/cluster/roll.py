"""A master's roll of its members: who is connected and since when, and who has to be called disconnected."""

from collections.abc import Callable, Collection, Iterable

from exo.cluster.attendance import SUSPECT_S, Attendance
from exo.cluster.dispatch import Dispatch
from exo.cluster.proposals import Proposals
from exo.cluster.situation import Situation
from exo.shared.types.events import NodeDisconnected
from exo.shared.types.ids import NodeId


class Roll:
    """Closed until the term is opened: before that the state does not say who should be there.

    Args:
        situation: This node.
        proposals: Where it is seen whether a decision is still on its way.
        dispatch: Takes the decisions.
        clock: Monotonic seconds.
        grace_s: How long a new master, or one that has lost most members at once, waits.
    """

    def __init__(
        self,
        situation: Situation,
        proposals: Proposals,
        dispatch: Dispatch,
        clock: Callable[[], float],
        *,
        grace_s: float,
    ) -> None:
        self._situation = situation
        self._proposals = proposals
        self._dispatch = dispatch
        self._clock = clock
        self._grace_s = grace_s
        self._attendance: Attendance | None = None
        self._arrived_s: dict[NodeId, float] = {}
        self._evictions: dict[NodeId, int] = {}

    @property
    def is_open(self) -> bool:
        return self._attendance is not None

    def open(self, present: Collection[NodeId]) -> None:
        """The term is opened: from here on the state says who should be there."""
        nodes, own = self._situation.state.nodes, self._situation.node_id
        self._attendance = Attendance(
            self._clock(),
            expected=[key for key, node in nodes.items() if node.is_connected and key != own],
            present=present,
            grace_s=self._grace_s,
        )

    def close(self) -> None:
        """A new term begins; who is connected stays so."""
        self._attendance = None

    def clear(self) -> None:
        """Nobody is connected any more."""
        self._attendance = None
        self._arrived_s.clear()

    def arrived(self, node_id: NodeId) -> None:
        self._arrived_s.setdefault(node_id, self._clock())
        if self._attendance is not None:
            self._attendance.arrived(node_id)

    def lost(self, node_id: NodeId, reason: str, *, silences_s: Iterable[float]) -> None:
        """A connection ended.

        Args:
            node_id: Whose.
            reason: Why, for people.
            silences_s: For how long each of the other connections has been silent.
        """
        self._arrived_s.pop(node_id, None)
        nodes = self._situation.state.nodes
        if self._attendance is not None and node_id in nodes:
            self._attendance.lost(
                node_id,
                self._clock(),
                reason,
                member_count=sum(node.is_connected for node in nodes.values()),
                suspect_count=sum(silent_s >= SUSPECT_S for silent_s in silences_s),
            )
            self.evict()

    def has_stayed(self, node_id: NodeId, now_s: float, while_s: float) -> bool:
        """Say whether a node that is connected has been for so long."""
        return now_s - self._arrived_s.get(node_id, now_s) >= while_s

    def is_missed(self, node_id: NodeId, now_s: float, patience_s: float) -> bool:
        """Say whether a member has been gone for longer than that."""
        return self._attendance is not None and self._attendance.is_missed(node_id, now_s, patience_s)

    def evict(self) -> None:
        """Propose to call those disconnected who have been gone for long enough."""
        if self._attendance is None or not self._situation.is_open:
            return
        nodes = self._situation.state.nodes
        connected = [node_id for node_id, node in nodes.items() if node.is_connected]
        for gone in self._attendance.due(self._clock(), connected):
            if not self._proposals.is_pending(self._evictions.get(gone.node_id)):
                self._evictions[gone.node_id], _ = self._dispatch.submit(
                    [NodeDisconnected(node_id=gone.node_id, reason=gone.reason)],
                    f"lost-{nodes[gone.node_id].identity.boot_id}",
                )
