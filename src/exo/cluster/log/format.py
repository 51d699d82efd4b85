"""How entries lie in a segment file. Pure: bytes in, frames and findings out.

A segment is a header, frames, and zeros up to its end. A frame holds what one group commit wrote: all of it or nothing
of it is there. Format 1 is the same; its release knows neither compressed segments nor logs that begin later.

    header: magic "EXOLOG" (6), version (u16), CRC32C of both (u32)
    frame:  marker (4), payload length (u32), first index (u64), entry count (u32),
            CRC32C of the preceding 16 bytes and the payload (u32), payload: msgpack array of LogEntry
"""

import struct
from collections.abc import Iterator, Sequence

import msgspec

from exo.cluster.log.checksum import crc32c
from exo.shared.errors import LogCorruptError, LogNewerError
from exo.shared.types.events import LogEntry

VERSION = 2
MAGIC = b"EXOLOG"
MARKER = b"\xf1exo"

_HEADER = struct.Struct(">6sHI")
_FRAME = struct.Struct(">4sIQII")
_CHECKED = struct.Struct(">IQI")
HEADER_BYTES = _HEADER.size

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[LogEntry, ...])


class Frame(msgspec.Struct, frozen=True):
    """Where one group commit lies: `payload` is `data[payload_start:end]`."""

    first_index: int
    entry_count: int
    payload_start: int
    end: int

    @property
    def start(self) -> int:
        return self.payload_start - _FRAME.size

    @property
    def last_index(self) -> int:
        return self.first_index + self.entry_count - 1


def encode_header() -> bytes:
    checked = struct.pack(">6sH", MAGIC, VERSION)
    return checked + struct.pack(">I", crc32c(checked))


def is_header(data: bytes, name: str) -> bool:
    """Say whether a segment's header is whole.

    Raises:
        LogNewerError: It is whole, and of a version that this release cannot read.
    """
    if len(data) < HEADER_BYTES:
        return False
    magic, version, checksum = _HEADER.unpack_from(data)
    if magic != MAGIC or checksum != crc32c(data[: HEADER_BYTES - 4]):
        return False
    if version > VERSION:
        raise LogNewerError(
            f"the log file {name} was written by a newer release of exo (format {version}, known up to "
            f"{VERSION}); start that release, or choose another data directory with EXO_HOME"
        )
    return True


def version_of(data: bytes) -> int:
    """Return the version in a whole header."""
    return int(_HEADER.unpack_from(data)[1])


def encode_frame(entries: Sequence[LogEntry]) -> bytes:
    payload = _encoder.encode(entries)
    checked = _CHECKED.pack(len(payload), entries[0].index, len(entries))
    checksum = crc32c(payload, crc32c(checked))
    return b"".join((MARKER, checked, struct.pack(">I", checksum), payload))


def frame_at(data: bytes, offset: int) -> Frame | None:
    """Return the frame that begins at `offset`, or None where no whole, undamaged one does."""
    start = offset + _FRAME.size
    if start > len(data):
        return None
    marker, length, first_index, entry_count, checksum = _FRAME.unpack_from(data, offset)
    if marker != MARKER or entry_count == 0 or start + length > len(data):
        return None
    checked = data[offset + 4 : offset + 4 + _CHECKED.size]
    if crc32c(data[start : start + length], crc32c(checked)) != checksum:
        return None
    return Frame(first_index, entry_count, start, start + length)


def scan(data: bytes) -> Iterator[Frame]:
    """Yield frames from behind the header up to the first byte that begins no undamaged frame."""
    offset = HEADER_BYTES
    while (frame := frame_at(data, offset)) is not None:
        yield frame
        offset = frame.end


def is_blank(data: bytes, offset: int) -> bool:
    """Say whether nothing was ever written from here on."""
    return not data[offset:].strip(b"\0")


_SEARCH_FACTOR = 16
"""How many times its own length `has_frame_after` reads at most: what looks like a frame may claim any length."""


def has_frame_after(data: bytes, offset: int) -> bool:
    """Say whether an undamaged frame lies anywhere behind a damaged place: then it is no torn tail.

    Data that is full of what looks like frames counts as holding one.
    """
    budget = _SEARCH_FACTOR * len(data)
    found = data.find(MARKER, offset + 1)
    while found >= 0:
        if frame_at(data, found) is not None:
            return True
        length = int.from_bytes(data[found + 4 : found + 8], "big")
        budget -= length if found + _FRAME.size + length <= len(data) else 0
        if budget < 0:
            return True
        found = data.find(MARKER, found + 1)
    return False


def cut(data: bytes, index: int, name: str) -> bytes:
    """Return a segment without the entries behind `index`.

    Raises:
        LogCorruptError: See `decode_frame`.
    """
    for frame in scan(data):
        if frame.last_index > index:
            kept = decode_frame(data, frame, name)[: max(0, index - frame.first_index + 1)]
            return data[: frame.start] + (encode_frame(kept) if kept else b"")
    return data


def decode_frame(data: bytes, frame: Frame, name: str) -> tuple[LogEntry, ...]:
    """Return a frame's entries.

    Raises:
        LogCorruptError: They are whole (the checksum held), and this release does not know them, or they are not
            those that the frame says it holds.
    """
    try:
        entries = _decoder.decode(memoryview(data)[frame.payload_start : frame.end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LogNewerError(
            f"the log file {name} was written by a newer release of exo (entries from {frame.first_index}: "
            f"{error}); start that release, or choose another data directory with EXO_HOME"
        ) from error
    indices = [entry.index for entry in entries]
    if len(indices) != frame.entry_count or indices != list(range(frame.first_index, frame.last_index + 1)):
        raise LogCorruptError(
            f"the log file {name} is damaged: what should be entries {frame.first_index} to {frame.last_index} is "
            "something else; restore the directory from a copy, or choose another one with EXO_HOME"
        )
    return entries
