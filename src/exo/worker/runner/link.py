"""One connection of a stage process: frames go out as the system takes them, and come in as they arrive."""

import os
import selectors
import socket
import time
from abc import ABC, abstractmethod
from collections import deque

from exo.dataplane.codec import LONG_PAYLOAD_BYTES, Buffer, Payload, encode, encode_start
from exo.dataplane.errors import DataPlaneError
from exo.dataplane.frames import Frame, Hello, Ping
from exo.dataplane.opening import Opening
from exo.dataplane.pulse import SILENCE_MAX_S, Pulse, listen_to
from exo.shared.types.ids import NodeId

SEALED_BYTES = 256 * 1024
"""Encrypted at a time: the peer decrypts the beginning of a long payload while its rest is being encrypted."""


class LinkOwner(ABC):
    """What a connection needs of the `Network` that it belongs to."""

    @abstractmethod
    def register(self, raw: socket.socket, before: int, after: int, connection: "Connection") -> None:
        """Change what the selector watches a connection for."""

    @abstractmethod
    def proved(self, connection: "Connection") -> None:
        """Take notice that a handshake is done."""

    @abstractmethod
    def received(self, connection: "Connection", frame: Frame, payload: Payload) -> None:
        """Take a frame; a `DataPlaneError` closes the connection."""

    @abstractmethod
    def lose(self, connection: "Connection", reason: str) -> None:
        """Close a connection; whoever uses it learns of it later."""


class Connection:
    """One connection of a `Network`. Only the network makes them.

    Args:
        network: Whose it is.
        raw: Connected, or being connected.
        opening: What this side does in the handshake.
        host: Where the peer is.
        label: Whom it leads to, for people.
    """

    def __init__(
        self, network: LinkOwner, raw: socket.socket, opening: Opening, *, host: str, label: str
    ) -> None:
        self.label = label
        self.host = host
        self.peer: Hello | None = None
        """What a dialler said of itself; None on the dialling side."""
        self.is_open = False
        """Whether the handshake is done."""
        self.is_dialled = opening.is_dialled
        self.begun_at = time.monotonic()
        self.opening = opening
        self._network = network
        self._raw = raw
        self._unsealed: list[bytes] = []
        """What was sent before the handshake was done."""
        self._unsealed_bytes = 0
        self._outgoing: deque[memoryview] = deque()
        """What the socket has to take, as it goes there."""
        self._outgoing_bytes = 0
        self._is_connecting = self.is_dialled
        self._is_reading = True
        self._events = 0
        self._pulse = Pulse()
        self.is_lost = False

    @property
    def node_id(self) -> NodeId | None:
        """The peer's node, by its certificate; None on plain connections: there it is somebody of this host."""
        return self.opening.node_id

    @property
    def is_secured(self) -> bool:
        """Whether it is in TLS, and so may lead to another host."""
        return self.opening.tls is not None

    @property
    def backlog_bytes(self) -> int:
        """What was sent and the system has not taken yet."""
        return self._outgoing_bytes + self._unsealed_bytes

    def send(self, frame: Frame, payload: bytes | memoryview = b"") -> None:
        """Send a frame, as soon as the handshake is done; without effect when the connection is lost.

        The payload is not needed afterwards: its owner may do with it what it likes.
        """
        if self.is_lost:
            return
        if len(payload) < LONG_PAYLOAD_BYTES:
            parts: tuple[Buffer, ...] = (encode(frame, payload),)
        else:
            parts = (encode_start(frame, payload), payload)
        if not self.is_open:
            # There is nothing to encrypt with yet.
            self._unsealed.extend(bytes(part) for part in parts)
            self._unsealed_bytes += sum(len(part) for part in parts)
            return
        for part in parts:
            self._seal(part)

    def _seal(self, data: Buffer) -> None:
        """Send bytes: at once as far as the system takes them, and later what it does not."""
        tls = self.opening.tls
        if tls is None:
            self._send_or_keep(data)
            return
        view = memoryview(data)
        for start in range(0, len(view), SEALED_BYTES):
            tls.write(view[start : start + SEALED_BYTES])
            self._send_or_keep(tls.take_pending(), is_ours=True)

    def _send_or_keep(self, data: Buffer, *, is_ours: bool = False) -> None:
        """Send bytes as they go to the socket.

        Args:
            data: The bytes.
            is_ours: Nobody else may change them; otherwise what has to wait is copied.
        """
        sent = 0
        if not self._outgoing and not self.is_lost:
            try:
                sent = self._raw.send(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self._network.lose(self, reason_of(error))
        if sent < len(data) and not self.is_lost:
            rest = memoryview(data)[sent:]
            self._outgoing.append(rest if is_ours else memoryview(bytes(rest)))
            self._outgoing_bytes += len(rest)
            self.watch()

    def _write(self) -> None:
        """Give the system what it takes of what had to wait."""
        while self._outgoing:
            data = self._outgoing[0]
            try:
                sent = self._raw.send(data)
            except BlockingIOError:
                return
            except OSError as error:
                self._network.lose(self, reason_of(error))
                return
            self._outgoing_bytes -= sent
            if sent < len(data):
                self._outgoing[0] = data[sent:]
                return
            self._outgoing.popleft()

    def _answer(self, data: bytes) -> None:
        """Send something of the handshake, or of TLS itself, as it is."""
        if data:
            self._send_or_keep(data, is_ours=True)

    def read_or_pause(self, wants: bool) -> None:
        """Stop or go on reading: what the peer sends meanwhile waits in the system's buffers, then at the peer."""
        if wants != self._is_reading:
            self._is_reading = wants
            self.watch()

    def watch(self) -> None:
        """Tell the selector what is awaited."""
        events = selectors.EVENT_READ if self._is_reading and not self._is_connecting else 0
        if self._is_connecting or self._outgoing:
            events |= selectors.EVENT_WRITE
        if self.is_lost or events == self._events:
            return
        self._network.register(self._raw, self._events, events, self)
        self._events = events

    def writable(self) -> None:
        """Go on where the system's buffer was full, or a connection was being made."""
        if self._is_connecting:
            error = self._raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._network.lose(self, os.strerror(error))
                return
            self._is_connecting = False
            self._answer(self.opening.first_bytes())
        else:
            self._write()
        self.watch()

    def readable(self, buffer: memoryview) -> None:
        """Take in what came."""
        opening = self.opening
        # A long payload in plain goes where it belongs at once.
        room = opening.decoder.room if opening.tls is None else None
        try:
            size = self._raw.recv_into(buffer if room is None else room)
        except BlockingIOError:
            return
        except OSError as error:
            self._network.lose(self, reason_of(error))
            return
        if not size:
            self._network.lose(self, "it closed the connection")
            return
        try:
            if room is not None:
                received = opening.decoder.filled(size)
                if received is not None:
                    self._network.received(self, *received)
                return
            data = buffer[:size]
            if not opening.is_done:
                if not opening.receive(data, self._answer):
                    return
                data = buffer[:0]
                self._opened()
            for frame, payload in opening.frames(data):
                if self.is_lost:
                    return
                self._network.received(self, frame, payload)
            if opening.tls is not None and not self.is_lost and (pending := opening.tls.take_pending()):
                self._answer(pending)
        except DataPlaneError as error:
            self._network.lose(self, error.message)

    def _opened(self) -> None:
        self.peer = self.opening.peer
        if self.peer is not None:
            self.label = self.peer.sender
        self.is_open = True
        unsealed, self._unsealed, self._unsealed_bytes = self._unsealed, [], 0
        for data in unsealed:
            self._seal(data)
        self._network.proved(self)

    def check(self, now_s: float) -> None:
        """Notice that the other host is gone. To be called every `pulse.CHECK_INTERVAL_S` for what is in TLS.

        Args:
            now_s: Monotonic seconds.
        """
        if self.is_lost or not self.is_open:
            return
        advice = self._pulse.check(now_s, listen_to(self._raw))
        if advice == "lost":
            self._network.lose(self, f"its host has not been heard of for {SILENCE_MAX_S:g} s")
        elif advice == "ping" and not self.backlog_bytes:
            self.send(Ping())

    def close(self) -> None:
        """Close at once; for the network, which also forgets it."""
        self.is_lost = True
        if self._events:
            self._network.register(self._raw, self._events, 0, self)
            self._events = 0
        self._raw.close()


def reason_of(error: OSError) -> str:
    """Return why the system refused something, in its words."""
    return error.strerror or str(error)
