"""A backend that calls its driver at once, without threads: for stories in virtual time."""

from collections.abc import Sequence

from exo.gpu.backend import GPUBackend
from exo.gpu.description import describe
from exo.gpu.driver import Driver, MatrixShape, Precision
from exo.gpu.errors import DeviceNotFoundError
from exo.gpu.memory import DeviceMemory, Held, MemoryBook
from exo.gpu.reading import DeviceReading, MemoryInfo
from exo.shared.types.devices import Backend, GPUDevice
from exo.shared.types.ids import DeviceId, NodeId


class InlineBackend(GPUBackend):
    """What a test calls it, it does before it returns."""

    def __init__(self, driver: Driver, node_id: NodeId) -> None:
        self._driver = driver
        self._node_id = node_id
        self.book = MemoryBook()
        driver.open()
        self.devices = describe(driver.find_devices(), driver.name, node_id, "full")

    @property
    def name(self) -> Backend:
        return self._driver.name

    @property
    def computes(self) -> bool:
        return self._driver.computes

    async def initialize(self) -> None:
        return

    async def shutdown(self) -> None:
        self._driver.close()

    async def list_devices(self) -> Sequence[GPUDevice]:
        return self.devices

    async def refresh_devices(self) -> Sequence[GPUDevice]:
        return self.devices

    async def get_device(self, device_id: DeviceId) -> GPUDevice:
        return self.devices[self._index(device_id)]

    def _index(self, device_id: DeviceId) -> int:
        for index, device in enumerate(self.devices):
            if device.device_id == device_id:
                return index
        raise DeviceNotFoundError(f"there is no {device_id}")

    async def allocate(self, device_id: DeviceId, size_bytes: int) -> DeviceMemory:
        buffer = self._driver.allocate(self._index(device_id), size_bytes)
        return self.book.enter(DeviceMemory(device_id, size_bytes), Held(buffer=buffer, stay=0))

    async def deallocate(self, memory: DeviceMemory) -> None:
        self._driver.free(self.book.strike(memory).buffer)

    async def copy_to_device(
        self, memory: DeviceMemory, data: bytes | bytearray | memoryview, *, offset_bytes: int = 0
    ) -> None:
        self._driver.write(self.book.of(memory).buffer, memoryview(data), offset_bytes)

    async def copy_from_device(
        self, memory: DeviceMemory, *, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> bytes:
        wanted = memory.size_bytes - offset_bytes if size_bytes is None else size_bytes
        return self._driver.fetch(self.book.of(memory).buffer, offset_bytes, wanted)

    async def copy_device_to_device(
        self, source: DeviceMemory, destination: DeviceMemory, *, size_bytes: int | None = None
    ) -> None:
        wanted = source.size_bytes if size_bytes is None else size_bytes
        self._driver.copy(self.book.of(source).buffer, self.book.of(destination).buffer, wanted)

    async def can_reach(self, source: DeviceId, destination: DeviceId) -> bool | None:
        return self._driver.can_reach(self._index(source), self._index(destination))

    async def matrix_multiply(
        self, left: DeviceMemory, right: DeviceMemory, shape: MatrixShape, precision: Precision
    ) -> DeviceMemory:
        made = self._driver.multiply(self.book.of(left).buffer, self.book.of(right).buffer, shape, precision)
        size_bytes = shape.rows * shape.columns * 4
        return self.book.enter(DeviceMemory(left.device_id, size_bytes), Held(buffer=made, stay=0))

    async def synchronize(self, device_id: DeviceId) -> None:
        self._driver.synchronize(self._index(device_id))

    async def read_device(self, device_id: DeviceId) -> DeviceReading:
        return self._driver.read(self._index(device_id))

    async def get_device_memory_info(self, device_id: DeviceId) -> MemoryInfo:
        return self._driver.memory_info(self._index(device_id))
