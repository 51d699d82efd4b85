"""The stage process's sockets, without threads and without waiting: one selector, frames in and out.

The same wire as `exo.dataplane.connection`, for a process whose one thread belongs to the engine.
"""

import errno
import os
import selectors
import socket
import time
from collections.abc import Callable

from loguru import logger

from exo.dataplane.codec import Payload
from exo.dataplane.errors import HandshakeError
from exo.dataplane.frames import Frame
from exo.dataplane.gate import Gate
from exo.dataplane.handshake import HANDSHAKE_TIMEOUT_S
from exo.dataplane.identity import DataTrust
from exo.dataplane.listening import PortRange, bind, reached_at, resolve
from exo.dataplane.opening import Opening
from exo.dataplane.pulse import CHECK_INTERVAL_S, keep_alive
from exo.shared.addresses import is_loopback, plain_address
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from exo.worker.runner.link import Connection, LinkOwner, reason_of

__all__ = ["RECEIVE_BYTES", "Connection", "Network"]

RECEIVE_BYTES = 256 * 1024


class Network(LinkOwner):
    """All sockets of a stage process.

    Args:
        host: Where to listen; loopback reaches this process in any case.
        secret: What all processes of this user on this host know.
        sender: This process's name, for the peers' logs.
        node_id: This process's node.
        trust: What to show to other hosts, and who is not let in.
        advertised_host: Where other hosts reach this one.
        ports: Of which one is taken; None: any free one.
        is_local: Says of a host whether it is this one, where connections are plain.

    Raises:
        OSError: The host is not one of this machine's, or no port is free.
        ConfigurationError: The certificate cannot be used, or without one nobody could come.
    """

    def __init__(
        self,
        host: str,
        *,
        secret: bytes,
        sender: str,
        node_id: NodeId = NodeId(""),
        trust: DataTrust | None = None,
        advertised_host: str | None = None,
        ports: PortRange | None = None,
        is_local: Callable[[str], bool] = is_loopback,
    ) -> None:
        self._gate = Gate(secret, node_id=node_id, sender=sender, is_local=is_local)
        if trust is not None:
            self._gate.set_revoked(trust.removed_node_ids, trust.revoked_serials)
            self._gate.set_identity(trust.identity)
        self._gate.require_listenable(host)
        self._listeners = bind(host, ports or 0)
        self.address = reached_at(self._listeners[0], advertised_host)
        self._selector = selectors.DefaultSelector()
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ, None)
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._connections: set[Connection] = set()
        self._strangers: set[Connection] = set()
        """Those of them whose handshake is not done."""
        self._secured: set[Connection] = set()
        """Those of them that are open, in TLS."""
        self._next_check_at = 0.0
        self._lost: list[tuple[Connection, str]] = []
        self.on_frame: Callable[[Connection, Frame, Payload], None] = _ignore
        """Gets every frame after a handshake; a `DataPlaneError` from it closes the connection."""
        self.on_open: Callable[[Connection], None] = _ignore
        """Called when a handshake is done."""
        self.on_lost: Callable[[Connection, str], None] = _ignore
        """Called from `poll`, never from within `send`, with the reason."""

    def set_trust(self, trust: DataTrust) -> None:
        """Go by this from now on; the files may hold a newer certificate. Who is not welcome any more is cut off."""
        self._gate.set_revoked(trust.removed_node_ids, trust.revoked_serials)
        is_other_authority = False
        try:
            is_other_authority = self._gate.set_identity(trust.identity)
        except ConfigurationError as error:
            logger.warning("{}; the certificate before stays", error.message)
        for connection in [one for one in self._connections if one.is_secured]:
            reason = self._gate.reason_to_end(connection.opening)
            if is_other_authority:
                reason = "this node belongs to another cluster now"
            if reason is not None:
                self.lose(connection, reason)

    def watch_wakeups(self, file: socket.socket) -> None:
        """Let `poll` return when something can be read from `file`; the bytes are thrown away."""
        self._selector.register(file, selectors.EVENT_READ, file)

    def dial(
        self, address: HostPort, purpose: str, label: str, *, node_id: NodeId | None = None
    ) -> Connection:
        """Begin to connect. What is sent meanwhile follows the handshake; failure comes through `on_lost`.

        Args:
            address: As its node tells it to others.
            purpose: What for.
            label: Whom it leads to, for people.
            node_id: Who has to be there, on another host.
        """
        failure: str | None = None
        try:
            target, opening = self._gate.dial(address, node_id=node_id, purpose=purpose)
            family, kind, protocol, _, name = resolve(target)
            raw = socket.socket(family, kind, protocol)
        except HandshakeError as error:
            failure = error.message
        except OSError as error:  # A name that cannot be resolved, a port that is none.
            failure = reason_of(error)
        else:
            connection = self._adopt(raw, opening, host=address.host, label=label)
            try:
                code = raw.connect_ex(name)
            except OSError as error:
                self.lose(connection, reason_of(error))
                return connection
            if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                self.lose(connection, os.strerror(code))
            else:
                connection.watch()
            return connection
        unmade = Connection(self, socket.socket(), Opening(None), host=address.host, label=label)
        self.lose(unmade, failure)
        return unmade

    def _adopt(self, raw: socket.socket, opening: Opening, *, host: str, label: str) -> Connection:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(raw)
        connection = Connection(self, raw, opening, host=host, label=label)
        self._connections.add(connection)
        self._strangers.add(connection)
        return connection

    # --- of its connections -------------------------------------------------------------------------------------

    def proved(self, connection: Connection) -> None:
        """See `LinkOwner`."""
        self._strangers.discard(connection)
        if connection.is_secured:
            self._secured.add(connection)
        self.on_open(connection)

    def received(self, connection: Connection, frame: Frame, payload: Payload) -> None:
        """See `LinkOwner`."""
        self.on_frame(connection, frame, payload)

    def register(self, raw: socket.socket, before: int, after: int, connection: Connection) -> None:
        """See `LinkOwner`."""
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
            self._secured.discard(connection)
            self._lost.append((connection, reason))

    # --- the loop -----------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float | None) -> None:
        """Carry out what the sockets allow, waiting up to `timeout_s` for the first of it; None: for ever."""
        if self._lost:
            timeout_s = 0
        if self._strangers:
            timeout_s = self._until_the_next_is_too_slow(timeout_s)
        if self._secured:
            left = max(0.0, self._next_check_at - time.monotonic())
            timeout_s = left if timeout_s is None else min(timeout_s, left)
        for key, events in self._selector.select(timeout_s):
            connection = key.data
            if connection is None:
                self._accept(key.fileobj)
            elif isinstance(connection, Connection):
                if events & selectors.EVENT_WRITE and not connection.is_lost:
                    connection.writable()
                if events & selectors.EVENT_READ and not connection.is_lost:
                    connection.readable(self._buffer)
            else:
                self._drain(connection)
        if self._strangers:
            self._drop_slow_strangers()
        if self._secured and time.monotonic() >= self._next_check_at:
            self._check_secured()
        while self._lost:
            lost, reason = self._lost.pop(0)
            self.on_lost(lost, reason)

    def _until_the_next_is_too_slow(self, timeout_s: float | None) -> float:
        oldest = min(connection.begun_at for connection in self._strangers)
        left = max(0.0, oldest + HANDSHAKE_TIMEOUT_S - time.monotonic())
        return left if timeout_s is None else min(timeout_s, left)

    def _check_secured(self) -> None:
        now_s = time.monotonic()
        self._next_check_at = now_s + CHECK_INTERVAL_S
        for connection in list(self._secured):
            connection.check(now_s)

    def _accept(self, listener: object) -> None:
        assert isinstance(listener, socket.socket)
        try:
            raw, name = listener.accept()
        except OSError:  # It went away again, or the process has no descriptors left.
            return
        address = plain_address(name)
        strangers = (one.host for one in self._strangers if not one.is_dialled)
        if not self._gate.has_room(address.host, strangers):
            raw.close()
            return
        self._adopt(raw, self._gate.accept(address.host), host=address.host, label=str(address)).watch()

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
        self._secured.clear()
        for listener in self._listeners:
            listener.close()
        self._selector.close()


def _ignore(*_: object) -> None:
    """Stand in for a callback until there is one."""
