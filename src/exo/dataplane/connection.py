"""One authenticated connection in asyncio: the handshake, then frames to a callback and frames out.

A protocol rather than streams: a frame reaches its callback in the same turn of the loop in which its bytes came.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from exo.dataplane.codec import Buffer, Payload, encode
from exo.dataplane.errors import DataPlaneError, HandshakeError
from exo.dataplane.frames import Frame, Hello, Ping
from exo.dataplane.handshake import HANDSHAKE_TIMEOUT_S
from exo.dataplane.opening import Opening
from exo.dataplane.pulse import SILENCE_MAX_S, Pulse, keep_alive, listen_to
from exo.shared.addresses import plain_address
from exo.shared.types.ids import NodeId

FrameCallback = Callable[["FrameConnection", Frame, Payload], None]
LostCallback = Callable[["FrameConnection", str], None]


class FrameConnection(asyncio.Protocol):
    """Both ends of a connection. Callbacks run on the event loop and must not wait.

    Args:
        opening: What this side does in the handshake; None: `accept` says so when it is known who connected.
        accept: Takes the host that connected. Raises HandshakeError where there is no room for it.
        on_open: Called when the handshake is done.
        on_frame: Gets every frame after the handshake, with its payload. A `DataPlaneError` from it closes the
            connection.
        on_lost: Called once when the connection is gone, with the reason, also when the handshake failed.
    """

    def __init__(
        self,
        opening: Opening | None,
        *,
        accept: Callable[["FrameConnection", str], Opening] | None = None,
        on_open: Callable[["FrameConnection"], None] = lambda connection: None,
        on_frame: FrameCallback,
        on_lost: LostCallback,
    ) -> None:
        self._opening = opening
        self._accept = accept
        self._on_open = on_open
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._reason: str | None = None
        self._waiting_to_write: asyncio.Future[None] | None = None
        self._pulse = Pulse()
        self.host = ""
        """Of the peer, once it is connected."""
        self.own_host = ""
        """The address of this host that it goes out from, or came in at."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the handshake is; carries the `HandshakeError` when it failed."""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is gone."""

    @property
    def opening(self) -> Opening | None:
        """What is known of the peer; None on the listening side before it is connected."""
        return self._opening

    @property
    def peer(self) -> Hello | None:
        """What a dialler said of itself, on the listening side."""
        return None if self._opening is None else self._opening.peer

    @property
    def node_id(self) -> NodeId | None:
        """The peer's node, by its certificate; None on plain connections."""
        return None if self._opening is None else self._opening.node_id

    @property
    def is_open(self) -> bool:
        """Whether frames can be sent."""
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and self._opening is not None
            and self._opening.is_done
        )

    @property
    def is_secured(self) -> bool:
        """Whether it is in TLS, and so may lead to another host."""
        return self._opening is not None and self._opening.tls is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.host = plain_address(transport.get_extra_info("peername")).host
        self.own_host = plain_address(transport.get_extra_info("sockname")).host
        keep_alive(transport.get_extra_info("socket"))
        try:
            if self._opening is None:
                assert self._accept is not None
                self._opening = self._accept(self, self.host)
            first_bytes = self._opening.first_bytes()
        except HandshakeError as error:
            self._reason = error.message
            self._transport.abort()
            return
        self._timeout = asyncio.get_running_loop().call_later(
            HANDSHAKE_TIMEOUT_S,
            self.close,
            f"the peer did not finish the handshake in {HANDSHAKE_TIMEOUT_S:g} s",
        )
        if first_bytes:
            self._transport.write(first_bytes)

    def data_received(self, data: bytes) -> None:
        opening, transport = self._opening, self._transport
        if opening is None or transport is None:
            return
        try:
            if not opening.is_done:
                if not opening.receive(data, transport.write):
                    return
                data = b""
                if self._timeout is not None:
                    self._timeout.cancel()
                self.ready.set_result(None)
                self._on_open(self)
            for frame, payload in opening.frames(data):
                self._on_frame(self, frame, payload)
        except DataPlaneError as error:
            self.close(error.message)
            return
        if opening.tls is not None and (pending := opening.tls.take_pending()):
            transport.write(pending)

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

    def send(self, frame: Frame, payload: Buffer = b"") -> None:
        """Send a frame; without effect when the connection is gone.

        Raises:
            ProtocolError: The frame is too long.
        """
        if self._transport is not None and self._opening is not None and self.is_open:
            self._transport.write(self._opening.seal(encode(frame, payload)))

    def check(self, now_s: float) -> None:
        """Notice that the other host is gone. To be called every `pulse.CHECK_INTERVAL_S` for what is in TLS.

        Args:
            now_s: Monotonic seconds.
        """
        transport = self._transport
        if transport is None or self._opening is None or not self._opening.is_done:
            return
        advice = self._pulse.check(now_s, listen_to(transport.get_extra_info("socket")))
        if advice == "lost":
            self.abort(f"its host has not been heard of for {SILENCE_MAX_S:g} s")
        elif advice == "ping" and not transport.get_write_buffer_size():
            self.send(Ping())

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was sent."""
        if self._waiting_to_write is not None:
            await asyncio.shield(self._waiting_to_write)

    def close(self, reason: str = "closed here") -> None:
        """Close at once; what was sent and is still in the socket's buffer arrives."""
        if self._transport is not None and not self._transport.is_closing():
            self._reason = reason
            self._transport.close()

    async def aclose(self, reason: str = "closed here") -> None:
        """Close, and return when the socket is."""
        self.close(reason)
        if self._transport is not None:
            await asyncio.shield(self.lost)

    def abort(self, reason: str = "closed here") -> None:
        """Close without waiting for the peer to take what was sent."""
        if self._transport is not None:
            self._reason = self._reason or reason
            self._transport.abort()
