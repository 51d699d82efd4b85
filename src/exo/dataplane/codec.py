"""Frames as bytes: u32 header length, u32 payload length (big-endian), msgpack header, raw payload."""

import struct

import msgspec

from exo.dataplane.errors import ProtocolError
from exo.dataplane.frames import Frame

HEADER_BYTES_MAX = 16 * 1024 * 1024
PAYLOAD_BYTES_MAX = 256 * 1024 * 1024
HANDSHAKE_HEADER_BYTES_MAX = 4 * 1024
"""Until a peer has proved itself it may make us keep no more than this."""

_LENGTHS = struct.Struct("!II")
_PREFIX_BYTES = _LENGTHS.size
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)

Buffer = bytes | bytearray | memoryview


def encode(frame: Frame, payload: Buffer = b"") -> bytes:
    """Return the frame as it travels.

    Raises:
        ProtocolError: The header or the payload is longer than any peer would accept.
    """
    header = _encoder.encode(frame)
    size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
    if len(header) > HEADER_BYTES_MAX or size > PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            _too_long(type(frame).__name__, len(header), size, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX)
        )
    if not size:
        return _LENGTHS.pack(len(header), 0) + header
    return b"".join((_LENGTHS.pack(len(header), size), header, payload))


class FrameDecoder:
    """Turns a stream of bytes, cut anywhere, back into frames. Unusable once it has raised."""

    def __init__(
        self, *, header_bytes_max: int = HEADER_BYTES_MAX, payload_bytes_max: int = PAYLOAD_BYTES_MAX
    ) -> None:
        self._header_bytes_max = header_bytes_max
        self._payload_bytes_max = payload_bytes_max
        self._kept = bytearray()
        self._wanted_bytes = _PREFIX_BYTES
        """Nothing can be decoded before this many bytes are there."""

    def allow(self, *, header_bytes_max: int, payload_bytes_max: int) -> None:
        """Change the limits for the frames that follow."""
        self._header_bytes_max = header_bytes_max
        self._payload_bytes_max = payload_bytes_max

    def feed_one(self, data: Buffer) -> tuple[Frame, bytes] | None:
        """Take bytes in and return the first complete frame, if there is one; `feed(b"")` gives the others.

        Raises:
            ProtocolError: See `feed`.
        """
        self._kept += data
        found = self._take(self._kept, 0)
        if found is None:
            return None
        frame, payload, end = found
        del self._kept[:end]
        return frame, payload

    def feed(self, data: Buffer) -> list[tuple[Frame, bytes]]:
        """Take bytes in and return the frames they complete, each with its payload (often empty).

        Raises:
            ProtocolError: A length is above the limit, or a header is no known frame.
        """
        # A token's chunk nearly always arrives whole: then nothing is copied into the buffer first.
        kept = self._kept
        if kept:
            kept += data
            if len(kept) < self._wanted_bytes:
                return []
            source: Buffer = kept
        else:
            source = data
        frames: list[tuple[Frame, bytes]] = []
        position = 0
        while (found := self._take(source, position)) is not None:
            frame, payload, position = found
            frames.append((frame, payload))
        if source is kept:
            if position:
                del kept[:position]
        elif position < len(source):
            kept += memoryview(source)[position:]
        return frames

    def _take(self, source: Buffer, start: int) -> tuple[Frame, bytes, int] | None:
        available = len(source) - start
        if available < _PREFIX_BYTES:
            self._wanted_bytes = _PREFIX_BYTES
            return None
        header_bytes, payload_bytes = _LENGTHS.unpack_from(source, start)
        if header_bytes > self._header_bytes_max or payload_bytes > self._payload_bytes_max:
            raise ProtocolError(
                _too_long(
                    "a frame", header_bytes, payload_bytes, self._header_bytes_max, self._payload_bytes_max
                )
            )
        wanted = _PREFIX_BYTES + header_bytes + payload_bytes
        if available < wanted:
            self._wanted_bytes = wanted
            return None
        self._wanted_bytes = _PREFIX_BYTES
        header_end = start + _PREFIX_BYTES + header_bytes
        end = header_end + payload_bytes
        try:
            frame = _decoder.decode(source[start + _PREFIX_BYTES : header_end])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a peer sent something that is no frame: {error}") from error
        payload = bytes(source[header_end:end]) if payload_bytes else b""
        return frame, payload, end


def _too_long(what: str, header: int, payload: int, header_max: int, payload_max: int) -> str:
    return (
        f"{what} has a header of {header} bytes and a payload of {payload} bytes; "
        f"at most {header_max} and {payload_max} bytes may travel"
    )
