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
        self._outgoing: deque[memoryview] = deque()
        """What has yet to be encrypted, where it is."""
        self._outgoing_bytes = 0
        self._ready = memoryview(b"")
        """What goes to the socket next."""
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
        return self._outgoing_bytes + len(self._ready)

    def send(self, frame: Frame, payload: bytes | memoryview = b"") -> None:
        """Send a frame, as soon as the handshake is done; without effect when the connection is lost.

        What the system does not take at once of the payload is copied: its owner may do with it what it likes.
        """
        if self.is_lost:
            return
        if len(payload) < LONG_PAYLOAD_BYTES:
            parts: tuple[Buffer, ...] = (encode(frame, payload),)
        else:
            parts = (encode_start(frame, payload), payload)
        must_wait = not self.is_open or self.backlog_bytes > 0
        for part in parts:
            self._queue(bytes(part) if must_wait else part)
        if must_wait:
            return
        self._write()
        if not self.is_lost and self._outgoing:
            self._outgoing = deque(memoryview(bytes(part)) for part in self._outgoing)
        if not self.is_lost and self.backlog_bytes:
            if self._ready and not self.is_secured:
                self._ready = memoryview(bytes(self._ready))
            self.watch()

    def _queue(self, data: Buffer) -> None:
        view = memoryview(data)
        self._outgoing.append(view)
        self._outgoing_bytes += len(view)

    def _write(self) -> None:
        """Give the system what it takes."""
        while self._ready or self._outgoing:
            if not self._ready:
                self._ready = self._next_ready()
            try:
                sent = self._raw.send(self._ready)
            except BlockingIOError:
                return
            except OSError as error:
                self._network.lose(self, reason_of(error))
                return
            self._ready = self._ready[sent:]

    def _next_ready(self) -> memoryview:
        tls = self.opening.tls
        if tls is None:
            view = self._outgoing.popleft()
            self._outgoing_bytes -= len(view)
            return view
        room = SEALED_BYTES
        while room and self._outgoing:
            view = self._outgoing.popleft()
            part, rest = view[:room], view[room:]
            tls.write(part)
            room -= len(part)
            self._outgoing_bytes -= len(part)
            if rest:
                self._outgoing.appendleft(rest)
        return memoryview(tls.take_pending())

    def _answer(self, data: bytes) -> None:
        """Send something of the handshake, or of TLS itself: it goes before what waits, as it is."""
        self._ready = memoryview(b"".join((self._ready, data)))
        try:
            sent = self._raw.send(self._ready)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._network.lose(self, reason_of(error))
            return
        self._ready = self._ready[sent:]
        self.watch()

    def read_or_pause(self, wants: bool) -> None:
        """Stop or go on reading: what the peer sends meanwhile waits in the system's buffers, then at the peer."""
        if wants != self._is_reading:
            self._is_reading = wants
            self.watch()

    def watch(self) -> None:
        """Tell the selector what is awaited."""
        events = selectors.EVENT_READ if self._is_reading and not self._is_connecting else 0
        if self._is_connecting or self._ready or (self._outgoing and self.is_open):
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
        elif self.is_open:
            self._write()
        elif self._ready:
            self._answer(b"")
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
        self._network.proved(self)
        if not self.is_lost:
            self.writable()

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
