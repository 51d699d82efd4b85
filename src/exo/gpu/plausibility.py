"""Keeps what a device can have measured, and drops what it cannot: no number is better than a wrong one. Pure."""

import math
from typing import Any

import msgspec
from msgspec.structs import replace

from exo.gpu.reading import DeviceReading, MemoryInfo, ProcessMemory

_LIMITS: dict[str, tuple[float, float]] = {
    "compute_utilization_percent": (0, 100),
    "battery_percent": (0, 100),
    # Silicon is dead long before 150 degrees; a sensor that cannot be read says 255, 127 or -128.
    "temperature_c": (-40, 126),
    "throttle_threshold_c": (20, 150),
    # One accelerator of today takes up to 1.4 kW.
    "power_watts": (0, 10_000),
    "power_limit_watts": (0.001, 10_000),
    "clock_mhz": (0, 20_000),
    "clock_max_mhz": (1, 20_000),
    # A thousand watts for three centuries.
    "energy_joules": (0, 1e13),
    # Drivers say "unknown" with the largest number that fits.
    "ecc_corrected_count": (0, 2**62),
    "ecc_uncorrected_count": (0, 2**62),
    "memory_total_bytes": (1, 2**62),
    "memory_used_bytes": (0, 2**62),
}
_COUNTS = frozenset(
    {"ecc_corrected_count", "ecc_uncorrected_count", "memory_total_bytes", "memory_used_bytes"}
)
NUMERIC_FIELDS = frozenset(_LIMITS)
"""Those of a `DeviceReading`."""
PROCESSES_MAX = 16
"""How many processes are told of one device: those that hold most."""
FAULTS_MAX = 16


class Complaint(msgspec.Struct, frozen=True):
    """A value that cannot be true."""

    field: str
    text: str


def plausible(reading: DeviceReading) -> tuple[DeviceReading, tuple[Complaint, ...]]:
    """Return the reading with None for what cannot be true, and what was wrong with it."""
    complaints: list[Complaint] = []
    changes: dict[str, Any] = {}
    for field, (low, high) in _LIMITS.items():
        value: Any = getattr(reading, field)
        if value is None or (_is_number(value, is_count=field in _COUNTS) and low <= value <= high):
            continue
        changes[field] = None
        complaints.append(Complaint(field, f"{value!r} is not between {low:g} and {high:g}"))
    total = changes.get("memory_total_bytes", reading.memory_total_bytes)
    used = changes.get("memory_used_bytes", reading.memory_used_bytes)
    if total is not None and used is not None and used > total:
        changes["memory_used_bytes"] = None
        complaints.append(Complaint("memory_used_bytes", f"{used} bytes of {total} are in use"))
    if reading.processes:
        processes = _plausible_processes(reading.processes, total)
        if processes != reading.processes:
            changes["processes"] = processes
    if len(reading.faults) > FAULTS_MAX:
        changes["faults"] = reading.faults[-FAULTS_MAX:]
    return (replace(reading, **changes) if changes else reading), tuple(complaints)


def plausible_memory(memory: MemoryInfo) -> tuple[MemoryInfo, tuple[Complaint, ...]]:
    """Do the same for what the driver says of memory alone."""
    as_reading = DeviceReading(memory_total_bytes=memory.total_bytes, memory_used_bytes=memory.used_bytes)
    kept, complaints = plausible(as_reading)
    return MemoryInfo(total_bytes=kept.memory_total_bytes or 0, used_bytes=kept.memory_used_bytes), complaints


def _plausible_processes(
    processes: tuple[ProcessMemory, ...], total_bytes: int | None
) -> tuple[ProcessMemory, ...]:
    """Return those that hold most, largest first; a size that exceeds the device's is unknown."""
    kept = [
        one if _fits(one.used_bytes, total_bytes) else ProcessMemory(pid=one.pid)
        for one in processes
        if one.pid > 0
    ]
    kept.sort(key=lambda one: (-(one.used_bytes or 0), one.pid))
    return tuple(kept[:PROCESSES_MAX])


def _fits(used_bytes: int | None, total_bytes: int | None) -> bool:
    if used_bytes is None:
        return True
    return 0 <= used_bytes <= (2**62 if total_bytes is None else total_bytes)


def _is_number(value: Any, *, is_count: bool) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (not is_count and isinstance(value, float) and math.isfinite(value))
