"""Round trips to the nodes that this one is connected to, told as telemetry when they change."""

from collections.abc import Callable, Iterable

import msgspec

from exo.cluster.board import Board
from exo.cluster.lane import Lane
from exo.cluster.transport.base import Connection
from exo.cluster.transport.tcp import is_loopback
from exo.shared.types.events import LinkMeasured
from exo.shared.types.ids import NodeId

CHANGE_MIN = 0.2
"""Smaller relative changes are noise."""
INTERVAL_MIN_S = 5.0


class _Told(msgspec.Struct, frozen=True):
    latency_ms: float
    at_s: float


class RoundTrips:
    """Publishes the latency (half a round trip) of links where it is new, has changed, or was told long ago."""

    def __init__(
        self, board: Board, lane: Lane, node_id: NodeId, clock: Callable[[], float], *, refresh_s: float
    ) -> None:
        self._board = board
        self._lane = lane
        self._node_id = node_id
        self._clock = clock
        self._refresh_s = refresh_s
        self._told: dict[NodeId, _Told] = {}

    def check(self, connections: Iterable[tuple[NodeId, Connection]]) -> None:
        """Look at the connections as they are now."""
        now_s = self._clock()
        for node_id, connection in connections:
            if connection.round_trip_s is None:
                continue
            latency_ms = connection.round_trip_s * 500
            if self._is_news(self._told.get(node_id), latency_ms, now_s):
                self._told[node_id] = _Told(latency_ms, now_s)
                self._publish(node_id, latency_ms, is_near=is_loopback(connection.peer_address.host))

    def _is_news(self, told: _Told | None, latency_ms: float, now_s: float) -> bool:
        if told is None or now_s - told.at_s >= self._refresh_s:
            return True
        has_changed = abs(latency_ms - told.latency_ms) > CHANGE_MIN * told.latency_ms
        return has_changed and now_s - told.at_s >= INTERVAL_MIN_S

    def _publish(self, node_id: NodeId, latency_ms: float, *, is_near: bool) -> None:
        own = self._board.state.live.get(self._node_id)
        # A link has one record: what others measured of it is kept.
        known = own.links.get(node_id) if own is not None else None
        event = LinkMeasured(
            source_node_id=self._node_id,
            dest_node_id=node_id,
            link_type="loopback" if is_near else "unknown",
            latency_ms=latency_ms,
            bandwidth_mbps=known.bandwidth_mbps if known is not None else None,
            measurement_count=1 if known is None else known.measurement_count + 1,
        )
        self._lane.publish([event])
