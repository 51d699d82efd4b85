"""Collects the errors (Xid) that NVIDIA's driver reports of a GPU as they happen."""

import time
from collections.abc import Callable
from typing import Any

from exo.gpu.backends.cuda.nvml_library import RETRY_UNSUPPORTED_S, NvmlDevice, NvmlLibrary
from exo.gpu.errors import DeviceLostError

_XID_EVENT = 8
_UNINITIALIZED = 1
_TIMEOUT = 10
_LOST = 15
_WHOLE_GPU = 0xFFFFFFFF
_AT_ONCE_MAX = 32
"""Errors taken at one time: a GPU in trouble may report many."""


class NvmlEvents:
    """The errors of one GPU since the first `take`. Of one thread at a time.

    Args:
        chip: The whole GPU: parts of one report through it.
        gpu_instance: Of a part: errors of other parts are left out.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        library: NvmlLibrary,
        chip: NvmlDevice,
        gpu_instance: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._library = library
        self._chip = chip
        self._gpu_instance = gpu_instance
        self._clock = clock
        self._set: Any = None
        self._generation = -1
        self._failed_at_s: float | None = None

    def take(self) -> list[int]:
        """Return the numbers of the errors since the last call, oldest first; none where the driver does not tell.

        Raises:
            DeviceLostError: The GPU is gone.
        """
        found: list[int] = []
        if not self._is_listening():
            return found
        for _ in range(_AT_ONCE_MAX):
            try:
                event: Any = self._library.call("nvmlEventSetWait_v2", self._set, 0)
            except Exception as error:
                code = self._library.error_code(error)
                if code is None:
                    raise
                if code == _LOST:
                    raise DeviceLostError(f"the GPU {self._chip.uuid}: {error}") from error
                if code == _UNINITIALIZED:
                    self._set = None  # It went with the library.
                elif code != _TIMEOUT:
                    self._give_up()
                break
            if event.eventType == _XID_EVENT and self._is_mine(int(event.gpuInstanceId)):
                found.append(int(event.eventData))
        return found

    def close(self) -> None:
        """Stop to listen. May be called twice."""
        kept, self._set = self._set, None
        if kept is not None and self._library.is_open and self._generation == self._chip.generation:
            self._quietly("nvmlEventSetFree", kept)

    def _is_mine(self, instance: int) -> bool:
        return self._gpu_instance is None or instance in (self._gpu_instance, _WHOLE_GPU)

    def _is_listening(self) -> bool:
        handle = self._handle()
        if handle is None:
            return False
        if self._set is not None and self._generation == self._chip.generation:
            return True
        if self._failed_at_s is not None and self._clock() - self._failed_at_s < RETRY_UNSUPPORTED_S:
            return False
        self._generation = self._chip.generation
        self._set = self._quietly("nvmlEventSetCreate")
        types = self._library.ask_device(self._chip, "nvmlDeviceGetSupportedEventTypes") or 0
        if self._set is not None and types & _XID_EVENT:
            try:
                self._library.call("nvmlDeviceRegisterEvents", handle, _XID_EVENT, self._set)
            except Exception as error:
                if self._library.error_code(error) is None:
                    raise
            else:
                self._failed_at_s = None
                return True
        self._give_up()
        return False

    def _give_up(self) -> None:
        self.close()
        self._failed_at_s = self._clock()

    def _handle(self) -> Any:
        try:
            return self._library.handle_of(self._chip)
        except Exception as error:
            if self._library.error_code(error) is None:
                raise
            return None

    def _quietly(self, name: str, *arguments: Any) -> Any:
        try:
            return self._library.call(name, *arguments)
        except Exception as error:
            if self._library.error_code(error) is None:
                raise
            return None
