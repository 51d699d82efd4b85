"""How far the log was ever acknowledged: tells an acknowledged end that is gone from a tail that never counted."""

import struct

from exo.cluster.log.checksum import crc32c
from exo.cluster.log.files import Files
from exo.shared.errors import LogCorruptError

MARK_NAME = "synced"
_SLOT = struct.Struct(">QQI")
"""Number of the write, synced index, CRC32C of both."""
_SLOT_BYTES = 64
_MARK_BYTES = 2 * _SLOT_BYTES


class HighWaterMark:
    """A small file with two slots that are written in turn: a write that the power interrupts spoils the older one.

    Args:
        files: The log's directory.
        where: Its name, for people.

    Raises:
        LogCorruptError: Neither slot can be read.
        OSError: The file cannot be read or written.
    """

    def __init__(self, files: Files, where: str) -> None:
        self.is_new = MARK_NAME not in files.names()
        """There was none: the directory is new, or somebody took the mark away to have the log as it is."""
        data = b"" if self.is_new else files.read(MARK_NAME)
        found = [slot for offset in (0, _SLOT_BYTES) if (slot := _slot_at(data, offset)) is not None]
        if not found and data.strip(b"\0"):
            raise LogCorruptError(
                f"the log in {where} is damaged: its file {MARK_NAME}, which says how far it was acknowledged, "
                "cannot be read; restore the directory from a copy, or delete that file to start with the "
                "entries that are there"
            )
        self._number, self.index = max(found, default=(0, 0))
        self._file = files.open_in_place(MARK_NAME, _MARK_BYTES)

    def write(self, index: int) -> None:
        """Note, durably, that the log is durable up to `index`."""
        number = self._number + 1
        checked = struct.pack(">QQ", number, index)
        self._file.write_at(_SLOT_BYTES * (number % 2), checked + struct.pack(">I", crc32c(checked)))
        self._file.sync()
        self._number, self.index = number, index

    def close(self) -> None:
        self._file.close()


def _slot_at(data: bytes, offset: int) -> tuple[int, int] | None:
    if len(data) < offset + _SLOT.size:
        return None
    number, index, checksum = _SLOT.unpack_from(data, offset)
    # Zeros are a slot that was never written.
    return (number, index) if number and crc32c(data[offset : offset + 16]) == checksum else None
