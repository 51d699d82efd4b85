"""Asks NVIDIA's management library (NVML, through `pynvml`), which may not know, may be uninitialised, or may be gone.

What each of its errors means is decided here: a value that is unknown, a device that is lost, or a library that has to
be initialised again. The numbers are those of nvml.h: https://docs.nvidia.com/deploy/nvml-api/.
"""

import importlib
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from loguru import logger

from exo.gpu.backends.cuda.errors import OldDriverError
from exo.gpu.backends.sysfs import has_pci_card
from exo.gpu.errors import BackendUnavailableError, DeviceLostError

DRIVER_MAJOR_MIN = 525
CUDA_MAJOR_MIN = 12
RETRY_UNSUPPORTED_S = 600.0
"""How long a question that a device does not support is not put again. A new driver may have learnt the answer."""

_VENDOR_ID = "10de"
_UNINITIALIZED = 1
_INVALID_ARGUMENT = 2
_NOT_FOUND = 6
_DRIVER_NOT_LOADED = 9
_LIBRARY_NOT_FOUND = 12
_RESET_REQUIRED = 16
_VERSION_MISMATCH = 18
_LOST = frozenset({15, 28})
"""GPU is lost, GPU not found."""
_STALE = frozenset({_INVALID_ARGUMENT, _NOT_FOUND})
"""What a handle says whose device was taken away or made anew; also what an old driver says to a new question."""
_UNSUPPORTED = frozenset({3, 4, 7, 13, 22, 25, 26})
"""Not supported, no permission, wrong size, no such function, no ECC in a virtual GPU, wrong version, deprecated."""
_UPDATED = (
    "the NVIDIA driver was updated while it was in use: restart the machine, or reload its kernel modules, "
    "and then exo"
)


class NvmlDevice:
    """A device's handle, looked up by UUID again whenever the library began anew. Of one thread at a time."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.handle: Any = None
        self.generation = -1
        self.needs_reset = False
        """It said so when it was last asked something."""
        self.answers = 0
        """Questions answered, and those refused for good reasons, since `begin`."""
        self.failures = 0
        """Questions that failed for no good reason since `begin`."""
        self.last_failure = ""

    def begin(self) -> None:
        """Begin to count anew."""
        self.needs_reset = False
        self.answers = self.failures = 0


class NvmlLibrary:
    """The library in this process. Thread-safe, as NVML itself is.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._module: Any = None
        self._lock = threading.Lock()
        self._generation = 0
        self._unsupported: dict[tuple[Any, ...], float] = {}
        self.driver_version: str | None = None
        self.cuda_version: int | None = None
        """As CUDA writes it: 12040 is 12.4."""

    @property
    def is_open(self) -> bool:
        """Whether it is initialised."""
        return self._module is not None

    def open(self) -> None:
        """Load and initialise it.

        Raises:
            BackendUnavailableError: It is missing; the message says what to do.
            OldDriverError: It is too old; likewise.
        """
        try:
            module: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise BackendUnavailableError(
                "NVIDIA GPUs are read through the Python package nvidia-ml-py, which is not installed",
                install_command="uv pip install nvidia-ml-py",
                is_absent=not has_pci_card(_VENDOR_ID),
            ) from error
        try:
            module.nvmlInit()
        except module.NVMLError as error:
            # Without a driver there is most likely no GPU, unless the bus has one; any other error speaks for one.
            is_absent = int(error.value) == _LIBRARY_NOT_FOUND and not has_pci_card(_VENDOR_ID)
            raise BackendUnavailableError(_why_not(error), is_absent=is_absent) from error
        self._module = module
        self._generation += 1
        self._unsupported.clear()
        try:
            self._check_versions()
        except BackendUnavailableError:
            self.close()
            raise

    def close(self) -> None:
        """Leave it. May be called twice."""
        module, self._module = self._module, None
        if module is not None:
            try:
                module.nvmlShutdown()
            except module.NVMLError as error:
                logger.debug("NVML did not shut down: {}", error)

    def ask(self, call: str, *arguments: Any) -> Any:
        """Ask something that is not of one device; None if it does not know.

        Raises:
            DeviceLostError: The library is gone.
        """
        return self._ask(None, call, arguments)

    def ask_device(self, device: NvmlDevice, call: str, *arguments: Any) -> Any:
        """Ask something of a device; None if it does not know or does not say.

        Args:
            device: Whose handle comes first.
            call: A function of `pynvml`.
            arguments: What comes after it; of another device its handle.

        Raises:
            DeviceLostError: The device does not answer any more.
        """
        return self._ask(device, call, arguments)

    def is_unsupported(self, device: NvmlDevice, call: str, *arguments: Any) -> bool:
        """Whether the device does not know the answer, rather than having failed to give it."""
        return (device.uuid, call, *arguments) in self._unsupported

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function as it is: for handles, event sets and other things that are not values.

        Raises:
            NVMLError: As `error_code` reads it.
            DeviceLostError: The library is closed.
        """
        return getattr(self._checked_module(), name)(*arguments)

    def error_code(self, error: BaseException) -> int | None:
        """Return NVML's number of an error; None: it is another's."""
        module = self._module
        if module is not None and isinstance(error, module.NVMLError):
            return int(getattr(error, "value"))  # noqa: B009 - the class has no types
        return None

    def handle_of(self, device: NvmlDevice) -> Any:
        """Return the device's handle, by its UUID.

        Raises:
            DeviceLostError: There is no such device any more.
        """
        if device.generation != self._generation or device.handle is None:
            generation = self._generation
            module = self._checked_module()
            try:
                device.handle = module.nvmlDeviceGetHandleByUUID(device.uuid)
            except module.NVMLError as error:
                code = int(error.value)
                if code in _STALE or code in _LOST:
                    raise DeviceLostError(
                        f"the GPU {device.uuid} is not there any more ({error}): see what "
                        "`sudo dmesg | grep -i nvrm` says, and restart the machine"
                    ) from error
                raise
            device.generation = generation
        return device.handle

    def _ask(self, device: NvmlDevice | None, call: str, arguments: tuple[Any, ...]) -> Any:
        key = (None if device is None else device.uuid, call, *arguments)
        asked_at = self._unsupported.get(key)
        if asked_at is not None and self._clock() - asked_at < RETRY_UNSUPPORTED_S:
            return None
        module = self._checked_module()
        function = getattr(module, call, None)
        if function is None:
            self._unsupported[key] = self._clock()
            return None
        for attempt in range(2):
            generation = self._generation
            try:
                handles = () if device is None else (self.handle_of(device),)
                rest = [self.handle_of(one) if isinstance(one, NvmlDevice) else one for one in arguments]
                answer = function(*handles, *rest)
            except module.NVMLError as error:
                if not self._may_try_again(device, error, generation, is_last=attempt == 1):
                    return self._no_answer(device, key, error)
            else:
                self._unsupported.pop(key, None)
                if device is not None:
                    device.answers += 1
                return answer
        return None

    def _may_try_again(
        self, device: NvmlDevice | None, error: Any, generation: int, *, is_last: bool
    ) -> bool:
        """Repair what can be repaired: then the question can be put once more."""
        code = int(error.value)
        if code in _LOST:
            raise DeviceLostError(_of(device, f"{error}: restart the machine if it stays so")) from error
        if code == _VERSION_MISMATCH:
            raise DeviceLostError(_UPDATED) from error
        if code in (_UNINITIALIZED, _DRIVER_NOT_LOADED):
            if is_last:
                raise DeviceLostError(_of(device, f"the driver does not answer: {error}")) from error
            self._begin_anew(generation)
            return True
        if code in _STALE and device is not None and not is_last:
            device.handle = None
            return True
        return False

    def _no_answer(self, device: NvmlDevice | None, key: tuple[Any, ...], error: Any) -> None:
        code = int(error.value)
        if code in _UNSUPPORTED or code in _STALE:
            self._unsupported[key] = self._clock()
            if device is not None:
                device.answers += 1
        elif device is not None:
            device.needs_reset = device.needs_reset or code == _RESET_REQUIRED
            device.failures += 1
            device.last_failure = str(error)

    def _begin_anew(self, generation: int) -> None:
        """Initialise again, once for all threads that met the same end of the library."""
        with self._lock:
            if generation != self._generation:
                return
            module = self._checked_module()
            try:
                module.nvmlInit()
            except module.NVMLError as error:
                raise DeviceLostError(_why_not(error)) from error
            logger.warning("The NVIDIA driver began anew: its devices are looked up again")
            self._generation += 1

    def _checked_module(self) -> Any:
        module = self._module
        if module is None:
            raise DeviceLostError("the NVIDIA driver is closed: open it before asking it")
        return module

    def _check_versions(self) -> None:
        self.driver_version = self.ask("nvmlSystemGetDriverVersion")
        self.cuda_version = self.ask("nvmlSystemGetCudaDriverVersion_v2")
        major = re.match(r"\d+", self.driver_version or "")
        if major is not None and int(major[0]) < DRIVER_MAJOR_MIN:
            raise OldDriverError(
                f"the NVIDIA driver is {self.driver_version}, and exo needs {DRIVER_MAJOR_MIN} or later: install a "
                "newer one with the system's package manager or from https://www.nvidia.com/drivers, then restart"
            )
        if self.cuda_version is not None and self.cuda_version < CUDA_MAJOR_MIN * 1000:
            raise OldDriverError(
                f"the NVIDIA driver knows CUDA {self.cuda_version // 1000}.{self.cuda_version % 1000 // 10}, and exo "
                f"needs {CUDA_MAJOR_MIN} or later: install a newer driver from https://www.nvidia.com/drivers, "
                "then restart"
            )


def _of(device: NvmlDevice | None, what: str) -> str:
    return what if device is None else f"the GPU {device.uuid}: {what}"


def _why_not(error: Any) -> str:
    code = int(error.value)
    if code == _LIBRARY_NOT_FOUND:
        return (
            "there is no NVIDIA driver (libnvidia-ml is not found): with an NVIDIA GPU, install the driver with the "
            "system's package manager or from https://www.nvidia.com/drivers; in a container, run it with --gpus all"
        )
    if code == _DRIVER_NOT_LOADED:
        return (
            "the NVIDIA driver is installed but not loaded: try `sudo modprobe nvidia`, and see what "
            "`sudo dmesg | grep -i nvidia` says"
        )
    if code == _VERSION_MISMATCH:
        return _UPDATED
    return f"the NVIDIA driver does not start ({error}): see what `nvidia-smi` says"
