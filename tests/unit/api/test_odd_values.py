"""Odd but well-formed requests: what passes the API can always be sent on, and nothing makes the node fail."""

import json

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.api.schemas.openai import OpenAIModelList
from exo.api.schemas.problems import OpenAIError, Problem
from exo.shared.types.commands import Command, Refusal, Reply
from exo.shared.types.nodes import HostPort
from support.api_world import World, client_of, parse

HALF = "\ud800"
JSON_KIND = {"content-type": "application/json"}

TEXTS = st.sampled_from(["toy", "auto", "", HALF, f"a{HALF}b", "\udfff", "x" * 513, "\x00", "ü" * 512])
NUMBERS = st.sampled_from([0, 1, 2, 10**6, 10**6 + 1, 2**31 - 1, 2**31, 2**63, 2**64, -(2**64), 10**30])
LISTS = st.lists(TEXTS, max_size=3) | TEXTS.map(lambda text: [text] * 1001)
WISHES = st.fixed_dictionaries(
    {"model_id": TEXTS},
    optional={
        "engine": TEXTS,
        "sharding": TEXTS,
        "node_ids": LISTS,
        "device_ids": LISTS,
        "exclude": LISTS,
        "min_nodes": NUMBERS,
        "concurrency": NUMBERS,
        "context_length": NUMBERS,
        "layer_split": st.lists(NUMBERS, max_size=3) | st.just([1] * 1001),
    },
)
CONTENTS = TEXTS | st.lists(
    st.fixed_dictionaries({"type": st.just("text") | TEXTS, "text": TEXTS}), max_size=2
)
CHATS = st.fixed_dictionaries(
    {
        "model": st.just("toy") | TEXTS,
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user") | TEXTS, "content": CONTENTS}), max_size=2
        ),
    },
    optional={"stop": TEXTS | LISTS, "seed": NUMBERS, "max_tokens": NUMBERS, "top_k": NUMBERS, "n": NUMBERS},
)


def sending_on(world: World) -> None:
    """Have the master take every command that can travel between nodes; any other one is a fault inside."""

    async def answer(command: Command) -> Reply:
        msgspec.msgpack.encode(command)
        return Refusal(status=409, code="too_few_nodes", message="no")

    world.coordinator.set_command_handler(answer)


async def test_every_wish_that_passes_can_be_sent_to_the_master(world: World) -> None:
    sending_on(world)
    async with client_of(world.app()) as http:

        async def post(body: object) -> httpx.Response:
            return await http.post("/instance", content=json.dumps(body), headers=JSON_KIND)

        @given(wish=WISHES)
        def check(wish: object) -> None:
            response = anyio.from_thread.run(post, wish)
            assert response.status_code in (409, 422), response.text
            assert Problem.model_validate_json(response.content)

        await anyio.to_thread.run_sync(check)


async def test_every_preview_that_passes_can_be_sent_to_the_master(world: World) -> None:
    sending_on(world)
    async with client_of(world.app()) as http:

        async def get(name: str, value: int) -> httpx.Response:
            return await http.get("/instance/previews", params={"model_id": "toy", name: value})

        @given(
            name=st.sampled_from(["min_nodes", "concurrency", "context_length", "layer_split"]), value=NUMBERS
        )
        def check(name: str, value: int) -> None:
            response = anyio.from_thread.run(get, name, value)
            assert response.status_code in (409, 422), response.text

        await anyio.to_thread.run_sync(check)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_every_generation_that_passes_can_be_sent_to_a_stage(world: World, path: str) -> None:
    async with client_of(world.app()) as http:

        async def post(body: object) -> httpx.Response:
            return await http.post(path, content=json.dumps(body), headers=JSON_KIND)

        @given(chat=CHATS, prompt=TEXTS | LISTS | st.lists(NUMBERS, min_size=1, max_size=3))
        def check(chat: dict[str, object], prompt: object) -> None:
            response = anyio.from_thread.run(post, chat | {"prompt": prompt})
            assert response.status_code in (200, 400, 404), response.text
            if response.status_code != 200:
                assert OpenAIError.model_validate_json(response.content)
            while world.client.requests:
                _, request = world.client.requests.pop()
                msgspec.msgpack.encode(request.to_frame(HostPort("127.0.0.1", 1)))

        await anyio.to_thread.run_sync(check)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model_id": HALF}, "model_id"),
        ({"model_id": "toy", "engine": HALF}, "engine"),
        ({"model_id": "toy", "node_ids": ["a", HALF]}, "node_ids.1"),
        ({"model_id": "toy", "device_ids": [HALF]}, "device_ids.0"),
        ({"model_id": "toy", "exclude": [HALF]}, "exclude.0"),
        ({"model_id": "toy", "exclude": ["a"] * 1001}, "exclude"),
        ({"model_id": "x" * 513}, "model_id"),
        ({"model_id": "toy", "min_nodes": 10**30}, "min_nodes"),
        ({"model_id": "toy", "concurrency": 10**6 + 1}, "concurrency"),
        ({"model_id": "toy", "context_length": 2**31}, "context_length"),
        ({"model_id": "toy", "layer_split": [1, 10**20]}, "layer_split.1"),
        ({"model_id": "toy", "layer_split": [1] * 1001}, "layer_split"),
    ],
)
async def test_a_wish_beyond_its_bounds_names_the_field(
    world: World, http: httpx.AsyncClient, body: object, field: str
) -> None:
    sending_on(world)
    response = await http.post("/instance", content=json.dumps(body), headers=JSON_KIND)
    assert response.status_code == 422
    assert [error.field for error in Problem.model_validate_json(response.content).errors] == [field]


@pytest.mark.parametrize(
    ("odd", "field"),
    [
        ({"messages": [{"role": "user", "content": f"Hi {HALF}"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
            "messages.0.content.0.text",
        ),
        ({"stop": HALF}, "stop"),
        ({"stop": ["a", HALF]}, "stop.1"),
        ({"model": HALF}, "model"),
    ],
)
async def test_half_a_character_in_a_chat_is_told(
    world: World, http: httpx.AsyncClient, odd: dict[str, object], field: str
) -> None:
    chat = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
    response = await http.post("/v1/chat/completions", content=json.dumps(chat | odd), headers=JSON_KIND)
    assert response.status_code == 400
    error = OpenAIError.model_validate_json(response.content).error
    assert "surrogate" in error.message
    assert error.param == field
    assert not world.client.requests


@pytest.mark.parametrize("index", [2**63, 10**30])
async def test_an_index_beyond_every_log_is_told(http: httpx.AsyncClient, index: int) -> None:
    assert (await http.get("/events", params={"after": index})).status_code == 422
    assert (await http.get("/events", headers={"last-event-id": str(index)})).status_code == 422


async def test_a_whole_character_outside_of_the_basic_plane_is_no_half(http: httpx.AsyncClient) -> None:
    body = '{"model": "toy", "messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
    response = await http.post("/v1/chat/completions", content=body, headers=JSON_KIND)
    assert response.status_code == 200
    assert parse(OpenAIModelList, (await http.get("/v1/models")).content).data
