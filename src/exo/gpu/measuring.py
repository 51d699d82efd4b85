"""The thin loop that measures what nobody tells of a node's devices: once, in the background, while it is quiet.

What is measured is remembered with the device, so that the next start has it at once. Devices of which all is specified
are left alone: what their makers tell is better than a moment's measurement.
"""

import time
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.to_thread
from loguru import logger
from msgspec.structs import replace

from exo.gpu.driver import Precision
from exo.gpu.errors import NotComputingError
from exo.gpu.inventory import Inventory, UsedDevice
from exo.gpu.measurement import Clock, measure_bandwidth, measure_compute
from exo.gpu.registry import Measurement
from exo.shared.device_figures import catalogue, figures_for
from exo.shared.errors import ExoError
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId

FIRST_AFTER_S = 20.0
"""A start is over by then, and its first requests show."""
AGAIN_AFTER_S = 30.0
ATTEMPTS_MAX = 20
QUIET_PERCENT = 20.0
"""A device that is busier is measured slower than it is."""
DEADLINE_S = 10.0
_BACKENDS = frozenset(("cpu", "cuda", "rocm"))
"""The others copy through the host, or are as their makers say."""


class MeasuredSource(Protocol):
    """Where the devices are found, and what is measured is kept (`gpu.discovery.GPUDiscoveryService`)."""

    @property
    def inventory(self) -> Inventory:
        """What was found at the last look."""
        ...

    async def note_measured(self, device_id: DeviceId, measurement: Measurement) -> None:
        """Keep what was measured."""
        ...


class DeviceMeasurer:
    """Used from one event loop.

    Args:
        source: The devices.
        is_busy: Whether this node has work: then nothing is measured.
        clock: Monotonic seconds.
        first_after_s: How long after the start it begins.
        again_after_s: How long it waits before it looks for a quiet moment again.
    """

    def __init__(
        self,
        *,
        source: MeasuredSource,
        is_busy: Callable[[], bool],
        clock: Clock = time.perf_counter,
        first_after_s: float = FIRST_AFTER_S,
        again_after_s: float = AGAIN_AFTER_S,
    ) -> None:
        self._source = source
        self._is_busy = is_busy
        self._clock = clock
        self._first_after_s = first_after_s
        self._again_after_s = again_after_s
        self._attempts: dict[DeviceId, int] = {}

    async def run(self) -> None:
        """Measure what has to be measured, one device after the other, until cancelled."""
        await anyio.sleep(self._first_after_s)
        # To read its files takes a while, in which nothing else should have to wait.
        await anyio.to_thread.run_sync(catalogue)
        while True:
            for one in self._source.inventory.used:
                await self._attend(one)
            await anyio.sleep(self._again_after_s)

    async def _attend(self, one: UsedDevice) -> None:
        device_id = one.device.device_id
        wanted = what_to_measure(one.device)
        attempts = self._attempts.get(device_id, 0)
        if not one.backend.computes or wanted is None or attempts >= ATTEMPTS_MAX or self._is_busy():
            return
        self._attempts[device_id] = attempts + 1
        found = Measurement()
        try:
            busy_percent = await one.backend.get_device_utilization(device_id)
            if busy_percent is not None and busy_percent > QUIET_PERCENT:
                return
            with anyio.move_on_after(DEADLINE_S):
                found = await self._measure(one, wanted)
        except Exception as error:
            # It is a help, and no reason for a node to end.
            said = error.message if isinstance(error, ExoError) else repr(error)
            logger.debug("{} could not be measured: {}", one.device.local_alias, said)
            return
        if self._is_busy() or found == Measurement():
            return  # Work began meanwhile, and slowed it down.
        self._attempts[device_id] = ATTEMPTS_MAX
        logger.debug("{} was measured: {}", one.device.local_alias, found)
        await self._source.note_measured(device_id, found)

    async def _measure(self, one: UsedDevice, wanted: Measurement) -> Measurement:
        """Measure what `wanted` has a number for."""
        found = Measurement()
        if wanted.memory_bandwidth_bytes_per_s is not None:
            bandwidth = await measure_bandwidth(one.backend, one.device, clock=self._clock)
            found = replace(found, memory_bandwidth_bytes_per_s=bandwidth)
        if wanted.flops_per_s is not None and not self._is_busy():
            precision: Precision = "float32" if one.device.backend == "cpu" else "float16"
            try:
                flops = await measure_compute(one.backend, one.device.device_id, precision, clock=self._clock)
            except NotComputingError:
                flops = None
            found = replace(found, flops_per_s=flops)
        return found


def what_to_measure(device: GPUDevice) -> Measurement | None:
    """Return the estimates that a measurement should take the place of; None: there are none, or no way. Pure."""
    if device.backend not in _BACKENDS:
        return None
    figures = figures_for(device)
    bandwidth, flops = figures.memory_bandwidth_bytes_per_s, figures.compute_in("float16")
    wanted = Measurement(
        memory_bandwidth_bytes_per_s=bandwidth.value if bandwidth.basis == "estimated" else None,
        flops_per_s=flops.value if flops.basis == "estimated" else None,
    )
    return None if wanted == Measurement() else wanted
