"""The GPUs of a Windows machine as a driver, whoever made them. How they are is not told: no counter is read."""

from collections.abc import Callable, Sequence

from exo.gpu.backends.directml.dxgi import Adapter, list_adapters
from exo.gpu.backends.onnx.arrays import OnnxArrays, OnnxBuffer
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, DeviceNotFoundError
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo

_OWN_MEMORY_MIN_BYTES = 2**30
"""Processors with graphics keep less than that for them; cards have more."""


class DirectMLDriver(Driver):
    """DXGI and ONNX Runtime.

    Args:
        adapters: Lists the graphics adapters.
        arrays: Computes.
        host_memory: What a GPU without memory of its own has.
    """

    name = "directml"

    def __init__(
        self,
        *,
        adapters: Callable[[], Sequence[Adapter]] = list_adapters,
        arrays: OnnxArrays | None = None,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._list = adapters
        self._arrays = arrays if arrays is not None else _directml()
        self._host_memory = host_memory
        self._adapters: dict[int, Adapter] = {}

    def open(self) -> None:
        found = self._list()
        if not found:
            raise BackendUnavailableError(
                "Windows lists no graphics adapter with a driver: install its driver", is_absent=True
            )
        self._arrays.open(found[0].ordinal)

    def close(self) -> None:
        self._arrays.close()
        self._adapters.clear()

    def find_devices(self) -> Sequence[FoundDevice]:
        self._adapters = {one.ordinal: one for one in self._list()}
        return [self._described(one) for one in self._adapters.values()]

    def read(self, index: int) -> DeviceReading:
        memory = self.memory_info(index)
        return DeviceReading(memory_total_bytes=memory.total_bytes, memory_used_bytes=memory.used_bytes)

    def memory_info(self, index: int) -> MemoryInfo:
        adapter = self._adapter(index)
        if adapter.dedicated_bytes >= _OWN_MEMORY_MIN_BYTES:
            return MemoryInfo(total_bytes=adapter.dedicated_bytes)
        total_bytes = adapter.dedicated_bytes + adapter.shared_bytes
        free_bytes = min(total_bytes, self._host_memory().available_bytes)
        return MemoryInfo(total_bytes=total_bytes, used_bytes=total_bytes - free_bytes)

    def allocate(self, index: int, size_bytes: int) -> OnnxBuffer:
        memory = self.memory_info(index)
        return self._arrays.allocate(index, size_bytes, memory.total_bytes - (memory.used_bytes or 0))

    def free(self, buffer: OnnxBuffer) -> None:
        buffer.value = None

    def write(self, buffer: OnnxBuffer, data: memoryview, offset_bytes: int) -> None:
        self._arrays.write(buffer, data, offset_bytes)

    def fetch(self, buffer: OnnxBuffer, offset_bytes: int, size_bytes: int) -> bytes:
        return self._arrays.fetch(buffer, offset_bytes, size_bytes)

    def copy(self, source: OnnxBuffer, destination: OnnxBuffer, size_bytes: int) -> None:
        self._arrays.copy(source, destination, size_bytes)

    def synchronize(self, index: int) -> None:
        self._adapter(index)  # Every call of ONNX Runtime returns when it is done.

    def multiply(
        self, left: OnnxBuffer, right: OnnxBuffer, shape: MatrixShape, precision: Precision
    ) -> OnnxBuffer:
        return self._arrays.multiply(left, right, shape, precision)

    def _adapter(self, index: int) -> Adapter:
        adapter = self._adapters.get(index)
        if adapter is None:
            raise DeviceNotFoundError(f"there is no graphics adapter {index}: look for devices again")
        return adapter

    def _described(self, one: Adapter) -> FoundDevice:
        has_own = one.dedicated_bytes >= _OWN_MEMORY_MIN_BYTES
        return FoundDevice(
            index=one.ordinal,
            name=one.name,
            vendor=one.vendor,
            memory_kind="vram" if has_own else "unified",
            memory_total_bytes=self.memory_info(one.ordinal).total_bytes,
            pci_address=one.pci_address,
        )


def _directml() -> OnnxArrays:
    return OnnxArrays(
        "DmlExecutionProvider",
        lambda ordinal: {"device_id": str(ordinal)},
        memory="dml",
        package="onnxruntime-directml",
    )
