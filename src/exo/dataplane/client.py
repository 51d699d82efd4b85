"""The API node's side: dials first stages, takes tokens from last stages, hands them to whoever asked."""

import asyncio
import os
from types import TracebackType
from typing import Self

import msgspec

from exo.dataplane.connection import FrameConnection
from exo.dataplane.errors import (
    DataPlaneError,
    GenerationRejected,
    HandshakeError,
    ProtocolError,
    StageUnreachableError,
)
from exo.dataplane.frames import Accepted, Failed, Frame, Rejected, TokenChunk
from exo.dataplane.generation import Generation, GenerationRequest
from exo.dataplane.handshake import REPLIES, REQUESTS, Dialler, Listener
from exo.dataplane.opening import STRANGERS_MAX
from exo.shared.errors import ConfigurationError
from exo.shared.handshake import NONCE_BYTES
from exo.shared.types.ids import NodeId, RequestId
from exo.shared.types.nodes import HostPort

DIAL_TIMEOUT_S = 10.0
ACCEPT_TIMEOUT_S = 120.0
"""A first stage answers between two steps of its engine; a step of a long prompt on a slow machine takes a while."""
CLOSE_TIMEOUT_S = 1.0
"""For a stage that has stopped reading."""


class GenerationClient:
    """Asks first stages for tokens. Use in `async with`, on one event loop.

    Args:
        secret: What all processes of this cluster know.
        node_id: This node, for the other side's log.
        listen_host: Where last stages can reach this node.
        listen_port: 0 for any free one; see `address`.
    """

    def __init__(
        self, *, secret: bytes, node_id: NodeId, listen_host: str = "127.0.0.1", listen_port: int = 0
    ) -> None:
        self._secret = secret
        self._node_id = node_id
        self._listen_host = listen_host
        self._listen_port = listen_port
        self._server: asyncio.Server | None = None
        self._address: HostPort | None = None
        self._connections: dict[HostPort, FrameConnection] = {}
        self._dialling: dict[HostPort, asyncio.Lock] = {}
        """Never emptied: a lock may be awaited by someone while nobody holds it."""
        self._replies: set[FrameConnection] = set()
        self._generations: dict[RequestId, Generation] = {}

    @property
    def address(self) -> HostPort:
        """Where it takes tokens; known inside `async with`."""
        if self._address is None:
            raise RuntimeError("the client is not open")
        return self._address

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            ConfigurationError: The port is in use, or the host is not this machine's.
        """
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._reply_connection, self._listen_host, self._listen_port
            )
        except OSError as error:
            raise ConfigurationError(
                f"cannot take tokens on {HostPort(self._listen_host, self._listen_port)}: "
                f"{error.strerror or error}; choose another port with EXO_DATA_PORT"
            ) from error
        self._address = HostPort(self._listen_host, self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for generation in list(self._generations.values()):
            await generation.cancel()
        if self._server is not None:
            self._server.close()
        self._address = None
        connections = [*self._connections.values(), *self._replies]
        for connection in connections:
            connection.close("this node is shutting down")
        if connections:
            lost = [connection.lost for connection in connections]
            _, open_still = await asyncio.wait(lost, timeout=CLOSE_TIMEOUT_S)
            if open_still:
                for connection in connections:
                    connection.abort()
                await asyncio.wait(lost)

    async def start(self, first_stage: HostPort, request: GenerationRequest) -> Generation:
        """Ask for tokens; returns when the first stage has accepted.

        Raises:
            GenerationRejected: The first stage refuses.
            StageUnreachableError: It cannot be reached, or was lost before it answered.
        """
        connection = await self._connection_to(first_stage)
        if request.request_id in self._generations:
            raise GenerationRejected(
                409, "duplicate_request", f"request {request.request_id} is running already"
            )
        generation = Generation(request, connection, self._forget)
        self._generations[request.request_id] = generation
        try:
            try:
                connection.send(request.to_frame(self.address))
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

    async def _connection_to(self, address: HostPort) -> FrameConnection:
        async with self._dialling.setdefault(address, asyncio.Lock()):
            known = self._connections.get(address)
            if known is not None and known.is_open:
                return known
            connection = FrameConnection(
                Dialler(
                    secret=self._secret,
                    nonce=os.urandom(NONCE_BYTES),
                    purpose=REQUESTS,
                    sender=str(self._node_id),
                ),
                on_frame=self._frame_received,
                on_lost=self._connection_lost,
            )
            try:
                async with asyncio.timeout(DIAL_TIMEOUT_S):
                    await asyncio.get_running_loop().create_connection(
                        lambda: connection, address.host, address.port
                    )
                    await asyncio.shield(connection.ready)
            except (OSError, TimeoutError, HandshakeError) as error:
                await connection.aclose()
                reason = error.message if isinstance(error, DataPlaneError) else str(error) or "no answer"
                raise StageUnreachableError(
                    f"the model's first stage at {address} cannot be reached: {reason}"
                ) from error
            except BaseException:
                connection.abort()
                raise
            self._connections[address] = connection
            return connection

    def _reply_connection(self) -> FrameConnection:
        connection = FrameConnection(
            Listener(secret=self._secret, nonce=os.urandom(NONCE_BYTES)),
            on_frame=self._reply_received,
            on_lost=self._connection_lost,
        )
        if sum(not reply.is_open for reply in self._replies) >= STRANGERS_MAX:
            connection.refuse("too many connections at once")
        self._replies.add(connection)
        return connection

    def _reply_received(self, connection: FrameConnection, frame: Frame, payload: bytes) -> None:
        if connection.peer is None or connection.peer.purpose != REPLIES:
            raise ProtocolError("a peer sends frames that belong elsewhere to the port for tokens")
        self._frame_received(connection, frame, payload)

    def _frame_received(self, connection: FrameConnection, frame: Frame, payload: bytes) -> None:
        if isinstance(frame, TokenChunk):
            generation = self._generations.get(frame.request_id)
            if generation is not None:
                generation.chunk_received(frame, connection)
        elif isinstance(frame, Failed):
            generation = self._generations.get(frame.request_id)
            if generation is not None:
                generation.failed_frame_received(frame)
        elif isinstance(frame, Accepted | Rejected):
            generation = self._generations.get(frame.request_id)
            if generation is not None and not generation.answer.done():
                generation.answer.set_result(frame)
        else:
            raise ProtocolError(f"a stage sent {type(frame).__name__}, which has no place here")

    def _connection_lost(self, connection: FrameConnection, reason: str) -> None:
        self._replies.discard(connection)
        for address, known in list(self._connections.items()):
            if known is connection:
                del self._connections[address]
        for generation in list(self._generations.values()):
            generation.connection_lost(connection, reason)

    def _forget(self, request_id: RequestId) -> None:
        self._generations.pop(request_id, None)
