"""The host's processor as a device: always there. Memory is RAM, and is never called VRAM."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from exo.gpu.backend import GPUBackend
from exo.gpu.host_memory import read_host_memory
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.ids import NodeId, device_id

T = TypeVar("T")

_ALIAS = "cpu:0"
_PACKAGE_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "acpitz")
"""Sensor names that mean the processor as a whole, best first; others (disks, wifi) do not count."""


class CPUBackend(GPUBackend):
    """Reads the processor through psutil."""

    name = "cpu"

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._device: GPUDevice | None = None

    def initialize(self) -> None:
        frequency = _quietly(psutil.cpu_freq)
        self._device = GPUDevice(
            device_id=device_id(self._node_id, _ALIAS),
            local_alias=_ALIAS,
            name=processor_name(),
            vendor=_vendor(),
            backend="cpu",
            memory_kind="ram",
            memory_total_bytes=read_host_memory().total_bytes,
            compute_units=psutil.cpu_count(logical=False) or psutil.cpu_count(),
            clock_mhz=(frequency.max or frequency.current or None) if frequency else None,
        )
        # The first call has nothing to compare with and would say 0 %.
        psutil.cpu_percent(interval=None)

    def shutdown(self) -> None:
        self._device = None

    def list_devices(self) -> Sequence[GPUDevice]:
        return () if self._device is None else (self._device,)

    def read_state(self, device: GPUDevice, *, now: str) -> DeviceGPUState:
        memory = read_host_memory()
        frequency = _quietly(psutil.cpu_freq)
        battery_percent, is_plugged_in = _battery()
        temperature_c, threshold_c = _temperature()
        return DeviceGPUState(
            device_id=device.device_id,
            node_id=self._node_id,
            memory_used_bytes=memory.total_bytes - memory.available_bytes,
            memory_total_bytes=memory.total_bytes,
            compute_utilization_percent=psutil.cpu_percent(interval=None),
            thermal_temperature_c=temperature_c,
            thermal_throttle_threshold_c=threshold_c,
            is_thermal_throttling=None
            if temperature_c is None or threshold_c is None
            else temperature_c >= threshold_c,
            clock_mhz=frequency.current if frequency and frequency.current else None,
            battery_percent=battery_percent,
            is_plugged_in=is_plugged_in,
            last_update=now,
        )


def processor_name() -> str:
    """The processor's own name where the system tells, else its architecture."""
    text = _quietly(Path("/proc/cpuinfo").read_text) or ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Hardware"} and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "CPU"


def _vendor() -> str:
    name = processor_name().lower()
    for word, vendor in (("intel", "intel"), ("amd", "amd"), ("apple", "apple"), ("arm", "arm")):
        if word in name:
            return vendor
    return "apple" if platform.system() == "Darwin" else "unknown"


def _temperature() -> tuple[float | None, float | None]:
    """(hottest processor reading, its critical threshold), in Celsius; None where the machine does not tell."""
    # psutil has no temperatures on macOS and Windows: the function itself is missing there.
    read: Callable[[], dict[str, Any]] | None = getattr(psutil, "sensors_temperatures", None)
    sensors = (_quietly(read) if read is not None else None) or {}
    for name in _PACKAGE_SENSORS:
        readings = [entry for entry in sensors.get(name, []) if entry.current and 0 < entry.current < 150]
        if readings:
            hottest = max(readings, key=lambda entry: entry.current)
            return hottest.current, hottest.critical or hottest.high or None
    return None, None


def _battery() -> tuple[float | None, bool | None]:
    """(charge in percent, plugged in); None where there is no battery or no way to ask."""
    read: Callable[[], Any] | None = getattr(psutil, "sensors_battery", None)
    battery = _quietly(read) if read is not None else None
    return (None, None) if battery is None else (float(battery.percent), battery.power_plugged)


def _quietly(read: Callable[[], T]) -> T | None:
    """Call `read`; a system that does not tell (containers, other platforms) gives None."""
    try:
        return read()
    except (OSError, RuntimeError, AttributeError, ValueError):
        return None
