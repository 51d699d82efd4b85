"""Streamed answers on a real port, read by OpenAI's own client; and what happens when either side goes away."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from exo.api.context import NodeActions
from exo.api.openai.chunks import ChunkEncoder
from exo.api.schemas import openai as shapes
from exo.dataplane.errors import GenerationFailedError, GenerationRejected
from exo.dataplane.frames import TokenChunk
from exo.shared.types.ids import RequestId
from exo.shared.types.state import State
from support.api_world import World, parse, served, until
from support.stories import placed

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "toy", "messages": MESSAGES, "stream": True}


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def events_of(body: str) -> list[str]:
    """Return the data of server-sent events."""
    return [
        line.removeprefix("data: ")
        for event in body.split("\n\n")
        for line in event.split("\n")
        if "data: " in line
    ]


async def test_openais_client_streams_one_chunk_per_token(world: World) -> None:
    texts = ["Hel", "", "lo\n", 'a "quote" \\ \u2028 \U0001f600', "\x00", "end"]
    world.client.acts = texts
    async with served(world) as server, client_of(server.url) as client:
        stream = await client.chat.completions.create(
            model="toy", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks: list[ChatCompletionChunk] = [chunk async for chunk in stream]
    *tokens, usage = chunks
    assert [chunk.choices[0].delta.content for chunk in tokens] == texts
    assert [chunk.choices[0].delta.role for chunk in tokens] == ["assistant", None, None, None, None, None]
    assert [chunk.choices[0].finish_reason for chunk in tokens] == [None] * 5 + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in tokens)
    assert usage.choices == []
    assert usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (5, 6)
    timings = tokens[-1].model_extra or {}
    assert timings["exo"]["tokens_per_s"] > 0


async def test_openais_client_takes_a_whole_answer_a_completion_and_the_models(world: World) -> None:
    async with served(world) as server, client_of(server.url) as client:
        answer = await client.chat.completions.create(model="toy", messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello, world"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 9
        text = await client.completions.create(model="toy", prompt="1, 2")
        assert text.choices[0].text == "Hello, world"
        stream = await client.completions.create(model="toy", prompt="1, 2", stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
        assert pieces == ["Hello", ", ", "world", ""]
        assert [model.id async for model in client.models.list()] == ["toy"]
        assert (await client.models.retrieve("toy")).id == "toy"


async def test_openais_client_raises_its_own_errors(world: World) -> None:
    async with served(world) as server, client_of(server.url) as client:
        with pytest.raises(openai.NotFoundError, match="did you mean toy"):
            await client.chat.completions.create(model="toi", messages=MESSAGES, stream=True)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="toy", messages=MESSAGES, max_tokens=-1)
        assert caught.value.param == "max_tokens"
        world.client.refusal = GenerationRejected(429, "queue_full", "8 requests are waiting")
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="toy", messages=MESSAGES)
        world.client.refusal = GenerationRejected(503, "stopping", "the stage is stopping")
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="toy", messages=MESSAGES)


async def test_an_error_in_mid_stream_reaches_the_client(world: World) -> None:
    world.client.acts = ("Hel", "lo", GenerationFailedError("stage_lost", "the last stage was lost"))
    async with served(world) as server, client_of(server.url) as client:
        stream = await client.chat.completions.create(model="toy", messages=MESSAGES, stream=True)
        texts: list[str | None] = []
        with pytest.raises(openai.APIError, match="the last stage was lost"):
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content)
        assert texts == ["Hel", "lo"]
        async with httpx.AsyncClient() as http:
            body = (await http.post(f"{server.url}/v1/chat/completions", json=CHAT)).text
    assert "event: error\ndata: " in body
    assert "[DONE]" not in body
    assert json.loads(events_of(body)[-1])["error"]["code"] == "stage_lost"


async def test_tokens_that_wait_together_are_sent_together_and_lose_nothing(world: World) -> None:
    texts = [f"t{number} " for number in range(500)]
    world.client.acts = texts
    world.client.batch_size = 7
    async with served(world) as server, httpx.AsyncClient() as http:
        response = await http.post(f"{server.url}/v1/chat/completions", json=CHAT)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *tokens, done = events_of(response.text)
    assert done == "[DONE]"
    assert [json.loads(token)["choices"][0]["delta"]["content"] for token in tokens] == texts
    for token in tokens:
        shapes.ChatCompletionChunk.model_validate_json(token, strict=True, extra="forbid")


def test_a_chunk_is_the_documented_shape_whatever_the_model_is_called() -> None:
    for name in ("toy", 'a"b\\', "\u2028\x00"):
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": name}
        encoder = ChunkEncoder(head, is_chat=True, has_usage=True)
        for index, text in enumerate(("a", 'b"\x00', "c")):
            chunk = TokenChunk(request_id=RequestId("r"), index=index, token_id=0, text=text)
            event = encoder.encode(chunk).decode()
            assert event.endswith("\n\n")
            value = json.loads(event.removeprefix("data: "))
            assert value["choices"][0]["delta"]["content"] == text
            assert value["model"] == name
            assert value["usage"] is None
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "toy"}
    last = ChunkEncoder(head, is_chat=True, has_usage=True).usage(usage).decode().removeprefix("data: ")
    assert parse(shapes.Usage, json.dumps(json.loads(last)["usage"]).encode()).total_tokens == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_its_generation_at_once(world: World, stream: bool) -> None:
    world.client.acts = ("Hel", None)
    busy: list[bool] = []
    world.actions = NodeActions(note_busy=busy.append)
    async with served(world) as server:
        async with httpx.AsyncClient() as http, anyio.create_task_group() as group:

            async def ask() -> None:
                async with http.stream(
                    "POST", f"{server.url}/v1/chat/completions", json=CHAT | {"stream": stream}
                ) as response:
                    async for _ in response.aiter_raw():
                        pass

            group.start_soon(ask)
            await until(lambda: world.client.streams and world.client.streams[0].chunks_taken)
            assert not world.client.streams[0].is_cancelled
            assert server.context.requests_in_flight == {"i": 1}
            assert busy == [True], "so that nobody measures bandwidth meanwhile"
            assert "exo_requests_active 1.0" in server.context.metrics.render().decode()
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            await world.client.streams[0].cancelled.wait()
        await until(lambda: not server.context.requests_in_flight)
        assert busy == [True, False]
        metrics = server.context.metrics.render().decode()
    assert "exo_requests_active 0.0" in metrics
    assert 'exo_requests_total{route="/v1/chat/completions",status="499"} 1.0' in metrics


async def test_a_client_that_leaves_while_the_model_loads_is_forgotten(
    unplaced: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = unplaced.coordinator
    coordinator.set_state(placed(coordinator.state))
    watched, changes = anyio.Event(), coordinator.changes

    def watching() -> AsyncIterator[State]:
        watched.set()
        return changes()

    monkeypatch.setattr(coordinator, "changes", watching)
    async with served(unplaced) as server:
        async with httpx.AsyncClient() as http, anyio.create_task_group() as group:
            group.start_soon(lambda: http.post(f"{server.url}/v1/chat/completions", json=CHAT))
            await watched.wait()
            group.cancel_scope.cancel()
        await until(lambda: b'status="499"} 1.0' in server.context.metrics.render())
    assert not unplaced.client.requests


@pytest.mark.parametrize("stream", [True, False])
async def test_stopping_the_server_ends_answers_with_an_error(world: World, stream: bool) -> None:
    world.client.acts = ("Hel", None)
    bodies: list[str] = []
    async with served(world) as server, httpx.AsyncClient() as http, anyio.create_task_group() as group:

        async def ask() -> None:
            response = await http.post(f"{server.url}/v1/chat/completions", json=CHAT | {"stream": stream})
            bodies.append(response.text)

        group.start_soon(ask)
        await until(lambda: world.client.streams)
        server.server.stop()
        with anyio.fail_after(3):
            await server.ended.wait()
    assert world.client.streams[0].is_cancelled
    assert "shutting_down" in bodies[0]
