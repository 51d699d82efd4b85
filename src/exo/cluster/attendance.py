"""Which members a leader has to call disconnected. Pure: times are passed in.

A new leader evicts nobody before it has led for a while, and when most members are lost at once it takes that for its
own fault first: its cable is out, not theirs.
"""

from collections.abc import Collection, Iterable

import msgspec

from exo.shared.types.ids import NodeId

MASS_LOSS_WINDOW_S = 2.0
"""Losses within this time belong together: how long the silence of peers that were cut off at once may differ."""


NOT_BACK = "not back since the master changed"
"""Why a node is disconnected that a new master has waited for from its first moment on."""

SUSPECT_S = 0.75
"""A connection that has been silent for this long, a ping and a half, may be lost as well."""


class Gone(msgspec.Struct, frozen=True):
    """A member that is to be called disconnected."""

    node_id: NodeId
    reason: str


class _Loss(msgspec.Struct):
    at_s: float
    reason: str
    until_s: float
    """Before this it may come back as if nothing had happened."""


class Attendance:
    """Kept by a leader from the moment it leads.

    Args:
        now_s: Present time, monotonic.
        expected: Members that the log calls connected.
        present: Those that are connected to this node.
        grace_s: How long a new leader, or one that has lost most members, waits.
    """

    def __init__(
        self, now_s: float, *, expected: Iterable[NodeId], present: Collection[NodeId], grace_s: float
    ) -> None:
        self._grace_s = grace_s
        self._lost = {
            node_id: _Loss(now_s, NOT_BACK, now_s + grace_s) for node_id in expected if node_id not in present
        }
        self._begins_s = now_s + grace_s

    def arrived(self, node_id: NodeId) -> None:
        self._lost.pop(node_id, None)

    def lost(
        self, node_id: NodeId, now_s: float, reason: str, *, member_count: int, suspect_count: int = 0
    ) -> None:
        """The connection to a member ended.

        Args:
            node_id: The member.
            now_s: Present time.
            reason: Why, for people.
            member_count: How many members are, or were until just now, connected, this node included.
            suspect_count: How many of the others have been silent for SUSPECT_S. Losses of the same moment are
                noticed one after the other.
        """
        self._lost[node_id] = _Loss(now_s, reason, max(now_s, self._begins_s))
        recent = [loss for loss in self._lost.values() if now_s - loss.at_s <= MASS_LOSS_WINDOW_S]
        if len(recent) + suspect_count > 1 and 2 * (len(recent) + suspect_count) > member_count:
            for loss in recent:
                loss.until_s = max(loss.until_s, now_s + self._grace_s)

    def is_missed(self, node_id: NodeId, now_s: float, patience_s: float) -> bool:
        """Say whether a member has been gone for longer than that."""
        loss = self._lost.get(node_id)
        return loss is not None and now_s - loss.at_s >= patience_s

    def due(self, now_s: float, connected: Collection[NodeId]) -> list[Gone]:
        """Return the members that the state still calls connected and that have to be called disconnected now."""
        return [
            Gone(node_id, loss.reason)
            for node_id, loss in self._lost.items()
            if node_id in connected and now_s >= loss.until_s
        ]
