"""Round trips to the nodes that this one is connected to, told as telemetry when they change."""

from collections.abc import Callable, Iterator

import msgspec

from exo.cluster.kernel import Kernel
from exo.cluster.transport.base import Connection
from exo.cluster.transport.tcp import is_loopback
from exo.shared.types.events import LinkMeasured
from exo.shared.types.ids import NodeId

CHANGE_MIN = 0.2
"""Smaller relative changes are noise."""
INTERVAL_MIN_S = 5.0


class _Told(msgspec.Struct):
    latency_ms: float
    at_s: float
    count: int


class Links:
    """Watches the connections' round trips."""

    def __init__(self, kernel: Kernel, clock: Callable[[], float]) -> None:
        self._kernel = kernel
        self._clock = clock
        self._told: dict[NodeId, _Told] = {}

    def check(self) -> None:
        """Publish the links whose latency (half a round trip) is new, changed, or was told long ago."""
        now = self._clock()
        for node_id, connection in self._connections():
            round_trip_s = connection.round_trip_s
            if round_trip_s is None:
                continue
            latency_ms = round_trip_s * 500
            told = self._told.get(node_id)
            if told is not None:
                age_s = now - told.at_s
                has_changed = abs(latency_ms - told.latency_ms) > CHANGE_MIN * told.latency_ms
                if age_s < self._kernel.options.link_refresh_s and not (
                    has_changed and age_s >= INTERVAL_MIN_S
                ):
                    continue
            count = told.count + 1 if told is not None else 1
            self._told[node_id] = _Told(latency_ms, now, count)
            self._publish(node_id, latency_ms, count, is_near=is_loopback(connection.peer_address.host))

    def _connections(self) -> Iterator[tuple[NodeId, Connection]]:
        uplink = self._kernel.uplink
        if uplink.master is not None and uplink.master_node_id is not None:
            yield uplink.master_node_id, uplink.master
        for session in self._kernel.hosting.sessions.values():
            yield session.node_id, session.connection

    def _publish(self, node_id: NodeId, latency_ms: float, count: int, *, is_near: bool) -> None:
        own = self._kernel.state.live.get(self._kernel.node_id)
        known = own.links.get(node_id) if own is not None else None
        event = LinkMeasured(
            source_node_id=self._kernel.node_id,
            dest_node_id=node_id,
            link_type="loopback" if is_near else "unknown",
            latency_ms=latency_ms,
            # A link has one record: what others measured of it is kept.
            bandwidth_mbps=known.bandwidth_mbps if known is not None else None,
            measurement_count=max(count, known.measurement_count + 1 if known is not None else 0),
        )
        self._kernel.lane.publish([event])
