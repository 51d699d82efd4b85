"""The driver of simulated devices: plays a machine's file over time, and computes on the host."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from exo.gpu.backends.simulated import machine as m
from exo.gpu.backends.simulated.physics import Condition, advance, begin
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.errors import DeviceLostError, OutOfDeviceMemoryError
from exo.gpu.reading import DeviceFault, DeviceReading, MemoryInfo, ProcessMemory

if TYPE_CHECKING:
    from exo.gpu.backends.host_arrays import HostArray

F = TypeVar("F", bound=m.Fault)

_LOOK_S = 0.02
"""Between looks at whether a hang is over."""


class SimulatedMemory(msgspec.Struct, kw_only=True, eq=False):
    """Memory of the host that plays the device's."""

    index: int
    size_bytes: int
    array: "HostArray"
    made_at_s: float


class SimulatedDriver(Driver):
    """Everything follows from the file, the clock and what is done to the devices: two runs are equal.

    Args:
        machine: What to play.
        clock: Seconds; the play begins when the driver is opened for the first time.
    """

    name = "simulated"

    def __init__(self, machine: m.SimulatedMachine, clock: Callable[[], float] = time.monotonic) -> None:
        self._machine = machine
        self._clock = clock
        self._began_at_s: float | None = None
        self._lock = threading.Lock()
        self._conditions: list[Condition] = [begin(device) for device in machine.devices]
        self._overrides: dict[int, m.LoadStep] = {}
        self._used_bytes = [0] * len(machine.devices)
        self._is_closed = threading.Event()

    def open(self) -> None:
        self._is_closed.clear()
        if self._began_at_s is None:
            self._began_at_s = self._clock()

    def close(self) -> None:
        self._is_closed.set()

    def set_load(self, index: int, utilization_percent: float | None, memory_used_bytes: int = 0) -> None:
        """Have a device carry this from now on, whatever its schedule says; None: its schedule again."""
        self._condition(index)
        with self._lock:
            if utilization_percent is None:
                self._overrides.pop(index, None)
            else:
                self._overrides[index] = m.LoadStep(
                    at_s=0, utilization_percent=utilization_percent, memory_used_bytes=memory_used_bytes
                )

    def find_devices(self) -> Sequence[FoundDevice]:
        return [
            FoundDevice(
                index=index,
                name=f"{device.name} (simulated)",
                vendor=device.vendor,
                memory_kind=device.memory_kind,
                memory_total_bytes=device.memory_total_bytes,
                uuid=device.uuid,
                pci_address=device.pci_address,
                compute_units=device.compute_units,
                compute_capability=device.compute_capability,
                clock_mhz=device.clock_max_mhz,
                memory_bandwidth_bytes_per_s=device.memory_bandwidth_bytes_per_s,
                flops_per_s=device.flops_per_s,
                driver_version=device.driver_version,
            )
            for index, device in enumerate(self._machine.devices)
            if self._fault(index, m.Vanished) is None
        ]

    def read(self, index: int) -> DeviceReading:
        self._reach(index)
        device, condition = self._machine.devices[index], self._condition(index)
        used_bytes = min(
            device.memory_total_bytes, condition.load.memory_used_bytes + self._used_bytes[index]
        )
        clock_max_mhz = device.clock_max_mhz
        wanted_percent = condition.load.utilization_percent
        slowed = condition.work_percent / wanted_percent if wanted_percent else 1.0
        ecc = self._faults(index, m.Ecc)
        own_bytes = self._used_bytes[index]
        battery = device.battery
        reading = DeviceReading(
            memory_total_bytes=device.memory_total_bytes,
            memory_used_bytes=used_bytes,
            compute_utilization_percent=float(round(wanted_percent)),
            temperature_c=None if condition.temperature_c is None else float(round(condition.temperature_c)),
            throttle_threshold_c=device.heat.throttle_c if device.heat is not None else None,
            is_thermal_throttling=condition.is_throttling if device.heat is not None else None,
            throttle_reasons=None
            if device.heat is None
            else (("thermal",) if condition.is_throttling else ()),
            power_watts=None if condition.power_watts is None else round(condition.power_watts, 1),
            power_limit_watts=device.power.limit_watts if device.power is not None else None,
            clock_mhz=None if clock_max_mhz is None else float(round(clock_max_mhz * slowed)),
            clock_max_mhz=clock_max_mhz,
            battery_percent=None
            if condition.battery_percent is None
            else round(condition.battery_percent, 1),
            is_plugged_in=battery.is_plugged_in if battery is not None else None,
            ecc_corrected_count=sum(one.corrected_count for one in ecc) if device.has_ecc or ecc else None,
            ecc_uncorrected_count=sum(one.uncorrected_count for one in ecc)
            if device.has_ecc or ecc
            else None,
            faults=tuple(
                DeviceFault(kind="xid", code=one.code, message=one.message, is_fatal=one.is_fatal)
                for one in self._faults(index, m.Xid)
            ),
            processes=(ProcessMemory(pid=os.getpid(), used_bytes=own_bytes),) if own_bytes else (),
        )
        nonsense = self._fault(index, m.Nonsense)
        return msgspec.structs.replace(reading, **nonsense.values) if nonsense is not None else reading

    def memory_info(self, index: int) -> MemoryInfo:
        reading = self.read(index)
        total_bytes = self._machine.devices[index].memory_total_bytes
        return MemoryInfo(total_bytes=total_bytes, used_bytes=reading.memory_used_bytes)

    def allocate(self, index: int, size_bytes: int) -> SimulatedMemory:
        from exo.gpu.backends import host_arrays

        self._reach(index)
        device, condition = self._machine.devices[index], self._condition(index)
        with self._lock:
            free_bytes = (
                device.memory_total_bytes - condition.load.memory_used_bytes - self._used_bytes[index]
            )
            if self._fault(index, m.OutOfMemory) is not None:
                free_bytes = 0
            if size_bytes > free_bytes:
                raise OutOfDeviceMemoryError(
                    f"{device.name} (simulated) has {max(0, free_bytes)} bytes free, "
                    f"{size_bytes - max(0, free_bytes)} fewer than the {size_bytes} asked for"
                )
            array = host_arrays.allocate(size_bytes, "the host, which plays this device,")
            self._used_bytes[index] += size_bytes
        return SimulatedMemory(index=index, size_bytes=size_bytes, array=array, made_at_s=self._now_s())

    def free(self, buffer: SimulatedMemory) -> None:
        with self._lock:
            self._used_bytes[buffer.index] -= buffer.size_bytes

    def write(self, buffer: SimulatedMemory, data: memoryview, offset_bytes: int) -> None:
        from exo.gpu.backends import host_arrays

        self._reach_memory(buffer)
        host_arrays.write(buffer.array, data, offset_bytes)

    def fetch(self, buffer: SimulatedMemory, offset_bytes: int, size_bytes: int) -> bytes:
        from exo.gpu.backends import host_arrays

        self._reach_memory(buffer)
        return host_arrays.fetch(buffer.array, offset_bytes, size_bytes)

    def copy(self, source: SimulatedMemory, destination: SimulatedMemory, size_bytes: int) -> None:
        from exo.gpu.backends import host_arrays

        self._reach_memory(source)
        self._reach_memory(destination)
        host_arrays.copy(source.array, destination.array, size_bytes)

    def synchronize(self, index: int) -> None:
        self._reach(index)

    def multiply(
        self, left: SimulatedMemory, right: SimulatedMemory, shape: MatrixShape, precision: Precision
    ) -> SimulatedMemory:
        from exo.gpu.backends import host_arrays

        self._reach_memory(left)
        self._reach_memory(right)
        made = self.allocate(left.index, shape.rows * shape.columns * 4)
        made.array = host_arrays.multiply(left.array, right.array, shape, precision)
        if self._fault(left.index, m.WrongAnswers) is not None:
            made.array[:4] ^= 0x40
        return made

    def _now_s(self) -> float:
        return self._clock() - (self._began_at_s if self._began_at_s is not None else self._clock())

    def _condition(self, index: int) -> Condition:
        with self._lock:
            now_s = max(self._conditions[index].at_s, self._now_s())
            device, override = self._machine.devices[index], self._overrides.get(index)
            self._conditions[index] = advance(device, self._conditions[index], now_s, override)
            return self._conditions[index]

    def _faults(self, index: int, kind: type[F]) -> list[F]:
        now_s = self._now_s()
        faults = self._machine.devices[index].faults
        return [one for one in faults if isinstance(one, kind) and one.is_on(now_s)]

    def _fault(self, index: int, kind: type[F]) -> F | None:
        return next(iter(self._faults(index, kind)), None)

    def _reach(self, index: int) -> None:
        """Take the time that a call takes, and fail where the device does."""
        device = self._machine.devices[index]
        if device.call_latency_ms:
            self._is_closed.wait(device.call_latency_ms / 1000)
        while self._fault(index, m.Hang) is not None and not self._is_closed.wait(_LOOK_S):
            pass
        if self._fault(index, m.Lost) is not None or self._fault(index, m.Vanished) is not None:
            raise DeviceLostError(f"{device.name} (simulated) is lost")

    def _reach_memory(self, buffer: SimulatedMemory) -> None:
        self._reach(buffer.index)
        now_s = self._now_s()
        for fault in self._machine.devices[buffer.index].faults:
            if isinstance(fault, m.Lost | m.Vanished) and buffer.made_at_s <= fault.at_s <= now_s:
                raise DeviceLostError("the device was lost and came back without what it held")
