"""What a log notes beside its entries: how far it was acknowledged, where it begins, and what it is about to do.

The mark tells an acknowledged end that is gone from a tail that never counted. A step that touches several files is
noted here before it begins, so that a crash in the middle leaves it undone or has it finished at the next opening.
"""

import struct
from typing import Literal

import msgspec

from exo.cluster.log.checksum import crc32c
from exo.cluster.log.files import Files
from exo.cluster.log.slots import TwoSlots
from exo.shared.errors import LogCorruptError

MARK_NAME = "mark"
_VERSION = 1
OLD_MARK_NAME = "synced"
"""Of the release that knew neither truncation nor compaction: only how far the log was acknowledged."""
OLD_RESET_NAME = "reset"
"""Of that release: the log is to be emptied."""
_OLD_SLOT = struct.Struct(">QQI")
"""Number of the write, synced index, CRC32C of both; at 0 and at 64."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """The entries behind `start_index` and up to `synced_index` are in the segments, whole."""

    synced_index: int = 0
    start_index: int = 0
    """Entries up to here are forgotten; segments that begin at or before it are left-overs."""
    task: Literal["none", "cut", "empty"] = "none"
    """To be done before anything else: `cut` off what is behind `task_index`, or `empty` the log."""
    task_index: int = 0


class MarkFile:
    """Keeps the mark.

    Args:
        files: The log's directory.
        where: Its name, for people.

    Raises:
        LogCorruptError: It cannot be read, or a newer release wrote it.
        OSError: The file cannot be read or written.
    """

    def __init__(self, files: Files, where: str) -> None:
        self._slots = TwoSlots(
            files, MARK_NAME, kind=b"MARK", version=_VERSION, where=where, damage=_damage(where, MARK_NAME)
        )
        self.is_new = self._slots.payload is None
        """Nothing was noted in the present form yet."""
        self.is_trusting = False
        """Nothing was noted at all: the directory is new, or somebody took the mark away to have what is there."""
        if self._slots.payload is not None:
            try:
                self.mark = msgspec.msgpack.decode(self._slots.payload, type=Mark)
            except msgspec.DecodeError as error:
                self._slots.close()
                raise LogCorruptError(_damage(where, MARK_NAME)) from error
        else:
            names = files.names()
            self.is_trusting = OLD_MARK_NAME not in names
            try:
                index = 0 if self.is_trusting else _old_index(files.read(OLD_MARK_NAME), where)
            except BaseException:
                self._slots.close()
                raise
            self.mark = Mark(task="empty") if OLD_RESET_NAME in names else Mark(index)

    def write(self, mark: Mark) -> None:
        """Note it, durably.

        Raises:
            OSError: Writing failed.
        """
        self._slots.write(msgspec.msgpack.encode(mark))
        self.mark = mark
        self.is_new = False

    def close(self) -> None:
        self._slots.close()


def _old_index(data: bytes, where: str) -> int:
    found = [slot for offset in (0, 64) if (slot := _old_slot_at(data, offset)) is not None]
    if not found and data.strip(b"\0"):
        raise LogCorruptError(_damage(where, OLD_MARK_NAME))
    return max(found, default=(0, 0))[1]


def _old_slot_at(data: bytes, offset: int) -> tuple[int, int] | None:
    if len(data) < offset + _OLD_SLOT.size:
        return None
    number, index, checksum = _OLD_SLOT.unpack_from(data, offset)
    # Zeros are a slot that was never written.
    return (number, index) if number and crc32c(data[offset : offset + 16]) == checksum else None


def _damage(where: str, name: str) -> str:
    return (
        f"the log in {where} is damaged: its file {name}, which says how far it was acknowledged, cannot be read; "
        "restore the directory from a copy, or delete that file to start with the entries that are there"
    )
