"""Samples one NVIDIA GPU, or a part of one (MIG): some values at every reading, the others from time to time."""

import time
from collections.abc import Callable
from typing import Any

from exo.gpu.backends.cuda.nvml_events import NvmlEvents
from exo.gpu.backends.cuda.nvml_library import NvmlDevice, NvmlLibrary
from exo.gpu.backends.cuda.throttling import throttle_reasons
from exo.gpu.driver import FoundDevice
from exo.gpu.errors import DeviceLostError
from exo.gpu.host_memory import HostMemory
from exo.gpu.rarely import Rarely
from exo.gpu.reading import DeviceFault, DeviceReading, MemoryInfo, ProcessMemory
from exo.gpu.xids import describe, weight_of

_SENSOR = 0
_SLOWDOWN = 1
_GPU_MAX = 3
SM_CLOCK = 1
MEMORY_CLOCK = 2
_CORRECTED = 0
_UNCORRECTED = 1
_SINCE_START = 0
_RARELY_AT_ONCE_MAX = 2


class WatchedDevice:
    """One device as NVML tells of it. Of one thread at a time.

    Args:
        found: What it is.
        itself: It, or the part of a GPU that it is.
        chip: The GPU that it is, or is a part of: temperature, clocks and errors are the chip's.
        gpu_instance: Of a part.
        clock: Monotonic seconds.
        host_memory: Read where the GPU has no memory of its own.
    """

    def __init__(
        self,
        library: NvmlLibrary,
        found: FoundDevice,
        itself: NvmlDevice,
        chip: NvmlDevice,
        gpu_instance: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        host_memory: Callable[[], HostMemory],
    ) -> None:
        self.found = found
        self.itself = itself
        self.chip = chip
        self._library = library
        self._host_memory = host_memory
        self._events = NvmlEvents(library, chip, gpu_instance, clock)
        is_part = itself is not chip
        self._rarely = Rarely(
            {
                # Nobody is told of another clock alone, so that it may be as old as this anyway.
                "clock": (6.0, lambda: self._of_chip("nvmlDeviceGetClockInfo", SM_CLOCK)),
                "threshold": (300.0, self._threshold_c),
                "clock_max": (600.0, lambda: self._of_chip("nvmlDeviceGetMaxClockInfo", SM_CLOCK)),
                "power_limit": (
                    60.0,
                    lambda: None if is_part else self._of_chip("nvmlDeviceGetEnforcedPowerLimit"),
                ),
                # As with power, of a part it is known to nobody.
                "energy": (
                    10.0,
                    lambda: None if is_part else self._of_chip("nvmlDeviceGetTotalEnergyConsumption"),
                ),
                "corrected": (10.0, lambda: self._ecc_count(_CORRECTED)),
                "uncorrected": (10.0, lambda: self._ecc_count(_UNCORRECTED)),
                "rows": (60.0, lambda: self._of_chip("nvmlDeviceGetRemappedRows")),
                "processes": (10.0, self._processes),
            },
            clock,
        )

    def read(self) -> DeviceReading:
        """Return a sample.

        Raises:
            DeviceLostError: It does not answer.
        """
        self.itself.begin()
        self.chip.begin()
        memory = self._memory()
        utilization: Any = self._of_itself("nvmlDeviceGetUtilizationRates")
        temperature_c = self._temperature_c()
        # The power of a part is known to nobody, and that of the whole chip would be counted once for every part.
        power_mw = None if self._is_part else self._of_chip("nvmlDeviceGetPowerUsage")
        bits = self._throttle_bits()
        self._rarely.refresh(_RARELY_AT_ONCE_MAX)
        self._check_answers()
        # Last: they are lost with a reading that fails, and the library may only now have begun anew.
        xids = self._events.take()
        reasons = None if bits is None else throttle_reasons(bits)
        return DeviceReading(
            memory_total_bytes=None if memory is None else memory.total_bytes,
            memory_used_bytes=None if memory is None else memory.used_bytes,
            compute_utilization_percent=None if utilization is None else float(utilization.gpu),
            temperature_c=temperature_c,
            throttle_threshold_c=self._rarely["threshold"],
            is_thermal_throttling=None if reasons is None else "thermal" in reasons,
            throttle_reasons=reasons,
            power_watts=_from_thousandths(power_mw),
            power_limit_watts=_from_thousandths(self._rarely["power_limit"]),
            clock_mhz=_as_float(self._rarely["clock"]),
            clock_max_mhz=_as_float(self._rarely["clock_max"]),
            ecc_corrected_count=self._rarely["corrected"],
            ecc_uncorrected_count=self._rarely["uncorrected"],
            energy_joules=_from_thousandths(self._rarely["energy"]),
            faults=self._faults(xids),
            processes=self._rarely["processes"],
        )

    def memory(self) -> MemoryInfo:
        """Return how much memory there is, and how much is in use.

        Raises:
            DeviceLostError: It does not answer.
        """
        return self._memory() or MemoryInfo(total_bytes=self.found.memory_total_bytes)

    def close(self) -> None:
        """Stop to listen for its errors."""
        self._events.close()

    @property
    def _is_part(self) -> bool:
        return self.itself is not self.chip

    def _of_itself(self, call: str, *arguments: Any) -> Any:
        return self._library.ask_device(self.itself, call, *arguments)

    def _of_chip(self, call: str, *arguments: Any) -> Any:
        return self._library.ask_device(self.chip, call, *arguments)

    def _memory(self) -> MemoryInfo | None:
        if self.found.memory_kind == "unified":
            host = self._host_memory()
            return MemoryInfo(
                total_bytes=host.total_bytes, used_bytes=host.total_bytes - host.available_bytes
            )
        memory: Any = self._of_itself("nvmlDeviceGetMemoryInfo")
        if memory is None:
            return None
        return MemoryInfo(total_bytes=int(memory.total), used_bytes=int(memory.used))

    def _temperature_c(self) -> float | None:
        return _as_float(self._of_chip("nvmlDeviceGetTemperature", _SENSOR))

    def _threshold_c(self) -> float | None:
        """Where it is slowed down: the lower of the driver's limit and the hardware's, or what is left until there."""
        limits = [self._of_chip("nvmlDeviceGetTemperatureThreshold", kind) for kind in (_GPU_MAX, _SLOWDOWN)]
        known = [float(limit) for limit in limits if limit]
        if known:
            return min(known)
        margin = self._of_chip("nvmlDeviceGetMarginTemperature")
        temperature_c = None if margin is None else self._temperature_c()
        return None if margin is None or temperature_c is None else temperature_c + float(margin)

    def _throttle_bits(self) -> int | None:
        bits = self._of_chip("nvmlDeviceGetCurrentClocksEventReasons")
        # Its name before driver 535.
        return bits if bits is not None else self._of_chip("nvmlDeviceGetCurrentClocksThrottleReasons")

    def _ecc_count(self, kind: int) -> int | None:
        return self._of_chip("nvmlDeviceGetTotalEccErrors", kind, _SINCE_START)

    def _processes(self) -> tuple[ProcessMemory, ...] | None:
        found: Any = self._of_itself("nvmlDeviceGetComputeRunningProcesses")
        if found is None:
            return None
        return tuple(ProcessMemory(pid=int(one.pid), used_bytes=one.usedGpuMemory) for one in found)

    def _faults(self, xids: list[int]) -> tuple[DeviceFault, ...]:
        """Errors since the last reading, and what is wrong for as long as it is."""
        faults = [
            DeviceFault(kind="xid", code=xid, message=describe(xid), is_fatal=weight_of(xid) == "fatal")
            for xid in xids
        ]
        rows = self._rarely["rows"]
        if rows is not None and rows[3]:
            faults.append(
                DeviceFault(
                    kind="ecc", message="its memory can no longer be repaired: replace it", is_fatal=True
                )
            )
        if self.itself.needs_reset or self.chip.needs_reset:
            faults.append(
                DeviceFault(
                    kind="reset_required", message="it has to be reset: restart the machine", is_fatal=True
                )
            )
        elif rows is not None and rows[2]:
            message = "broken rows of its memory are replaced at the next reset: restart the machine soon"
            faults.append(DeviceFault(kind="reset_required", message=message, is_fatal=False))
        return tuple(faults)

    def _check_answers(self) -> None:
        parts = (self.itself, self.chip)
        if any(part.failures for part in parts) and not any(part.answers for part in parts):
            why = self.itself.last_failure or self.chip.last_failure
            if not any(part.needs_reset for part in parts):
                raise DeviceLostError(f"the GPU {self.found.uuid} answers nothing ({why})")


def _as_float(value: int | None) -> float | None:
    return None if value is None else float(value)


def _from_thousandths(value: int | None) -> float | None:
    return None if value is None else value / 1000
