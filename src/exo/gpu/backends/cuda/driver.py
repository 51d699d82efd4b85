"""NVIDIA's GPUs as one driver: NVML watches them and CuPy computes, each of the two also without the other."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loguru import logger
from msgspec.structs import replace

from exo.gpu.backends.cuda.cupy import CuPyBuffer, CuPyCompute, CuPyDevice
from exo.gpu.backends.cuda.errors import OldDriverError
from exo.gpu.backends.cuda.nvml import NvidiaMonitor
from exo.gpu.backends.cuda.visible import is_by_number, matched, visible_devices
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, DeviceNotFoundError, NotComputingError
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo

VISIBLE = "CUDA_VISIBLE_DEVICES"

_Shown = tuple[FoundDevice, int | None, CuPyDevice | None]
"""A device, its index in NVML, and what CUDA says of it."""


class _Known:
    """A device under this driver's index."""

    def __init__(self, found: FoundDevice) -> None:
        self.found = found
        self.watched_index: int | None = None
        """NVML's; None: only CUDA knows it."""
        self.ordinal: int | None = None
        """CUDA's; None: it cannot be computed with here."""


class CUDADriver(Driver):
    """NVML and CuPy. Devices that CUDA counts have its numbers as their index, so that `cuda:0` is the same to engines.

    Args:
        clock: Monotonic seconds.
        environment: Where `CUDA_VISIBLE_DEVICES` is looked up.
        host_memory: What a GPU without memory of its own has.
    """

    name = "cuda"

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        environment: Mapping[str, str] = os.environ,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._monitor = NvidiaMonitor(clock=clock, host_memory=host_memory)
        self._compute: CuPyCompute | None = None
        self._environment = environment
        self._host_memory = host_memory
        self._known: dict[int, _Known] = {}
        self._indices: dict[str, int] = {}
        self.why_not_watching: BackendUnavailableError | None = None
        """What is missing to watch devices; None: nothing."""
        self.why_not_computing: BackendUnavailableError | None = None
        """What is missing to compute; None: nothing."""

    def open(self) -> None:
        self.why_not_watching = self.why_not_computing = None
        try:
            self._monitor.open()
        except OldDriverError:
            raise
        except BackendUnavailableError as error:
            self.why_not_watching = error
        compute = CuPyCompute(is_hip=False, install_command=self._install_command())
        try:
            compute.open()
        except BackendUnavailableError as error:
            self.why_not_computing = error
            if self.why_not_watching is not None:
                raise self.why_not_watching from error
            logger.info("NVIDIA GPUs are watched only: {}. {}", error.message, error.install_command)
        else:
            self._compute = compute

    def close(self) -> None:
        self._known.clear()
        self._indices.clear()
        compute, self._compute = self._compute, None
        if compute is not None:
            compute.close()
        self._monitor.close()

    def find_devices(self) -> Sequence[FoundDevice]:
        watched = list(self._monitor.find_devices()) if self._monitor.is_open else []
        counted = self._compute.devices() if self._compute is not None else []
        text = self._environment.get(VISIBLE)
        pairs = matched(watched, counted, text)
        shown: list[_Shown] = []
        for one in counted:
            pair = pairs.get(one.ordinal)
            shown.append(
                (pair or _from_cuda(one, self._host_memory), None if pair is None else pair.index, one)
            )
        # Numbers mean what CUDA means by them, where it is there to be asked.
        if not (counted and is_by_number(text)):
            there = pairs.values()
            shown += [(one, one.index, None) for one in visible_devices(watched, text) if one not in there]
        return [self._remember(*one) for one in shown]

    def read(self, index: int) -> DeviceReading:
        known = self._device(index)
        if known.watched_index is not None:
            return self._monitor.read(known.watched_index)
        memory = self.memory_info(index)
        return DeviceReading(memory_total_bytes=memory.total_bytes, memory_used_bytes=memory.used_bytes)

    def memory_info(self, index: int) -> MemoryInfo:
        known = self._device(index)
        if known.watched_index is not None:
            return self._monitor.memory_info(known.watched_index)
        if known.found.memory_kind == "unified":
            host = self._host_memory()
            return MemoryInfo(
                total_bytes=host.total_bytes, used_bytes=host.total_bytes - host.available_bytes
            )
        compute, ordinal = self._computing(index)
        return compute.memory_info(ordinal)

    @property
    def computes(self) -> bool:
        return self._compute is not None

    def allocate(self, index: int, size_bytes: int) -> CuPyBuffer:
        compute, ordinal = self._computing(index)
        return compute.allocate(ordinal, size_bytes)

    def free(self, buffer: CuPyBuffer) -> None:
        self._used().free(buffer)

    def write(self, buffer: CuPyBuffer, data: memoryview, offset_bytes: int) -> None:
        self._used().write(buffer, data, offset_bytes)

    def fetch(self, buffer: CuPyBuffer, offset_bytes: int, size_bytes: int) -> bytes:
        return self._used().fetch(buffer, offset_bytes, size_bytes)

    def copy(self, source: CuPyBuffer, destination: CuPyBuffer, size_bytes: int) -> None:
        self._used().copy(source, destination, size_bytes)

    def synchronize(self, index: int) -> None:
        compute, ordinal = self._computing(index)
        compute.synchronize(ordinal)

    def multiply(
        self, left: CuPyBuffer, right: CuPyBuffer, shape: MatrixShape, precision: Precision
    ) -> CuPyBuffer:
        return self._used().multiply(left, right, shape, precision)

    def _install_command(self) -> str:
        version = self._monitor.cuda_version
        kind = "cupy-cuda12x" if version is not None and version < 13_000 else "cupy-cuda13x"
        return f"uv pip install '{kind}[ctk]'"

    def _remember(
        self, found: FoundDevice, watched_index: int | None, counted: CuPyDevice | None
    ) -> FoundDevice:
        key = found.uuid or found.pci_address or f"{found.name} {found.index}"
        index = self._indices.setdefault(key, len(self._indices))
        described = replace(
            found,
            index=index,
            compute_units=found.compute_units
            if counted is None
            else found.compute_units or counted.compute_units,
            compute_capability=found.compute_capability
            or (None if counted is None else counted.compute_capability),
        )
        known = self._known.setdefault(index, _Known(described))
        known.found = described
        known.watched_index = watched_index
        known.ordinal = None if counted is None else counted.ordinal
        return described

    def _device(self, index: int) -> _Known:
        known = self._known.get(index)
        if known is None:
            raise DeviceNotFoundError(f"there is no NVIDIA device {index}: look for devices again")
        return known

    def _used(self) -> CuPyCompute:
        if self._compute is not None:
            return self._compute
        why = self.why_not_computing
        if why is None:
            raise NotComputingError("the CUDA driver is closed: open it before using it")
        raise NotComputingError(
            f"{why.message}. Try: {why.install_command}" if why.install_command else why.message
        )

    def _computing(self, index: int) -> tuple[CuPyCompute, int]:
        compute = self._used()
        ordinal = self._device(index).ordinal
        if ordinal is None:
            raise NotComputingError(
                f"CUDA does not show this process the device {index}: it shows one part of a divided GPU only, and "
                f"what {VISIBLE} names"
            )
        return compute, ordinal


def _from_cuda(one: CuPyDevice, host_memory: Callable[[], HostMemory]) -> FoundDevice:
    """Describe a device by what CUDA says of it, where there is no NVML: on a Jetson with an older system."""
    details: dict[str, Any] = {"memory_kind": "vram", "memory_total_bytes": one.memory_total_bytes}
    if one.is_integrated:
        details = {"memory_kind": "unified", "memory_total_bytes": host_memory().total_bytes}
    return FoundDevice(
        index=one.ordinal,
        name=one.name,
        vendor="nvidia",
        uuid=None if one.uuid is None else f"GPU-{one.uuid}",
        pci_address=one.pci_address,
        **details,
    )
