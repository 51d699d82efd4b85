"""Placing over HTTP: what is sent to the master, and how its answers come back."""

from collections.abc import Awaitable, Callable

import anyio
import httpx
import pytest
from starlette.types import Message

from exo.api.schemas.instances import (
    InstanceDeleted,
    InstanceList,
    InstancePlaced,
    InstanceView,
    PreviewList,
)
from exo.api.schemas.problems import Problem
from exo.shared.types import events
from exo.shared.types.commands import (
    Command,
    Deleted,
    DeleteInstance,
    NodeMemory,
    Placed,
    PlaceInstance,
    Preview,
    PreviewPlacements,
    Previews,
    Refusal,
    Reply,
)
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.instances import PlacementRequest
from support.api_world import INSTANCE_ID, World, client_of, parse, unplaced_state
from support.states import fold
from support.stories import placed, stage


def answering(world: World, reply: Reply) -> list[Command]:
    """Have the master answer so; returns the list that its commands will be in."""
    commands: list[Command] = []

    async def answer(command: Command) -> Reply:
        commands.append(command)
        return reply

    world.coordinator.set_command_handler(answer)
    return commands


def placing(world: World) -> list[Command]:
    """Have the master place `toy` as the instance `i`."""
    commands: list[Command] = []

    async def answer(command: Command) -> Reply:
        commands.append(command)
        world.coordinator.set_state(placed(world.coordinator.state))
        state = world.coordinator.state
        return Placed(instance=state.instances[INSTANCE_ID], index=state.index)

    world.coordinator.set_command_handler(answer)
    return commands


async def test_every_wish_reaches_the_master(unplaced: World) -> None:
    commands = placing(unplaced)
    wish = {
        "model_id": "toy",
        "sharding": "pipeline",
        "engine": "mlx",
        "min_nodes": 2,
        "prefer_gpu": False,
        "node_ids": ["a", "b"],
        "device_ids": ["a/cpu:0"],
        "exclude": ["c"],
        "context_length": 128,
        "concurrency": 3,
        "objective": "auto",
        "layer_split": [2, 4],
        "must_use": ["a"],
        "apart_from": ["other"],
        "zones": ["attic", "cellar"],
        "min_zones": 2,
    }
    async with client_of(unplaced.app()) as http:
        response = await http.post("/instance", json=wish)
    assert response.status_code == 201
    assert response.headers["location"] == "/instance/i"
    answer = parse(InstancePlaced, response.content)
    assert answer.index == unplaced.coordinator.state.index
    assert (answer.instance_id, answer.status) == ("i", "pending")
    assert answer.plan.stages[0].end_layer == 6
    (command,) = commands
    assert isinstance(command, PlaceInstance)
    assert command.reuse_existing is False
    assert command.command_id
    sent = {field: getattr(command.request, field) for field in PlacementRequest.__struct_fields__}
    assert sent == {key: tuple(value) if isinstance(value, list) else value for key, value in wish.items()}


async def test_a_wish_is_only_a_model_by_default(unplaced: World) -> None:
    commands = placing(unplaced)
    async with client_of(unplaced.app()) as http:
        await http.post("/instance", json={"model_id": "toy"})
    (command,) = commands
    assert isinstance(command, PlaceInstance)
    assert command.request == PlacementRequest(model_id=command.request.model_id)


async def test_a_refusal_keeps_its_status_and_numbers(world: World, http: httpx.AsyncClient) -> None:
    refusal = Refusal(
        status=422,
        code="not_enough_memory",
        message="toy needs 3 GiB more",
        needed_bytes=5,
        missing_bytes=3,
        nodes=(NodeMemory(node_id=NodeId("a"), name="host-a", free_bytes=2, needed_bytes=5),),
    )
    answering(world, refusal)
    response = await http.post("/instance", json={"model_id": "toy"})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert (problem.code, problem.detail, problem.title) == (
        "not_enough_memory",
        "toy needs 3 GiB more",
        "Unprocessable Entity",
    )
    assert (problem.needed_bytes, problem.missing_bytes, problem.nodes[0].free_bytes) == (5, 3, 2)


async def test_without_a_master_there_is_a_503_to_come_back_from(
    world: World, http: httpx.AsyncClient
) -> None:
    world.coordinator.has_master = False
    for response in (
        await http.post("/instance", json={"model_id": "toy"}),
        await http.delete("/instance/i"),
        await http.get("/instance/previews", params={"model_id": "toy"}),
    ):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert Problem.model_validate_json(response.content).code == "no_master"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "model_id"),
        ({"model_id": ""}, "model_id"),
        ({"model_id": 7}, "model_id"),
        ({"model_id": "toy", "min_nodes": 0}, "min_nodes"),
        ({"model_id": "toy", "min_nodes": "2"}, "min_nodes"),
        ({"model_id": "toy", "min_nodes": True}, "min_nodes"),
        ({"model_id": "toy", "context_length": -1}, "context_length"),
        ({"model_id": "toy", "concurrency": 1.5}, "concurrency"),
        ({"model_id": "toy", "sharding": "both"}, "sharding"),
        ({"model_id": "toy", "layer_split": [1, "x"]}, "layer_split.1"),
        ({"model_id": "toy", "layer_split": [0, 6]}, "layer_split.0"),
        ({"model_id": "toy", "min_node": 3}, "min_node"),
        ([], ""),
    ],
)
async def test_a_wish_that_cannot_be_read_names_the_field(
    http: httpx.AsyncClient, body: object, field: str
) -> None:
    response = await http.post("/instance", json=body)
    assert response.status_code == 422
    problem = Problem.model_validate_json(response.content)
    assert problem.code == "invalid_request"
    assert [error.field for error in problem.errors] == [field]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
async def test_what_a_plan_is_for_reaches_the_master(
    world: World, http: httpx.AsyncClient, objective: str
) -> None:
    commands = placing(world)
    response = await http.post("/instance", json={"model_id": "toy", "objective": objective})
    assert response.status_code == 201
    assert [one.request.objective for one in commands if isinstance(one, PlaceInstance)] == [objective]


async def test_instances_are_listed_and_shown(http: httpx.AsyncClient) -> None:
    instances = parse(InstanceList, (await http.get("/instance")).content).instances
    assert [instance.instance_id for instance in instances] == ["i"]
    shown = parse(InstanceView, (await http.get("/instance/i")).content)
    assert shown == instances[0]
    missing = await http.get("/instance/nothing")
    assert missing.status_code == 404
    assert Problem.model_validate_json(missing.content).code == "instance_not_found"


async def test_deleting_goes_to_the_master(world: World, http: httpx.AsyncClient) -> None:
    commands = answering(world, Deleted(instance_id=InstanceId("i"), index=9))
    response = await http.delete("/instance/i")
    assert response.status_code == 200
    assert parse(InstanceDeleted, response.content).index == 9
    (command,) = commands
    assert isinstance(command, DeleteInstance)
    assert command.instance_id == "i"


async def test_previews_show_plans_and_refusals_side_by_side(world: World, http: httpx.AsyncClient) -> None:
    instance = world.coordinator.state.instances[INSTANCE_ID]
    refusal = Refusal(status=422, code="not_enough_nodes", message="there are 2 nodes, not 3")
    previews = (
        Preview(title="fewest nodes", request=instance.request, plan=instance.plan),
        Preview(title="three nodes", request=instance.request, refusal=refusal),
    )
    commands = answering(world, Previews(previews=previews))
    response = await http.get(
        "/instance/previews",
        params={"model_id": "toy", "context_length": 64, "prefer_gpu": "false", "exclude": ["b", "c"]},
    )
    assert response.status_code == 200
    good, bad = parse(PreviewList, response.content).previews
    assert good.plan is not None
    assert good.refusal is None
    assert bad.plan is None
    assert bad.refusal is not None
    assert bad.refusal.code == "not_enough_nodes"
    (command,) = commands
    assert isinstance(command, PreviewPlacements)
    request = command.request
    assert (request.context_length, request.prefer_gpu, request.exclude) == (64, False, ("b", "c"))
    assert (request.concurrency, request.node_ids) == (1, ())


async def waiting(
    world: World, change: Callable[[], Awaitable[None]], timeout_s: float = 30
) -> httpx.Response:
    """Wait for the instance `i` over HTTP; `change` runs once the request is waiting."""
    responses: list[httpx.Response] = []
    async with client_of(world.app()) as http, anyio.create_task_group() as group:

        async def ask() -> None:
            responses.append(await http.get("/instance/i/wait", params={"timeout_s": timeout_s}))

        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert not responses
        await change()
    return responses[0]


async def test_waiting_ends_when_the_instance_is_ready(unplaced: World) -> None:
    unplaced.coordinator.set_state(placed(unplaced.coordinator.state))

    async def become_ready() -> None:
        unplaced.coordinator.set_state(stage(unplaced.coordinator.state, 0, "loading"))
        await anyio.wait_all_tasks_blocked()
        unplaced.coordinator.set_state(stage(unplaced.coordinator.state, 0, "ready"))

    response = await waiting(unplaced, become_ready)
    assert response.status_code == 200
    assert parse(InstanceView, response.content).status == "ready"


async def test_waiting_sits_through_a_restart_and_ends_at_a_lasting_failure(unplaced: World) -> None:
    unplaced.coordinator.set_state(placed(unplaced.coordinator.state))
    coordinator = unplaced.coordinator

    async def fail_twice() -> None:
        coordinator.set_state(stage(coordinator.state, 0, "failed", reason="it crashed"))
        await anyio.wait_all_tasks_blocked()
        restarted = events.InstanceRestarted(instance_id=INSTANCE_ID, generation=2, reason="it crashed")
        coordinator.set_state(fold(coordinator.state, restarted))
        await anyio.wait_all_tasks_blocked()
        coordinator.set_state(
            stage(coordinator.state, 0, "failed", reason="the file is truncated", is_permanent=True)
        )

    view = parse(InstanceView, (await waiting(unplaced, fail_twice)).content)
    assert (view.status, view.reason, view.generation) == ("failed", "the file is truncated", 2)


async def test_waiting_sits_through_a_move_whose_reason_stays_to_be_read(unplaced: World) -> None:
    unplaced.coordinator.set_state(placed(unplaced.coordinator.state))
    coordinator = unplaced.coordinator

    async def move() -> None:
        plan = placed(unplaced_state(), 2).instances[INSTANCE_ID].plan
        moved = events.InstanceMoved(
            instance_id=INSTANCE_ID, generation=2, plan=plan, reason="cuda:0 of host-a has failed"
        )
        coordinator.set_state(fold(coordinator.state, moved))
        await anyio.wait_all_tasks_blocked()
        for rank in range(2):
            coordinator.set_state(stage(coordinator.state, rank, "ready"))

    view = parse(InstanceView, (await waiting(unplaced, move)).content)
    assert (view.status, view.reason, view.generation, len(view.stages)) == ("ready", None, 2, 2)
    assert view.moved_reason == "cuda:0 of host-a has failed"


async def test_waiting_for_an_instance_that_is_deleted_meanwhile(unplaced: World) -> None:
    unplaced.coordinator.set_state(placed(unplaced.coordinator.state))

    async def delete() -> None:
        deleted = events.InstanceDeleted(instance_id=INSTANCE_ID, reason="on request")
        unplaced.coordinator.set_state(fold(unplaced.coordinator.state, deleted))

    assert (await waiting(unplaced, delete)).status_code == 404


async def test_a_client_that_stops_waiting_is_no_fault(unplaced: World) -> None:
    unplaced.coordinator.set_state(placed(unplaced.coordinator.state))
    to_app: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
    from_app: list[Message] = []
    has_gone = anyio.Event()

    async def receive() -> Message:
        if to_app:
            return to_app.pop()
        await has_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        from_app.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/instance/i/wait",
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"127.0.0.1")],
    }
    async with anyio.create_task_group() as group:
        # A fault would be raised again from here.
        group.start_soon(unplaced.app(), scope, receive, send)
        await anyio.wait_all_tasks_blocked()
        assert not from_app
        has_gone.set()
    assert from_app[0]["status"] == 499


async def test_waiting_too_long_tells_the_progress(unplaced: World) -> None:
    unplaced.coordinator.set_state(placed(unplaced.coordinator.state))
    async with client_of(unplaced.app()) as http:
        response = await http.get("/instance/i/wait", params={"timeout_s": 0})
    assert response.status_code == 504
    problem = Problem.model_validate_json(response.content)
    assert (problem.code, problem.loaded_layers, problem.layer_count) == ("not_ready", 0, 6)


@pytest.mark.parametrize("timeout", ["-1", "nan", "inf", "1e9", "soon"])
async def test_waiting_has_a_limit(http: httpx.AsyncClient, timeout: str) -> None:
    assert (await http.get("/instance/i/wait", params={"timeout_s": timeout})).status_code == 422


@pytest.mark.parametrize("query", ["", "model_id=", "model_id=toy&min_nodes=0", "model_id=toy&min_node=2"])
async def test_previews_need_a_readable_wish(http: httpx.AsyncClient, query: str) -> None:
    assert (await http.get(f"/instance/previews?{query}")).status_code == 422
