"""Intel's GPUs as one driver: the kernel's files tell of them, and ONNX Runtime computes where it has OpenVINO."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loguru import logger

from exo.gpu.backends.intel.watcher import IntelWatcher
from exo.gpu.backends.onnx.arrays import OnnxArrays, OnnxBuffer
from exo.gpu.backends.sysfs import PCI_IDS, SYSFS
from exo.gpu.driver import Driver, FoundDevice, MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, NotComputingError
from exo.gpu.host_memory import HostMemory, read_host_memory
from exo.gpu.reading import DeviceReading, MemoryInfo


class IntelDriver(Driver):
    """xe or i915, and OpenVINO.

    Args:
        sysfs: Where the kernel's files are.
        pci_ids: Lists of names.
        arrays: Computes.
        clock: Monotonic seconds.
        host_memory: What a GPU that is one with the processor may use of the host's.
    """

    name = "intel"

    def __init__(
        self,
        *,
        sysfs: Path = SYSFS,
        pci_ids: tuple[Path, ...] = PCI_IDS,
        arrays: OnnxArrays | None = None,
        clock: Callable[[], float] = time.monotonic,
        host_memory: Callable[[], HostMemory] = read_host_memory,
    ) -> None:
        self._watcher = IntelWatcher(sysfs=sysfs, pci_ids=pci_ids, clock=clock, host_memory=host_memory)
        self._host_memory = host_memory
        self._arrays = arrays if arrays is not None else _openvino()
        self._is_computing = False
        self.why_not_computing: BackendUnavailableError | None = None
        """What is missing to compute; None: nothing."""

    def open(self) -> None:
        self._watcher.open()
        self.why_not_computing = None
        try:
            self._arrays.open(0)
            self._is_computing = True
        except BackendUnavailableError as error:
            self.why_not_computing = error
            logger.info("intel: devices are watched only: {}. {}", error.message, error.install_command)

    def close(self) -> None:
        self._is_computing = False
        self._arrays.close()
        self._watcher.close()

    def find_devices(self) -> Sequence[FoundDevice]:
        return self._watcher.find_devices()

    def read(self, index: int) -> DeviceReading:
        return self._watcher.read(index)

    def memory_info(self, index: int) -> MemoryInfo:
        return self._watcher.memory_info(index)

    @property
    def computes(self) -> bool:
        return self._is_computing

    def allocate(self, index: int, size_bytes: int) -> OnnxBuffer:
        memory = self.memory_info(index)
        free_bytes = memory.total_bytes - (memory.used_bytes or 0)
        # OpenVINO takes what it computes from the host's memory.
        return self._used().allocate(index, size_bytes, min(free_bytes, self._host_memory().available_bytes))

    def free(self, buffer: OnnxBuffer) -> None:
        buffer.value = None

    def write(self, buffer: OnnxBuffer, data: memoryview, offset_bytes: int) -> None:
        self._used().write(buffer, data, offset_bytes)

    def fetch(self, buffer: OnnxBuffer, offset_bytes: int, size_bytes: int) -> bytes:
        return self._used().fetch(buffer, offset_bytes, size_bytes)

    def copy(self, source: OnnxBuffer, destination: OnnxBuffer, size_bytes: int) -> None:
        self._used().copy(source, destination, size_bytes)

    def synchronize(self, index: int) -> None:
        self._used()  # Every call of ONNX Runtime returns when it is done.

    def multiply(
        self, left: OnnxBuffer, right: OnnxBuffer, shape: MatrixShape, precision: Precision
    ) -> OnnxBuffer:
        return self._used().multiply(left, right, shape, precision)

    def _used(self) -> OnnxArrays:
        if self._is_computing:
            return self._arrays
        why = self.why_not_computing
        raise NotComputingError(
            "the Intel driver is closed: open it before using it" if why is None else why.message
        )


def _openvino() -> OnnxArrays:
    # It counts GPUs as the watcher does: the processor's own first. Its memory is the host's.
    return OnnxArrays(
        "OpenVINOExecutionProvider",
        lambda ordinal: {"device_type": f"GPU.{ordinal}"},
        memory="cpu",
        package="onnxruntime-openvino",
    )
