"""The memory that this process may use: the host's, or the container's where that is smaller."""

from pathlib import Path

import msgspec
import psutil

_CGROUP = Path("/sys/fs/cgroup")


_MEMINFO = Path("/proc/meminfo")


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """RAM in bytes."""

    total_bytes: int
    available_bytes: int


def read_host_memory(cgroup: Path = _CGROUP) -> HostMemory:
    """Read what there is and what is left, within the limit of the control group (v2) where there is one."""
    total_bytes, free_bytes = _of_system()
    limit = _number(cgroup / "memory.max")
    current = _number(cgroup / "memory.current")
    if limit is None or limit >= total_bytes:
        return HostMemory(total_bytes=total_bytes, available_bytes=free_bytes)
    if current is None:
        return HostMemory(total_bytes=limit, available_bytes=min(free_bytes, limit))
    # File pages that nobody has used lately count as taken, but go first when memory is wanted.
    taken = max(0, current - _inactive_file_bytes(cgroup / "memory.stat"))
    return HostMemory(total_bytes=limit, available_bytes=max(0, min(free_bytes, limit - taken)))


def read_swap() -> tuple[int, int]:
    """Return the bytes of swap that there are, and those that are free."""
    told = _meminfo("SwapTotal", "SwapFree")
    if told is not None:
        return told
    swap = psutil.swap_memory()
    return swap.total, swap.free


def _of_system() -> tuple[int, int]:
    told = _meminfo("MemTotal", "MemAvailable")
    if told is not None:
        return told
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _meminfo(first: str, second: str) -> tuple[int, int] | None:
    """Return two lines of Linux' file in bytes; None: there is no such file. psutil reads and computes much more."""
    found: dict[str, int] = {}
    try:
        with _MEMINFO.open("rb") as file:
            for line in file:
                name, _, rest = line.partition(b":")
                key = name.decode("ascii", "replace")
                if key in (first, second):
                    found[key] = int(rest.split()[0]) * 1024
                    if len(found) == 2:
                        return found[first], found[second]
    except (OSError, ValueError, IndexError):
        return None
    return None


def _number(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() else None


def _inactive_file_bytes(file: Path) -> int:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "inactive_file" and value.isdecimal():
            return int(value)
    return 0
