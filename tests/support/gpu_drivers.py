"""The drivers that the contract suite of backends runs against, and a stand-in whose every fault a test chooses."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.backends.cuda import CUDADriver
from exo.gpu.backends.simulated.driver import SimulatedDriver
from exo.gpu.backends.simulated.machine import load_machine
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, DeviceLostError, OutOfDeviceMemoryError
from exo.gpu.reading import DeviceReading, MemoryInfo
from support import cuda_stand_in, metal_stand_in, onnx_stand_in, rocm_stand_in, tflite_stand_in

GIB = 2**30
HARDWARE = Path(__file__).parents[1] / "hardware"
FLOAT32_UNIT = 2.0**-24
"""Half the distance from 1 to the next float32: the largest relative error of one operation."""


class DriverCase(NamedTuple):
    """A driver and what it promises.

    Attributes:
        name: Shown in the test's id.
        make: Returns a driver that was not opened.
        precisions: What it computes in, with the unit roundoff that it sums up in; 0 is exact.
        why_not: Why it cannot run on this machine, or None.
    """

    name: str
    make: Callable[[], Driver]
    precisions: Mapping[Precision, float]
    why_not: Callable[[], str | None] = lambda: None


FLOAT32_SUMS: Mapping[Precision, float] = {
    "float32": FLOAT32_UNIT,
    "float16": FLOAT32_UNIT,
    "bfloat16": FLOAT32_UNIT,
    "int8": 0.0,
}

FLOAT_SUMS: Mapping[Precision, float] = {
    precision: unit for precision, unit in FLOAT32_SUMS.items() if precision != "int8"
}

CASES: list[DriverCase] = [
    DriverCase("cpu", CPUDriver, FLOAT32_SUMS),
    DriverCase("cuda", cuda_stand_in.make, FLOAT32_SUMS, cuda_stand_in.why_not),
    DriverCase("rocm", rocm_stand_in.make, FLOAT32_SUMS),
    DriverCase("metal", metal_stand_in.make, FLOAT32_SUMS, metal_stand_in.why_not),
    DriverCase("directml", onnx_stand_in.make_directml, FLOAT32_SUMS, onnx_stand_in.why_not),
    DriverCase("intel", onnx_stand_in.make_intel, FLOAT32_SUMS, onnx_stand_in.why_not),
    DriverCase("tflite", tflite_stand_in.make, FLOAT_SUMS, tflite_stand_in.why_not),
    DriverCase(
        "simulated", lambda: SimulatedDriver(load_machine(HARDWARE / "pc-mixed-failing.toml")), FLOAT32_SUMS
    ),
]
"""Whoever writes a driver adds it here."""

if cuda_stand_in.has_hardware():
    CASES.append(DriverCase("cuda-hardware", CUDADriver, FLOAT32_SUMS, cuda_stand_in.why_no_hardware))


class ScriptedDriver(Driver):
    """A driver whose devices come, go, hang, get lost and talk nonsense as the test wants.

    Attributes:
        devices: What `find_devices` finds.
        readings: What `read` says, by index.
        lost: Indices that are lost.
        hanging: While its event is not set, every call of a device's blocks, by index.
        buffers: Memory that is allocated.
    """

    name = "simulated"

    def __init__(self, *devices: FoundDevice) -> None:
        self.devices = list(devices)
        self.readings: dict[int, DeviceReading] = {}
        self.lost: set[int] = set()
        self.hanging: dict[int, threading.Event] = {}
        self.blocked = threading.Semaphore(0)
        """Released by each call that begins to hang."""
        self.open_error: Exception | None = None
        self.open_gate: threading.Event | None = None
        self.buffers: list[bytearray] = []
        self.calls: list[str] = []
        self.is_open = False
        self.is_computing = True

    @property
    def computes(self) -> bool:
        return self.is_computing

    def open(self) -> None:
        self.calls.append("open")
        if self.open_gate is not None:
            self.blocked.release()
            assert self.open_gate.wait(20)
        if self.open_error is not None:
            raise self.open_error
        self.is_open = True

    def close(self) -> None:
        self.calls.append("close")
        self.is_open = False

    def find_devices(self) -> Sequence[FoundDevice]:
        return tuple(self.devices)

    def read(self, index: int) -> DeviceReading:
        self._reach(index)
        return self.readings.get(index, DeviceReading(memory_total_bytes=GIB, memory_used_bytes=0))

    def memory_info(self, index: int) -> MemoryInfo:
        self._reach(index)
        return MemoryInfo(total_bytes=GIB, used_bytes=sum(len(one) for one in self.buffers))

    def allocate(self, index: int, size_bytes: int) -> bytearray:
        self._reach(index)
        if size_bytes > GIB:
            raise OutOfDeviceMemoryError("not so much")
        made = bytearray(size_bytes)
        self.buffers.append(made)
        return made

    def free(self, buffer: bytearray) -> None:
        self.calls.append("free")
        for position, one in enumerate(self.buffers):
            if one is buffer:
                del self.buffers[position]
                return
        raise AssertionError("freed twice")

    def write(self, buffer: bytearray, data: memoryview, offset_bytes: int) -> None:
        buffer[offset_bytes : offset_bytes + data.nbytes] = data

    def fetch(self, buffer: bytearray, offset_bytes: int, size_bytes: int) -> bytes:
        return bytes(buffer[offset_bytes : offset_bytes + size_bytes])

    def copy(self, source: bytearray, destination: bytearray, size_bytes: int) -> None:
        destination[:size_bytes] = source[:size_bytes]

    def synchronize(self, index: int) -> None:
        self._reach(index)

    def multiply(
        self, left: bytearray, right: bytearray, shape: MatrixShape, precision: Precision
    ) -> bytearray:
        made = bytearray(shape.rows * shape.columns * 4)
        self.buffers.append(made)
        return made

    def _reach(self, index: int) -> None:
        gate = self.hanging.get(index)
        if gate is not None:
            self.blocked.release()
            assert gate.wait(20)
        if index in self.lost:
            raise DeviceLostError("GPU is lost")


class BrokenDriver(ScriptedDriver):
    """One that cannot be used here."""

    def __init__(
        self, reason: str = "the driver is missing", install_command: str = "apt install it"
    ) -> None:
        super().__init__()
        self.open_error = BackendUnavailableError(reason, install_command=install_command)


def found(index: int = 0, *, uuid: str | None = None, name: str = "Test GPU") -> FoundDevice:
    """Return a device with 1 GiB of memory."""
    return FoundDevice(
        index=index, name=name, vendor="nvidia", memory_kind="vram", memory_total_bytes=GIB, uuid=uuid
    )
