"""One TCP connection: frames, bounded queues, pings, and the end of it. No task of its own, one timer."""

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from typing import Literal, cast

from exo.cluster.errors import ConnectionLostError, HandshakeError, connection_ended
from exo.cluster.transport.addresses import plain_address
from exo.cluster.transport.base import (
    MESSAGE_BYTES_MAX,
    QUEUED_BYTES_MAX,
    Connection,
    Heartbeat,
)
from exo.cluster.transport.channel import Channel
from exo.cluster.transport.framing import FrameError, FrameSplitter, Kind, encode_frame
from exo.cluster.transport.pulse import Pulse
from exo.cluster.transport.refusals import (
    ACCESS_DENIED_ALERT,
    WORDS_BYTES_MAX,
    encode_refusal,
    peer_words,
)
from exo.cluster.transport.tls_channel import TLS_FIRST_BYTE
from exo.cluster.trust.certificates import NodeCertificate
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

_LINGER_S = 1.0
"""How long the last bytes may take to leave after `close`."""
_UNREAD_TIMEOUT_MS = 10_000
"""How long the system may go without an acknowledgement while this side does not read (and so hears no pings).

Not set otherwise: the kernel counts a peer that has no room as one that is gone, and pings are quicker.
"""
_TCP_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)


Breach = Literal["malformed", "truncated"]


class ConnectionOwner(ABC):
    """Who made a connection, and is told what becomes of it."""

    def made(self, connection: "TcpConnection") -> None:  # noqa: B027 - nothing to do for a dialer
        """The socket is connected."""

    @abstractmethod
    def choose_channel(self, first_byte: int, peer: HostPort) -> Channel:
        """Return how to go on with a connection that was accepted.

        Raises:
            HandshakeError: Not at all.
        """

    @abstractmethod
    def greeted(self, connection: "TcpConnection") -> None:
        """The peer has proved itself. Called once at most."""

    @abstractmethod
    def ended(self, connection: "TcpConnection", error: HandshakeError | None) -> None:
        """The connection is over; `error` says why its handshake failed, if it did. Called once."""

    def broken(self, kind: Breach) -> None:  # noqa: B027 - nothing to do where nothing is counted
        """A peer that had been let in said what cannot be read, or went away in the middle of a frame."""

    @abstractmethod
    def reason_to_end(self, certificate: NodeCertificate) -> str | None:
        """Return why a peer that was let in is not welcome any more, if so. Asked at every interval."""


class TcpConnection(asyncio.Protocol, Connection):
    """Both ends of a connection are this class.

    Args:
        owner: Who is told.
        channel: How the bytes go; None on the listener's side, where the first byte decides.
        peer_address: The address that was dialled; None on the listener's side, which reads it from the socket.
        heartbeat: How the loss of the peer is noticed.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        *,
        channel: Channel | None,
        peer_address: HostPort | None,
        heartbeat: Heartbeat,
    ) -> None:
        self._owner = owner
        self._channel = channel
        self._heartbeat = heartbeat
        self._peer_address = peer_address
        self._is_dialer = peer_address is not None
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
        self._is_greeted = False
        self._end_reason: str | None = None
        self._is_end_known = True
        self._handshake_error: HandshakeError | None = None
        self._timer: asyncio.TimerHandle | None = None
        """The next check; after the end: when what is left is thrown away."""
        self._pulse = Pulse(
            heartbeat, is_dialer=self._is_dialer, now_s=self._loop.time, precise_s=time.perf_counter
        )

    # --- Connection ---------------------------------------------------------------------------------------------

    @property
    def peer_address(self) -> HostPort:
        return self._peer_address or HostPort("unknown", 0)

    @property
    def peer_node_id(self) -> NodeId | None:
        certificate = self.certificate
        return certificate.node_id if certificate is not None else None

    @property
    def certificate(self) -> NodeCertificate | None:
        """The peer's, verified; None on a plain connection."""
        return self._channel.certificate if self._channel is not None else None

    @property
    def is_enrolment(self) -> bool:
        """The peer is no member and may say nothing but that it wants to be one."""
        return self._channel is not None and self._channel.is_enrolment

    @property
    def round_trip_s(self) -> float | None:
        return self._pulse.round_trip_s

    @property
    def silent_s(self) -> float:
        return self._pulse.silent_s

    @property
    def end_reason(self) -> str | None:
        """Why nothing can be sent any more; None while it can."""
        return self._end_reason

    async def send(self, message: bytes) -> None:
        bytes_max = self._channel.message_bytes_max if self._channel is not None else MESSAGE_BYTES_MAX
        if len(message) > bytes_max:
            raise ValueError(f"a message of {len(message)} bytes; at most {bytes_max} can be sent")
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
            self._resume_reading()
        return message

    def close(self, reason: str) -> None:
        if self._end_reason is None:
            self._write(Kind.GOODBYE, reason.encode()[:WORDS_BYTES_MAX])
            self._end(f"closed here: {reason}")

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=QUEUED_BYTES_MAX)
        if self._peer_address is None:
            self._peer_address = plain_address(self._transport.get_extra_info("peername"))
        self._owner.made(self)
        if self._end_reason is not None:  # Turned away before it was there.
            self._flush()
            self._transport.close()
            return
        self._timer = self._loop.call_later(self._heartbeat.ping_interval_s, self._check)
        if self._channel is not None and self._is_dialer:
            self._transport.write(self._channel.begin())

    def data_received(self, data: bytes) -> None:
        self._pulse.heard()
        if self._end_reason is not None:
            return
        try:
            if self._channel is None:
                self._channel = self._owner.choose_channel(data[0], self.peer_address)
            frames = self._channel.unseal(data)
            self._send_pending(self._channel)
            self._greet_if_open(self._channel)
            for kind, payload in self._splitter.feed(frames):
                self._take(self._channel, kind, payload)
                if self._end_reason is not None:
                    return
        except FrameError as error:
            self._refuse(
                HandshakeError(f"{self._peer_address} does not speak exo's cluster protocol ({error})"), None
            )
        except HandshakeError as error:
            self._refuse(error, data[0])

    def eof_received(self) -> bool:
        if self._end_reason is None and self._is_greeted and self._splitter.has_part:
            self._owner.broken("truncated")
        self._end("the other side went away")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end_reason is not None and self._timer is not None:
            self._timer.cancel()
        self._transport = None
        if isinstance(exc, OSError):
            # Reset, aborted, broken: the other end is gone. Timed out, unreachable: who knows.
            self._end(exc.strerror or str(exc), is_known=isinstance(exc, ConnectionError))
        else:
            self._end("the other side went away")

    def pause_writing(self) -> None:
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._wake_senders()

    # --- receiving ----------------------------------------------------------------------------------------------

    def _take(self, channel: Channel, kind: Kind, payload: bytes) -> None:
        if kind is Kind.MESSAGE and self._is_greeted:
            self._received.append(payload)
            self._received_bytes += len(payload)
            if self._received_bytes > QUEUED_BYTES_MAX and not self._is_reading_paused:
                self._pause_reading()
            self._wake_receiver()
        elif kind is Kind.GOODBYE:
            self._end(peer_words(payload))
        elif not self._is_greeted:
            answer = channel.take(kind, payload)
            if answer is not None:
                self._write(*answer)
            self._greet_if_open(channel)
        elif kind is Kind.PING:
            pong = self._pulse.pinged(payload)
            # Who sends pings and takes no answers would fill the memory with these.
            if not self._is_writing_paused:
                self._write(Kind.PONG, pong)
        elif kind is Kind.PONG:
            self._pulse.ponged(payload)
        else:
            raise FrameError(f"an unexpected {kind.name}")

    def _greet_if_open(self, channel: Channel) -> None:
        if channel.is_open and not self._is_greeted:
            self._is_greeted = True
            self._splitter.trust(channel.message_bytes_max)
            self._owner.greeted(self)

    def _refuse(self, error: HandshakeError, first_byte: int | None) -> None:
        """End because of something that the peer showed or said; tell it why, if it may be able to hear it."""
        if self._is_greeted:
            self._owner.broken("malformed")
        else:
            self._handshake_error = error
        if self._channel is None:
            if self._transport is not None:
                alert = ACCESS_DENIED_ALERT if first_byte == TLS_FIRST_BYTE else None
                self._transport.write(alert or encode_frame(Kind.REFUSED, encode_refusal(error)))
        elif self._is_greeted or self._is_dialer:
            self._write(Kind.GOODBYE, error.message.encode()[:WORDS_BYTES_MAX])
        else:
            self._write(Kind.REFUSED, encode_refusal(error))
        self._end(error.message)

    def _pause_reading(self) -> None:
        self._is_reading_paused = True
        assert self._transport is not None
        self._transport.pause_reading()
        self._set_user_timeout_ms(_UNREAD_TIMEOUT_MS)

    def _resume_reading(self) -> None:
        self._is_reading_paused = False
        self._pulse.heard()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            self._set_user_timeout_ms(0)

    def _set_user_timeout_ms(self, timeout_ms: int) -> None:
        if _TCP_USER_TIMEOUT is not None and self._transport is not None:
            with suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(
                    socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, timeout_ms
                )

    def _check(self) -> None:
        silence_s = self._pulse.silence_s()
        if silence_s is not None and not self._is_reading_paused:
            self._end(f"no sign of life for {silence_s:.1f} s", is_known=False)
            return
        certificate = self.certificate
        reason = self._owner.reason_to_end(certificate) if certificate is not None else None
        if reason is not None:
            self.close(reason)
            return
        if self._is_greeted and (self._is_dialer or self._is_reading_paused):
            # While this side does not read it cannot answer pings, so it shows by its own that it lives.
            self._write(Kind.PING, self._pulse.ping())
        self._timer = self._loop.call_later(self._heartbeat.ping_interval_s, self._check)

    # --- sending ------------------------------------------------------------------------------------------------

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
        if not self._outgoing or self._transport is None:
            return
        data = self._outgoing[0] if len(self._outgoing) == 1 else b"".join(self._outgoing)
        self._outgoing.clear()
        self._outgoing_bytes = 0
        if not self._transport.is_closing():
            # Before the first byte of a peer it is not known what it speaks; who gets a goodbye then reads it plain.
            if self._channel is None:
                self._transport.write(data)
            elif self._channel.can_seal:
                self._transport.write(self._channel.seal(data))

    def _send_pending(self, channel: Channel) -> None:
        pending = channel.take_pending()
        if pending and self._transport is not None and not self._transport.is_closing():
            self._transport.write(pending)

    # --- the end ------------------------------------------------------------------------------------------------

    def _end(self, reason: str, *, is_known: bool = True) -> None:
        if self._end_reason is not None:
            return
        if self._channel is not None:
            self._send_pending(self._channel)
        self._flush()
        self._end_reason = reason
        self._is_end_known = is_known
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._timer = self._loop.call_later(_LINGER_S, self._transport.abort)
        self._wake_senders()
        self._wake_receiver()
        self._owner.ended(self, self._handshake_error)

    def _wake_senders(self) -> None:
        while self._waiting_senders:
            waiter = self._waiting_senders.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _wake_receiver(self) -> None:
        if self._waiting_receiver is not None and not self._waiting_receiver.done():
            self._waiting_receiver.set_result(None)

    def _lost(self) -> ConnectionLostError:
        return connection_ended(self._peer_address, self._end_reason, is_ended=self._is_end_known)
