"""One process per data directory: an advisory lock that ends with the process, however it ends."""

import os
import sys
from pathlib import Path

from exo.shared.errors import ConfigurationError

_held: set[Path] = set()
"""Locks of this process: POSIX record locks do not exclude their own process, and closing any descriptor of the
file would release them. They are used all the same because, unlike flock's, a forked child does not inherit them:
a child that outlives its killed parent must not keep the directory locked."""


class DirectoryLock:
    """Holds `<directory>/lock` until released.

    Raises:
        ConfigurationError: Another process (or another part of this one) holds it.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = directory.resolve() / "lock"
        if self._path in _held:
            raise _in_use(directory, f" (process {os.getpid()})")
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
        except OSError as error:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise _in_use(directory, holder) from error
        self._descriptor: int | None = descriptor
        _held.add(self._path)
        if sys.platform != "win32":  # There the locked byte cannot be read by others anyway.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Let others have it. Harmless when already released."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _held.discard(self._path)


def _in_use(directory: Path, holder: str) -> ConfigurationError:
    return ConfigurationError(
        f"another exo{holder} is using the data directory {directory.parent}; "
        "stop it, or choose another directory with EXO_HOME"
    )


def _read_holder(descriptor: int) -> str:
    try:
        text = os.read(descriptor, 20).decode(errors="replace").strip()
    except OSError:
        return ""
    return f" (process {text})" if text.isdecimal() else ""


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
