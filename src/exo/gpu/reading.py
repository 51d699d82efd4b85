"""What a device says of itself at one moment, before a node and a time are put to it. Unknown is None."""

import msgspec

from exo.shared.types.devices import DeviceFault, ProcessMemory, ThrottleReason

__all__ = ["DeviceFault", "DeviceReading", "MemoryInfo", "ProcessMemory", "ThrottleReason"]


class MemoryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A device's memory in bytes."""

    total_bytes: int
    used_bytes: int | None = None
    """By everybody, not by this process alone."""


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One sample: bytes, percent 0 to 100, Celsius, watts, joules, MHz."""

    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    compute_utilization_percent: float | None = None
    temperature_c: float | None = None
    throttle_threshold_c: float | None = None
    is_thermal_throttling: bool | None = None
    throttle_reasons: tuple[ThrottleReason, ...] | None = None
    """None: the device does not tell; empty: it is not held back."""
    power_watts: float | None = None
    power_limit_watts: float | None = None
    clock_mhz: float | None = None
    clock_max_mhz: float | None = None
    battery_percent: float | None = None
    is_plugged_in: bool | None = None
    ecc_corrected_count: int | None = None
    ecc_uncorrected_count: int | None = None
    faults: tuple[DeviceFault, ...] = ()
    processes: tuple[ProcessMemory, ...] | None = None
    energy_joules: float | None = None
    """Drawn since the driver counts: it only grows, until the driver begins anew."""
    is_memory_pressed: bool | None = None
    """The system says that it is short of memory; None where it does not tell."""
