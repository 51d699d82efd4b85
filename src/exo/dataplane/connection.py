"""One authenticated connection in asyncio: the handshake, then frames to a callback and frames out.

A protocol rather than streams: a frame reaches its callback in the same turn of the loop in which its bytes came.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from exo.dataplane.codec import encode
from exo.dataplane.errors import DataPlaneError, HandshakeError
from exo.dataplane.frames import Frame, Hello
from exo.dataplane.handshake import HANDSHAKE_TIMEOUT_S, Dialler, Listener
from exo.dataplane.opening import Opening, keep_alive

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
        self._opening = Opening(handshake)
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._reason: str | None = None
        self._waiting_to_write: asyncio.Future[None] | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is; carries the `HandshakeError` when it failed."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is gone."""

    @property
    def peer(self) -> Hello | None:
        """What a dialler said of itself, on the listening side."""
        return self._opening.peer

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None and self._opening.is_done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._reason is not None:
            self._transport.abort()
            return
        keep_alive(transport.get_extra_info("socket"))
        self._timeout = asyncio.get_running_loop().call_later(
            HANDSHAKE_TIMEOUT_S,
            self.close,
            f"the peer did not finish the handshake in {HANDSHAKE_TIMEOUT_S:g} s",
        )
        if self._opening.first_bytes:
            self._transport.write(self._opening.first_bytes)

    def data_received(self, data: bytes) -> None:
        try:
            if not self._opening.is_done:
                assert self._transport is not None
                if not self._opening.receive(data, self._transport.write):
                    return
                data = b""
                if self._timeout is not None:
                    self._timeout.cancel()
                self.ready.set_result(None)
            for frame, payload in self._opening.decoder.feed(data):
                self._on_frame(self, frame, payload)
        except DataPlaneError as error:
            self.close(error.message)

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
