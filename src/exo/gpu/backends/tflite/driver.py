"""A phone's GPU as a driver. Its memory is the host's, and buffers lie there until LiteRT computes with them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from exo.gpu.backends import host_arrays
from exo.gpu.backends.host_arrays import HostArray
from exo.gpu.backends.sysfs import SYSFS, read_number, read_text
from exo.gpu.backends.tflite.products import LiteRtProducts
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo

_ADRENO = Path("class") / "kgsl" / "kgsl-3d0"
"""Where Qualcomm's driver writes its counters. Android shows them to few programs; other makers have none."""


class TFLiteDriver(Driver):
    """LiteRT.

    Args:
        sysfs: Where the kernel's files are.
        products: Computes.
        host_memory: What the GPU may use.
    """

    name = "tflite"

    def __init__(
        self,
        *,
        sysfs: Path = SYSFS,
        products: LiteRtProducts | None = None,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._folder = sysfs / _ADRENO
        self._products = products if products is not None else LiteRtProducts()
        self._host_memory = host_memory

    def open(self) -> None:
        self._products.open()

    def close(self) -> None:
        self._products.close()

    def find_devices(self) -> Sequence[FoundDevice]:
        model = read_text(self._folder / "gpu_model")
        clock_hz = read_number(self._folder / "max_gpuclk")
        return (
            FoundDevice(
                index=0,
                name=f"Qualcomm {model}" if model else "GPU of this device (LiteRT)",
                vendor="qualcomm" if model else "unknown",
                memory_kind="unified",
                memory_total_bytes=self._host_memory().total_bytes,
                clock_mhz=None if clock_hz is None else clock_hz / 1e6,
            ),
        )

    def read(self, index: int) -> DeviceReading:
        memory = self.memory_info(index)
        busy = (read_text(self._folder / "gpu_busy_percentage") or "").removesuffix("%").strip()
        clock_hz, temperature = read_number(self._folder / "gpuclk"), read_number(self._folder / "temp")
        return DeviceReading(
            memory_total_bytes=memory.total_bytes,
            memory_used_bytes=memory.used_bytes,
            compute_utilization_percent=float(busy) if busy.isdecimal() else None,
            temperature_c=None if temperature is None else temperature / 1000,
            clock_mhz=None if clock_hz is None else clock_hz / 1e6,
        )

    def memory_info(self, index: int) -> MemoryInfo:
        host = self._host_memory()
        return MemoryInfo(total_bytes=host.total_bytes, used_bytes=host.total_bytes - host.available_bytes)

    def allocate(self, index: int, size_bytes: int) -> HostArray:
        return host_arrays.allocate(size_bytes, "the device")

    def free(self, buffer: HostArray) -> None:
        return  # It goes with the last reference, which the backend had.

    def write(self, buffer: HostArray, data: memoryview, offset_bytes: int) -> None:
        host_arrays.write(buffer, data, offset_bytes)

    def fetch(self, buffer: HostArray, offset_bytes: int, size_bytes: int) -> bytes:
        return host_arrays.fetch(buffer, offset_bytes, size_bytes)

    def copy(self, source: HostArray, destination: HostArray, size_bytes: int) -> None:
        host_arrays.copy(source, destination, size_bytes)

    def synchronize(self, index: int) -> None:
        return  # Every call of LiteRT returns when it is done.

    def multiply(
        self, left: HostArray, right: HostArray, shape: MatrixShape, precision: Precision
    ) -> HostArray:
        return self._products.multiply(left, right, shape, precision)
