"""From what devices say to what a node tells of them: states, what counts as a change, and the host's sum. Pure."""

from collections.abc import Iterable, Sequence

import msgspec

from exo.gpu.reading import DeviceReading, ProcessMemory
from exo.shared.types.devices import (
    DeviceGPUState,
    DeviceRefusal,
    GPUDevice,
    Health,
    MemoryProfile,
    NodePerformanceProfile,
    SystemProfile,
    ThermalStatus,
)
from exo.shared.types.ids import NodeId


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """How much must change before it is told."""

    memory_change_bytes: int = 64 * 1024 * 1024
    utilization_change_percent: float = 5.0
    temperature_change_c: float = 1.0
    power_change_watts: float = 5.0
    work_change: float = 0.05
    """Of full work."""
    prediction_change_c: float = 2.0
    prediction_error_change_c: float = 0.5


class HostReading(msgspec.Struct, frozen=True, kw_only=True):
    """The host's memory in bytes, and what else it tells of itself as a whole."""

    ram_total: int
    ram_available: int
    swap_total: int
    swap_available: int
    power_watts: float | None = None
    """Of the whole machine."""
    efficiency_cores_percent: float | None = None
    performance_cores_percent: float | None = None
    """Both None where the cores are alike, or nobody tells."""


def state_of(
    device: GPUDevice,
    node_id: NodeId,
    reading: DeviceReading | None,
    *,
    health: tuple[Health, str | None],
    now: str,
    thermal: ThermalStatus | None = None,
) -> DeviceGPUState:
    """Return a device's telemetry.

    Args:
        device: What it is.
        node_id: Whose it is.
        reading: What it said; None: it did not answer.
        health: How it is, and why not better.
        now: ISO 8601 UTC time.
        thermal: How its heat is governed.
    """
    said = reading if reading is not None else DeviceReading()
    total_bytes = said.memory_total_bytes
    return DeviceGPUState(
        device_id=device.device_id,
        node_id=node_id,
        memory_used_bytes=said.memory_used_bytes,
        memory_total_bytes=total_bytes if total_bytes is not None else device.memory_total_bytes,
        compute_utilization_percent=said.compute_utilization_percent,
        thermal_temperature_c=said.temperature_c,
        thermal_throttle_threshold_c=said.throttle_threshold_c,
        is_thermal_throttling=said.is_thermal_throttling,
        power_watts=said.power_watts,
        clock_mhz=said.clock_mhz,
        battery_percent=said.battery_percent,
        is_plugged_in=said.is_plugged_in,
        health=health[0],
        health_reason=health[1],
        last_update=now,
        throttle_reasons=said.throttle_reasons,
        power_limit_watts=said.power_limit_watts,
        clock_max_mhz=said.clock_max_mhz,
        ecc_corrected_count=said.ecc_corrected_count,
        ecc_uncorrected_count=said.ecc_uncorrected_count,
        faults=said.faults,
        processes=said.processes,
        is_memory_pressed=said.is_memory_pressed,
        energy_joules=said.energy_joules,
        thermal=thermal,
    )


def has_changed(before: DeviceGPUState, after: DeviceGPUState, thresholds: Thresholds) -> bool:
    """Say whether a state differs enough from the one told last; a value that appears or vanishes does."""
    steps = (
        (before.memory_used_bytes, after.memory_used_bytes, thresholds.memory_change_bytes),
        (
            before.compute_utilization_percent,
            after.compute_utilization_percent,
            thresholds.utilization_change_percent,
        ),
        (before.thermal_temperature_c, after.thermal_temperature_c, thresholds.temperature_change_c),
        (before.power_watts, after.power_watts, thresholds.power_change_watts),
        (before.battery_percent, after.battery_percent, 1.0),
    )
    if any(_differs(old, new, step) for old, new, step in steps):
        return True
    if _plain_part(before) != _plain_part(after):
        return True
    return _thermal_changed(before.thermal, after.thermal, thresholds) or _processes_changed(
        before.processes, after.processes, thresholds.memory_change_bytes
    )


def _thermal_changed(
    before: ThermalStatus | None, after: ThermalStatus | None, thresholds: Thresholds
) -> bool:
    """Say so for the numbers; the reason is words for them."""
    if before is None or after is None:
        return before is not after
    if (before.state, before.limit_c, before.is_calibrated, before.power_source) != (
        after.state,
        after.limit_c,
        after.is_calibrated,
        after.power_source,
    ):
        return True
    steps = (
        (before.work_fraction, after.work_fraction, thresholds.work_change),
        (before.sustained_fraction, after.sustained_fraction, thresholds.work_change),
        (before.predicted_temperature_c, after.predicted_temperature_c, thresholds.prediction_change_c),
        (before.prediction_error_c, after.prediction_error_c, thresholds.prediction_error_change_c),
    )
    return any(_differs(old, new, step) for old, new, step in steps)


def _plain_part(state: DeviceGPUState) -> tuple[object, ...]:
    """Return what is told as soon as it changes at all."""
    return (
        state.memory_total_bytes,
        state.is_thermal_throttling,
        state.throttle_reasons,
        state.power_limit_watts,
        state.thermal_throttle_threshold_c,
        state.clock_max_mhz,
        state.is_plugged_in,
        state.health,
        state.health_reason,
        state.ecc_corrected_count,
        state.ecc_uncorrected_count,
        state.faults,
        state.is_memory_pressed,
    )


def _processes_changed(
    before: tuple[ProcessMemory, ...] | None, after: tuple[ProcessMemory, ...] | None, step_bytes: int
) -> bool:
    if before is None or after is None:
        return before is not after
    held = {one.pid: one.used_bytes for one in before}
    if held.keys() != {one.pid for one in after}:
        return True
    return any(_differs(held[one.pid], one.used_bytes, step_bytes) for one in after)


def node_profile(
    devices: Sequence[tuple[GPUDevice, DeviceGPUState | None]],
    host: HostReading,
    refused: tuple[DeviceRefusal, ...] = (),
) -> NodePerformanceProfile:
    """Sum a host up. Only devices with memory of their own add to VRAM; the CPU is no GPU.

    A sum of which a part is not known is not known either: what is used and free of the VRAM is None then.

    Args:
        devices: All of the host's, with their telemetry; None: there is none, as with `EXO_GPU_TELEMETRY=0`.
        host: Its memory, and the rest.
        refused: Devices that are there and are not used.
    """
    gpus = [(device, state) for device, state in devices if device.backend != "cpu"]
    vram = [(device, state) for device, state in gpus if device.memory_kind == "vram"]
    processor = next((state for device, state in devices if device.backend == "cpu"), None)
    read = [state for _, state in gpus if state is not None]
    powers = [state.power_watts for state in read if state.power_watts is not None]
    usages = [
        state.compute_utilization_percent for state in read if state.compute_utilization_percent is not None
    ]
    processor_percent = processor.compute_utilization_percent if processor is not None else None
    fast_percent = host.performance_cores_percent
    return NodePerformanceProfile(
        memory=MemoryProfile(
            ram_total=host.ram_total,
            ram_available=host.ram_available,
            swap_total=host.swap_total,
            swap_available=host.swap_available,
            gpu_vram_total=sum(device.memory_total_bytes for device, _ in vram),
            gpu_vram_available=_sum(state and state.memory_free_bytes for _, state in vram),
            gpu_vram_used=_sum(state and state.memory_used_bytes for _, state in vram),
        ),
        system=SystemProfile(
            gpu_usage=sum(usages) / len(usages) if usages else None,
            temp=processor.thermal_temperature_c if processor is not None else None,
            sys_power=_machine_watts(host, processor, [state for _, state in gpus]),
            pcpu_usage=processor_percent if fast_percent is None else fast_percent,
            ecpu_usage=host.efficiency_cores_percent,
            utilization_memory_percent=round(100 * (1 - host.ram_available / host.ram_total), 1),
            gpu_count=len(gpus),
            gpu_names=tuple(device.name for device, _ in gpus),
            gpu_power_watts=sum(powers) if powers else None,
        ),
        refused_devices=refused,
    )


def _machine_watts(
    host: HostReading, processor: DeviceGPUState | None, gpus: Sequence[DeviceGPUState | None]
) -> float | None:
    """Return what the machine counts itself; else its processor and GPUs together, where each of them tells."""
    if host.power_watts is not None:
        return host.power_watts
    parts = [None if one is None else one.power_watts for one in (processor, *gpus)]
    known = [one for one in parts if one is not None]
    return sum(known) if len(known) == len(parts) else None


def _sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def profile_changed(
    before: NodePerformanceProfile, after: NodePerformanceProfile, thresholds: Thresholds
) -> bool:
    """Say whether a host's sum differs enough from the one told last."""
    if (before.refused_devices, before.system.gpu_names) != (after.refused_devices, after.system.gpu_names):
        return True
    had, has, was, now = before.memory, after.memory, before.system, after.system
    steps = (
        (had.ram_total, has.ram_total, 1),
        (had.ram_available, has.ram_available, thresholds.memory_change_bytes),
        (had.swap_total, has.swap_total, 1),
        (had.swap_available, has.swap_available, thresholds.memory_change_bytes),
        (had.gpu_vram_total, has.gpu_vram_total, 1),
        (had.gpu_vram_available, has.gpu_vram_available, thresholds.memory_change_bytes),
        (had.gpu_vram_used, has.gpu_vram_used, thresholds.memory_change_bytes),
        (was.gpu_usage, now.gpu_usage, thresholds.utilization_change_percent),
        (was.pcpu_usage, now.pcpu_usage, thresholds.utilization_change_percent),
        (was.ecpu_usage, now.ecpu_usage, thresholds.utilization_change_percent),
        (was.temp, now.temp, thresholds.temperature_change_c),
        (was.sys_power, now.sys_power, thresholds.power_change_watts),
        (was.gpu_power_watts, now.gpu_power_watts, thresholds.power_change_watts),
    )
    return any(_differs(old, new, step) for old, new, step in steps)


def _differs(old: float | None, new: float | None, step: float) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) >= step
