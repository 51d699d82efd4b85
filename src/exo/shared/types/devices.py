"""Devices and hosts: what they are (static) and how they are (telemetry). Unknown is None, never a guess."""

from typing import Literal

import msgspec

from exo.shared.types.ids import DeviceId, NodeId

Backend = Literal["cuda", "rocm", "metal", "directml", "tflite", "cpu", "simulated", "intel"]
Health = Literal["healthy", "degraded", "failed"]
MemoryKind = Literal["vram", "ram", "unified"]
SupportLevel = Literal["full", "monitoring"]
"""`full`: computes, and was seen to compute right; `monitoring`: its driver here only tells how it is."""
ThrottleReason = Literal["thermal", "power", "power_brake", "hardware", "software", "other"]
ThermalState = Literal["cool", "warm", "starting", "slowed", "paused", "unknown"]
"""`warm`: full work, but close to where work is slowed down. `starting`: it is cool, and has not worked enough to know
how it heats. `slowed` and `paused`: exo itself holds its work back, for heat or for the battery. `unknown`: full work;
the device tells no temperature."""
PowerSource = Literal["measured", "estimated", "none"]
"""`estimated`: from the utilization and the power limit, where the device does not tell its power."""


class ProcessMemory(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one process of the host holds on a device."""

    pid: int
    used_bytes: int | None = None


class DeviceFault(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class GPUDevice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One device that can hold and run layers; the host's CPU counts as one."""

    device_id: DeviceId
    local_alias: str
    """What the node itself calls it, such as `cuda:0` or `cpu:0`."""
    name: str
    vendor: str
    backend: Backend
    memory_kind: MemoryKind
    memory_total_bytes: int
    compute_units: int | None = None
    compute_capability: str | None = None
    clock_mhz: float | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    flops_per_s: float | None = None
    driver_version: str | None = None
    uuid: str | None = None
    is_simulated: bool = False
    pci_address: str | None = None
    support_level: SupportLevel | None = None
    measured_memory_bandwidth_bytes_per_s: float | None = None
    """What it really reads, measured on it; only where nobody tells what it can do."""
    measured_flops_per_s: float | None = None
    """The same of its arithmetic: in float32 on a processor, in float16 on a GPU."""
    number: int | None = None
    """Of a GPU within its node, as `gpu_id` of metrics: the same from the node's start to its end, whatever others come
    or go."""


class ThermalStatus(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a device's heat is governed. What is not known, or not calibrated yet, is None."""

    state: ThermalState
    reason: str
    """For a person."""
    work_fraction: float
    """How much of the time exo works on it, 0 to 1."""
    limit_c: float | None = None
    is_limit_assumed: bool = False
    """The device does not tell its limit: it is the one of its class."""
    predicted_temperature_c: float | None = None
    """In 30 seconds, at this much work."""
    prediction_error_c: float | None = None
    """Root mean square of how far such predictions were off lately, the sensor's noise included."""
    sustained_fraction: float | None = None
    """How much of full work it is predicted to hold for good, 0 to 1."""
    is_calibrated: bool = False
    power_source: PowerSource = "none"


class DeviceGPUState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A device's telemetry at one moment."""

    device_id: DeviceId
    node_id: NodeId
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    compute_utilization_percent: float | None = None
    thermal_temperature_c: float | None = None
    thermal_throttle_threshold_c: float | None = None
    is_thermal_throttling: bool | None = None
    power_watts: float | None = None
    clock_mhz: float | None = None
    battery_percent: float | None = None
    is_plugged_in: bool | None = None
    health: Health = "healthy"
    health_reason: str | None = None
    last_update: str
    """ISO 8601, UTC: for people to read, never for decisions."""
    throttle_reasons: tuple[ThrottleReason, ...] | None = None
    """None: the device does not tell; empty: it is not held back."""
    power_limit_watts: float | None = None
    clock_max_mhz: float | None = None
    ecc_corrected_count: int | None = None
    ecc_uncorrected_count: int | None = None
    faults: tuple[DeviceFault, ...] = ()
    processes: tuple[ProcessMemory, ...] | None = None
    """Those that hold most of its memory, largest first."""
    is_memory_pressed: bool | None = None
    """The system says that it is short of memory; None where it does not tell."""
    thermal: ThermalStatus | None = None
    """None: nothing governs its heat, as with `EXO_THERMAL=0`."""
    energy_joules: float | None = None
    """Drawn since the driver counts: it only grows, until the driver begins anew."""

    @property
    def memory_free_bytes(self) -> int | None:
        """Total less used, or None where either is unknown."""
        if self.memory_total_bytes is None or self.memory_used_bytes is None:
            return None
        return max(0, self.memory_total_bytes - self.memory_used_bytes)


RefusalKind = Literal["wrong", "unchecked", "hanging", "duplicate", "unavailable"]
"""`wrong`: it computed wrongly. `unchecked`: its check has not ended. `hanging`: its driver has not answered, at the
start or in its check. `duplicate`: another driver has it. `unavailable`: what its driver needs is missing or too
old."""


class DeviceRefusal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A device that is there, or all those of one driver, and is not used. Nothing is ever placed on it."""

    backend: Backend
    kind: RefusalKind
    name: str
    """For people: the device's, or what the driver is for."""
    local_alias: str | None = None
    """What it would be called, such as `cuda:1`; None where no single device is known."""
    reason: str
    next_step: str = ""
    """What somebody can do about it; empty where the reason says it."""


class MemoryProfile(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A host's memory in bytes."""

    ram_total: int
    ram_available: int
    swap_total: int
    swap_available: int
    gpu_vram_total: int = 0
    gpu_vram_available: int | None = 0
    """None: of a device with memory of its own nobody knows how much of it is in use."""
    gpu_vram_used: int | None = 0


class SystemProfile(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A host's load: percent 0 to 100, Celsius, watts."""

    gpu_usage: float | None = None
    temp: float | None = None
    sys_power: float | None = None
    """Of the machine as it counts itself; else of its processor and GPUs together, where each of them tells."""
    pcpu_usage: float | None = None
    """Of the performance cores; of all where they are alike."""
    ecpu_usage: float | None = None
    """Of the efficiency cores, where there are such and the system tells them apart."""
    ane_power: float | None = None
    utilization_memory_percent: float | None = None
    gpu_count: int = 0
    gpu_names: tuple[str, ...] = ()
    gpu_power_watts: float | None = None


class NodePerformanceProfile(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one host says of itself as a whole."""

    memory: MemoryProfile
    system: SystemProfile
    refused_devices: tuple[DeviceRefusal, ...] = ()
    """Devices that were found and are not used, with the reason."""
