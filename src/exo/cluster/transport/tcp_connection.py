"""One TCP connection: frames, bounded queues, pings, and the end of it. No task of its own, one timer."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import cast

from exo.cluster.errors import ConnectionLostError, HandshakeError, connection_ended
from exo.cluster.transport.base import (
    MESSAGE_BYTES_MAX,
    QUEUED_BYTES_MAX,
    Connection,
    Heartbeat,
)
from exo.cluster.transport.framing import FrameError, FrameSplitter, Kind, encode_frame
from exo.cluster.transport.greeting import Greeting
from exo.shared.types.nodes import HostPort

_LINGER_S = 1.0
"""How long the last bytes may take to leave after `close`."""


class TcpConnection(asyncio.Protocol, Connection):
    """Both ends of a connection are this class; only the dialer measures round trips and tells the other end.

    Args:
        greeting: This side's part of the handshake.
        peer_address: The address that was dialled; None on the listener's side, which reads it from the socket.
        heartbeat: How the loss of the peer is noticed.
        on_greeted: Called once, when the peer has proved itself.
        on_ended: Called once, when the connection is over.
    """

    def __init__(
        self,
        greeting: Greeting,
        *,
        peer_address: HostPort | None,
        heartbeat: Heartbeat,
        on_greeted: Callable[["TcpConnection"], None],
        on_ended: Callable[["TcpConnection", HandshakeError | None], None],
    ) -> None:
        self._greeting = greeting
        self._heartbeat = heartbeat
        self._peer_address = peer_address
        self._is_dialer = peer_address is not None
        self._on_greeted = on_greeted
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._splitter = FrameSplitter()
        self._received: deque[bytes] = deque()
        self._received_bytes = 0
        self._is_reading_paused = False
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._is_flush_planned = False
        self._is_writing_paused = False
        self._waiting_senders: deque[asyncio.Future[None]] = deque()
        self._waiting_receiver: asyncio.Future[None] | None = None
        self._end_reason: str | None = None
        self._handshake_error: HandshakeError | None = None
        self._timer: asyncio.TimerHandle | None = None
        """The next check; after the end: when what is left is thrown away."""
        self._last_heard_s = self._last_check_s = self._loop.time()
        self._ping_numbers = itertools.count()
        self._pings: dict[int, float] = {}
        self._round_trips: deque[float] = deque(maxlen=8)

    # --- Connection ---------------------------------------------------------------------------------------------

    @property
    def peer_address(self) -> HostPort:
        return self._peer_address or HostPort("unknown", 0)

    @property
    def round_trip_s(self) -> float | None:
        return min(self._round_trips, default=None)

    @property
    def end_reason(self) -> str | None:
        """Why nothing can be sent any more; None while it can."""
        return self._end_reason

    async def send(self, message: bytes) -> None:
        if len(message) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message of {len(message)} bytes; at most {MESSAGE_BYTES_MAX} can be sent")
        while self._is_writing_paused and self._end_reason is None:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting_senders.append(waiter)
            await waiter
        if self._end_reason is not None:
            raise self._lost()
        self._write(Kind.MESSAGE, message)

    async def receive(self) -> bytes:
        while not self._received:
            if self._end_reason is not None:
                raise self._lost()
            self._waiting_receiver = self._loop.create_future()
            await self._waiting_receiver
        message = self._received.popleft()
        self._received_bytes -= len(message)
        if self._is_reading_paused and self._received_bytes <= QUEUED_BYTES_MAX // 2:
            self._is_reading_paused = False
            self._last_heard_s = self._loop.time()
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        return message

    def close(self, reason: str) -> None:
        if self._end_reason is None:
            self._write(Kind.GOODBYE, reason.encode()[:500])
            self._end(f"closed here: {reason}")

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=QUEUED_BYTES_MAX)
        if self._peer_address is None:
            host, port = self._transport.get_extra_info("peername")[:2]
            self._peer_address = HostPort(host, port)
        if self._end_reason is not None:  # Turned away before it was there.
            self._transport.write(encode_frame(Kind.GOODBYE, self._end_reason.encode()))
            self._transport.close()
            return
        self._timer = self._loop.call_later(self._heartbeat.ping_interval_s, self._check)
        opening = self._greeting.opening()
        if opening is not None:
            self._write(*opening)

    def data_received(self, data: bytes) -> None:
        self._last_heard_s = self._loop.time()
        try:
            for kind, payload in self._splitter.feed(data):
                if self._end_reason is not None:
                    return
                self._take(kind, payload)
        except FrameError as error:
            self._fail_handshake(f"{self._peer_address} does not speak exo's cluster protocol ({error})")

    def eof_received(self) -> bool:
        self._end("the other side went away")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end_reason is not None and self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._end((exc.strerror or str(exc)) if isinstance(exc, OSError) else "the other side went away")

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._wake_senders()

    # --- within -------------------------------------------------------------------------------------------------

    def _take(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.GOODBYE:
            self._end(payload.decode(errors="replace"))
        elif not self._greeting.is_done:
            self._take_handshake(kind, payload)
        elif kind is Kind.MESSAGE:
            self._received.append(payload)
            self._received_bytes += len(payload)
            if self._received_bytes > QUEUED_BYTES_MAX and not self._is_reading_paused:
                self._is_reading_paused = True
                assert self._transport is not None
                self._transport.pause_reading()
            self._wake_receiver()
        elif kind is Kind.PING:
            # The dialer tells what it measured, so that both ends know.
            told_us = int.from_bytes(payload[4:8], "big")
            if told_us:
                self._round_trips.append(told_us / 1e6)
            self._write(Kind.PONG, payload[:4])
        elif kind is Kind.PONG:
            sent_s = self._pings.pop(int.from_bytes(payload, "big"), None)
            if sent_s is not None:
                self._round_trips.append(time.perf_counter() - sent_s)
        else:
            raise FrameError(f"an unexpected {kind.name}")

    def _take_handshake(self, kind: Kind, payload: bytes) -> None:
        try:
            answer = self._greeting.take(kind, payload)
        except HandshakeError as error:
            self._handshake_error = error
            if not self._is_dialer:
                self._write(Kind.REFUSED, b"it could not prove that it belongs here: " + str(error).encode())
            self._end(error.message)
            return
        if answer is not None:
            self._write(*answer)
        if self._greeting.is_done:
            self._splitter.trust()
            self._on_greeted(self)

    def _fail_handshake(self, message: str) -> None:
        if not self._greeting.is_done:
            self._handshake_error = HandshakeError(message, is_secret_wrong=False)
        self._end(message)

    def _check(self) -> None:
        now = self._loop.time()
        if now - self._last_check_s > 2 * self._heartbeat.ping_interval_s:
            # This process stood still itself (stopped, suspended): what the peer sent meanwhile is not read yet.
            self._last_heard_s = now
        self._last_check_s = now
        if not self._is_reading_paused and now - self._last_heard_s >= self._heartbeat.silence_max_s:
            self._end(f"no sign of life for {now - self._last_heard_s:.1f} s")
            return
        if self._greeting.is_done and (self._is_dialer or self._is_reading_paused):
            # While this side does not read it cannot answer pings, so it shows by its own that it lives.
            self._ping()
        self._timer = self._loop.call_later(self._heartbeat.ping_interval_s, self._check)

    def _ping(self) -> None:
        number = next(self._ping_numbers) & 0xFFFFFFFF
        # Not the loop's time: uvloop's stands still within a turn and counts whole milliseconds.
        self._pings[number] = time.perf_counter()
        if len(self._pings) > 16:
            del self._pings[next(iter(self._pings))]
        told_us = round((self._round_trips[-1] if self._is_dialer and self._round_trips else 0) * 1e6)
        self._write(Kind.PING, number.to_bytes(4, "big") + min(told_us, 0xFFFFFFFF).to_bytes(4, "big"))

    def _write(self, kind: Kind, payload: bytes) -> None:
        """Queue a frame. Frames of one turn of the event loop leave in one system call."""
        frame = encode_frame(kind, payload)
        self._outgoing.append(frame)
        self._outgoing_bytes += len(frame)
        if self._outgoing_bytes >= QUEUED_BYTES_MAX // 4:
            self._flush()
        elif not self._is_flush_planned:
            self._is_flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_planned = False
        if self._outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()
        self._outgoing_bytes = 0

    def _end(self, reason: str) -> None:
        if self._end_reason is not None:
            return
        self._flush()
        self._end_reason = reason
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._timer = self._loop.call_later(_LINGER_S, self._transport.abort)
        self._wake_senders()
        self._wake_receiver()
        self._on_ended(self, self._handshake_error)

    def _wake_senders(self) -> None:
        while self._waiting_senders:
            waiter = self._waiting_senders.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _wake_receiver(self) -> None:
        if self._waiting_receiver is not None and not self._waiting_receiver.done():
            self._waiting_receiver.set_result(None)

    def _lost(self) -> ConnectionLostError:
        return connection_ended(self._peer_address, self._end_reason)
