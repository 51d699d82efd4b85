"""The thin loop of bandwidth: measures the way that is due, unless there is work, and tells what came of it."""

import random
import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
from loguru import logger

from exo.dataplane.errors import ProbeRefusedError
from exo.gpu.backend import GPUBackend
from exo.gpu.numbering import numbered
from exo.shared.errors import ExoError
from exo.shared.types.devices import GPUDevice
from exo.shared.types.events import GPUBandwidthMeasured, LinkMeasured, Telemetry
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.nodes import LinkType, Node
from exo.shared.types.state import State
from exo.worker.bandwidth.busy import Busy
from exo.worker.bandwidth.devices import measure_devices
from exo.worker.bandwidth.errors import NotMeasurableError
from exo.worker.bandwidth.estimate import Estimate, TransferLimits
from exo.worker.bandwidth.link_type import link_type
from exo.worker.bandwidth.network import OpenStream, measure_node
from exo.worker.bandwidth.planner import DeviceWay, NodeWay, Pace, Tried, Way, choose, noted

Publish = Callable[[Sequence[Telemetry]], None]
DEVICES_MAX = 16
"""Above so many GPUs the ways between devices are not measured: there are as many as their number squared."""
_LOOK_AGAIN_S = 10.0
"""Nodes come and go: how long a plan is good at most."""
_MEASURE_TIMEOUT_S = 120.0


class BandwidthMeter:
    """Measures from this node to the others, and between its devices. Used from one event loop.

    Args:
        node_id: This node.
        state: Gives the cluster as it is now.
        open_stream: `GenerationClient.open_probe`; None: only devices are measured.
        publish: Tells the cluster.
        busy: Whether there is work: then nothing is measured, and what is under way is cut short.
        pace: How often.
        limits: How far a measurement goes.
        clock: Monotonic seconds, as the event loop sleeps.
        fine_clock: Seconds, as fine as there is, to time copies with.
        source: Of the jitter.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        state: Callable[[], State],
        open_stream: OpenStream | None,
        publish: Publish,
        busy: Busy,
        pace: Pace | None = None,
        limits: TransferLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        fine_clock: Callable[[], float] = time.perf_counter,
        source: random.Random | None = None,
    ) -> None:
        self._node_id = node_id
        self._state = state
        self._open_stream = open_stream
        self._publish = publish
        self._busy = busy
        self._pace = pace or Pace()
        self._limits = limits or TransferLimits()
        self._clock = clock
        self._fine_clock = fine_clock
        self._source = source or random.Random()
        self._devices: dict[DeviceId, tuple[GPUBackend, GPUDevice]] = {}
        self._history: dict[Way, Tried] = {}
        self._counts: dict[Way, int] = {}
        self._last_s: float | None = None
        self._is_measuring = False

    def set_devices(self, devices: Sequence[tuple[GPUBackend, GPUDevice]]) -> None:
        """Measure between these devices from now on; those that cannot compute cannot be measured either."""
        self._devices = {
            device.device_id: (backend, device) for backend, device in devices if backend.computes
        }

    def obstacle(self) -> str | None:
        """Say why nobody should measure the way to this node now; for `ProbeDesk.obstacle`."""
        return self._busy.reason or ("it is measuring itself" if self._is_measuring else None)

    async def run(self) -> None:
        """Measure what is due, until cancelled."""
        await anyio.sleep(self._pace.settle_s)
        while True:
            if self._busy.is_busy:
                await self._busy.until_idle()
                await anyio.sleep(self._pace.settle_s)
                continue
            ways = self.ways()
            # What comes back may not be what it was.
            self._history = {way: tried for way, tried in self._history.items() if way in ways}
            planned = choose(ways, self._history, last_s=self._last_s, pace=self._pace)
            wait_s = _LOOK_AGAIN_S if planned is None else planned.at_s - self._clock()
            if planned is None or wait_s > 0:
                with anyio.move_on_after(min(wait_s, _LOOK_AGAIN_S)):
                    await self._busy.until_busy()
                continue
            await self.measure(planned.way)

    def ways(self) -> set[Way]:
        """Return what there is to measure now: other connected nodes, and pairs of this node's devices.

        A device that has failed is left alone, until it is trusted again.
        """
        ways: set[Way] = set()
        live = self._state().live.get(self._node_id)
        states = live.devices if live is not None else {}
        failed = {device_id for device_id, state in states.items() if state.health == "failed"}
        there = [device for key, (_, device) in self._devices.items() if key not in failed]
        if self._open_stream is not None:
            for node_id, node in self._state().nodes.items():
                if node_id != self._node_id and node.is_connected:
                    ways.add(NodeWay(node_id))
        if sum(device.backend != "cpu" for device in there) <= DEVICES_MAX:
            ids = [device.device_id for device in there]
            ways.update(DeviceWay(one, other) for one in ids for other in ids if one != other)
        return ways

    async def measure(self, way: Way) -> bool:
        """Measure one way and tell what came of it.

        Returns:
            Whether it came to an end. If work began meanwhile it did not, and is not held against the way.
        """
        has_failed = False
        is_done = False
        before = self._history.get(way)
        self._is_measuring = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._cut_short, tasks.cancel_scope)
                try:
                    with anyio.fail_after(_MEASURE_TIMEOUT_S):
                        events = await self._measure(way)
                    is_done = True
                    self._publish(events)
                except ProbeRefusedError as error:
                    # It has work now: nothing that gets worse with time.
                    has_failed, before = True, None
                    logger.debug("did not measure {}: {}", way, error.message)
                except (ExoError, TimeoutError) as error:
                    has_failed = True
                    logger.debug("could not measure {}: {}", way, error or "it took too long")
                tasks.cancel_scope.cancel()
        finally:
            self._is_measuring = False
            self._last_s = self._clock()
        if is_done or has_failed:
            self._history[way] = noted(
                before, at_s=self._last_s, has_failed=has_failed, random=self._source.random
            )
        return is_done

    async def _cut_short(self, scope: anyio.CancelScope) -> None:
        await self._busy.until_busy()
        scope.cancel()

    def _measure(self, way: Way) -> Awaitable[Sequence[Telemetry]]:
        return self._measure_devices(way) if isinstance(way, DeviceWay) else self._measure_node(way)

    async def _measure_node(self, way: NodeWay) -> Sequence[Telemetry]:
        nodes = self._state().nodes
        assert self._open_stream is not None
        node = nodes.get(way.dest)
        if node is None:
            raise NotMeasurableError(f"the node {way.dest} is gone")
        found = await measure_node(self._open_stream, node.identity.data_address, way.dest, self._limits)
        kind = link_type(found.own_host, found.peer_host)
        source, dest = _host_memory(nodes.get(self._node_id)), _host_memory(node)
        if source is not None and dest is not None:
            return [self._told(way, source, dest, found.estimate, kind)]
        # A node without a device has a link all the same.
        return [
            LinkMeasured(
                source_node_id=self._node_id,
                dest_node_id=way.dest,
                link_type=kind,
                latency_ms=found.estimate.latency_ms,
                bandwidth_mbps=found.estimate.bandwidth_mbps,
                measurement_count=self._counted(way, found.estimate),
            )
        ]

    async def _measure_devices(self, way: DeviceWay) -> Sequence[Telemetry]:
        source, dest = self._devices.get(way.source), self._devices.get(way.dest)
        if source is None or dest is None:
            raise NotMeasurableError("a device is gone")
        found = await measure_devices(source, dest, clock=self._fine_clock)
        is_direct = source[0] is dest[0] and await source[0].can_reach(way.source, way.dest)
        kind: LinkType = "p2p" if is_direct else "unknown"
        return [self._told(way, way.source, way.dest, found, kind)]

    def _told(
        self, way: Way, source: DeviceId, dest: DeviceId, found: Estimate, kind: LinkType
    ) -> GPUBandwidthMeasured:
        return GPUBandwidthMeasured(
            source_device_id=source,
            dest_device_id=dest,
            bandwidth_mbps=round(found.bandwidth_mbps, 3),
            latency_ms=round(found.latency_ms, 6),
            measurement_count=self._counted(way, found),
            link_type=kind,
        )

    def _counted(self, way: Way, found: Estimate) -> int:
        """Return how many transfers this node has measured on a way since it started."""
        self._counts[way] = self._counts.get(way, 0) + found.measurement_count
        return self._counts[way]


def _host_memory(node: Node | None) -> DeviceId | None:
    """Return the device between whose memory a transfer between nodes goes: the processor, or else the first."""
    devices = numbered(node.identity.devices) if node is not None else []
    return devices[-1].device_id if devices else None
