"""Reads the node's devices at an interval and turns what changed into telemetry events."""

import os
from collections.abc import Callable, Sequence

import anyio
import msgspec
import psutil
from loguru import logger

from exo.gpu.backend import GPUBackend
from exo.gpu.host_memory import read_host_memory
from exo.gpu.reading import DeviceReading
from exo.shared.errors import ExoError
from exo.shared.types.devices import (
    DeviceGPUState,
    GPUDevice,
    MemoryProfile,
    NodePerformanceProfile,
    SystemProfile,
)
from exo.shared.types.events import DeviceGPUStateUpdated, NodeProfileUpdated, Telemetry
from exo.shared.types.ids import DeviceId, NodeId

Publish = Callable[[Sequence[Telemetry]], None]


class GPUTelemetryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How often devices are read, and how much must change before it is told."""

    is_enabled: bool = True
    interval_s: float = 2.0
    heartbeat_s: float = 10.0
    """A reading that did not change is told all the same this long after the last one."""
    memory_change_bytes: int = 64 * 1024 * 1024
    utilization_change_percent: float = 5.0
    temperature_change_c: float = 1.0
    power_change_watts: float = 5.0

    @staticmethod
    def from_environment(interval_s: float) -> "GPUTelemetryConfig":
        """The defaults; `EXO_GPU_TELEMETRY=0` turns the readings of devices off, not those of the host."""
        return GPUTelemetryConfig(
            is_enabled=os.environ.get("EXO_GPU_TELEMETRY", "1") not in {"0", "false", "no"},
            interval_s=interval_s,
        )


class GPUTelemetryCollector:
    """Reads all devices at once; each has a thread of its own, so that none holds up the others or the event loop."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        devices: Sequence[tuple[GPUBackend, GPUDevice]],
        publish: Publish,
        config: GPUTelemetryConfig,
        clock: Callable[[], float],
        now: Callable[[], str],
    ) -> None:
        self._node_id = node_id
        self._devices = list(devices) if config.is_enabled else []
        self._publish = publish
        self._config = config
        self._clock = clock
        self._now = now
        self._told: dict[DeviceId, DeviceGPUState] = {}
        self._told_at_s: dict[DeviceId, float] = {}
        self._told_profile: NodePerformanceProfile | None = None
        self._told_profile_at_s = 0.0
        self._is_monitoring = False

    async def collect_device_state(self, backend: GPUBackend, device: GPUDevice) -> DeviceGPUState:
        """Read one device now. One that does not answer is reported as failed, with the reason."""
        try:
            reading = await backend.read_device(device.device_id)
        except ExoError as error:
            return DeviceGPUState(
                device_id=device.device_id,
                node_id=self._node_id,
                memory_total_bytes=device.memory_total_bytes,
                health="failed",
                health_reason=error.message,
                last_update=self._now(),
            )
        return _state(device, self._node_id, reading, self._now())

    async def collect(self) -> list[Telemetry]:
        """Read everything once; return events for what changed enough, or was not told for long."""
        states = [await self.collect_device_state(backend, device) for backend, device in self._devices]
        at_s = self._clock()
        events: list[Telemetry] = []
        for state in states:
            before = self._told.get(state.device_id)
            is_due = at_s - self._told_at_s.get(state.device_id, 0.0) >= self._config.heartbeat_s
            if before is None or is_due or has_changed(before, state, self._config):
                self._told[state.device_id] = state
                self._told_at_s[state.device_id] = at_s
                events.append(DeviceGPUStateUpdated(state=state))
        profile = node_profile([device for _, device in self._devices], states)
        is_due = at_s - self._told_profile_at_s >= self._config.heartbeat_s
        if (
            self._told_profile is None
            or is_due
            or _profile_changed(self._told_profile, profile, self._config)
        ):
            self._told_profile = profile
            self._told_profile_at_s = at_s
            events.append(NodeProfileUpdated(node_id=self._node_id, profile=profile))
        return events

    async def start_monitoring(self) -> None:
        """Collect at the interval until cancelled.

        Raises:
            RuntimeError: It is being monitored already.
        """
        if self._is_monitoring:
            raise RuntimeError("these devices are being monitored already")
        if not self._config.is_enabled:
            logger.info("GPU telemetry is off (EXO_GPU_TELEMETRY=0); the host's memory is still told")
        self._is_monitoring = True
        try:
            while True:
                try:
                    events = await self.collect()
                except OSError as error:
                    logger.warning("could not read this host's telemetry: {}", error)
                    events = []
                if events:
                    self._publish(events)
                await anyio.sleep(self._config.interval_s)
        finally:
            self._is_monitoring = False


def _state(device: GPUDevice, node_id: NodeId, reading: DeviceReading, now: str) -> DeviceGPUState:
    total_bytes = reading.memory_total_bytes
    return DeviceGPUState(
        device_id=device.device_id,
        node_id=node_id,
        memory_used_bytes=reading.memory_used_bytes,
        memory_total_bytes=total_bytes if total_bytes is not None else device.memory_total_bytes,
        compute_utilization_percent=reading.compute_utilization_percent,
        thermal_temperature_c=reading.temperature_c,
        thermal_throttle_threshold_c=reading.throttle_threshold_c,
        is_thermal_throttling=reading.is_thermal_throttling,
        power_watts=reading.power_watts,
        clock_mhz=reading.clock_mhz,
        battery_percent=reading.battery_percent,
        is_plugged_in=reading.is_plugged_in,
        last_update=now,
        throttle_reasons=reading.throttle_reasons,
        power_limit_watts=reading.power_limit_watts,
        clock_max_mhz=reading.clock_max_mhz,
        ecc_corrected_count=reading.ecc_corrected_count,
        ecc_uncorrected_count=reading.ecc_uncorrected_count,
        faults=reading.faults,
        processes=reading.processes,
        is_memory_pressed=reading.is_memory_pressed,
    )


def has_changed(before: DeviceGPUState, after: DeviceGPUState, config: GPUTelemetryConfig) -> bool:
    """Say whether a reading differs enough from the one told last; a value that appears or vanishes does."""
    thresholds = (
        (before.memory_used_bytes, after.memory_used_bytes, config.memory_change_bytes),
        (
            before.compute_utilization_percent,
            after.compute_utilization_percent,
            config.utilization_change_percent,
        ),
        (before.thermal_temperature_c, after.thermal_temperature_c, config.temperature_change_c),
        (before.power_watts, after.power_watts, config.power_change_watts),
        (before.battery_percent, after.battery_percent, 1.0),
    )
    if any(_differs(old, new, threshold) for old, new, threshold in thresholds):
        return True
    return (
        before.memory_total_bytes != after.memory_total_bytes
        or before.is_thermal_throttling != after.is_thermal_throttling
        or before.is_plugged_in != after.is_plugged_in
        or before.health != after.health
        or before.health_reason != after.health_reason
    )


def node_profile(devices: Sequence[GPUDevice], states: Sequence[DeviceGPUState]) -> NodePerformanceProfile:
    """Sum a host up. Only devices with memory of their own add to VRAM; the CPU is no GPU."""
    memory = read_host_memory()
    swap = psutil.swap_memory()
    pairs = [(d, s) for d, s in zip(devices, states, strict=True) if d.backend != "cpu"]
    vram = [(d, s) for d, s in pairs if d.memory_kind == "vram"]
    processor = next((s for d, s in zip(devices, states, strict=True) if d.backend == "cpu"), None)
    powers = [s.power_watts for _, s in pairs if s.power_watts is not None]
    usages = [s.compute_utilization_percent for _, s in pairs if s.compute_utilization_percent is not None]
    return NodePerformanceProfile(
        memory=MemoryProfile(
            ram_total=memory.total_bytes,
            ram_available=memory.available_bytes,
            swap_total=swap.total,
            swap_available=swap.free,
            gpu_vram_total=sum(d.memory_total_bytes for d, _ in vram),
            gpu_vram_available=sum(s.memory_free_bytes or 0 for _, s in vram),
            gpu_vram_used=sum(s.memory_used_bytes or 0 for _, s in vram),
        ),
        system=SystemProfile(
            gpu_usage=sum(usages) / len(usages) if usages else None,
            temp=processor.thermal_temperature_c if processor else None,
            pcpu_usage=processor.compute_utilization_percent if processor else None,
            utilization_memory_percent=round(100 * (1 - memory.available_bytes / memory.total_bytes), 1),
            gpu_count=len(pairs),
            gpu_names=tuple(d.name for d, _ in pairs),
            gpu_power_watts=sum(powers) if powers else None,
        ),
    )


def _profile_changed(
    before: NodePerformanceProfile, after: NodePerformanceProfile, config: GPUTelemetryConfig
) -> bool:
    return _differs(
        before.memory.ram_available, after.memory.ram_available, config.memory_change_bytes
    ) or _differs(before.system.pcpu_usage, after.system.pcpu_usage, config.utilization_change_percent)


def _differs(old: float | None, new: float | None, threshold: float) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) >= threshold
