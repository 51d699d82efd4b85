"""The seam of drivers: blocking calls into one vendor's libraries. What every backend has in common is not here.

A driver is used from threads, one for each device (`ThreadedBackend`), and may block, hang or talk nonsense there. It
keeps no books: handles, deadlines, plausibility and device ids are the backend's.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from exo.gpu.errors import BackendUnavailableError
from exo.gpu.reading import DeviceReading, MemoryInfo
from exo.shared.types.devices import Backend, MemoryKind

Precision = Literal["float32", "float16", "bfloat16", "int8"]
Buffer = Any
"""Device memory as the vendor's library knows it."""


class FoundDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device as its driver describes it. The driver's own `index` is what its calls take."""

    index: int
    name: str
    vendor: str
    memory_kind: MemoryKind
    memory_total_bytes: int
    uuid: str | None = None
    """Stable across restarts and the order of devices, where the vendor has one."""
    pci_address: str | None = None
    compute_units: int | None = None
    compute_capability: str | None = None
    clock_mhz: float | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    flops_per_s: float | None = None
    """In the precision that models are run in: float16 where the device has it."""
    driver_version: str | None = None


class MatrixShape(msgspec.Struct, frozen=True, kw_only=True):
    """`(rows, inner) @ (inner, columns)`, all row-major and contiguous."""

    rows: int
    inner: int
    columns: int


class Driver(ABC):
    """One vendor's libraries, each imported inside this class's file only, when `open` is called.

    All calls but `open` and `close` raise `DeviceLostError` when the device no longer answers.
    """

    name: Backend
    why_not_watching: BackendUnavailableError | None = None
    """What is missing for telemetry, where the driver is open and does not tell any."""
    why_not_computing: BackendUnavailableError | None = None
    """What is missing to compute, where the driver is open and only watches."""

    @abstractmethod
    def open(self) -> None:
        """Load the libraries and reach the driver.

        Raises:
            BackendUnavailableError: Something is missing or too old; the message says what, and how to install it.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what `open` took. May be called twice, and after an `open` that failed."""

    @abstractmethod
    def find_devices(self) -> Sequence[FoundDevice]:
        """Return the devices that are there now, in the driver's order."""

    @abstractmethod
    def read(self, index: int) -> DeviceReading:
        """Return a device's telemetry; what it does not tell is None."""

    @abstractmethod
    def memory_info(self, index: int) -> MemoryInfo:
        """Return how much memory there is and how much is in use."""

    @property
    def computes(self) -> bool:
        """Whether the calls below work; a driver that only watches says False and raises `NotComputingError`."""
        return True

    @property
    def gaps(self) -> Sequence[BackendUnavailableError]:
        """What is missing of a driver that is open and works in part only."""
        return tuple(one for one in (self.why_not_watching, self.why_not_computing) if one is not None)

    @abstractmethod
    def allocate(self, index: int, size_bytes: int) -> Buffer:
        """Return new memory of a device, its contents undefined.

        Raises:
            OutOfDeviceMemoryError: There is not enough.
        """

    @abstractmethod
    def free(self, buffer: Buffer) -> None:
        """Give memory back."""

    @abstractmethod
    def write(self, buffer: Buffer, data: memoryview, offset_bytes: int) -> None:
        """Copy from the host."""

    @abstractmethod
    def fetch(self, buffer: Buffer, offset_bytes: int, size_bytes: int) -> bytes:
        """Copy to the host."""

    @abstractmethod
    def copy(self, source: Buffer, destination: Buffer, size_bytes: int) -> None:
        """Copy between two devices of this driver, or within one; directly where the hardware can."""

    def can_reach(self, index: int, other: int) -> bool | None:
        """Say whether `copy` goes from one device to another without the host's memory; None: nobody knows."""
        return None

    @abstractmethod
    def synchronize(self, index: int) -> None:
        """Wait until all that was begun on the device is done."""

    @abstractmethod
    def multiply(self, left: Buffer, right: Buffer, shape: MatrixShape, precision: Precision) -> Buffer:
        """Return the product of two matrices as new memory: float32, or int32 where `precision` is int8.

        Raises:
            NotComputingError: The device has no arithmetic of this precision.
        """
