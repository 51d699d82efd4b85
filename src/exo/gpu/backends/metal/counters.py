"""What macOS tells of its GPU without root: use and memory from the I/O registry, heat and shortage as levels.

Power and temperature are told to root only (`powermetrics`), or through interfaces that Apple does not document: they
stay unknown. Sources: ioreg(8), notify(3), sysctlbyname(3); the levels of thermal pressure are those of the header
OSThermalNotification.h, those of memory pressure the kernel's `memorystatus_vm_pressure_level`.
"""

import ctypes
import plistlib
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
from loguru import logger

_IOREG = ("ioreg", "-a", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator")
_TIMEOUT_S = 2.0
_THERMAL_PRESSURE = b"com.apple.system.thermalpressurelevel"
_MEMORY_PRESSURE = b"kern.memorystatus_vm_pressure_level"
_HEAVY = 2
"""From here on the system holds the GPU back; below it the fans do."""
_MEMORY_IS_NORMAL = 1


class GpuCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What the I/O registry says of the GPU."""

    utilization_percent: float | None = None
    used_bytes: int | None = None
    """Of the host's memory, in use by everybody's graphics and computing."""
    core_count: int | None = None


class MacCounters:
    """The system's counters.

    Args:
        run: Runs a command and returns what it prints.
        library: The system's C library; None: this process's own.
    """

    def __init__(
        self, run: Callable[[Sequence[str]], bytes] | None = None, library: str | None = None
    ) -> None:
        self._run = run if run is not None else _run
        self._library: Any = None
        self._library_name = library
        self._token: ctypes.c_int | None = None

    def gpu(self) -> GpuCounters:
        """Read the I/O registry."""
        try:
            return parsed(self._run(_IOREG))
        except (OSError, subprocess.SubprocessError) as error:
            logger.debug("ioreg does not tell: {}", error)
            return GpuCounters()

    def is_held_back_by_heat(self) -> bool | None:
        """Say whether the system slows the GPU down for its heat; None where it does not tell."""
        level = self._thermal_level()
        return None if level is None else level >= _HEAVY

    def is_memory_pressed(self) -> bool | None:
        """Say whether the system is short of memory; None where it does not tell."""
        level = ctypes.c_int(0)
        size = ctypes.c_size_t(ctypes.sizeof(level))
        try:
            failed = self._loaded().sysctlbyname(
                _MEMORY_PRESSURE, ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0)
            )
        except (OSError, AttributeError):
            return None
        return None if failed else level.value > _MEMORY_IS_NORMAL

    def _thermal_level(self) -> int | None:
        try:
            library = self._loaded()
            if self._token is None:
                token = ctypes.c_int(-1)
                if library.notify_register_check(_THERMAL_PRESSURE, ctypes.byref(token)):
                    return None
                self._token = token
            level = ctypes.c_uint64(0)
            failed = library.notify_get_state(self._token, ctypes.byref(level))
        except (OSError, AttributeError):
            return None
        return None if failed else int(level.value)

    def _loaded(self) -> Any:
        if self._library is None:
            self._library = ctypes.CDLL(self._library_name)
        return self._library


def parsed(text: bytes) -> GpuCounters:
    """Read the property list that ioreg prints; what is missing is None."""
    try:
        entries: Any = plistlib.loads(text) if text else []
    except Exception as error:  # plistlib raises those of its parsers.
        logger.debug("ioreg prints what is no property list: {}", error)
        return GpuCounters()
    for entry in cast("list[Any]", entries) if isinstance(entries, list) else ():
        said = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        statistics: Any = said.get("PerformanceStatistics")
        if isinstance(statistics, dict):
            values = cast("dict[str, Any]", statistics)
            busy = _whole(values.get("Device Utilization %"))
            return GpuCounters(
                utilization_percent=None if busy is None else float(busy),
                used_bytes=_whole(values.get("In use system memory")),
                core_count=_whole(said.get("gpu-core-count")),
            )
    return GpuCounters()


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _run(command: Sequence[str]) -> bytes:
    done = subprocess.run(
        command, capture_output=True, timeout=_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL
    )
    return done.stdout
