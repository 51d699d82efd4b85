"""The one implementation of backends: any blocking `Driver`, each of its devices on a thread of its own."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio
from loguru import logger

from exo.gpu.backend import BegunReading, GPUBackend
from exo.gpu.checks import check_product, checked_range, flat
from exo.gpu.countdown import Countdown
from exo.gpu.driver import Driver, MatrixShape, Precision
from exo.gpu.driver_call import DriverCall
from exo.gpu.driver_thread import DriverThread
from exo.gpu.errors import BackendUnavailableError, DeviceHangError, DeviceLostError, MemoryRangeError
from exo.gpu.limits import CallLimits
from exo.gpu.memory import DeviceMemory, Held, MemoryBook
from exo.gpu.occupancy import Occupant, Occupants, explained
from exo.gpu.plausibility import plausible, plausible_memory
from exo.gpu.reading import DeviceReading, MemoryInfo
from exo.gpu.together import call_together
from exo.shared.errors import ExoError
from exo.shared.types.devices import Backend, GPUDevice
from exo.shared.types.ids import DeviceId, NodeId


class ThreadedBackend(GPUBackend):
    """Keeps the books that drivers do not: ids, handles, order, deadlines, plausibility.

    Args:
        driver: Reaches the devices. Its calls run on threads only.
        node_id: Begins the devices' ids.
        limits: How long calls may take.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        driver: Driver,
        node_id: NodeId,
        *,
        limits: CallLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._limits = limits if limits is not None else CallLimits()
        self._thread = DriverThread(driver.name, clock)
        """For what concerns the driver as a whole."""
        self._occupants = Occupants(driver.name, node_id, clock)
        self._book = MemoryBook()
        self._is_open = False
        self._starting = anyio.Lock()

    @property
    def name(self) -> Backend:
        return self._driver.name

    @property
    def computes(self) -> bool:
        return self._driver.computes

    @property
    def gaps(self) -> Sequence[BackendUnavailableError]:
        return self._driver.gaps

    async def initialize(self) -> None:
        async with self._starting:
            if not self._is_open:
                await self._open()

    async def _open(self) -> None:
        try:
            await self._thread.call(
                explained(self._driver.open, f"{self.name} cannot be used", BackendUnavailableError),
                doing="starting it",
                timeout_s=self._limits.open_s,
                # Started for nobody: the next attempt starts it again.
                discard=lambda _: self._driver.close(),
            )
            self._is_open = True
            await self.refresh_devices()
        except BaseException as error:
            if self._is_open:
                self._is_open = False
                self._thread.post(self._driver.close, doing="closing it", timeout_s=self._limits.open_s)
            self._thread.stop()
            if isinstance(error, DeviceHangError):
                raise BackendUnavailableError(error.message) from error
            raise

    async def shutdown(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        for memory in self._book:
            self._free_later(memory)
        retired = self._occupants.retire()
        try:
            with anyio.move_on_after(self._limits.close_s):
                for occupant in retired:
                    # When its thread gets to this, all that was begun is over.
                    await occupant.thread.call(lambda: None, doing="", timeout_s=self._limits.close_s)
                close = explained(self._driver.close, f"{self.name} did not close")
                await self._thread.call(close, doing="closing it", timeout_s=self._limits.close_s)
        except ExoError as error:
            # It is left as it is: a call that hangs would lose what it stands on.
            logger.debug("{} is not closed: {}", self.name, error.message)
        finally:
            for thread in (self._thread, *(one.thread for one in retired)):
                thread.stop()

    async def list_devices(self) -> Sequence[GPUDevice]:
        return self._occupants.devices()

    async def refresh_devices(self) -> Sequence[GPUDevice]:
        if not self._is_open:
            return ()
        found = await self._thread.call(
            explained(self._driver.find_devices, f"{self.name} cannot list its devices"),
            doing="looking for devices",
            timeout_s=self._limits.find_s,
        )
        self._occupants.update(found, computes=self.computes)
        return self._occupants.devices()

    async def get_device(self, device_id: DeviceId) -> GPUDevice:
        return self._occupants.of(device_id).device

    async def allocate(self, device_id: DeviceId, size_bytes: int) -> DeviceMemory:
        if size_bytes <= 0:
            raise ValueError(f"cannot allocate {size_bytes} bytes")
        occupant = self._occupants.of(device_id)
        buffer = await occupant.call(
            lambda: self._driver.allocate(occupant.index, size_bytes),
            doing=f"allocating {size_bytes} bytes",
            timeout_s=self._limits.memory_s,
            discard=self._driver.free,
        )
        return self._enter(occupant, buffer, size_bytes)

    async def deallocate(self, memory: DeviceMemory) -> None:
        held = self._book.strike(memory)
        try:
            await self._occupants.any(memory.device_id).call(
                lambda: self._driver.free(held.buffer),
                doing="freeing memory",
                timeout_s=self._limits.memory_s,
                is_never_skipped=True,
            )
        except DeviceHangError:
            raise
        except DeviceLostError as error:
            logger.debug("{} went with its device: {}", memory, error.message)

    def _free_later(self, memory: DeviceMemory) -> None:
        held = self._book.strike(memory)
        thread = self._occupants.any(memory.device_id).thread
        thread.post(
            partial(self._driver.free, held.buffer), doing="freeing memory", timeout_s=self._limits.memory_s
        )

    async def copy_to_device(
        self, memory: DeviceMemory, data: bytes | bytearray | memoryview, *, offset_bytes: int = 0
    ) -> None:
        occupant, held = self._use(memory)
        content = flat(data)
        size_bytes = checked_range(memory, offset_bytes, content.nbytes)
        if size_bytes:
            await occupant.call(
                lambda: self._driver.write(held.buffer, content, offset_bytes),
                doing=f"copying {size_bytes} bytes to it",
                timeout_s=self._limits.transfer_s(size_bytes),
            )

    async def copy_from_device(
        self, memory: DeviceMemory, *, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> bytes:
        occupant, held = self._use(memory)
        wanted_bytes = checked_range(memory, offset_bytes, size_bytes)
        if not wanted_bytes:
            return b""
        return await occupant.call(
            lambda: self._driver.fetch(held.buffer, offset_bytes, wanted_bytes),
            doing=f"copying {wanted_bytes} bytes from it",
            timeout_s=self._limits.transfer_s(wanted_bytes),
        )

    async def copy_device_to_device(
        self, source: DeviceMemory, destination: DeviceMemory, *, size_bytes: int | None = None
    ) -> None:
        sender, sent = self._use(source)
        receiver, received = self._use(destination)
        wanted_bytes = checked_range(source, 0, size_bytes)
        checked_range(destination, 0, wanted_bytes)
        if wanted_bytes:
            await call_together(
                receiver.thread,
                sender.thread,
                explained(
                    lambda: self._driver.copy(sent.buffer, received.buffer, wanted_bytes),
                    f"copying from {sender.alias} to {receiver.alias} failed",
                ),
                doing=f"copying {wanted_bytes} bytes between devices",
                timeout_s=self._limits.transfer_s(wanted_bytes),
            )

    async def can_reach(self, source: DeviceId, destination: DeviceId) -> bool | None:
        sender, receiver = self._occupants.of(source), self._occupants.of(destination)
        return await sender.call(
            lambda: self._driver.can_reach(sender.index, receiver.index),
            doing="asking for its way to another device",
            timeout_s=self._limits.read_s,
        )

    async def matrix_multiply(
        self, left: DeviceMemory, right: DeviceMemory, shape: MatrixShape, precision: Precision
    ) -> DeviceMemory:
        occupant, left_held = self._use(left)
        _, right_held = self._use(right)
        if left.device_id != right.device_id:
            raise MemoryRangeError(
                f"the matrices are on {left.device_id} and {right.device_id}; copy one to the other's device first"
            )
        size_bytes = check_product(left, right, shape, precision)
        buffer = await occupant.call(
            lambda: self._driver.multiply(left_held.buffer, right_held.buffer, shape, precision),
            doing=f"a product in {precision}",
            timeout_s=self._limits.compute_s,
            discard=self._driver.free,
        )
        return self._enter(occupant, buffer, size_bytes)

    async def synchronize(self, device_id: DeviceId) -> None:
        occupant = self._occupants.of(device_id)
        await occupant.call(
            lambda: self._driver.synchronize(occupant.index),
            doing="finishing its work",
            timeout_s=self._limits.compute_s,
        )

    async def read_device(self, device_id: DeviceId) -> DeviceReading:
        return await self.begin_reading(device_id, Countdown()).outcome()

    def begin_reading(self, device_id: DeviceId, together: Countdown) -> BegunReading:
        occupant = self._occupants.of(device_id)
        call = occupant.begin(
            lambda: plausible(self._driver.read(occupant.index)),
            doing="reading its telemetry",
            timeout_s=self._limits.read_s,
            together=together,
        )
        return _ThreadedReading(occupant, call)

    async def get_device_memory_info(self, device_id: DeviceId) -> MemoryInfo:
        occupant = self._occupants.of(device_id)
        memory = await occupant.call(
            lambda: self._driver.memory_info(occupant.index),
            doing="reading its memory",
            timeout_s=self._limits.read_s,
        )
        kept, complaints = plausible_memory(memory)
        occupant.complain(complaints)
        if kept.total_bytes:
            return kept
        return MemoryInfo(total_bytes=occupant.device.memory_total_bytes, used_bytes=kept.used_bytes)

    def _enter(self, occupant: Occupant, buffer: Any, size_bytes: int) -> DeviceMemory:
        memory = DeviceMemory(occupant.device.device_id, size_bytes)
        return self._book.enter(memory, Held(buffer=buffer, stay=occupant.stay))

    def _use(self, memory: DeviceMemory) -> tuple[Occupant, Held]:
        held = self._book.of(memory)
        occupant = self._occupants.of(memory.device_id)
        if occupant.stay != held.stay:
            raise DeviceLostError(
                f"{occupant.alias} was lost and came back without what it held; allocate and copy it again"
            )
        return occupant, held


class _ThreadedReading(BegunReading):
    """One that a device's thread takes."""

    def __init__(self, occupant: Occupant, call: DriverCall) -> None:
        self._occupant = occupant
        self._call = call

    @property
    def is_done(self) -> bool:
        return self._call.is_done

    async def outcome(self) -> DeviceReading:
        kept, complaints = await self._occupant.thread.outcome(self._call)
        self._occupant.complain(complaints)
        return kept
