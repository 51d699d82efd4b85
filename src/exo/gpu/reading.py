"""What a device says of itself at one moment, before a node and a time are put to it. Unknown is None."""

from typing import Literal

import msgspec

ThrottleReason = Literal["thermal", "power", "power_brake", "hardware", "software", "other"]


class MemoryInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A device's memory in bytes."""

    total_bytes: int
    used_bytes: int | None = None
    """By everybody, not by this process alone."""


class ProcessMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What one process of the host holds on a device."""

    pid: int
    used_bytes: int | None = None


class DeviceFault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the driver reports of a device, such as NVIDIA's Xid 79.

    Attributes:
        kind: `xid`, `ecc` or `reset_required`.
        code: The driver's own number, where it has one.
        is_fatal: The device cannot be used until it is reset or replaced.
    """

    kind: str
    code: int | None = None
    message: str
    is_fatal: bool


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One sample: bytes, percent 0 to 100, Celsius, watts, MHz."""

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
    is_memory_pressed: bool | None = None
    """The system says that it is short of memory; None where it does not tell."""
