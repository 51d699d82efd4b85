"""A small value that is replaced often and must survive the replacing: two slots that are written in turn.

A slot lies in a block of its own, so that a write that the power interrupts spoils the older value and never both:

    slot: kind (4), version (u16), payload length (u16), number of the write (u64),
          CRC32C of the preceding 16 bytes and the payload (u32), payload
"""

import struct

import msgspec

from exo.cluster.log.checksum import crc32c
from exo.cluster.log.files import Files
from exo.shared.errors import LogCorruptError, LogNewerError

SLOT_BYTES = 4096
_FILE_BYTES = 2 * SLOT_BYTES
_CHECKED = struct.Struct(">4sHHQ")
_HEADER_BYTES = _CHECKED.size + 4
PAYLOAD_BYTES_MAX = SLOT_BYTES - _HEADER_BYTES


class _Slot(msgspec.Struct, frozen=True):
    number: int
    version: int
    payload: bytes


class TwoSlots:
    """Keeps the newest of the payloads that were written.

    Args:
        files: The directory.
        name: The file's name; it is created where it is missing.
        kind: Four bytes that tell one such file from another.
        version: Of the payload, as this release writes it.
        where: The directory's name, for people.
        damage: What to tell them when neither slot can be read, with the next step in it.

    Raises:
        LogCorruptError: Neither slot can be read, or a newer release wrote them.
        OSError: The file cannot be read or written.
    """

    def __init__(
        self, files: Files, name: str, *, kind: bytes, version: int, where: str, damage: str
    ) -> None:
        self._kind = kind
        self._version = version
        is_missing = name not in files.names()
        data = b"" if is_missing else files.read(name)
        slots = [_slot_at(data, offset, kind) for offset in (0, SLOT_BYTES)]
        found = [slot for slot in slots if slot is not None]
        if not found and data.strip(b"\0"):
            raise LogCorruptError(damage)
        newest = max(found, key=lambda slot: slot.number, default=None)
        if newest is not None and newest.version > version:
            raise LogNewerError(
                f"the file {name} in {where} was written by a newer release of exo (format {newest.version}, known "
                f"up to {version}); start that release, or choose another data directory with EXO_HOME"
            )
        self.payload = None if newest is None else newest.payload
        """None: nothing was ever written."""
        self.is_doubled = len({slot.payload for slot in found}) == 1 and len(found) == 2
        """Both slots hold it."""
        self._number = 0 if newest is None else newest.number
        self._file = files.open_in_place(name, _FILE_BYTES)
        try:
            # What was found is acted on: it has to stay, even if whoever wrote it was killed before it was durable.
            self._file.sync()
            if is_missing:
                files.sync_names()
        except BaseException:
            self._file.close()
            raise

    def write(self, payload: bytes) -> None:
        """Replace the value, durably.

        Raises:
            ValueError: It is longer than PAYLOAD_BYTES_MAX.
            OSError: Writing failed; the value is the old one, or the new one.
        """
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"{len(payload)} bytes are {len(payload) - PAYLOAD_BYTES_MAX} more than fit")
        number = self._number + 1
        checked = _CHECKED.pack(self._kind, self._version, len(payload), number)
        checksum = crc32c(payload, crc32c(checked))
        slot = b"".join((checked, struct.pack(">I", checksum), payload))
        self._file.write_at(SLOT_BYTES * (number % 2), slot)
        self._file.sync()
        self._number, self.payload = number, payload

    def close(self) -> None:
        self._file.close()


def _slot_at(data: bytes, offset: int, kind: bytes) -> _Slot | None:
    start = offset + _HEADER_BYTES
    if len(data) < start:
        return None
    found_kind, version, length, number = _CHECKED.unpack_from(data, offset)
    if found_kind != kind or length > PAYLOAD_BYTES_MAX or len(data) < start + length:
        return None
    payload = data[start : start + length]
    (checksum,) = struct.unpack_from(">I", data, offset + _CHECKED.size)
    if crc32c(payload, crc32c(data[offset : offset + _CHECKED.size])) != checksum:
        return None
    return _Slot(number, version, payload)
