"""One port for all: nodes of this host in plain, members with certificates, and strangers that want to be members."""

import asyncio
import os
import socket
from collections import Counter, deque
from collections.abc import Callable

from exo.cluster.errors import ConnectionLostError, HandshakeError
from exo.cluster.transport.addresses import plain_address
from exo.cluster.transport.base import Connection, Heartbeat, Listener
from exo.cluster.transport.channel import Channel
from exo.cluster.transport.gate import Gate
from exo.cluster.transport.tcp_connection import Breach, ConnectionOwner, TcpConnection
from exo.cluster.trust.certificates import NodeCertificate
from exo.cluster.trust.enrolment_server import EnrolmentLimits, serve_enrolment
from exo.cluster.trust.messages import EnrolOrigin
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort

HANDSHAKE_TIMEOUT_S = 5.0
STRANGERS_MAX = 256
"""Connections that have not proved themselves yet; more are turned away."""
STRANGERS_PER_HOST_MAX = 32
"""Of them from one other host, so that none can take all the room."""
_BACKLOG = 1024
"""A cluster's nodes all come back at once after the network was away."""
_LAST_TURNS = 5
"""Of the event loop: who was accepted in the moment of the end is made known, hung up on and let go in one each."""
_LET_GO_TURNS = 1000
"""Of a millisecond, for the event loop to close a socket: uvloop does it in a later turn."""


class TcpListener(Listener, ConnectionOwner):
    """See the module.

    Args:
        gate: Who is let in.
        heartbeat: How the loss of a peer is noticed.
        track: Told of each connection when it is let in (True) and when it is over (False).
        limits: Of enrolment.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        heartbeat: Heartbeat,
        track: Callable[[TcpConnection, bool], None],
        limits: EnrolmentLimits,
    ) -> None:
        self._gate = gate
        self._heartbeat = heartbeat
        self._track = track
        self._limits = limits
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._address = HostPort("", 0)
        self._strangers: dict[TcpConnection, asyncio.TimerHandle] = {}
        self._enrolling: dict[TcpConnection, asyncio.Task[None]] = {}
        self._waiting: deque[TcpConnection] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False

    # --- Listener -----------------------------------------------------------------------------------------------

    @property
    def address(self) -> HostPort:
        return self._address

    async def open(self, address: HostPort) -> None:
        """Begin to listen.

        Raises:
            OSError: The port is in use, or the address is not this host's.
        """
        self._sockets = await _bind(address)
        loop = asyncio.get_running_loop()
        self._address = HostPort(*self._sockets[0].getsockname()[:2])
        for handle in self._sockets:
            self._servers.append(await loop.create_server(self._make, sock=handle, backlog=_BACKLOG))

    async def accept(self) -> Connection:
        while not self._waiting:
            if self._is_closed:
                raise ConnectionLostError(f"no longer listening on {self._address}")
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    async def widen(self, host: str) -> None:
        if host == self._address.host:
            return
        self._gate.require_listenable(host)
        before = self._address
        # Linux lets nobody listen on all addresses of a port while somebody listens on one of them.
        await self._let_go()
        try:
            await self.open(HostPort(host, before.port))
        except OSError as error:
            await self._let_go()
            await self.open(before)
            raise ConfigurationError(
                f"cannot listen for other nodes on {HostPort(host, before.port)}: {error.strerror or error}; "
                f"this node stays on {before}"
            ) from error
        finally:
            if self._is_closed:
                self._close_servers()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._close_servers()
        for connection in [*self._strangers, *self._waiting, *self._enrolling]:
            connection.close("the node is stopping")
        tasks = list(self._enrolling.values())
        for task in tasks:
            task.cancel()
        self._waiting.clear()
        self._changed.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(_LAST_TURNS):
            await asyncio.sleep(0)

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _let_go(self) -> None:
        """Return when nothing holds the port any more."""
        sockets, self._sockets = self._sockets, []
        self._close_servers()
        for _ in range(_LET_GO_TURNS):
            if all(handle.fileno() == -1 for handle in sockets):
                return
            await asyncio.sleep(0.001)

    # --- ConnectionOwner ----------------------------------------------------------------------------------------

    def _make(self) -> TcpConnection:
        return TcpConnection(self, channel=None, peer_address=None, heartbeat=self._heartbeat)

    def made(self, connection: TcpConnection) -> None:
        if self._is_closed:
            connection.close("the node is stopping")
            return
        host = connection.peer_address.host
        from_there = sum(stranger.peer_address.host == host for stranger in self._strangers)
        if len(self._strangers) >= STRANGERS_MAX or (
            from_there >= STRANGERS_PER_HOST_MAX and not self._gate.is_local(host)
        ):
            self._turn_away(connection, "too_many", "too many connections at once; try again")
            return
        self._strangers[connection] = asyncio.get_running_loop().call_later(
            HANDSHAKE_TIMEOUT_S, self._turn_away, connection, "too_slow", "the handshake took too long"
        )

    def choose_channel(self, first_byte: int, peer: HostPort) -> Channel:
        return self._gate.accepted(first_byte, peer)

    def greeted(self, connection: TcpConnection) -> None:
        self._strangers.pop(connection).cancel()
        self._gate.count_accepted(
            is_tls=connection.certificate is not None, is_enrolment=connection.is_enrolment
        )
        self._track(connection, True)
        if connection.is_enrolment:
            self._begin_enrolment(connection)
            return
        self._waiting.append(connection)
        self._changed.set()

    def ended(self, connection: TcpConnection, error: HandshakeError | None) -> None:
        self._track(connection, False)
        timer = self._strangers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        if error is not None:
            self._gate.count_refused(error, connection.peer_address)
        elif timer is not None:
            self._gate.counts["abandoned"] += 1

    def broken(self, kind: Breach) -> None:
        self._gate.counts[f"ended_{kind}"] += 1

    def reason_to_end(self, certificate: NodeCertificate) -> str | None:
        return self._gate.reason_to_end(certificate)

    def _turn_away(self, connection: TcpConnection, code: str, reason: str) -> None:
        timer = self._strangers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        self._gate.count_refused(HandshakeError(reason, code=code), connection.peer_address)
        connection.close(reason)

    # --- enrolment ----------------------------------------------------------------------------------------------

    def _begin_enrolment(self, connection: TcpConnection) -> None:
        identity, enrol = self._gate.identity, self._gate.enrol
        per_host = Counter(other.peer_address.host for other in self._enrolling)
        if (
            len(self._enrolling) >= self._limits.at_once_max
            or per_host[connection.peer_address.host] >= self._limits.at_once_per_host_max
        ):
            self._turn_away(connection, "too_many", "too many nodes ask to join at once; try again")
            return
        if identity is None or enrol is None:
            connection.close("this node takes nobody in any more")
            return
        origin = EnrolOrigin(
            address=connection.peer_address, server_certificate_sha256=identity.certificate.sha256
        )
        task = asyncio.ensure_future(
            serve_enrolment(
                connection,
                authority_der=identity.authority_der,
                origin=origin,
                enrol=enrol,
                limits=self._limits,
                on_malformed=lambda: self.broken("malformed"),
            )
        )
        self._enrolling[connection] = task
        task.add_done_callback(lambda _: self._enrolling.pop(connection, None))


async def _bind(address: HostPort) -> list[socket.socket]:
    """Return bound sockets, one for each address that the host has; they do not listen yet."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, name in dict.fromkeys(infos):
            handle = socket.socket(family, kind, protocol)
            bound.append(handle)
            if os.name == "posix":
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # `::` is for everybody, whatever the system's default is.
                handle.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(name[0] != "::"))
            # Of several addresses the first one finds the port.
            port = plain_address(bound[0].getsockname()).port if len(bound) > 1 else name[1]
            handle.bind((name[0], port, *name[2:]))
            handle.setblocking(False)
    except OSError:
        for handle in bound:
            handle.close()
        raise
    return bound
