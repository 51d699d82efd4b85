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


class FrameError(Exception):
    """Raised when the bytes are no frame of this protocol."""


def encode_frame(kind: Kind, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload) + 1, kind) + payload


class FrameSplitter:
    """Takes bytes as they come and gives whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.payload_bytes_max = HANDSHAKE_BYTES_MAX

    def trust(self) -> None:
        """The peer has proved itself: its frames may be as long as a message."""
        self.payload_bytes_max = MESSAGE_BYTES_MAX

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield the frames that `data` completes.

        Raises:
            FrameError: A frame is too long, empty or of an unknown kind.
        """
        self._buffer += data
        offset = 0
        try:
            while len(self._buffer) - offset >= _HEAD.size:
                length, kind = _HEAD.unpack_from(self._buffer, offset)
                if not 1 <= length <= self.payload_bytes_max + 1:
                    raise FrameError(f"a frame of {length} bytes")
                end = offset + 4 + length
                if end > len(self._buffer):
                    break
                payload = bytes(memoryview(self._buffer)[offset + _HEAD.size : end])
                offset = end
                try:
                    known = Kind(kind)
                except ValueError:
                    raise FrameError(f"a frame of kind {kind}") from None
                yield known, payload
        finally:
            del self._buffer[:offset]
