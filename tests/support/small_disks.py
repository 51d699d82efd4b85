"""Small real disks that fill up. Needs rights to mount them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A disk in memory, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Take all the room that is left."""
        piece_bytes = 64 * 1024
        with self._ballast.open("ab", buffering=0) as ballast:
            while piece_bytes:
                try:
                    ballast.write(bytes(piece_bytes))
                except OSError:
                    piece_bytes //= 2

    def make_room(self) -> None:
        self._ballast.unlink()

    def set_writable(self, *, is_writable: bool) -> None:
        """Let the disk be written, or only read. Nobody may have a file open for writing."""
        options = f"remount,{'rw' if is_writable else 'ro'}"
        subprocess.run(["mount", "-o", options, self.path], check=True, capture_output=True, timeout=20)


@contextmanager
def small_disk(path: Path, *, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount a disk, and take it away at the end. Skips the test, with the reason, where that cannot be done."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small disk")
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", path],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    if mount.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        # A test that failed may have left files open.
        subprocess.run(["umount", "--lazy", path], check=True, timeout=20)
