"""Frames as bytes: u32 header length, u32 payload length (big-endian), msgpack header, raw payload."""

import struct

import msgspec

from exo.dataplane.errors import ProtocolError
from exo.dataplane.frames import Frame

HEADER_BYTES_MAX = 16 * 1024 * 1024
PAYLOAD_BYTES_MAX = 256 * 1024 * 1024
HANDSHAKE_HEADER_BYTES_MAX = 4 * 1024
"""Until a peer has proved itself it may make us keep no more than this."""
LONG_PAYLOAD_BYTES = 64 * 1024
"""From here on a payload is not copied from buffer to buffer, but sent and received where it lies."""

_LENGTHS = struct.Struct("!II")
_PREFIX_BYTES = _LENGTHS.size
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)

Buffer = bytes | bytearray | memoryview
Payload = bytes | bytearray
Received = tuple[Frame, Payload]


def encode(frame: Frame, payload: Buffer = b"") -> bytes:
    """Return the frame as it travels.

    Raises:
        ProtocolError: The header or the payload is longer than any peer would accept.
    """
    start = encode_start(frame, payload)
    return b"".join((start, payload)) if payload else start


def encode_start(frame: Frame, payload: Buffer) -> bytes:
    """Return what travels in front of the payload.

    Raises:
        ProtocolError: See `encode`.
    """
    header = _encoder.encode(frame)
    size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
    if len(header) > HEADER_BYTES_MAX or size > PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            _too_long(type(frame).__name__, len(header), size, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX)
        )
    return _LENGTHS.pack(len(header), size) + header


class _LongPayload:
    """A payload that is on its way, and its frame."""

    def __init__(self, frame: Frame, size_bytes: int) -> None:
        self.frame = frame
        self.data = bytearray(size_bytes)
        self.rest = memoryview(self.data)
        """What has yet to come."""

    def take(self, data: Buffer) -> int:
        """Take in as much as belongs to it, and return how much that was."""
        size = min(len(data), len(self.rest))
        self.rest[:size] = data[:size]
        self.rest = self.rest[size:]
        return size


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
        self._long: _LongPayload | None = None
        """While there is one, nothing is kept."""

    def allow(self, *, header_bytes_max: int, payload_bytes_max: int) -> None:
        """Change the limits for the frames that follow."""
        self._header_bytes_max = header_bytes_max
        self._payload_bytes_max = payload_bytes_max

    @property
    def room(self) -> memoryview | None:
        """Where the rest of a long payload goes, for who can have it put there at once; see `filled`."""
        return None if self._long is None else self._long.rest

    def filled(self, size_bytes: int) -> Received | None:
        """Take notice that the first bytes of `room` are there, and return the frame if that were all."""
        long = self._long
        assert long is not None, "there is no room that could be filled"
        long.rest = long.rest[size_bytes:]
        return self._finish(long)

    def feed_one(self, data: Buffer) -> Received | None:
        """Take bytes in and return the first complete frame, if there is one; `feed(b"")` gives the others.

        Raises:
            ProtocolError: See `feed`.
        """
        if self._long is not None:
            data = memoryview(data)[self._long.take(data) :]
            self._kept += data
            return self._finish(self._long)
        self._kept += data
        found = self._take(self._kept, 0)
        if found is None:
            return None
        received, end = found
        del self._kept[:end]
        return received if received is not None else self._finish(self._long)

    def feed(self, data: Buffer) -> list[Received]:
        """Take bytes in and return the frames they complete, each with its payload (often empty).

        Raises:
            ProtocolError: A length is above the limit, or a header is no known frame.
        """
        frames: list[Received] = []
        if self._long is not None:
            data = memoryview(data)[self._long.take(data) :]
            received = self._finish(self._long)
            if received is None:
                return frames
            frames.append(received)
        # A token's chunk nearly always arrives whole: then nothing is copied into the buffer first.
        kept = self._kept
        if kept:
            kept += data
            if len(kept) < self._wanted_bytes:
                return frames
            source: Buffer = kept
        else:
            source = data
        position = 0
        while (found := self._take(source, position)) is not None:
            received, position = found
            if received is None:
                break
            frames.append(received)
        if source is kept:
            if position:
                del kept[:position]
        elif position < len(source):
            kept += memoryview(source)[position:]
        return frames

    def _take(self, source: Buffer, start: int) -> tuple[Received | None, int] | None:
        """Return the next frame and where it ends; no frame, but an end: all of the source now belongs to a long one.

        None: it is not all there.
        """
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
        header_end = start + _PREFIX_BYTES + header_bytes
        end = header_end + payload_bytes
        is_long = payload_bytes >= LONG_PAYLOAD_BYTES
        self._wanted_bytes = (header_end if is_long else end) - start
        if available < self._wanted_bytes:
            return None
        self._wanted_bytes = _PREFIX_BYTES
        try:
            frame = _decoder.decode(source[start + _PREFIX_BYTES : header_end])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a peer sent something that is no frame: {error}") from error
        if is_long:
            long = _LongPayload(frame, payload_bytes)
            long.take(memoryview(source)[header_end:end])
            if long.rest:
                self._long = long
                return None, len(source)
            return (frame, long.data), end
        return (frame, bytes(source[header_end:end]) if payload_bytes else b""), end

    def _finish(self, long: _LongPayload | None) -> Received | None:
        if long is None or long.rest:
            return None
        self._long = None
        return long.frame, long.data


def _too_long(what: str, header: int, payload: int, header_max: int, payload_max: int) -> str:
    return (
        f"{what} has a header of {header} bytes and a payload of {payload} bytes; "
        f"at most {header_max} and {payload_max} bytes may travel"
    )
