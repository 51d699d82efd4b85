"""NVIDIA's GPUs as one driver: NVML watches them and CuPy computes."""

import os
import time
from collections.abc import Callable, Mapping, Sequence

from exo.gpu.backends.cuda.cupy_driver import CuPyDriver
from exo.gpu.backends.cuda.nvml import NvidiaMonitor
from exo.gpu.backends.cuda.visible import is_by_number, visible_devices
from exo.gpu.driver import FoundDevice
from exo.gpu.host_memory import HostMemory, read_host_memory

VISIBLE = "CUDA_VISIBLE_DEVICES"


class CUDADriver(CuPyDriver):
    """NVML and CuPy.

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
        super().__init__(
            self._monitor, vendor="nvidia", is_hip=False, environment=environment, host_memory=host_memory
        )

    def _install_command(self) -> str:
        version = self._monitor.cuda_version
        kind = "cupy-cuda12x" if version is not None and version < 13_000 else "cupy-cuda13x"
        return f"uv pip install '{kind}[ctk]'"

    def _visible(self, found: Sequence[FoundDevice]) -> list[FoundDevice]:
        return visible_devices(found, self._environment.get(VISIBLE))

    def _is_by_number(self) -> bool:
        return is_by_number(self._environment.get(VISIBLE))
