"""OpenAI's requests: what reaches the data plane, what is refused, and how a model is found or placed."""

import anyio
import httpx
import msgspec
import pytest

from exo.api.schemas.openai import ChatCompletion, Completion, OpenAIModel, OpenAIModelList
from exo.api.schemas.problems import OpenAIError, Problem
from exo.dataplane.errors import GenerationFailedError, GenerationRejected, StageUnreachableError
from exo.master.placement.place import place_instance
from exo.shared.types import events
from exo.shared.types.commands import Command, Placed, PlaceInstance, Refusal, Reply
from exo.shared.types.generation import ChatMessage, Sampling
from exo.shared.types.ids import InstanceId, ModelId, NodeId
from exo.shared.types.instances import StageState
from support.api_world import INSTANCE_ID, STAGE_ADDRESS, World, client_of, parse
from support.states import card, fold
from support.stories import placed, stage

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}


def error_of(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """Return status, code and field of an error in OpenAI's shape."""
    error = OpenAIError.model_validate_json(response.content).error
    return response.status_code, error.code, error.param


async def test_a_chat_is_answered_whole(world: World, http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200
    answer = parse(ChatCompletion, response.content)
    assert answer.model == "toy"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello, world", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        5,
        4,
        9,
    )
    assert answer.exo.instance_id == "i"
    assert answer.exo.time_to_first_token_s is not None
    ((address, request),) = world.client.requests
    assert address == STAGE_ADDRESS
    assert (request.instance_id, request.generation, request.request_id) == ("i", 1, answer.id)
    assert request.messages == (ChatMessage(role="user", content="Hi"),)
    assert (request.max_tokens, request.stop, request.sampling) == (None, (), Sampling())
    assert world.client.streams[0].is_cancelled


async def test_every_knob_reaches_the_stage(world: World, http: httpx.AsyncClient) -> None:
    body = {
        "model": "toy",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "name": "x",
            },
            {"role": "assistant", "content": ""},
        ],
        "max_tokens": 9,
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 11,
        "stop": ["\n", "END"],
        "ignore_eos": True,
        "user": "someone",
        "n": 1,
        "tools": [],
        "response_format": {"type": "text"},
        "logprobs": False,
        "presence_penalty": 0,
    }
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    ((_, request),) = world.client.requests
    assert request.messages == (
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="ab"),
        ChatMessage(role="assistant", content=""),
    )
    assert (request.max_tokens, request.stop, request.ignore_end) == (7, ("\n", "END"), True)
    assert request.sampling == Sampling(temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, seed=11)


async def test_null_means_absent(world: World, http: httpx.AsyncClient) -> None:
    names = ("max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "n", "tools")
    response = await http.post("/v1/chat/completions", json=CHAT | dict.fromkeys(names))
    assert response.status_code == 200
    assert world.client.requests[0][1].sampling == Sampling()


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 2**70}, "max_tokens"),
        ({"max_completion_tokens": "7"}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"n": 0}, "n"),
    ],
)
async def test_a_request_that_cannot_be_read_names_the_field(
    world: World, http: httpx.AsyncClient, extra: dict[str, object], field: str
) -> None:
    assert error_of(await http.post("/v1/chat/completions", json=CHAT | extra)) == (
        400,
        "invalid_request",
        field,
    )
    assert not world.client.requests


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
    ],
)
async def test_what_is_not_supported_is_refused(
    world: World, http: httpx.AsyncClient, extra: dict[str, object], field: str
) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | extra)
    assert error_of(response) == (400, "unsupported_parameter", field)
    assert not world.client.requests


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "42"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/x"}}]},
    ],
)
async def test_messages_that_are_not_supported_are_refused(
    http: httpx.AsyncClient, message: dict[str, object]
) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | {"messages": [message]})
    status, code, field = error_of(response)
    assert (status, code) == (400, "unsupported_value")
    assert field is not None
    assert field.startswith("messages.0.")


async def test_an_unknown_model_names_its_near_matches(unplaced: World) -> None:
    async with client_of(unplaced.app()) as http:
        response = await http.post("/v1/chat/completions", json=CHAT | {"model": "toi"})
        assert error_of(response) == (404, "model_not_found", "model")
        assert "did you mean toy?" in response.text
        assert "toy" in (await http.post("/v1/chat/completions", json=CHAT | {"model": "zzzzzz"})).text
    assert not unplaced.coordinator.proposed


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (
            GenerationRejected(400, "context_length_exceeded", "the prompt has 2000 tokens"),
            400,
            "context_length_exceeded",
        ),
        (GenerationRejected(429, "queue_full", "8 requests are waiting"), 429, "queue_full"),
        (StageUnreachableError("the first stage cannot be reached"), 503, "stage_unreachable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_stage_refuses_has_its_status_before_a_body(
    world: World,
    http: httpx.AsyncClient,
    refusal: GenerationRejected | StageUnreachableError,
    status: int,
    code: str,
    stream: bool,
) -> None:
    world.client.refusal = refusal
    response = await http.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert error_of(response)[:2] == (status, code)
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert ("; ask again in a few seconds" in response.text) is (code == "stage_unreachable")


@pytest.mark.parametrize(("is_retriable", "status"), [(True, 503), (False, 500)])
async def test_an_answer_that_breaks_off_is_an_error(
    world: World, http: httpx.AsyncClient, is_retriable: bool, status: int
) -> None:
    world.client.acts = ("Hel", GenerationFailedError("stage_lost", "the last stage was lost", is_retriable))
    response = await http.post("/v1/chat/completions", json=CHAT)
    assert error_of(response)[:2] == (status, "stage_lost")
    assert ("ask again" in response.text) is is_retriable


async def test_an_answer_without_an_end_is_an_error(world: World, http: httpx.AsyncClient) -> None:
    world.client.finish_reason = None
    response = await http.post("/v1/chat/completions", json=CHAT)
    assert error_of(response)[:2] == (503, "cancelled")


async def test_a_plain_completion(world: World, http: httpx.AsyncClient) -> None:
    world.client.finish_reason = "length"
    for prompt in ("1, 2, ", ["1, 2, "]):
        response = await http.post(
            "/v1/completions", json={"model": "toy", "prompt": prompt, "max_tokens": 4}
        )
        assert response.status_code == 200
        answer = parse(Completion, response.content)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello, world", "length")
    await http.post("/v1/completions", json={"model": "toy", "prompt": [5, 6, 7]})
    requests = [request for _, request in world.client.requests]
    assert [request.prompt for request in requests] == ["1, 2, ", "1, 2, ", None]
    assert requests[2].prompt_token_ids == (5, 6, 7)
    assert [request.max_tokens for request in requests] == [4, 4, 16]


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ({"prompt": ["a", "b"]}, "unsupported_value"),
        ({"prompt": []}, "invalid_request"),
        ({"prompt": [1, "a"]}, "invalid_request"),
        ({"prompt": [-1]}, "invalid_request"),
        ({"prompt": {"a": 1}}, "invalid_request"),
        ({"echo": True}, "unsupported_parameter"),
        ({"logprobs": 3}, "unsupported_parameter"),
        ({"best_of": 4}, "unsupported_parameter"),
    ],
)
async def test_plain_completions_that_are_refused(
    world: World, http: httpx.AsyncClient, extra: dict[str, object], code: str
) -> None:
    response = await http.post("/v1/completions", json={"model": "toy", "prompt": "a"} | extra)
    assert error_of(response)[:2] == (400, code)
    assert not world.client.requests


async def test_models_that_can_be_served_are_listed(http: httpx.AsyncClient) -> None:
    models = parse(OpenAIModelList, (await http.get("/v1/models")).content).data
    assert [(model.id, model.is_ready, model.context_length) for model in models] == [("toy", True, 1024)]
    assert parse(OpenAIModel, (await http.get("/v1/models/toy")).content) == models[0]
    assert parse(OpenAIModel, (await http.get("/v1/models/org/broken")).content).id == "org/broken"
    assert error_of(await http.get("/v1/models/toi")) == (404, "model_not_found", "model")


async def test_the_instance_with_the_fewest_requests_is_taken(world: World) -> None:
    state = world.coordinator.state
    first = state.instances[INSTANCE_ID]
    second = msgspec.structs.replace(first, instance_id=InstanceId("j"))
    world.coordinator.set_state(fold(state, events.InstanceCreated(instance=second)))
    world.client.acts = ("a", None)
    async with client_of(world.app()) as http, anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(lambda: http.post("/v1/chat/completions", json=CHAT))
            await anyio.wait_all_tasks_blocked()
        taken = [request.instance_id for _, request in world.client.requests]
        for stream in world.client.streams:
            await stream.cancel()
    assert sorted(taken) == ["i", "i", "j", "j"]
    assert taken[0] != taken[1]


def place_on_command(world: World) -> list[Command]:
    """Have the master place `toy`, which then waits for its stages."""
    commands: list[Command] = []

    async def answer(command: Command) -> Reply:
        commands.append(command)
        world.coordinator.set_state(placed(world.coordinator.state))
        state = world.coordinator.state
        return Placed(instance=state.instances[INSTANCE_ID], index=state.index)

    world.coordinator.set_command_handler(answer)
    return commands


async def asking(world: World, responses: list[httpx.Response]) -> None:
    async with client_of(world.app()) as http:
        responses.append(await http.post("/v1/chat/completions", json=CHAT))


async def test_the_first_use_places_the_model_and_waits_for_it(unplaced: World) -> None:
    commands = place_on_command(unplaced)
    coordinator = unplaced.coordinator
    responses: list[httpx.Response] = []
    async with anyio.create_task_group() as group:
        group.start_soon(asking, unplaced, responses)
        await anyio.wait_all_tasks_blocked()
        assert not unplaced.client.requests
        coordinator.set_state(stage(coordinator.state, 0, "loading"))
        await anyio.wait_all_tasks_blocked()
        assert not unplaced.client.requests
        coordinator.set_state(stage(coordinator.state, 0, "ready", address=STAGE_ADDRESS))
    assert responses[0].status_code == 200
    (command,) = commands
    assert isinstance(command, PlaceInstance)
    assert command.reuse_existing
    assert command.request.model_id == "toy"


async def test_a_model_that_fails_to_load_is_told_and_not_placed_again(unplaced: World) -> None:
    commands = place_on_command(unplaced)
    coordinator = unplaced.coordinator
    responses: list[httpx.Response] = []
    async with anyio.create_task_group() as group:
        group.start_soon(asking, unplaced, responses)
        await anyio.wait_all_tasks_blocked()
        coordinator.set_state(
            stage(coordinator.state, 0, "failed", reason="the file is truncated", is_permanent=True)
        )
    await asking(unplaced, responses)
    for response in responses:
        assert error_of(response)[:2] == (503, "instance_failed")
        assert "the file is truncated" in response.text
    assert len(commands) == 1


async def test_a_chat_for_a_model_that_moved_waits_for_it_and_one_that_is_stranded_is_told_why(
    world: World,
) -> None:
    coordinator = world.coordinator
    instance = coordinator.state.instances[INSTANCE_ID]
    why = events.InstanceStranded(instance_id=INSTANCE_ID, generation=1, reason="cuda:0 has failed; no room")
    coordinator.set_state(fold(coordinator.state, why))
    responses: list[httpx.Response] = []
    await asking(world, responses)
    assert error_of(responses[0])[:2] == (503, "instance_failed")
    assert "cannot be served: cuda:0 has failed; no room" in responses[0].text
    assert "exo delete" not in responses[0].text, "it goes on by itself"

    moved = events.InstanceMoved(
        instance_id=INSTANCE_ID, generation=2, plan=instance.plan, reason="elsewhere"
    )
    coordinator.set_state(fold(coordinator.state, moved))
    async with anyio.create_task_group() as group:
        group.start_soon(asking, world, responses)
        await anyio.wait_all_tasks_blocked()
        assert len(responses) == 1
        coordinator.set_state(stage(coordinator.state, 0, "ready", address=STAGE_ADDRESS))
    assert responses[1].status_code == 200
    assert world.client.requests[-1][1].generation == 2


async def test_an_instance_deleted_while_it_loads(unplaced: World) -> None:
    place_on_command(unplaced)
    coordinator = unplaced.coordinator
    responses: list[httpx.Response] = []
    async with anyio.create_task_group() as group:
        group.start_soon(asking, unplaced, responses)
        await anyio.wait_all_tasks_blocked()
        coordinator.set_state(
            fold(coordinator.state, events.InstanceDeleted(instance_id=INSTANCE_ID, reason="on request"))
        )
    assert error_of(responses[0])[:2] == (503, "instance_deleted")


LOST = events.NodeDisconnected(node_id=NodeId("a"), reason="off")
WAITS = events.InstanceWaits(instance_id=INSTANCE_ID, generation=1, reason="it waits for that node")


async def test_a_chat_for_an_instance_of_a_lost_node_waits_for_where_its_master_has_it_go_on(
    world: World,
) -> None:
    coordinator = world.coordinator
    plan = coordinator.state.instances[INSTANCE_ID].plan
    on_b = msgspec.structs.replace(plan.stages[0], node_id=NodeId("b"), device_ids=())
    moved = events.InstanceMoved(
        instance_id=INSTANCE_ID,
        generation=2,
        plan=msgspec.structs.replace(plan, stages=(on_b,)),
        reason="host-a is not connected",
    )
    coordinator.set_state(fold(coordinator.state, LOST))
    responses: list[httpx.Response] = []
    async with anyio.create_task_group() as group:
        group.start_soon(asking, world, responses)
        await anyio.wait_all_tasks_blocked()
        assert responses == [], "a second one would take the room"
        coordinator.set_state(fold(coordinator.state, moved))
        await anyio.wait_all_tasks_blocked()
        assert responses == []
        coordinator.set_state(stage(coordinator.state, 0, "ready", address=STAGE_ADDRESS))
    assert responses[0].status_code == 200, responses[0].text
    assert world.client.requests[-1][1].generation == 2


async def test_a_master_that_decides_nothing_about_a_lost_node_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exo.api.serving.REPLACE_TIMEOUT_S", 0.05)
    world.coordinator.set_state(fold(world.coordinator.state, LOST))

    async def refuse(_: Command) -> Reply:
        return Refusal(status=422, code="not_enough_memory", message="host-b has too little memory")

    world.coordinator.set_command_handler(refuse)
    responses: list[httpx.Response] = []
    await asking(world, responses)
    assert error_of(responses[0])[:2] == (422, "not_enough_memory")


async def test_an_instance_that_waits_for_a_lost_node_is_placed_elsewhere(world: World) -> None:
    coordinator = world.coordinator
    coordinator.set_state(fold(coordinator.state, LOST, WAITS))

    async def refuse(_: Command) -> Reply:
        return Refusal(status=422, code="not_enough_memory", message="host-b has too little memory")

    coordinator.set_command_handler(refuse)
    responses: list[httpx.Response] = []
    await asking(world, responses)
    assert error_of(responses[0])[:2] == (422, "not_enough_memory")


async def test_stages_that_failed_for_want_of_a_lost_node_keep_no_model_from_being_placed(
    unplaced: World,
) -> None:
    coordinator = unplaced.coordinator
    state = placed(coordinator.state, min_nodes=2)
    broken = state.instances[INSTANCE_ID]
    lost = next(one.node_id for one in broken.plan.stages if one.rank == 1)
    state = stage(state, 0, "failed", reason="the connection to stage 1 broke")
    coordinator.set_state(fold(state, events.NodeDisconnected(node_id=lost, reason="off"), WAITS))
    rest = next(one for one in broken.plan.stages if one.node_id != lost)
    whole = msgspec.structs.replace(rest, rank=0, start_layer=0, end_layer=broken.model.layer_count)
    commands: list[Command] = []

    async def answer(command: Command) -> Reply:
        commands.append(command)
        fresh = msgspec.structs.replace(
            broken,
            instance_id=InstanceId("elsewhere"),
            plan=msgspec.structs.replace(broken.plan, stages=(whole,)),
            stages=(StageState(phase="ready", address=STAGE_ADDRESS),),
        )
        coordinator.set_state(fold(coordinator.state, events.InstanceCreated(instance=fresh)))
        return Placed(instance=fresh, index=coordinator.state.index)

    coordinator.set_command_handler(answer)
    responses: list[httpx.Response] = []
    await asking(unplaced, responses)
    assert responses[0].status_code == 200, responses[0].text
    assert len(commands) == 1
    assert [request.instance_id for _, request in unplaced.client.requests] == ["elsewhere"]


async def test_without_auto_place_the_next_step_is_named(unplaced: World) -> None:
    unplaced.is_auto_place_enabled = False
    responses: list[httpx.Response] = []
    await asking(unplaced, responses)
    assert error_of(responses[0])[:2] == (409, "model_not_placed")
    assert "exo place toy" in responses[0].text


async def test_without_a_master_a_ready_model_still_answers_and_another_waits(
    world: World, unplaced: World
) -> None:
    world.coordinator.has_master = unplaced.coordinator.has_master = False
    responses: list[httpx.Response] = []
    await asking(world, responses)
    await asking(unplaced, responses)
    assert responses[0].status_code == 200
    assert error_of(responses[1])[:2] == (503, "no_master")


async def test_a_model_on_no_node_but_in_an_instance_is_known(world: World, http: httpx.AsyncClient) -> None:
    state = world.coordinator.state
    for node_id in ("a", "b"):
        state = fold(state, events.NodeModelsChanged(node_id=NodeId(node_id), models=(card("other"),)))
    world.coordinator.set_state(state)
    models = parse(OpenAIModelList, (await http.get("/v1/models")).content).data
    assert [model.id for model in models] == [ModelId("other"), ModelId("toy")]


@pytest.mark.parametrize("name", ["TOI", "toyota-model", "org/brokn", "zzzzzz"])
async def test_chats_and_placements_say_the_same_of_an_unknown_model(unplaced: World, name: str) -> None:
    async def place(command: Command) -> Reply:
        assert isinstance(command, PlaceInstance)
        answer = place_instance(unplaced.coordinator.state, command.request, should_stop=lambda: False)
        assert isinstance(answer, Refusal)
        return answer

    unplaced.coordinator.set_command_handler(place)
    async with client_of(unplaced.app()) as http:
        chat = await http.post("/v1/chat/completions", json=CHAT | {"model": name})
        placing = await http.post("/instance", json={"model_id": name})
    assert (chat.status_code, placing.status_code) == (404, 404)
    error = OpenAIError.model_validate_json(chat.content).error
    problem = Problem.model_validate_json(placing.content)
    assert (error.message, error.code) == (problem.detail, problem.code)
