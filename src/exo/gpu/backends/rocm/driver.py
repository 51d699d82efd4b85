"""AMD's GPUs as one driver: the kernel's files tell of them, and CuPy computes through HIP."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from exo.gpu.backends.cuda.cupy_driver import CuPyDriver
from exo.gpu.backends.cuda.visible import is_by_number, visible_devices
from exo.gpu.backends.rocm.amdgpu import AmdgpuWatcher
from exo.gpu.backends.sysfs import PCI_IDS, SYSFS
from exo.gpu.driver import FoundDevice
from exo.gpu.host_memory import HostMemory, read_host_memory

_OF_THE_RUNTIME = "ROCR_VISIBLE_DEVICES"
_OF_HIP = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""The second counts where the first is not set."""


class ROCmDriver(CuPyDriver):
    """amdgpu and CuPy.

    Args:
        sysfs: Where the kernel's files are.
        pci_ids: Lists of names.
        environment: Where the variables are looked up that hide devices.
        host_memory: What a GPU that is one with the processor may use of the host's.
    """

    name = "rocm"

    def __init__(
        self,
        *,
        sysfs: Path = SYSFS,
        pci_ids: tuple[Path, ...] = PCI_IDS,
        environment: Mapping[str, str] = os.environ,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        watcher = AmdgpuWatcher(sysfs=sysfs, pci_ids=pci_ids, host_memory=host_memory)
        super().__init__(watcher, vendor="amd", is_hip=True, environment=environment, host_memory=host_memory)

    def _install_command(self) -> str:
        return "uv pip install cupy-rocm-7-0"

    def _visible(self, found: Sequence[FoundDevice]) -> list[FoundDevice]:
        kept = visible_devices(found, self._environment.get(_OF_THE_RUNTIME))
        return visible_devices(kept, self._hip())

    def _is_by_number(self) -> bool:
        return is_by_number(self._environment.get(_OF_THE_RUNTIME)) or is_by_number(self._hip())

    def _hip(self) -> str | None:
        return next((self._environment[name] for name in _OF_HIP if name in self._environment), None)
