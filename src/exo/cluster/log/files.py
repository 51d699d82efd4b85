"""What a log needs of a file system, small enough that a test can stand in for one that loses power."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Protocol

IS_WINDOWS = sys.platform == "win32"
DRAFT_SUFFIX = ".new"
"""A file that is being written; it gets its name when it is whole and durable."""


class WritableFile(Protocol):
    """An open file."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data`, or raise OSError (part of it may be there then).

        After a loss of power what was written and not synced is there, or what was there before, or some of both.
        """
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

    def open(self, name: str) -> WritableFile:
        """Open a file that is there.

        Raises:
            FileNotFoundError: There is none.
        """
        ...

    def open_in_place(self, name: str, size_bytes: int) -> WritableFile:
        """Open a file of this size; one that is missing or shorter is filled up with zeros, durably but its name."""
        ...

    def truncate(self, name: str, size_bytes: int) -> None:
        """Cut a file off, durably."""
        ...

    def rename(self, old_name: str, new_name: str) -> None:
        """Give a file another name, in one step; what had that name is gone. Durable after `sync_names`."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there; it is gone for good after `sync_names`."""
        ...

    def sync_names(self) -> None:
        """Return when created, changed and removed names survive a loss of power."""
        ...


def write_whole(files: Files, name: str, data: bytes) -> None:
    """Put a file there in one step: after a crash it is whole, or as it was before. Durable after `sync_names`.

    Raises:
        OSError: Writing failed; what had the name is as before.
    """
    draft = name + DRAFT_SUFFIX
    files.remove(draft)
    try:
        file = files.create(draft)
        try:
            file.write_at(0, data)
            file.sync()
        finally:
            file.close()
        files.rename(draft, name)
    except OSError:
        with suppress(OSError):
            files.remove(draft)
        raise


class DiskFile:
    """A WritableFile on a real disk."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        self._descriptor = os.open(path, flags | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)

    def write_at(self, offset: int, data: bytes) -> None:
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def fill_up(self, size_bytes: int) -> None:
        """Make it at least this long, durably."""
        size_now = os.fstat(self._descriptor).st_size
        if size_now < size_bytes:
            self.write_at(size_now, bytes(size_bytes - size_now))
            sync_descriptor(self._descriptor)

    def sync(self) -> None:
        sync_data(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class DiskFiles:
    """Files of a real directory, which is created where it is missing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        make_directory(directory)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.is_file())

    def read(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def create(self, name: str) -> WritableFile:
        return DiskFile(self.directory / name, os.O_CREAT | os.O_EXCL)

    def open(self, name: str) -> WritableFile:
        return DiskFile(self.directory / name)

    def open_in_place(self, name: str, size_bytes: int) -> WritableFile:
        file = DiskFile(self.directory / name, os.O_CREAT)
        try:
            file.fill_up(size_bytes)
        except OSError:
            file.close()
            raise
        return file

    def truncate(self, name: str, size_bytes: int) -> None:
        with (self.directory / name).open("r+b") as file:
            file.truncate(size_bytes)
            sync_descriptor(file.fileno())

    def rename(self, old_name: str, new_name: str) -> None:
        (self.directory / old_name).replace(self.directory / new_name)

    def remove(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def sync_names(self) -> None:
        sync_directory(self.directory)


def make_directory(directory: Path) -> None:
    """Create a directory and those above it where they are missing, durably."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    directory.mkdir(exist_ok=True, mode=0o700)
    sync_directory(directory.parent)


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
