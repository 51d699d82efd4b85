"""The host's processor as a device: always there. Memory is RAM, and is never called VRAM."""

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from exo.gpu.backends.host_sensors import PackagePower, ProcessorLoad, is_memory_pressed, memory_errors
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.host_memory import read_host_memory
from exo.gpu.rarely import Rarely, WhereThere
from exo.gpu.reading import DeviceReading, MemoryInfo

if TYPE_CHECKING:
    from exo.gpu.backends.host_arrays import HostArray

T = TypeVar("T")

_PACKAGE_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "acpitz")
"""Sensor names that mean the processor as a whole, best first; others (disks, wifi) do not count."""


class CPUDriver(Driver):
    """Reads the processor through psutil and the kernel's files; computes with NumPy."""

    name = "cpu"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._power = PackagePower(clock)
        self._load = ProcessorLoad(clock)
        self._temperature = WhereThere(_temperature, clock)
        self._battery = WhereThere(_battery, clock)
        self._pressure = WhereThere(is_memory_pressed, clock)
        # To look into a file of every core and every memory controller takes longer than all the rest.
        self._rarely = Rarely(
            {
                "frequency": (10.0, lambda: _quietly(psutil.cpu_freq)),
                "memory_errors": (10.0, memory_errors),
            },
            clock,
        )

    def open(self) -> None:
        # The first calls have nothing to compare with.
        self._load.percent()
        self._power.watts()

    def close(self) -> None:
        return

    def find_devices(self) -> Sequence[FoundDevice]:
        frequency = _quietly(psutil.cpu_freq)
        return (
            FoundDevice(
                index=0,
                name=processor_name(),
                vendor=_vendor(),
                memory_kind="ram",
                memory_total_bytes=read_host_memory().total_bytes,
                compute_units=psutil.cpu_count(logical=False) or psutil.cpu_count(),
                clock_mhz=(frequency.max or None) if frequency else None,
            ),
        )

    def read(self, index: int) -> DeviceReading:
        memory = read_host_memory()
        self._rarely.refresh(1)
        frequency: Any = self._rarely["frequency"]
        battery_percent, is_plugged_in = self._battery() or (None, None)
        temperature_c, threshold_c = self._temperature() or (None, None)
        is_hot = None if temperature_c is None or threshold_c is None else temperature_c >= threshold_c
        corrected_count, uncorrected_count = self._rarely["memory_errors"]
        return DeviceReading(
            memory_total_bytes=memory.total_bytes,
            memory_used_bytes=memory.total_bytes - memory.available_bytes,
            compute_utilization_percent=self._load.percent(),
            temperature_c=temperature_c,
            throttle_threshold_c=threshold_c,
            is_thermal_throttling=is_hot,
            power_watts=self._power.watts(),
            clock_mhz=(frequency.current or None) if frequency else None,
            clock_max_mhz=(frequency.max or None) if frequency else None,
            battery_percent=battery_percent,
            is_plugged_in=is_plugged_in,
            ecc_corrected_count=corrected_count,
            ecc_uncorrected_count=uncorrected_count,
            is_memory_pressed=self._pressure(),
        )

    def memory_info(self, index: int) -> MemoryInfo:
        memory = read_host_memory()
        return MemoryInfo(
            total_bytes=memory.total_bytes, used_bytes=memory.total_bytes - memory.available_bytes
        )

    def allocate(self, index: int, size_bytes: int) -> "HostArray":
        from exo.gpu.backends import host_arrays

        return host_arrays.allocate(size_bytes, "the host")

    def free(self, buffer: "HostArray") -> None:
        return  # It goes with the last reference, which the backend had.

    def write(self, buffer: "HostArray", data: memoryview, offset_bytes: int) -> None:
        from exo.gpu.backends import host_arrays

        host_arrays.write(buffer, data, offset_bytes)

    def fetch(self, buffer: "HostArray", offset_bytes: int, size_bytes: int) -> bytes:
        from exo.gpu.backends import host_arrays

        return host_arrays.fetch(buffer, offset_bytes, size_bytes)

    def copy(self, source: "HostArray", destination: "HostArray", size_bytes: int) -> None:
        from exo.gpu.backends import host_arrays

        host_arrays.copy(source, destination, size_bytes)

    def synchronize(self, index: int) -> None:
        return

    def multiply(
        self, left: "HostArray", right: "HostArray", shape: MatrixShape, precision: Precision
    ) -> "HostArray":
        from exo.gpu.backends import host_arrays

        return host_arrays.multiply(left, right, shape, precision)


def processor_name() -> str:
    """Return the processor's own name where the system tells, else its board's, else its architecture."""
    text = _quietly(Path("/proc/cpuinfo").read_text) or ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Hardware"} and value.strip():
            return " ".join(value.split())
    board = (_quietly(Path("/proc/device-tree/model").read_text) or "").strip("\0 \n")
    return board or platform.processor() or platform.machine() or "CPU"


def _vendor() -> str:
    name = processor_name().lower()
    for word, vendor in (("intel", "intel"), ("amd", "amd"), ("apple", "apple"), ("arm", "arm")):
        if word in name:
            return vendor
    if platform.system() == "Darwin":
        return "apple"
    return "arm" if platform.machine().lower().startswith(("arm", "aarch64")) else "unknown"


def _temperature() -> tuple[float, float | None] | None:
    """(hottest processor reading, its critical threshold), in Celsius; None where the machine does not tell."""
    # psutil has no temperatures on macOS and Windows: the function itself is missing there.
    read: Callable[[], dict[str, Any]] | None = getattr(psutil, "sensors_temperatures", None)
    sensors = (_quietly(read) if read is not None else None) or {}
    for name in _PACKAGE_SENSORS:
        readings = [entry for entry in sensors.get(name, []) if entry.current and 0 < entry.current < 150]
        if readings:
            hottest = max(readings, key=lambda entry: entry.current)
            return hottest.current, hottest.critical or hottest.high or None
    return None


def _battery() -> tuple[float, bool | None] | None:
    """(charge in percent, plugged in); None where there is no battery or no way to ask."""
    read: Callable[[], Any] | None = getattr(psutil, "sensors_battery", None)
    battery = _quietly(read) if read is not None else None
    return None if battery is None else (float(battery.percent), battery.power_plugged)


def _quietly(read: Callable[[], T]) -> T | None:
    """Call `read`; a system that does not tell (containers, other platforms) gives None."""
    try:
        return read()
    except (OSError, RuntimeError, AttributeError, ValueError):
        return None
