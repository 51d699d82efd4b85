"""Apple's GPU as a driver. Its memory is the host's."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from exo.gpu.backends.metal.arrays import MetalArrays, MetalBuffer
from exo.gpu.backends.metal.counters import MacCounters
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, DeviceLostError
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo

_OWN_MEMORY = 0.75
"""Of the host's memory macOS lets the GPU have about so much, where MLX does not say."""


class MetalDriver(Driver):
    """MLX and the system's counters.

    Args:
        counters: Of the system.
        host_memory: Read for what the GPU may still take.
    """

    name = "metal"

    def __init__(
        self,
        *,
        counters: MacCounters | None = None,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._counters = counters if counters is not None else MacCounters()
        self._host_memory = host_memory
        self._mlx: Any = None
        self._arrays: MetalArrays | None = None

    def open(self) -> None:
        try:
            mlx: Any = importlib.import_module("mlx.core")
        except ImportError as error:
            raise BackendUnavailableError(
                "Apple GPUs are used through MLX, which is not installed",
                install_command="uv pip install mlx",
            ) from error
        device = self._device(mlx)
        self._mlx = mlx
        self._arrays = MetalArrays(mlx, device)

    def close(self) -> None:
        self._mlx = self._arrays = None

    def find_devices(self) -> Sequence[FoundDevice]:
        facts = self._facts()
        name, architecture = facts.get("device_name"), facts.get("architecture")
        return (
            FoundDevice(
                index=0,
                name=str(name or "Apple GPU"),
                vendor="apple",
                memory_kind="unified",
                memory_total_bytes=self._total_bytes(),
                compute_units=self._counters.gpu().core_count,
                compute_capability=None if architecture is None else str(architecture),
            ),
        )

    def read(self, index: int) -> DeviceReading:
        gpu = self._counters.gpu()
        memory = self._memory(gpu.used_bytes)
        is_hot = self._counters.is_held_back_by_heat()
        return DeviceReading(
            memory_total_bytes=memory.total_bytes,
            memory_used_bytes=memory.used_bytes,
            compute_utilization_percent=gpu.utilization_percent,
            is_thermal_throttling=is_hot,
            throttle_reasons=None if is_hot is None else ("thermal",) if is_hot else (),
            is_memory_pressed=self._counters.is_memory_pressed(),
        )

    def memory_info(self, index: int) -> MemoryInfo:
        return self._memory(self._counters.gpu().used_bytes)

    def allocate(self, index: int, size_bytes: int) -> MetalBuffer:
        return self._used().allocate(size_bytes, self._host_memory().available_bytes)

    def free(self, buffer: MetalBuffer) -> None:
        buffer.array = None

    def write(self, buffer: MetalBuffer, data: memoryview, offset_bytes: int) -> None:
        self._used().write(buffer, data, offset_bytes)

    def fetch(self, buffer: MetalBuffer, offset_bytes: int, size_bytes: int) -> bytes:
        return self._used().fetch(buffer, offset_bytes, size_bytes)

    def copy(self, source: MetalBuffer, destination: MetalBuffer, size_bytes: int) -> None:
        self._used().copy(source, destination, size_bytes)

    def synchronize(self, index: int) -> None:
        self._used().synchronize()

    def multiply(
        self, left: MetalBuffer, right: MetalBuffer, shape: MatrixShape, precision: Precision
    ) -> MetalBuffer:
        return self._used().multiply(left, right, shape, precision)

    def _device(self, mlx: Any) -> Any:
        """Return MLX's name of the GPU.

        Raises:
            BackendUnavailableError: There is none for this MLX.
        """
        if not mlx.metal.is_available():
            raise BackendUnavailableError(
                "there is no Apple GPU here, or the installed MLX was built without Metal"
            )
        return mlx.gpu

    def _used(self) -> MetalArrays:
        if self._arrays is None:
            raise DeviceLostError("the Metal driver is closed: open it before using it")
        return self._arrays

    def _facts(self) -> dict[str, Any]:
        if self._mlx is None:
            raise DeviceLostError("the Metal driver is closed: open it before asking it")
        return self._mlx.device_info()

    def _total_bytes(self) -> int:
        """Return what the GPU may have of the host's memory."""
        limit = self._facts().get("max_recommended_working_set_size")
        if isinstance(limit, int) and limit > 0:
            return limit
        return int(self._host_memory().total_bytes * _OWN_MEMORY)

    def _memory(self, used_bytes: int | None) -> MemoryInfo:
        """Free is what the GPU may still take, and what the host has left: the smaller of both."""
        total_bytes = self._total_bytes()
        free_bytes = min(total_bytes - (used_bytes or 0), self._host_memory().available_bytes)
        return MemoryInfo(total_bytes=total_bytes, used_bytes=total_bytes - max(0, free_bytes))
