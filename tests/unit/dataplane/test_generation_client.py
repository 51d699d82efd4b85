"""The API node's client against a stage that the test plays itself, over real sockets."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from exo.dataplane import frames as f
from exo.dataplane.client import GenerationClient
from exo.dataplane.codec import encode
from exo.dataplane.connection import FrameConnection
from exo.dataplane.errors import (
    GenerationFailedError,
    GenerationRejected,
    HandshakeError,
    StageUnreachableError,
)
from exo.dataplane.flow import CONSUMED_EVERY_CHUNKS
from exo.dataplane.generation import Generation, GenerationRequest
from exo.dataplane.handshake import REPLIES, REQUESTS, Dialler, Listener
from exo.dataplane.opening import Opening
from exo.shared.errors import ConfigurationError
from exo.shared.types.generation import FinishReason
from exo.shared.types.ids import InstanceId, NodeId, RequestId
from exo.shared.types.nodes import HostPort

SECRET = b"k" * 32


class PlayedStage:
    """A first and last stage that does what the test says."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[f.Frame] = asyncio.Queue()
        self.connections: list[FrameConnection] = []
        self.reply: FrameConnection | None = None
        self.answers = True
        self.address = HostPort("127.0.0.1", 1)
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def running(self, secret: bytes = SECRET) -> AsyncIterator["PlayedStage"]:
        def connected() -> FrameConnection:
            connection = FrameConnection(
                Opening(Listener(secret=secret, nonce=os.urandom(32))),
                on_frame=self._received,
                on_lost=lambda *_: None,
            )
            self.connections.append(connection)
            return connection

        self._server = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)
        self.address = HostPort("127.0.0.1", self._server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            self._server.close()
            await self.kill()

    def _received(self, connection: FrameConnection, frame: f.Frame, payload: bytes) -> None:
        if isinstance(frame, f.Generate) and self.answers:
            connection.send(f.Accepted(request_id=frame.request_id, prompt_tokens=7))
        self.frames.put_nowait(frame)

    async def kill(self) -> None:
        everything = [*self.connections, *([self.reply] if self.reply is not None else [])]
        for connection in everything:
            connection.abort()
        for connection in everything:
            if connection.peer is not None or connection is self.reply:
                await connection.lost

    async def dial(
        self, address: HostPort, *, purpose: str = REPLIES, secret: bytes = SECRET
    ) -> FrameConnection:
        self.reply = FrameConnection(
            Opening(Dialler(secret=secret, nonce=os.urandom(32), purpose=purpose, sender="stage")),
            on_frame=lambda *_: None,
            on_lost=lambda *_: None,
        )
        reply = self.reply
        await asyncio.get_running_loop().create_connection(lambda: reply, address.host, address.port)
        await reply.ready
        return reply

    async def next(self, kind: type[f.Frame]) -> f.Frame:
        async with asyncio.timeout(5):
            frame = await self.frames.get()
        assert isinstance(frame, kind)
        return frame


def request(name: str = "r1") -> GenerationRequest:
    return GenerationRequest(
        request_id=RequestId(name), instance_id=InstanceId("i1"), generation=1, prompt="Hello"
    )


def chunk(index: int, name: str = "r1", finish_reason: FinishReason | None = None) -> f.TokenChunk:
    return f.TokenChunk(
        request_id=RequestId(name), index=index, token_id=index, text=f"{index} ", finish_reason=finish_reason
    )


@asynccontextmanager
async def client_and_stage() -> AsyncIterator[tuple[GenerationClient, PlayedStage]]:
    async with (
        GenerationClient(secret=SECRET, node_id=NodeId("api")) as client,
        PlayedStage().running() as stage,
    ):
        yield client, stage


async def collect(generation: Generation) -> list[int]:
    async with asyncio.timeout(5):
        return [chunk.token_id async for chunk in generation]


async def test_tokens_come_in_order_and_end() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        assert generation.prompt_tokens == 7
        asked = await stage.next(f.Generate)
        assert isinstance(asked, f.Generate)
        assert asked.prompt == "Hello"
        assert asked.reply_to == f.ReplyTo(client.address, NodeId("api"))
        reply = await stage.dial(asked.reply_to.address)
        for index in range(10):
            reply.send(chunk(index, finish_reason="stop" if index == 9 else None))
        assert await collect(generation) == list(range(10))
        assert await generation.next_batch() == []


async def test_waiting_chunks_are_handed_over_together() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        reply = await stage.dial(client.address)
        assert reply is not None
        for index in range(5):
            reply.send(chunk(index))
        got = 0
        batches = 0
        async with asyncio.timeout(5):
            while got < 5:
                got += len(await generation.next_batch())
                batches += 1
        assert batches < 5


async def test_one_connection_carries_many_requests() -> None:
    async with client_and_stage() as (client, stage):
        names = [f"r{number}" for number in range(8)]
        started = await asyncio.gather(*(client.start(stage.address, request(name)) for name in names))
        assert len(stage.connections) == 1
        reply = await stage.dial(client.address)
        for index in range(3):
            for name in names:
                reply.send(chunk(index, name, "length" if index == 2 else None))
        assert await asyncio.gather(*(collect(generation) for generation in started)) == [[0, 1, 2]] * 8


async def test_chunks_may_come_before_the_acceptance() -> None:
    async with client_and_stage() as (client, stage):
        stage.answers = False
        starting = asyncio.create_task(client.start(stage.address, request()))
        await stage.next(f.Generate)
        # Both ways lead to the same place; on one connection the order is certain.
        stage.connections[0].send(chunk(0))
        stage.connections[0].send(f.Accepted(request_id=RequestId("r1"), prompt_tokens=2))
        generation = await starting
        stage.connections[0].send(chunk(1, finish_reason="stop"))
        assert await collect(generation) == [0, 1]


async def test_a_refusal_says_why() -> None:
    async with client_and_stage() as (client, stage):
        stage.answers = False
        starting = asyncio.create_task(client.start(stage.address, request()))
        await stage.next(f.Generate)
        stage.connections[0].send(
            f.Rejected(request_id=RequestId("r1"), status=429, code="queue_full", message="too many")
        )
        with pytest.raises(GenerationRejected) as refused:
            await starting
        assert (refused.value.status, refused.value.code, refused.value.message) == (
            429,
            "queue_full",
            "too many",
        )


async def test_a_stage_that_is_not_there() -> None:
    async with GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
        with pytest.raises(StageUnreachableError, match=r"127\.0\.0\.1:1 cannot be reached"):
            await client.start(HostPort("127.0.0.1", 1), request())


async def test_a_stage_with_another_secret() -> None:
    async with (
        GenerationClient(secret=SECRET, node_id=NodeId("api")) as client,
        PlayedStage().running(secret=b"other" * 7) as stage,
    ):
        with pytest.raises(StageUnreachableError, match="secret"):
            await client.start(stage.address, request())


async def test_a_stage_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exo.dataplane.client.ACCEPT_TIMEOUT_S", 0.05)
    async with client_and_stage() as (client, stage):
        stage.answers = False
        with pytest.raises(StageUnreachableError, match=r"did not answer within 0\.05 s"):
            await client.start(stage.address, request())
        await stage.next(f.Generate)
        await stage.next(f.Cancel)


async def test_somebody_else_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exo.dataplane.client.DIAL_TIMEOUT_S", 0.2)

    # The system itself takes the connection; nobody ever reads from it.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = HostPort("127.0.0.1", silent.getsockname()[1])
        async with GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
            with pytest.raises(StageUnreachableError, match="cannot be reached: no answer"):
                await client.start(address, request())


async def test_the_same_request_twice_is_refused() -> None:
    async with client_and_stage() as (client, stage):
        await client.start(stage.address, request())
        with pytest.raises(GenerationRejected, match="running already"):
            await client.start(stage.address, request())


async def test_the_first_stage_dies_before_it_answers() -> None:
    async with client_and_stage() as (client, stage):
        stage.answers = False
        starting = asyncio.create_task(client.start(stage.address, request()))
        await stage.next(f.Generate)
        await stage.kill()
        with pytest.raises(StageUnreachableError, match="no answer"):
            await starting


async def test_the_first_stage_dies_and_is_dialled_again() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        await stage.kill()
        with pytest.raises(GenerationFailedError, match="first stage was lost") as failed:
            await collect(generation)
        assert failed.value.is_retriable
        again = await client.start(stage.address, request("r2"))
        assert again.prompt_tokens == 7


async def test_the_last_stage_dies() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        reply = await stage.dial(client.address)
        reply.send(chunk(0))
        assert (await generation.next_batch())[0].token_id == 0
        reply.abort()
        with pytest.raises(GenerationFailedError, match="last stage was lost"):
            await collect(generation)


async def test_tokens_that_came_before_a_failure_are_handed_out_first() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        reply = await stage.dial(client.address)
        reply.send(chunk(0))
        reply.send(
            f.Failed(request_id=RequestId("r1"), code="engine", message="it broke", is_retriable=False)
        )
        assert (await anext(generation)).token_id == 0
        with pytest.raises(GenerationFailedError, match="it broke") as failed:
            await anext(generation)
        assert (failed.value.code, failed.value.is_retriable) == ("engine", False)


async def test_a_lost_connection_after_the_end_is_no_error() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        reply = await stage.dial(client.address)
        reply.send(chunk(0, finish_reason="stop"))
        assert (await generation.next_batch())[0].token_id == 0
        await stage.kill()
        assert await collect(generation) == []


async def test_cancelling_tells_the_stage() -> None:
    async with client_and_stage() as (client, stage):
        async with await client.start(stage.address, request()) as generation:
            await stage.next(f.Generate)
        assert await stage.next(f.Cancel) == f.Cancel(request_id=RequestId("r1"))
        assert await collect(generation) == []


async def test_giving_up_while_waiting_for_the_answer_tells_the_stage() -> None:
    async with client_and_stage() as (client, stage):
        stage.answers = False
        starting = asyncio.create_task(client.start(stage.address, request()))
        await stage.next(f.Generate)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await stage.next(f.Cancel)


async def test_the_stage_learns_what_was_taken() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        await stage.next(f.Generate)
        reply = await stage.dial(client.address)
        for index in range(CONSUMED_EVERY_CHUNKS):
            reply.send(chunk(index))
        got = 0
        while got < CONSUMED_EVERY_CHUNKS:
            got += len(await generation.next_batch())
        told = await stage.next(f.Consumed)
        assert told == f.Consumed(request_id=RequestId("r1"), count=CONSUMED_EVERY_CHUNKS)


async def test_nothing_is_told_while_nobody_takes() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        await stage.next(f.Generate)
        for index in range(200):
            stage.connections[0].send(chunk(index))
        # A later request's answer proves that everything before it was read.
        await client.start(stage.address, request("r2"))
        await stage.next(f.Generate)
        await generation.cancel()
        assert isinstance(await stage.next(f.Cancel), f.Cancel)


async def test_a_gap_is_an_error() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        reply = await stage.dial(client.address)
        reply.send(chunk(0))
        reply.send(chunk(2))
        assert (await anext(generation)).token_id == 0
        with pytest.raises(GenerationFailedError, match="token 2 came in place of token 1"):
            await anext(generation)


async def test_text_that_cannot_be_sent_is_refused() -> None:
    async with client_and_stage() as (client, stage):
        bad = GenerationRequest(
            request_id=RequestId("r1"), instance_id=InstanceId("i"), generation=1, prompt="\ud800"
        )
        with pytest.raises(GenerationRejected) as refused:
            await client.start(stage.address, bad)
        assert refused.value.status == 400
        assert (await client.start(stage.address, request())).prompt_tokens == 7


async def test_the_port_for_tokens_refuses_a_stranger() -> None:
    async with client_and_stage() as (client, stage):
        with pytest.raises(HandshakeError, match="secret"):
            await stage.dial(client.address, secret=b"wrong" * 7)


async def test_the_port_for_tokens_refuses_another_purpose() -> None:
    async with client_and_stage() as (client, stage):
        generation = await client.start(stage.address, request())
        reply = await stage.dial(client.address, purpose=REQUESTS)
        reply.send(chunk(0))
        async with asyncio.timeout(5):
            await reply.lost
        await generation.cancel()
        assert await generation.next_batch() == []


async def test_the_port_for_tokens_closes_on_garbage() -> None:
    async with GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
        reader, writer = await asyncio.open_connection(client.address.host, client.address.port)
        writer.write(encode(chunk(0)))
        assert await reader.read() == b""
        writer.close()


async def test_too_many_strangers_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exo.dataplane.gate.STRANGERS_MAX", 3)
    async with client_and_stage() as (client, stage):
        address = (client.address.host, client.address.port)
        waiting = [await asyncio.open_connection(*address) for _ in range(3)]
        reader, writer = await asyncio.open_connection(*address)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        for _, one in [*waiting, (reader, writer)]:
            one.close()
        # With the crowd gone there is room again.
        async with asyncio.timeout(5):
            while True:
                with contextlib.suppress(HandshakeError):
                    reply = await stage.dial(client.address)
                    break
        assert reply.is_open


async def test_closing_the_client_cancels_what_runs() -> None:
    async with PlayedStage().running() as stage:
        async with GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
            generation = await client.start(stage.address, request())
            await stage.next(f.Generate)
        await stage.next(f.Cancel)
        assert await collect(generation) == []


async def test_a_port_in_use_is_said() -> None:
    async with GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
        other = GenerationClient(secret=SECRET, node_id=NodeId("api"), listen_port=client.address.port)
        with pytest.raises(ConfigurationError, match="in use"):
            async with other:
                pass
