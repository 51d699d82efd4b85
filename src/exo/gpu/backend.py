"""The seam of backends: devices of one kind, how they are, their memory, and a product to see that they compute."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any

from exo.gpu.countdown import Countdown
from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError
from exo.gpu.memory import DeviceMemory
from exo.gpu.reading import DeviceReading, MemoryInfo
from exo.shared.types.devices import Backend, GPUDevice
from exo.shared.types.ids import DeviceId


class BegunReading(ABC):
    """A reading that may still be under way."""

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether `outcome` returns at once."""

    @abstractmethod
    async def outcome(self) -> DeviceReading:
        """Return the reading, as `GPUBackend.read_device` does and with its errors; once. Cancelled, it is given up."""


class TaskReading(BegunReading):
    """One that an event loop's task takes."""

    def __init__(self, reading: Coroutine[Any, Any, DeviceReading], together: Countdown) -> None:
        together.one_begins()
        self._task = asyncio.get_running_loop().create_task(reading)
        self._task.add_done_callback(lambda _: together.one_is_over())

    @property
    def is_done(self) -> bool:
        return self._task.done()

    async def outcome(self) -> DeviceReading:
        return await self._task


class GPUBackend(ABC):
    """One way to reach devices of one kind. Nothing here blocks the event loop, however a driver behaves.

    Every call may raise `DeviceHangError` when the driver does not answer in time, and `DriverError` when it fails in
    a way of its own. Calls that name a device raise `DeviceNotFoundError` for an unknown one and `DeviceLostError` for
    one that is gone; calls that take memory raise `FreedMemoryError` for memory that was given back or is of another
    backend. Work on one device is done in the order in which it was asked for.
    """

    @property
    @abstractmethod
    def name(self) -> Backend:
        """Which kind of devices this is."""

    @property
    @abstractmethod
    def computes(self) -> bool:
        """Whether there is memory to allocate and a product to compute; else devices are only watched."""

    @property
    def gaps(self) -> Sequence[BackendUnavailableError]:
        """What is missing of a backend that works in part only: each with what installs it."""
        return ()

    @abstractmethod
    async def initialize(self) -> None:
        """Find the library, the driver and the devices. Does nothing the second time.

        Raises:
            BackendUnavailableError: Something is missing; the message says what, and how to install it.
        """

    @abstractmethod
    async def shutdown(self) -> None:
        """Free all memory and release what `initialize` took. May be called twice."""

    @abstractmethod
    async def list_devices(self) -> Sequence[GPUDevice]:
        """Return the devices as they were found last, in a stable order."""

    @abstractmethod
    async def refresh_devices(self) -> Sequence[GPUDevice]:
        """Look again, and return the devices that are there now. One that comes back has the id that it had."""

    @abstractmethod
    async def get_device(self, device_id: DeviceId) -> GPUDevice:
        """Return one device."""

    @abstractmethod
    async def allocate(self, device_id: DeviceId, size_bytes: int) -> DeviceMemory:
        """Return new memory, its contents undefined. If the caller is cancelled, nothing stays allocated.

        Raises:
            ValueError: `size_bytes` is not positive.
            OutOfDeviceMemoryError: There is not enough.
            NotComputingError: Devices of this backend can only be watched.
        """

    @abstractmethod
    async def deallocate(self, memory: DeviceMemory) -> None:
        """Give memory back. From here on the handle is invalid, even if the driver fails or hangs."""

    @abstractmethod
    async def copy_to_device(
        self, memory: DeviceMemory, data: bytes | bytearray | memoryview, *, offset_bytes: int = 0
    ) -> None:
        """Copy from the host into a device's memory.

        Raises:
            MemoryRangeError: It does not fit.
        """

    @abstractmethod
    async def copy_from_device(
        self, memory: DeviceMemory, *, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> bytes:
        """Copy to the host: by default all from the offset on.

        Raises:
            MemoryRangeError: There is not so much.
        """

    @abstractmethod
    async def copy_device_to_device(
        self, source: DeviceMemory, destination: DeviceMemory, *, size_bytes: int | None = None
    ) -> None:
        """Copy from the beginning of one memory to the beginning of another: by default all of the source.

        Raises:
            MemoryRangeError: One of them is smaller.
        """

    async def can_reach(self, source: DeviceId, destination: DeviceId) -> bool | None:
        """Say whether a copy between two devices does without the host's memory; None: nobody knows."""
        return None

    @abstractmethod
    async def matrix_multiply(
        self, left: DeviceMemory, right: DeviceMemory, shape: MatrixShape, precision: Precision
    ) -> DeviceMemory:
        """Return the product of two row-major matrices of one device as new memory: float32, or int32 for int8.

        Raises:
            MemoryRangeError: A matrix is larger than its memory, or they are of two devices.
            NotComputingError: The device has no arithmetic of this precision.
            OutOfDeviceMemoryError: There is no room for the product.
        """

    @abstractmethod
    async def synchronize(self, device_id: DeviceId) -> None:
        """Wait until all that was begun on the device is done."""

    @abstractmethod
    async def read_device(self, device_id: DeviceId) -> DeviceReading:
        """Return the device's telemetry at this moment; what it does not tell, or cannot be true, is None."""

    def begin_reading(self, device_id: DeviceId, together: Countdown) -> "BegunReading":
        """Begin what `read_device` does, as one of several that are waited for together.

        Raises:
            ExoError: As `read_device` raises it, if it is known at once.
        """
        return TaskReading(self.read_device(device_id), together)

    @abstractmethod
    async def get_device_memory_info(self, device_id: DeviceId) -> MemoryInfo:
        """Return how much memory there is and how much is in use."""

    async def get_device_utilization(self, device_id: DeviceId) -> float | None:
        """Return how busy the device is, in percent 0 to 100."""
        return (await self.read_device(device_id)).compute_utilization_percent

    async def get_device_temperature(self, device_id: DeviceId) -> float | None:
        """Return its temperature in Celsius."""
        return (await self.read_device(device_id)).temperature_c

    async def get_device_power(self, device_id: DeviceId) -> float | None:
        """Return what it draws, in watts."""
        return (await self.read_device(device_id)).power_watts
