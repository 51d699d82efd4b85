"""A driver out of two halves: something that watches a vendor's devices, and CuPy that computes with them.

Each of the two does without the other. Devices that CuPy counts have its numbers as their index, so that `cuda:0` here
is the same device to an engine.
"""

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from loguru import logger
from msgspec.structs import replace

from exo.gpu.backends.cuda.cupy import CuPyBuffer, CuPyCompute, CuPyDevice
from exo.gpu.backends.cuda.errors import OldDriverError
from exo.gpu.backends.cuda.visible import matched
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, DeviceNotFoundError, NotComputingError
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo

_Shown = tuple[FoundDevice, int | None, CuPyDevice | None]
"""A device, its index with the watcher, and what CuPy says of it."""


class Watcher(Protocol):
    """What tells of devices and how they are. Its indices are its own."""

    @property
    def is_open(self) -> bool:
        """Whether it may be asked."""
        ...

    def open(self) -> None:
        """Reach the driver.

        Raises:
            BackendUnavailableError: Something is missing.
        """
        ...

    def close(self) -> None:
        """Leave it. May be called twice."""
        ...

    def find_devices(self) -> Sequence[FoundDevice]:
        """Return the devices that are there now."""
        ...

    def read(self, index: int) -> DeviceReading:
        """Return a device's telemetry."""
        ...

    def memory_info(self, index: int) -> MemoryInfo:
        """Return a device's memory."""
        ...


class _Known:
    """A device under this driver's index."""

    def __init__(self, found: FoundDevice) -> None:
        self.found = found
        self.watched_index: int | None = None
        """The watcher's; None: only CuPy knows it."""
        self.ordinal: int | None = None
        """CuPy's; None: it cannot be computed with here."""


class CuPyDriver(Driver):
    """What NVIDIA's and AMD's drivers have in common.

    Args:
        watcher: Tells of the devices.
        vendor: Theirs.
        is_hip: CuPy for AMD's GPUs is wanted.
        environment: Where the variables are looked up that hide devices.
        host_memory: What a GPU without memory of its own has.
    """

    def __init__(
        self,
        watcher: Watcher,
        *,
        vendor: str,
        is_hip: bool,
        environment: Mapping[str, str] = os.environ,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._watcher = watcher
        self._vendor = vendor
        self._is_hip = is_hip
        self._environment = environment
        self._host_memory = host_memory
        self._compute: CuPyCompute | None = None
        self._known: dict[int, _Known] = {}
        self._indices: dict[str, int] = {}
        self.why_not_watching: BackendUnavailableError | None = None
        """What is missing to watch devices; None: nothing."""
        self.why_not_computing: BackendUnavailableError | None = None
        """What is missing to compute; None: nothing."""

    @abstractmethod
    def _install_command(self) -> str:
        """Return what brings the CuPy that fits; asked when the watcher was tried."""

    @abstractmethod
    def _visible(self, found: Sequence[FoundDevice]) -> list[FoundDevice]:
        """Return those that the user lets this process see, in the user's order."""

    @abstractmethod
    def _is_by_number(self) -> bool:
        """Whether the user counts devices: only CuPy's library knows in which order."""

    def open(self) -> None:
        self.why_not_watching = self.why_not_computing = None
        try:
            self._watcher.open()
        except OldDriverError:
            raise
        except BackendUnavailableError as error:
            self.why_not_watching = error
        compute = CuPyCompute(is_hip=self._is_hip, install_command=self._install_command())
        try:
            compute.open()
        except BackendUnavailableError as error:
            self.why_not_computing = error
            if self.why_not_watching is not None:
                raise self.why_not_watching from error
            logger.info(
                "{}: devices are watched only: {}. {}", self.name, error.message, error.install_command
            )
        else:
            self._compute = compute

    def close(self) -> None:
        self._known.clear()
        self._indices.clear()
        compute, self._compute = self._compute, None
        if compute is not None:
            compute.close()
        self._watcher.close()

    def find_devices(self) -> Sequence[FoundDevice]:
        watched = list(self._watcher.find_devices()) if self._watcher.is_open else []
        counted = self._compute.devices() if self._compute is not None else []
        visible = self._visible(watched)
        pairs = matched(watched, counted, visible)
        shown: list[_Shown] = []
        for one in counted:
            pair = pairs.get(one.ordinal)
            shown.append((pair or self._from_cupy(one), None if pair is None else pair.index, one))
        if not (counted and self._is_by_number()):
            there = pairs.values()
            shown += [(one, one.index, None) for one in visible if one not in there]
        return [self._remember(*one) for one in shown]

    def read(self, index: int) -> DeviceReading:
        known = self._device(index)
        if known.watched_index is not None:
            return self._watcher.read(known.watched_index)
        memory = self.memory_info(index)
        return DeviceReading(memory_total_bytes=memory.total_bytes, memory_used_bytes=memory.used_bytes)

    def memory_info(self, index: int) -> MemoryInfo:
        known = self._device(index)
        if known.watched_index is not None:
            return self._watcher.memory_info(known.watched_index)
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

    def can_reach(self, index: int, other: int) -> bool:
        compute, ordinal = self._computing(index)
        return compute.can_reach(ordinal, self._computing(other)[1])

    def synchronize(self, index: int) -> None:
        compute, ordinal = self._computing(index)
        compute.synchronize(ordinal)

    def multiply(
        self, left: CuPyBuffer, right: CuPyBuffer, shape: MatrixShape, precision: Precision
    ) -> CuPyBuffer:
        return self._used().multiply(left, right, shape, precision)

    def _from_cupy(self, one: CuPyDevice) -> FoundDevice:
        """Describe a device by what CuPy says of it, where nothing watches it: on an older Jetson, or under WSL."""
        details: dict[str, Any] = {"memory_kind": "vram", "memory_total_bytes": one.memory_total_bytes}
        if one.is_integrated:
            details = {"memory_kind": "unified", "memory_total_bytes": self._host_memory().total_bytes}
        return FoundDevice(
            index=one.ordinal,
            name=one.name,
            vendor=self._vendor,
            uuid=None if one.uuid is None else f"GPU-{one.uuid}",
            pci_address=one.pci_address,
            **details,
        )

    def _remember(
        self, found: FoundDevice, watched_index: int | None, counted: CuPyDevice | None
    ) -> FoundDevice:
        key = found.uuid or found.pci_address or f"{found.name} {found.index}"
        described = replace(found, index=self._indices.setdefault(key, len(self._indices)))
        if counted is not None:
            described = replace(
                described,
                compute_units=found.compute_units or counted.compute_units,
                compute_capability=found.compute_capability or counted.compute_capability,
            )
        known = self._known.setdefault(described.index, _Known(described))
        known.found = described
        known.watched_index = watched_index
        known.ordinal = None if counted is None else counted.ordinal
        return described

    def _device(self, index: int) -> _Known:
        known = self._known.get(index)
        if known is None:
            raise DeviceNotFoundError(f"there is no {self.name} device {index}: look for devices again")
        return known

    def _used(self) -> CuPyCompute:
        if self._compute is not None:
            return self._compute
        why = self.why_not_computing
        if why is None:
            raise NotComputingError(f"the {self.name} driver is closed: open it before using it")
        raise NotComputingError(
            f"{why.message}. Try: {why.install_command}" if why.install_command else why.message
        )

    def _computing(self, index: int) -> tuple[CuPyCompute, int]:
        compute = self._used()
        ordinal = self._device(index).ordinal
        if ordinal is None:
            raise NotComputingError(
                f"{self.name} does not show this process the device {index} for computing: of a divided GPU it shows "
                "one part only, and nothing that the environment hides"
            )
        return compute, ordinal
