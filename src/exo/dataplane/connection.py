"""One authenticated connection in asyncio: the handshake, then frames to a callback and frames out.

A protocol rather than streams: a frame reaches its callback in the same turn of the loop in which its bytes came.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from exo.dataplane.codec import (
    HANDSHAKE_HEADER_BYTES_MAX,
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    FrameDecoder,
    encode,
)
from exo.dataplane.errors import DataPlaneError, HandshakeError
from exo.dataplane.frames import Frame, Hello
from exo.dataplane.handshake import HANDSHAKE_TIMEOUT_S, Dialler, Listener

FrameCallback = Callable[["FrameConnection", Frame, bytes], None]
LostCallback = Callable[["FrameConnection", str], None]


class FrameConnection(asyncio.Protocol):
    """Both ends of a connection. Callbacks run on the event loop and must not wait.

    Args:
        handshake: What this side does in the handshake.
        on_frame: Gets every frame after the handshake, with its payload. A `DataPlaneError` from it closes the
            connection.
        on_lost: Called once when the connection is gone, with the reason, also when the handshake failed.
    """

    def __init__(
        self, handshake: Dialler | Listener, *, on_frame: FrameCallback, on_lost: LostCallback
    ) -> None:
        self._handshake: Dialler | Listener | None = handshake
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._decoder = FrameDecoder(header_bytes_max=HANDSHAKE_HEADER_BYTES_MAX, payload_bytes_max=0)
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._reason: str | None = None
        self._waiting_to_write: asyncio.Future[None] | None = None
        self.peer: Hello | None = None
        """What a dialler said of itself, on the listening side."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is; carries the `HandshakeError` when it failed."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is gone."""

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and self._handshake is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._reason is not None:
            self._transport.abort()
            return
        _tune(transport.get_extra_info("socket"))
        self._timeout = asyncio.get_running_loop().call_later(
            HANDSHAKE_TIMEOUT_S,
            self.close,
            f"the peer did not finish the handshake in {HANDSHAKE_TIMEOUT_S:g} s",
        )
        if isinstance(self._handshake, Dialler):
            self._transport.write(encode(self._handshake.hello))

    def data_received(self, data: bytes) -> None:
        try:
            if self._handshake is not None:
                if not self._shake_hands(data):
                    return
                data = b""
            for frame, payload in self._decoder.feed(data):
                self._on_frame(self, frame, payload)
        except DataPlaneError as error:
            self.close(error.message)

    def _shake_hands(self, data: bytes) -> bool:
        assert self._transport is not None
        while self._handshake is not None:
            found = self._decoder.feed_one(data)
            if found is None:
                return False
            data = b""
            answer = self._handshake.receive(found[0])
            if answer is not None:
                self._transport.write(encode(answer))
            if isinstance(self._handshake, Dialler):
                self._handshake = None
            elif self._handshake.peer is not None:
                self.peer = self._handshake.peer
                self._handshake = None
        self._decoder.allow(header_bytes_max=HEADER_BYTES_MAX, payload_bytes_max=PAYLOAD_BYTES_MAX)
        if self._timeout is not None:
            self._timeout.cancel()
        self.ready.set_result(None)
        return True

    def pause_writing(self) -> None:
        self._waiting_to_write = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        waiting, self._waiting_to_write = self._waiting_to_write, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost.set_result(None)
        if self._timeout is not None:
            self._timeout.cancel()
        self.resume_writing()
        reason = self._reason or (f"the connection broke: {exc}" if exc else "the peer closed the connection")
        if not self.ready.done():
            self.ready.set_exception(HandshakeError(reason))
            self.ready.exception()  # Retrieved here: nobody may be waiting for it.
        self._on_lost(self, reason)

    def send(self, frame: Frame) -> None:
        """Send a frame; without effect when the connection is gone."""
        if self._transport is not None:
            self._transport.write(encode(frame))

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was sent."""
        if self._waiting_to_write is not None:
            await asyncio.shield(self._waiting_to_write)

    def close(self, reason: str = "closed here") -> None:
        """Close at once; what was sent and is still in the socket's buffer arrives."""
        if self._transport is not None and not self._transport.is_closing():
            self._reason = reason
            self._transport.close()

    def refuse(self, reason: str) -> None:
        """Have the connection closed as soon as it is made: for the listening side, before it is."""
        self._reason = reason

    async def aclose(self, reason: str = "closed here") -> None:
        """Close, and return when the socket is."""
        self.close(reason)
        if self._transport is not None:
            await asyncio.shield(self.lost)

    def abort(self) -> None:
        """Close without waiting for the peer to take what was sent."""
        if self._transport is not None:
            self._transport.abort()


def _tune(raw: socket.socket | None) -> None:
    """Make a dead peer's silence end the connection: within about 25 s where the system lets us say so."""
    if raw is None:
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        option = getattr(socket, name, None)
        if option is not None:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)
    user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
    if user_timeout is not None:
        raw.setsockopt(socket.IPPROTO_TCP, user_timeout, 25_000)
