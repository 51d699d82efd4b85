"""What a log needs of a file system, small enough that a test can stand in for one that loses power."""

import errno
import os
import sys
from pathlib import Path
from typing import Protocol

IS_WINDOWS = sys.platform == "win32"


class WritableFile(Protocol):
    """A file that is written at its end."""

    def write(self, data: bytes) -> None:
        """Add all of `data` at the end, or raise OSError (part of it may be there then)."""
        ...

    def sync(self) -> None:
        """Return when everything written survives a loss of power."""
        ...

    def close(self) -> None: ...


class FixedFile(Protocol):
    """A small file of a fixed size that is overwritten in place."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Overwrite. After a loss of power the old bytes are there, or the new ones, or some of both."""
        ...

    def sync(self) -> None:
        """Return when everything written survives a loss of power."""
        ...

    def close(self) -> None: ...


class Files(Protocol):
    """Files of one directory."""

    def names(self) -> list[str]:
        """Return the names of the files there."""
        ...

    def read(self, name: str) -> bytes: ...

    def create(self, name: str) -> WritableFile:
        """Create a new, empty file; its name is durable after `sync_names`.

        Raises:
            FileExistsError: There is one.
        """
        ...

    def open_at_end(self, name: str) -> WritableFile: ...

    def open_in_place(self, name: str, size_bytes: int) -> FixedFile:
        """Open a file of this size; one that is missing or shorter is filled up with zeros, durably but its name."""
        ...

    def truncate(self, name: str, size_bytes: int) -> None:
        """Cut a file off, durably."""
        ...

    def remove(self, name: str) -> None: ...

    def sync_names(self) -> None:
        """Return when created and removed names survive a loss of power."""
        ...


class DiskFile:
    """A WritableFile on a real disk."""

    def __init__(self, path: Path, flags: int) -> None:
        self._descriptor = os.open(
            path, flags | os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600
        )

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        sync_data(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class DiskFixedFile:
    """A FixedFile on a real disk."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o600)
        missing = size_bytes - os.fstat(self._descriptor).st_size
        if missing > 0:
            os.lseek(self._descriptor, 0, os.SEEK_END)
            os.write(self._descriptor, bytes(missing))
            sync_descriptor(self._descriptor)

    def write_at(self, offset: int, data: bytes) -> None:
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        if os.write(self._descriptor, data) != len(data):
            raise OSError(errno.EIO, "not all of it was written")

    def sync(self) -> None:
        sync_data(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class DiskFiles:
    """Files of a real directory, which is created where it is missing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            sync_directory(directory.parent)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.is_file())

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def create(self, name: str) -> WritableFile:
        return DiskFile(self.directory / name, os.O_CREAT | os.O_EXCL)

    def open_at_end(self, name: str) -> WritableFile:
        return DiskFile(self.directory / name, 0)

    def open_in_place(self, name: str, size_bytes: int) -> FixedFile:
        return DiskFixedFile(self.directory / name, size_bytes)

    def truncate(self, name: str, size_bytes: int) -> None:
        with (self.directory / name).open("r+b") as file:
            file.truncate(size_bytes)
            sync_descriptor(file.fileno())

    def remove(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def sync_names(self) -> None:
        sync_directory(self.directory)


def sync_descriptor(descriptor: int) -> None:
    """Return when a file's content survives a loss of power."""
    if sys.platform == "darwin":
        import fcntl

        # macOS' fsync stops at the drive's cache; some file systems cannot do better.
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass
    os.fsync(descriptor)


def sync_data(descriptor: int) -> None:
    """As `sync_descriptor`, without the times of the file where the system can leave them out."""
    if sys.platform == "linux":
        os.fdatasync(descriptor)
    else:
        sync_descriptor(descriptor)


def sync_directory(directory: Path) -> None:
    """Return when the directory's names survive a loss of power."""
    if IS_WINDOWS:
        return  # Directories cannot be opened there; NTFS journals names itself.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
