"""A stand-in for CuPy with devices made of the host's memory: the runtime's, cuBLAS's and the arrays' documented calls.

It is as strict as the libraries are: memory is addressed by pointers, every access is checked, the current device is
the thread's own, and matrices are multiplied in columns as cuBLAS does. `numpy` stands for the arrays.
"""

import ctypes
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy
import pytest

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INSUFFICIENT_DRIVER, NO_DEVICE, INVALID_DEVICE = 0, 1, 2, 35, 100, 101
PEER_ACCESS_IS_ON = 704
_DTYPES: dict[int, Any] = {
    0: numpy.float32,
    2: numpy.float16,
    3: numpy.int8,
    10: numpy.int32,
    14: numpy.uint16,
}


class CUDARuntimeError(RuntimeError):
    """As CuPy raises it: with the number as `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError{status}")
        self.status = status


class CUBLASError(RuntimeError):
    """As CuPy raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"CUBLAS_STATUS_{status}")
        self.status = status


class FakeDevice:
    """One device of the stand-in."""

    def __init__(
        self,
        *,
        pci: str,
        uuid: bytes = b"",
        name: str = "NVIDIA GeForce RTX 4090",
        memory_total_bytes: int = 2**30,
        capability: tuple[int, int] = (8, 9),
        peers: Sequence[int] = (),
        is_integrated: bool = False,
        architecture: str = "",
    ) -> None:
        self.pci = pci
        self.uuid = uuid
        self.name = name
        self.memory_total_bytes = memory_total_bytes
        self.capability = capability
        self.peers = tuple(peers)
        self.is_integrated = is_integrated
        self.architecture = architecture
        self.used_bytes = 0
        self.error: int | None = None
        """Every call on the device gives it."""


class FakeCuPy:
    """What a test changes and looks at."""

    def __init__(self, devices: Sequence[FakeDevice], *, is_hip: bool = False) -> None:
        self.devices = list(devices)
        self.is_hip = is_hip
        self.failures: dict[str, Exception] = {}
        """By function: what its next call raises."""
        self.calls: list[tuple[Any, ...]] = []
        """Copies between devices and opened ways, as (function, arguments...)."""
        self.lacks_cublas = False
        self._memory: dict[int, tuple[Any, int, int]] = {}
        self._current = threading.local()
        self._ways: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    @property
    def buffers(self) -> int:
        """How many pieces of memory are held."""
        return len(self._memory)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeCuPy":
        """Be what `import cupy` finds."""
        cupy, cuda = ModuleType("cupy"), _CudaModule("cupy.cuda")
        cuda.fake = self
        runtime, device, cublas = ModuleType("runtime"), ModuleType("device"), ModuleType("cublas")
        for name in (
            *(
                "getDeviceCount",
                "getDeviceProperties",
                "deviceGetPCIBusId",
                "setDevice",
                "memGetInfo",
                "malloc",
                "free",
            ),
            *("memcpy", "memcpyPeer", "memcpy2D", "memset", "deviceSynchronize", "deviceCanAccessPeer"),
            "deviceEnablePeerAccess",
        ):
            setattr(runtime, name, getattr(self, name))
        runtime.is_hip = self.is_hip  # type: ignore[attr-defined]
        runtime.CUDARuntimeError = CUDARuntimeError  # type: ignore[attr-defined]
        device.get_cublas_handle = self.get_cublas_handle  # type: ignore[attr-defined]
        cublas.gemmEx = self.gemm_ex  # type: ignore[attr-defined]
        cuda.runtime, cuda.device, cuda.cublas_module = runtime, device, cublas
        cuda.UnownedMemory, cuda.MemoryPointer = _UnownedMemory, _MemoryPointer
        cupy.cuda = cuda  # type: ignore[attr-defined]
        cupy.matmul = self.matmul  # type: ignore[attr-defined]
        cupy.left_shift = numpy.left_shift  # type: ignore[attr-defined]
        cupy.ndarray = self.array  # type: ignore[attr-defined]
        monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)
        return self

    # The runtime.

    def getDeviceCount(self) -> int:
        self._raise("getDeviceCount")
        if not self.devices:
            raise CUDARuntimeError(NO_DEVICE)
        return len(self.devices)

    def getDeviceProperties(self, ordinal: int) -> dict[str, Any]:
        one = self.devices[ordinal]
        return {
            "name": one.name.encode(),
            "totalGlobalMem": one.memory_total_bytes,
            "uuid": one.uuid,
            "major": one.capability[0],
            "minor": one.capability[1],
            "multiProcessorCount": 128,
            "integrated": int(one.is_integrated),
            **({"gcnArchName": one.architecture.encode()} if one.architecture else {}),
        }

    def deviceGetPCIBusId(self, ordinal: int) -> str:
        return self.devices[ordinal].pci

    def setDevice(self, ordinal: int) -> None:
        if not 0 <= ordinal < len(self.devices):
            raise CUDARuntimeError(INVALID_DEVICE)
        self._current.ordinal = ordinal
        self._device("setDevice")

    def memGetInfo(self) -> tuple[int, int]:
        one = self._device("memGetInfo")
        return one.memory_total_bytes - one.used_bytes, one.memory_total_bytes

    def malloc(self, size: int) -> int:
        one = self._device("malloc")
        if size > one.memory_total_bytes - one.used_bytes:
            raise CUDARuntimeError(OUT_OF_MEMORY)
        memory = (ctypes.c_char * max(size, 1))()
        pointer = ctypes.addressof(memory)
        ctypes.memset(pointer, 0xA5, size)  # Undefined, and not by luck zero.
        with self._lock:
            one.used_bytes += size
            self._memory[pointer] = (memory, size, self._current.ordinal)
        return pointer

    def free(self, pointer: int) -> None:
        self._device("free")
        with self._lock:
            if pointer not in self._memory:
                raise CUDARuntimeError(INVALID_VALUE)
            _, size, ordinal = self._memory.pop(pointer)
            self.devices[ordinal].used_bytes -= size

    def memset(self, pointer: int, value: int, size: int) -> None:
        self._device("memset")
        self._check(pointer, size)
        ctypes.memset(pointer, value, size)

    def memcpy(self, target: int, source: int, size: int, kind: int) -> None:
        self._device("memcpy")
        if kind in (1, 3):
            self._check(target, size)
        if kind in (2, 3):
            self._check(source, size)
        ctypes.memmove(target, source, size)

    def memcpy2D(
        self, target: int, target_line: int, source: int, source_line: int, width: int, lines: int, kind: int
    ) -> None:
        self._device("memcpy2D")
        if kind != 3 or width > min(target_line, source_line):
            raise CUDARuntimeError(INVALID_VALUE)
        for line in range(lines):
            self._check(target + line * target_line, width)
            self._check(source + line * source_line, width)
            ctypes.memmove(target + line * target_line, source + line * source_line, width)

    def memcpyPeer(self, target: int, target_device: int, source: int, source_device: int, size: int) -> None:
        self._device("memcpyPeer", target_device)
        self._device("memcpyPeer", source_device)
        self._check(target, size, target_device)
        self._check(source, size, source_device)
        self.calls.append(("memcpyPeer", source_device, target_device))
        ctypes.memmove(target, source, size)

    def deviceSynchronize(self) -> None:
        self._device("deviceSynchronize")

    def deviceCanAccessPeer(self, ordinal: int, other: int) -> int:
        return int(other in self.devices[ordinal].peers)

    def deviceEnablePeerAccess(self, other: int) -> None:
        way = (self._current.ordinal, other)
        if way in self._ways:
            raise CUDARuntimeError(PEER_ACCESS_IS_ON)
        if other not in self.devices[way[0]].peers:
            raise CUDARuntimeError(217)
        self._ways.add(way)
        self.calls.append(("deviceEnablePeerAccess", *way))

    # The matrix library and the arrays.

    def get_cublas_handle(self) -> int:
        self._device("get_cublas_handle")
        return 4711 + self._current.ordinal

    def gemm_ex(self, *arguments: Any) -> None:
        self._raise("gemmEx")
        handle, trans_a, trans_b, m, n, k, alpha, a, a_kind, lda, b, b_kind, ldb, beta, c, c_kind, ldc = (
            arguments[:17]
        )
        compute, algorithm = arguments[17:]
        if self.is_hip or handle != 4711 + self._current.ordinal or (trans_a, trans_b) != (0, 0):
            raise CUBLASError(7)
        is_whole = a_kind == 3
        if (compute, c_kind) != ((72, 10) if is_whole else (68, 0)) or a_kind != b_kind or algorithm != -1:
            raise CUBLASError(15)
        if is_whole and any(length % 4 for length in (k, lda, ldb, ldc)):
            raise CUBLASError(15)
        if a_kind == 14 and self.devices[self._current.ordinal].capability < (8, 0):
            raise CUBLASError(8)
        number = ctypes.c_int32 if is_whole else ctypes.c_float
        if (number.from_address(alpha).value, number.from_address(beta).value) != (1, 0):
            raise CUBLASError(7)
        left, right = self._columns(a, a_kind, m, k, lda), self._columns(b, b_kind, k, n, ldb)
        result = left.astype(numpy.int32 if is_whole else numpy.float32) @ right.astype(
            numpy.int32 if is_whole else numpy.float32
        )
        self._columns(c, c_kind, m, n, ldc)[:] = result

    def matmul(self, left: Any, right: Any) -> Any:
        self._raise("matmul")
        return left @ right

    def array(self, shape: tuple[int, ...], dtype: str, memptr: "_MemoryPointer") -> Any:
        kind = numpy.dtype(dtype)
        size = int(numpy.prod(shape)) * kind.itemsize
        pointer = memptr.memory.pointer + memptr.offset
        self._check(pointer, size, memptr.memory.ordinal)
        return numpy.frombuffer((ctypes.c_char * size).from_address(pointer), dtype=kind).reshape(shape)

    def _columns(self, pointer: int, kind: int, rows: int, columns: int, line: int) -> Any:
        dtype = numpy.dtype(_DTYPES[kind])
        if line < rows:
            raise CUBLASError(7)
        size = line * columns * dtype.itemsize
        self._check(pointer, size, self._current.ordinal)
        flat = numpy.frombuffer((ctypes.c_char * size).from_address(pointer), dtype=dtype)
        whole = flat.reshape(columns, line).T[:rows]
        if kind == 14:
            return (whole.astype(numpy.uint32) << 16).view(numpy.float32)
        return whole

    def _device(self, function: str, ordinal: int | None = None) -> FakeDevice:
        self._raise(function)
        one = self.devices[getattr(self._current, "ordinal", 0) if ordinal is None else ordinal]
        if one.error is not None:
            raise CUDARuntimeError(one.error)
        return one

    def _raise(self, function: str) -> None:
        failure = self.failures.pop(function, None)
        if failure is not None:
            raise failure

    def _check(self, pointer: int, size: int, ordinal: int | None = None) -> None:
        with self._lock:
            for begin, (_, length, owner) in self._memory.items():
                if begin <= pointer and pointer + size <= begin + length and ordinal in (None, owner):
                    return
        raise CUDARuntimeError(700)


class _CudaModule(ModuleType):
    """`cupy.cuda`, which loads the matrix library when it is first named."""

    fake: FakeCuPy
    runtime: ModuleType
    device: ModuleType
    cublas_module: ModuleType
    UnownedMemory: Any
    MemoryPointer: Any

    @property
    def cublas(self) -> ModuleType:
        if self.fake.lacks_cublas:
            raise ImportError("libcublas.so.13: not found")
        return self.cublas_module


class _UnownedMemory:
    def __init__(self, pointer: int, size: int, owner: object, ordinal: int = -1) -> None:
        self.pointer, self.size, self.ordinal = pointer, size, ordinal


class _MemoryPointer:
    def __init__(self, memory: _UnownedMemory, offset: int) -> None:
        self.memory, self.offset = memory, offset
