"""The stage process's sockets, without threads and without waiting: one selector, frames in and out.

The same wire as `exo.dataplane.connection`, for a process whose one thread belongs to the engine.
"""

import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable

from exo.dataplane.codec import encode
from exo.dataplane.errors import DataPlaneError
from exo.dataplane.frames import Frame, Hello
from exo.dataplane.handshake import HANDSHAKE_TIMEOUT_S, Dialler, Listener
from exo.dataplane.opening import STRANGERS_MAX, Opening, keep_alive
from exo.shared.handshake import NONCE_BYTES
from exo.shared.types.nodes import HostPort

RECEIVE_BYTES = 256 * 1024


class Connection:
    """One connection of a `Network`. Only the network makes them."""

    def __init__(
        self, network: "Network", raw: socket.socket, handshake: Dialler | Listener, label: str
    ) -> None:
        self.label = label
        """Whom it leads to, for people."""
        self.peer: Hello | None = None
        """What a dialler said of itself; None on the dialling side."""
        self.is_open = False
        """Whether the handshake is done."""
        self.is_dialled = isinstance(handshake, Dialler)
        self.begun_at = time.monotonic()
        self._network = network
        self._raw = raw
        self._opening = Opening(handshake)
        self._outgoing: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self._is_connecting = isinstance(handshake, Dialler)
        self._is_reading = True
        self._events = 0
        self.is_lost = False

    @property
    def backlog_bytes(self) -> int:
        """What was sent and the system has not taken yet."""
        return self._backlog_bytes

    def send(self, frame: Frame, payload: bytes | memoryview = b"") -> None:
        """Send a frame, as soon as the handshake is done; without effect when the connection is lost."""
        if self.is_lost:
            return
        data = encode(frame, payload)
        if not self.is_open or self._outgoing:
            self._outgoing.append(memoryview(data))
            self._backlog_bytes += len(data)
            return
        self._send_now(data)

    def _send_now(self, data: bytes) -> None:
        try:
            sent = self._raw.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._network.lose(self, _reason(error))
            return
        if sent < len(data):
            # To the front: a frame of the handshake goes before those that wait for its end.
            self._outgoing.appendleft(memoryview(data)[sent:])
            self._backlog_bytes += len(data) - sent
            self.watch()

    def read_or_pause(self, wants: bool) -> None:
        """Stop or go on reading: what the peer sends meanwhile waits in the system's buffers, then at the peer."""
        if wants != self._is_reading:
            self._is_reading = wants
            self.watch()

    def watch(self) -> None:
        """Tell the selector what is awaited."""
        events = selectors.EVENT_READ if self._is_reading and not self._is_connecting else 0
        if self._is_connecting or (self._outgoing and self.is_open):
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
            self._send_now(self._opening.first_bytes)
        while self._outgoing and self.is_open:
            data = self._outgoing[0]
            try:
                sent = self._raw.send(data)
            except BlockingIOError:
                break
            except OSError as error:
                self._network.lose(self, _reason(error))
                return
            self._backlog_bytes -= sent
            if sent < len(data):
                self._outgoing[0] = data[sent:]
                break
            self._outgoing.popleft()
        self.watch()

    def readable(self, buffer: memoryview) -> None:
        """Take in what came."""
        try:
            size = self._raw.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._network.lose(self, _reason(error))
            return
        if not size:
            self._network.lose(self, "it closed the connection")
            return
        try:
            data = buffer[:size]
            if not self._opening.is_done:
                if not self._opening.receive(data, self._send_now):
                    return
                data = buffer[:0]
                self._opened()
            for frame, payload in self._opening.decoder.feed(data):
                if self.is_lost:
                    return
                self._network.on_frame(self, frame, payload)
        except DataPlaneError as error:
            self._network.lose(self, error.message)

    def _opened(self) -> None:
        if self._opening.peer is not None:
            self.peer = self._opening.peer
            self.label = self.peer.sender
        self.is_open = True
        self._network.proved(self)
        self.writable()

    def close(self) -> None:
        """Close at once; for the network, which also forgets it."""
        self.is_lost = True
        if self._events:
            self._network.register(self._raw, self._events, 0, self)
            self._events = 0
        self._raw.close()


class Network:
    """All sockets of a stage process.

    Args:
        host: Where to listen, on any free port.
        secret: What all processes of this cluster know.
        sender: This process's name, for the peers' logs.

    Raises:
        OSError: The host is not one of this machine's.
    """

    def __init__(self, host: str, *, secret: bytes, sender: str) -> None:
        self._secret = secret
        self._sender = sender
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        self._listener.setblocking(False)
        self.address = HostPort(host, self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._connections: set[Connection] = set()
        self._strangers: set[Connection] = set()
        """Those of them whose handshake is not done."""
        self._lost: list[tuple[Connection, str]] = []
        self.on_frame: Callable[[Connection, Frame, bytes], None] = _ignore
        """Gets every frame after a handshake; a `DataPlaneError` from it closes the connection."""
        self.on_open: Callable[[Connection], None] = _ignore
        """Called when a handshake is done."""
        self.on_lost: Callable[[Connection, str], None] = _ignore
        """Called from `poll`, never from within `send`, with the reason."""

    def watch_wakeups(self, file: socket.socket) -> None:
        """Let `poll` return when something can be read from `file`; the bytes are thrown away."""
        self._selector.register(file, selectors.EVENT_READ, file)

    def dial(self, address: HostPort, purpose: str, label: str) -> Connection:
        """Begin to connect. What is sent meanwhile follows the handshake; failure comes through `on_lost`."""
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        raw = socket.socket(family, socket.SOCK_STREAM)
        handshake = Dialler(
            secret=self._secret, nonce=os.urandom(NONCE_BYTES), purpose=purpose, sender=self._sender
        )
        connection = self._adopt(raw, handshake, label)
        try:
            error = raw.connect_ex((address.host, address.port))
        except OSError as failure:  # A name that cannot be resolved, a port that is none.
            self.lose(connection, _reason(failure))
            return connection
        if error not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            self.lose(connection, os.strerror(error))
        else:
            connection.watch()
        return connection

    def _adopt(self, raw: socket.socket, handshake: Dialler | Listener, label: str) -> Connection:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(raw)
        connection = Connection(self, raw, handshake, label)
        self._connections.add(connection)
        self._strangers.add(connection)
        return connection

    def proved(self, connection: Connection) -> None:
        """Take notice that a handshake is done; for connections."""
        self._strangers.discard(connection)
        self.on_open(connection)

    def register(self, raw: socket.socket, before: int, after: int, connection: Connection) -> None:
        """Change what the selector watches a connection for; for connections."""
        if not before:
            self._selector.register(raw, after, connection)
        elif not after:
            self._selector.unregister(raw)
        else:
            self._selector.modify(raw, after, connection)

    def lose(self, connection: Connection, reason: str) -> None:
        """Close a connection; whoever uses it learns of it in the next `poll`."""
        if not connection.is_lost:
            connection.close()
            self._connections.discard(connection)
            self._strangers.discard(connection)
            self._lost.append((connection, reason))

    def poll(self, timeout_s: float | None) -> None:
        """Carry out what the sockets allow, waiting up to `timeout_s` for the first of it; None: for ever."""
        if self._lost:
            timeout_s = 0
        if self._strangers:
            timeout_s = self._until_the_next_is_too_slow(timeout_s)
        for key, events in self._selector.select(timeout_s):
            connection = key.data
            if connection is None:
                self._accept()
            elif isinstance(connection, Connection):
                if events & selectors.EVENT_WRITE and not connection.is_lost:
                    connection.writable()
                if events & selectors.EVENT_READ and not connection.is_lost:
                    connection.readable(self._buffer)
            else:
                self._drain(connection)
        if self._strangers:
            self._drop_slow_strangers()
        while self._lost:
            lost, reason = self._lost.pop(0)
            self.on_lost(lost, reason)

    def _until_the_next_is_too_slow(self, timeout_s: float | None) -> float:
        oldest = min(connection.begun_at for connection in self._strangers)
        left = max(0.0, oldest + HANDSHAKE_TIMEOUT_S - time.monotonic())
        return left if timeout_s is None else min(timeout_s, left)

    def _accept(self) -> None:
        try:
            raw, address = self._listener.accept()
        except OSError:  # It went away again, or the process has no descriptors left.
            return
        if len(self._strangers) >= STRANGERS_MAX:
            raw.close()
            return
        handshake = Listener(secret=self._secret, nonce=os.urandom(NONCE_BYTES))
        self._adopt(raw, handshake, f"{address[0]}:{address[1]}").watch()

    def _drop_slow_strangers(self) -> None:
        too_old = time.monotonic() - HANDSHAKE_TIMEOUT_S
        for connection in [one for one in self._strangers if one.begun_at < too_old]:
            self.lose(connection, f"no handshake within {HANDSHAKE_TIMEOUT_S:g} s")

    def _drain(self, file: socket.socket) -> None:
        try:
            while file.recv(4096):
                pass
        except BlockingIOError:
            pass

    def flush(self, timeout_s: float) -> None:
        """Give the peers what was sent, for at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while any(connection.backlog_bytes and connection.is_open for connection in self._connections):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.poll(left)

    def close(self) -> None:
        """Close everything."""
        for connection in list(self._connections):
            connection.close()
        self._connections.clear()
        self._strangers.clear()
        self._listener.close()
        self._selector.close()


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _ignore(*_: object) -> None:
    """Stand in for a callback until there is one."""
