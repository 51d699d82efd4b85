"""Nodes of one host over plain TCP on loopback, admitted by the host secret. A network needs more: not this one."""

import asyncio
import ipaddress
import secrets
from collections import deque
from collections.abc import Callable

from exo.cluster.errors import ConnectionLostError, HandshakeError, NotDiallableError, dial_failure
from exo.cluster.transport.base import Connection, Heartbeat, Listener, Transport
from exo.cluster.transport.greeting import Greeting
from exo.cluster.transport.tcp_connection import TcpConnection
from exo.shared.errors import ConfigurationError
from exo.shared.handshake import NONCE_BYTES
from exo.shared.types.nodes import HostPort

HANDSHAKE_TIMEOUT_S = 5.0
_STRANGERS_MAX = 64
"""Connections that have not proved themselves yet; more are turned away."""


def is_loopback(host: str) -> bool:
    """Say whether only this host can be meant."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TcpTransport(Transport):
    """Plain TCP between the nodes of one user on one host.

    Args:
        secret: The host secret, which both ends must know.
        random_bytes: Source of the handshake's nonces.
        heartbeat: How the loss of a peer is noticed.
    """

    def __init__(
        self,
        secret: bytes,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        heartbeat: Heartbeat = Heartbeat(),
    ) -> None:
        self._secret = secret
        self._random_bytes = random_bytes
        self._heartbeat = heartbeat

    async def listen(self, address: HostPort) -> Listener:
        if not is_loopback(address.host):
            raise ConfigurationError(
                f"cannot listen for other nodes on {address.host}: without node certificates they are admitted on "
                "this host only; use 127.0.0.1"
            )
        listener = _TcpListener(self._secret, self._random_bytes, self._heartbeat)
        try:
            await listener.open(address)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen for other nodes on {address}: {error.strerror or error}; "
                "choose another port with EXO_CLUSTER_PORT (0 takes any free one)"
            ) from error
        return listener

    async def dial(self, address: HostPort, *, timeout_s: float) -> Connection:
        if not is_loopback(address.host):
            raise NotDiallableError(
                f"cannot join the node at {address}: without node certificates only nodes of this host are admitted"
            )
        loop = asyncio.get_running_loop()
        greeted: asyncio.Future[TcpConnection] = loop.create_future()

        def on_greeted(connection: TcpConnection) -> None:
            if not greeted.done():
                greeted.set_result(connection)

        def on_ended(connection: TcpConnection, error: HandshakeError | None) -> None:
            if not greeted.done():
                greeted.set_exception(
                    error or dial_failure(address, "it hung up before it had proved itself")
                )

        greeting = Greeting(
            self._secret, side="dialer", nonce=self._random_bytes(NONCE_BYTES), peer=f"the node at {address}"
        )
        made: TcpConnection | None = None
        is_open = False
        try:
            async with asyncio.timeout(timeout_s):
                _, made = await loop.create_connection(
                    lambda: TcpConnection(
                        greeting,
                        peer_address=address,
                        heartbeat=self._heartbeat,
                        on_greeted=on_greeted,
                        on_ended=on_ended,
                    ),
                    address.host,
                    address.port,
                )
                connection = await greeted
            is_open = True
            return connection
        except TimeoutError as error:
            raise dial_failure(address, f"no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise dial_failure(address, error.strerror or str(error)) from error
        finally:
            greeted.cancel()
            if made is not None and not is_open:
                made.close("the dialer gave up")


class _TcpListener(Listener):
    def __init__(self, secret: bytes, random_bytes: Callable[[int], bytes], heartbeat: Heartbeat) -> None:
        self._secret = secret
        self._random_bytes = random_bytes
        self._heartbeat = heartbeat
        self._server: asyncio.Server | None = None
        self._address = HostPort("", 0)
        self._strangers: dict[TcpConnection, asyncio.TimerHandle] = {}
        self._waiting: deque[TcpConnection] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False

    async def open(self, address: HostPort) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make_connection, address.host, address.port)
        host, port = self._server.sockets[0].getsockname()[:2]
        self._address = HostPort(host, port)

    @property
    def address(self) -> HostPort:
        return self._address

    async def accept(self) -> Connection:
        while not self._waiting:
            if self._is_closed:
                raise ConnectionLostError(f"no longer listening on {self._address}")
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._server is not None:
            self._server.close()
        for connection in [*self._strangers, *self._waiting]:
            connection.close("the node is stopping")
        self._waiting.clear()
        self._changed.set()

    def _make_connection(self) -> TcpConnection:
        greeting = Greeting(
            self._secret, side="listener", nonce=self._random_bytes(NONCE_BYTES), peer="the dialing node"
        )
        connection = TcpConnection(
            greeting,
            peer_address=None,
            heartbeat=self._heartbeat,
            on_greeted=self._on_greeted,
            on_ended=self._on_ended,
        )
        loop = asyncio.get_running_loop()
        timer = loop.call_later(HANDSHAKE_TIMEOUT_S, connection.close, "the handshake took too long")
        self._strangers[connection] = timer
        if len(self._strangers) > _STRANGERS_MAX or self._is_closed:
            loop.call_soon(connection.close, "too many connections at once; try again")
        return connection

    def _on_greeted(self, connection: TcpConnection) -> None:
        self._strangers.pop(connection).cancel()
        if self._is_closed:
            connection.close("the node is stopping")
            return
        self._waiting.append(connection)
        self._changed.set()

    def _on_ended(self, connection: TcpConnection, error: HandshakeError | None) -> None:
        timer = self._strangers.pop(connection, None)
        if timer is not None:
            timer.cancel()
