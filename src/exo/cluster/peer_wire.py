"""How the nodes that agree put their messages on a connection: msgpack, and in pieces where it is long. Pure."""

import msgspec

from exo.cluster.raft.messages import PeerMessage
from exo.cluster.wire import decode_message

PART_BYTES = 256 * 1024
"""A long message (a snapshot) leaves room for others between its pieces."""
MESSAGE_BYTES_MAX = 1024 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PeerMessage)
_MORE, _LAST = b"\x01", b"\x00"


def encode_peer_message(message: PeerMessage) -> list[bytes]:
    data = _encoder.encode(message)
    if len(data) <= PART_BYTES:
        return [_LAST + data]
    starts = range(0, len(data), PART_BYTES)
    return [
        (_LAST if start + PART_BYTES >= len(data) else _MORE) + data[start : start + PART_BYTES]
        for start in starts
    ]


class PeerMessageReader:
    """Puts pieces together."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def feed(self, data: bytes) -> PeerMessage | None:
        """Take what arrived; return the message that it completes, if it does.

        Raises:
            msgspec.DecodeError: It is no message that this release knows, or longer than any.
        """
        self._size_bytes += len(data)
        if data[:1] not in (_MORE, _LAST) or self._size_bytes > MESSAGE_BYTES_MAX:
            raise msgspec.DecodeError("a message between voters has an unknown shape or is too long")
        self._parts.append(data[1:])
        if data[:1] == _MORE:
            return None
        whole = b"".join(self._parts)
        self._parts, self._size_bytes = [], 0
        return decode_message(_decoder, whole)
