"""Length-prefixed frames on a byte stream. Pure: `u32 length of the rest, u8 kind, payload`, big-endian."""

import struct
from collections.abc import Iterator
from enum import IntEnum

from exo.cluster.transport.base import MESSAGE_BYTES_MAX

_HEAD = struct.Struct(">IB")
HANDSHAKE_BYTES_MAX = 1024
"""A stranger cannot make this node keep more than this."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    REFUSED = 4
    MESSAGE = 5
    PING = 6
    PONG = 7
    GOODBYE = 8
    WELCOME = 9


_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


class FrameError(Exception):
    """Raised when the bytes are no frame of this protocol."""


def encode_frame(kind: Kind, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload) + 1, kind) + payload


class FrameSplitter:
    """Takes bytes as they come and gives whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.payload_bytes_max = HANDSHAKE_BYTES_MAX

    def trust(self, payload_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        """The peer has proved itself: its frames may be longer."""
        self.payload_bytes_max = payload_bytes_max

    @property
    def has_part(self) -> bool:
        """A frame has begun and is not whole."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield the frames that `data` completes.

        Raises:
            FrameError: A frame is too long, empty or of an unknown kind.
        """
        # What arrives whole, as nearly everything does, is not copied into the buffer first.
        kept = self._buffer
        if kept:
            kept += data
        source = kept or data
        size = len(source)
        offset = 0
        try:
            while size - offset >= _HEAD.size:
                length, kind = _HEAD.unpack_from(source, offset)
                if not 1 <= length <= self.payload_bytes_max + 1:
                    raise FrameError(f"a frame of {length} bytes")
                end = offset + 4 + length
                if end > size:
                    break
                payload = bytes(memoryview(source)[offset + _HEAD.size : end])
                offset = end
                known = _KINDS.get(kind)
                if known is None:
                    raise FrameError(f"a frame of kind {kind}")
                yield known, payload
        finally:
            if source is kept:
                del kept[:offset]
            elif offset < size:
                kept += memoryview(data)[offset:]
