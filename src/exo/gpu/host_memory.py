"""The memory that this process may use: the host's, or the container's where that is smaller."""

from pathlib import Path

import msgspec
import psutil

_CGROUP = Path("/sys/fs/cgroup")


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """RAM in bytes."""

    total_bytes: int
    available_bytes: int


def read_host_memory(cgroup: Path = _CGROUP) -> HostMemory:
    """Read what there is and what is left, within the limit of the control group (v2) where there is one."""
    memory = psutil.virtual_memory()
    limit = _number(cgroup / "memory.max")
    current = _number(cgroup / "memory.current")
    if limit is None or limit >= memory.total:
        return HostMemory(total_bytes=memory.total, available_bytes=memory.available)
    if current is None:
        return HostMemory(total_bytes=limit, available_bytes=min(memory.available, limit))
    # File pages that nobody has used lately count as taken, but go first when memory is wanted.
    taken = max(0, current - _inactive_file_bytes(cgroup / "memory.stat"))
    return HostMemory(total_bytes=limit, available_bytes=max(0, min(memory.available, limit - taken)))


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
