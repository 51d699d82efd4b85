"""Messages between a worker and its stage process as bytes: u32 length (big-endian), then msgpack."""

import struct
from typing import Generic, TypeVar

import msgspec

from exo.shared.errors import ExoError
from exo.worker.runner.messages import FromChild, ToChild

MESSAGE_BYTES_MAX = 1024 * 1024
_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()

M = TypeVar("M")


class PipeError(ExoError):
    """Raised when what comes through the pipe is no message."""


def encode_message(message: FromChild | ToChild) -> bytes:
    """Return the message as it goes through the pipe."""
    data = _encoder.encode(message)
    return _LENGTH.pack(len(data)) + data


class MessageDecoder(Generic[M]):
    """Turns bytes from a pipe, cut anywhere, back into messages."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._kept = bytearray()

    @staticmethod
    def of_child() -> "MessageDecoder[FromChild]":
        """Return what a parent reads with."""
        return MessageDecoder(msgspec.msgpack.Decoder(FromChild))

    @staticmethod
    def of_parent() -> "MessageDecoder[ToChild]":
        """Return what a child reads with."""
        return MessageDecoder(msgspec.msgpack.Decoder(ToChild))

    def feed(self, data: bytes) -> list[M]:
        """Take bytes in and return the messages they complete.

        Raises:
            PipeError: They are no messages.
        """
        self._kept += data
        messages: list[M] = []
        while len(self._kept) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._kept)
            if size > MESSAGE_BYTES_MAX:
                raise PipeError(f"a message of {size} bytes; at most {MESSAGE_BYTES_MAX} are allowed")
            end = _LENGTH.size + size
            if len(self._kept) < end:
                break
            try:
                messages.append(self._decoder.decode(self._kept[_LENGTH.size : end]))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise PipeError(f"something that is no message: {error}") from error
            del self._kept[:end]
        return messages
