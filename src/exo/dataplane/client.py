"""The API node's side: dials first stages, takes tokens from last stages, hands them to whoever asked."""

import asyncio
import socket
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

import msgspec

from exo.dataplane.codec import Payload
from exo.dataplane.connection import FrameCallback, FrameConnection, LostCallback
from exo.dataplane.errors import (
    DataPlaneError,
    GenerationRejected,
    HandshakeError,
    NodeUnreachableError,
    ProtocolError,
    StageUnreachableError,
)
from exo.dataplane.frames import Accepted, Failed, Frame, Rejected, ReplyTo, TokenChunk
from exo.dataplane.gate import Gate
from exo.dataplane.generation import Generation, GenerationRequest
from exo.dataplane.handshake import PROBES, REPLIES, REQUESTS
from exo.dataplane.identity import DataIdentity
from exo.dataplane.listening import bind, reached_at
from exo.dataplane.opening import Opening
from exo.dataplane.probing import ProbeDesk, ProbeStream
from exo.dataplane.pulse import CHECK_INTERVAL_S
from exo.shared.addresses import is_loopback
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId, RequestId
from exo.shared.types.nodes import HostPort

DIAL_TIMEOUT_S = 10.0
ACCEPT_TIMEOUT_S = 120.0
"""A first stage answers between two steps of its engine; a step of a long prompt on a slow machine takes a while."""
CLOSE_TIMEOUT_S = 1.0
"""For a stage that has stopped reading."""
_LET_GO_TURNS = 1000
"""Of a millisecond, for the event loop to close a socket: uvloop does it in a later turn."""


class GenerationClient:
    """Asks first stages for tokens. Use in `async with`, on one event loop.

    Args:
        secret: What all processes of this user on this host know.
        node_id: This node.
        listen_host: Where last stages can reach this node; see `widen`.
        listen_port: 0 for any free one; see `address`.
        advertised_host: Where stages on other hosts reach this one.
        is_local: Says of a host whether it is this one, where connections are plain.
    """

    def __init__(
        self,
        *,
        secret: bytes,
        node_id: NodeId,
        listen_host: str = "127.0.0.1",
        listen_port: int = 0,
        advertised_host: str | None = None,
        is_local: Callable[[str], bool] = is_loopback,
    ) -> None:
        self._node_id = node_id
        self._listen_host = listen_host
        self._listen_port = listen_port
        self._advertised_host = advertised_host
        self._gate = Gate(secret, node_id=node_id, sender=str(node_id), is_local=is_local)
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._address: HostPort | None = None
        self._connections: dict[tuple[HostPort, NodeId | None], FrameConnection] = {}
        self._dialling: dict[tuple[HostPort, NodeId | None], asyncio.Lock] = {}
        """Never emptied: a lock may be awaited by someone while nobody holds it."""
        self._replies: set[FrameConnection] = set()
        self._all: set[FrameConnection] = set()
        """From the dial, or from being accepted, until they are gone."""
        self._next_check: asyncio.TimerHandle | None = None
        self._generations: dict[RequestId, Generation] = {}
        self.probe_desk = ProbeDesk(time.monotonic)
        """Answers nodes that measure the way to this one."""

    @property
    def refused_connection_count(self) -> int:
        """How many connections were not let in since the start."""
        return self._gate.refused_count

    # --- what changes while running -----------------------------------------------------------------------------

    def set_identity(self, identity: DataIdentity | None) -> None:
        """Show this certificate from now on; call it again when the files hold a newer one.

        Raises:
            ConfigurationError: The certificate or its key cannot be used; the one before stays.
        """
        if self._gate.set_identity(identity):
            for connection in self._secured():
                connection.abort("this node belongs to another cluster now")

    def set_revoked(self, *, node_ids: Collection[NodeId], serials: Collection[str]) -> None:
        """Talk no more to these nodes, nor to who shows a certificate with one of these serial numbers."""
        self._gate.set_revoked(node_ids, serials)
        for connection in self._secured():
            reason = None if connection.opening is None else self._gate.reason_to_end(connection.opening)
            if reason is not None:
                connection.abort(reason)

    def _secured(self) -> list[FrameConnection]:
        return [connection for connection in self._all if connection.is_secured]

    async def widen(self, host: str, *, advertised_host: str | None = None) -> None:
        """Listen on another host of this machine, such as `0.0.0.0`, at the same port; connections stay.

        Args:
            host: Where to listen. Loopback reaches this node in any case.
            advertised_host: Where stages on other hosts reach this one; see `address`.

        Raises:
            ConfigurationError: The port is in use there, or the host is not this machine's, or without a certificate
                nobody could come; it listens where it did.
        """
        self._gate.require_listenable(host)
        if host != self._listen_host and self._address is not None:
            before, port = self._listen_host, self._address.port
            # Linux lets nobody listen on all addresses of a port while somebody listens on one of them.
            await self._let_go()
            try:
                await self._listen(host, port)
            except ConfigurationError:
                await self._let_go()
                await self._listen(before, port)
                raise
        self._listen_host, self._advertised_host = host, advertised_host
        if self._sockets:
            self._address = reached_at(self._sockets[0], advertised_host)

    async def _listen(self, host: str, port: int) -> None:
        try:
            self._sockets = bind(host, port)
        except OSError as error:
            raise ConfigurationError(
                f"cannot take tokens on {HostPort(host, port)}: "
                f"{error.strerror or error}; choose another port with EXO_DATA_PORT"
            ) from error
        loop = asyncio.get_running_loop()
        for handle in self._sockets:
            self._servers.append(await loop.create_server(self._reply_connection, sock=handle))

    async def _let_go(self) -> None:
        """Return when nothing holds the port any more."""
        sockets, self._sockets = self._sockets, []
        self._close_servers()
        for _ in range(_LET_GO_TURNS):
            if all(handle.fileno() == -1 for handle in sockets):
                return
            await asyncio.sleep(0.001)

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    # --- life ---------------------------------------------------------------------------------------------------

    @property
    def address(self) -> HostPort:
        """Where it takes tokens; known inside `async with`."""
        if self._address is None:
            raise RuntimeError("the client is not open")
        return self._address

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            ConfigurationError: The port is in use, or the host is not this machine's, or without a certificate nobody
                could come there.
        """
        self._gate.require_listenable(self._listen_host)
        await self._listen(self._listen_host, self._listen_port)
        self._address = reached_at(self._sockets[0], self._advertised_host)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for generation in list(self._generations.values()):
            await generation.cancel()
        self._close_servers()
        self._address = None
        connections = list(self._all)
        for connection in connections:
            connection.close("this node is shutting down")
        if connections:
            lost = [connection.lost for connection in connections]
            _, open_still = await asyncio.wait(lost, timeout=CLOSE_TIMEOUT_S)
            if open_still:
                for connection in connections:
                    connection.abort()
                await asyncio.wait(lost)
        if self._next_check is not None:
            self._next_check.cancel()
            self._next_check = None

    # --- requests -----------------------------------------------------------------------------------------------

    async def start(self, first_stage: HostPort, request: GenerationRequest) -> Generation:
        """Ask for tokens; returns when the first stage has accepted.

        Raises:
            GenerationRejected: The first stage refuses.
            StageUnreachableError: It cannot be reached, or was lost before it answered.
        """
        connection = await self._connection_to(first_stage, request.node_ids[0] if request.node_ids else None)
        if request.request_id in self._generations:
            raise GenerationRejected(
                409, "duplicate_request", f"request {request.request_id} is running already"
            )
        generation = Generation(request, connection, self._forget)
        self._generations[request.request_id] = generation
        try:
            try:
                connection.send(request.to_frame(ReplyTo(self.address, self._node_id)))
            except (UnicodeEncodeError, msgspec.MsgspecError, ProtocolError, OverflowError) as error:
                raise GenerationRejected(
                    400, "invalid_request", f"the request cannot be sent: {error}"
                ) from error
            await connection.drain()
            answer = await self._answer(generation, first_stage)
            if isinstance(answer, Rejected):
                raise GenerationRejected(answer.status, answer.code, answer.message)
        except GenerationRejected:
            self._forget(request.request_id)
            raise
        except BaseException:
            await generation.cancel()
            raise
        generation.prompt_tokens = answer.prompt_tokens
        return generation

    async def _answer(self, generation: Generation, first_stage: HostPort) -> Accepted | Rejected:
        done, _ = await asyncio.wait([generation.answer], timeout=ACCEPT_TIMEOUT_S)
        if not done:
            raise StageUnreachableError(
                f"the model's first stage at {first_stage} did not answer within {ACCEPT_TIMEOUT_S:g} s; try again"
            )
        if generation.answer.cancelled():
            reason = (
                generation.error.message if generation.error is not None else "this node is shutting down"
            )
            raise StageUnreachableError(f"no answer from {first_stage}: {reason}; try again")
        return generation.answer.result()

    async def _connection_to(self, address: HostPort, node_id: NodeId | None) -> FrameConnection:
        key = address, node_id
        async with self._dialling.setdefault(key, asyncio.Lock()):
            known = self._connections.get(key)
            if known is not None and known.is_open:
                return known
            try:
                connection = await self._dial(
                    address, node_id, REQUESTS, self._frame_received, self._connection_lost
                )
            except (OSError, TimeoutError, HandshakeError) as error:
                raise self._unreachable(address, node_id, error) from error
            self._connections[key] = connection
            return connection

    async def _dial(
        self,
        address: HostPort,
        node_id: NodeId | None,
        purpose: str,
        on_frame: FrameCallback,
        on_lost: LostCallback,
    ) -> FrameConnection:
        """Return a connection on which frames may be sent.

        Raises:
            OSError, TimeoutError, HandshakeError: It did not come about.
        """
        target, opening = self._gate.dial(address, node_id=node_id, purpose=purpose)
        connection = FrameConnection(opening, on_open=self._opened, on_frame=on_frame, on_lost=on_lost)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, target.host, target.port
                )
                if not connection.lost.done():
                    self._all.add(connection)
                await asyncio.shield(connection.ready)
        except (OSError, TimeoutError, HandshakeError):
            await connection.aclose()
            raise
        except BaseException:
            connection.abort()
            raise
        return connection

    def _unreachable(
        self, address: HostPort, node_id: NodeId | None, error: Exception
    ) -> StageUnreachableError:
        reason = error.message if isinstance(error, DataPlaneError) else str(error) or "no answer"
        hint = ""
        if is_loopback(address.host) and node_id not in (None, self._node_id):
            hint = "; it listens for its own host only: if that is another one, place the model again"
        return StageUnreachableError(
            f"the model's first stage at {address} cannot be reached: {reason}{hint}"
        )

    # --- measuring the way to other nodes --------------------------------------------------------------------------

    async def open_probe(self, address: HostPort, node_id: NodeId) -> ProbeStream:
        """Return a way to measure transfers to a node; close it when done.

        Args:
            address: Where that node takes tokens.
            node_id: Who has to be there.

        Raises:
            NodeUnreachableError: It cannot be reached.
        """
        stream = ProbeStream(node_id)

        def lost(connection: FrameConnection, reason: str) -> None:
            stream.connection_lost(reason)
            self._connection_lost(connection, reason)

        try:
            connection = await self._dial(address, node_id, PROBES, stream.frame_received, lost)
        except (OSError, TimeoutError, HandshakeError) as error:
            reason = error.message if isinstance(error, HandshakeError) else str(error) or "no answer"
            raise NodeUnreachableError(
                f"the node {node_id} at {address} cannot be reached: {reason}"
            ) from error
        stream.opened(connection)
        return stream

    # --- connections --------------------------------------------------------------------------------------------

    def _reply_connection(self) -> FrameConnection:
        return FrameConnection(
            None,
            accept=self._accept,
            on_open=self._opened,
            on_frame=self._reply_received,
            on_lost=self._connection_lost,
        )

    def _accept(self, connection: FrameConnection, host: str) -> Opening:
        strangers = [reply.host for reply in self._replies if not reply.is_open]
        if not self._gate.has_room(host, strangers):
            raise HandshakeError("too many connections at once")
        self._all.add(connection)
        self._replies.add(connection)
        return self._gate.accept(host)

    def _opened(self, connection: FrameConnection) -> None:
        if connection.is_secured and self._next_check is None:
            self._check_secured()

    def _check_secured(self) -> None:
        self._next_check = None
        secured = self._secured()
        now_s = time.monotonic()
        for connection in secured:
            connection.check(now_s)
        if secured:
            self._next_check = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check_secured)

    def _reply_received(self, connection: FrameConnection, frame: Frame, payload: Payload) -> None:
        if connection.peer is not None and connection.peer.purpose == PROBES:
            self.probe_desk.frame_received(connection, frame, payload)
            return
        if connection.peer is None or connection.peer.purpose != REPLIES:
            raise ProtocolError("a peer sends frames that belong elsewhere to the port for tokens")
        self._frame_received(connection, frame, payload)

    def _frame_received(self, connection: FrameConnection, frame: Frame, payload: Payload) -> None:
        if not isinstance(frame, TokenChunk | Failed | Accepted | Rejected):
            raise ProtocolError(f"a stage sent {type(frame).__name__}, which has no place here")
        generation = self._generations.get(frame.request_id)
        if generation is None:
            return
        if not generation.is_heard_from(connection):
            raise ProtocolError(f"the node {connection.node_id} speaks for a model that does not run there")
        if isinstance(frame, TokenChunk):
            generation.chunk_received(frame, connection)
        elif isinstance(frame, Failed):
            generation.failed_frame_received(frame)
        elif not generation.answer.done():
            generation.answer.set_result(frame)

    def _connection_lost(self, connection: FrameConnection, reason: str) -> None:
        self._replies.discard(connection)
        self._all.discard(connection)
        self.probe_desk.connection_lost(connection)
        for key, known in list(self._connections.items()):
            if known is connection:
                del self._connections[key]
        for generation in list(self._generations.values()):
            generation.connection_lost(connection, reason)

    def _forget(self, request_id: RequestId) -> None:
        self._generations.pop(request_id, None)
