"""Keys for some devices only: what they chat with, where they place, what they may delete, and what they are told."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest
from msgspec.structs import replace

from exo.api.access_callers import Caller
from exo.api.access_devices import narrowed, with_own_remedy
from exo.api.access_gate import AccessRefused
from exo.api.access_keys import PlainKey
from exo.api.schemas.access import KeyList, KeyMade
from exo.api.schemas.problems import OpenAIError, Problem
from exo.shared.types.access import KeyId, KeyLimits
from exo.shared.types.commands import Preview, Remedy
from exo.shared.types.events import DeviceLost, KeyLimited, StageChanged
from exo.shared.types.ids import DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest
from support.access_stories import key_created
from support.api_world import STAGE_ADDRESS, World, client_of, parse, rule, unplaced_state
from support.states import GIB, card, cluster, cpu, fold, gpu, identity
from support.stories import placed, stage

KEY = PlainKey(KeyId("abcd1234"), "secret")
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
ON_A, ON_B = DeviceId("a/cpu:0"), DeviceId("b/cpu:0")


def limited(world: World, *device_ids: DeviceId) -> World:
    """Let a key that operates use these devices only; a real master decides."""
    event = KeyLimited(key_id=KEY.key_id, device_ids=device_ids)
    world.coordinator.set_state(fold(world.coordinator.state, key_created(KEY.secret, "operate"), event))
    rule(world)
    return world


def holder(world: World) -> httpx.AsyncClient:
    return client_of(world.app(), address="192.0.2.7", headers={"x-api-key": KEY.reveal()})


@pytest.fixture
async def on_b(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose key is for `b`; `toy` is ready on `a`."""
    (used,) = set(world.coordinator.state.instances[InstanceId("i")].plan.stages[0].device_ids)
    assert used == ON_A
    async with holder(limited(world, ON_B)) as client:
        yield client


def refusal_of(response: httpx.Response) -> tuple[int, str, str]:
    problem = Problem.model_validate_json(response.content)
    return response.status_code, problem.code, problem.detail


async def test_a_chat_goes_to_an_instance_on_allowed_devices_alone(world: World) -> None:
    async with holder(limited(world, ON_A)) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert list(world.coordinator.state.instances) == ["i"]


async def test_a_model_on_other_devices_is_placed_once_more_on_allowed_ones(
    world: World, on_b: httpx.AsyncClient
) -> None:
    def become_ready() -> None:
        state = world.coordinator.state
        for instance_id, instance in state.instances.items():
            if instance.status == "pending":
                change = StageChanged(
                    instance_id=instance_id, generation=1, rank=0, phase="ready", address=STAGE_ADDRESS
                )
                world.coordinator.set_state(fold(state, change))

    async with anyio.create_task_group() as group:

        async def load() -> None:
            async for state in world.coordinator.changes():
                if len(state.instances) == 2:
                    become_ready()
                    return

        group.start_soon(load)
        assert (await on_b.post("/v1/chat/completions", json=CHAT)).status_code == 200
    (made,) = [one for key, one in world.coordinator.state.instances.items() if key != "i"]
    assert made.plan.is_within([ON_B]) and made.request.device_ids == (ON_B,)
    assert world.client.requests[0][1].instance_id == made.instance_id
    # The next one finds it there.
    assert (await on_b.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert len(world.coordinator.state.instances) == 2


async def test_without_automatic_placement_a_model_on_other_devices_is_refused(world: World) -> None:
    world.is_auto_place_enabled = False
    async with holder(limited(world, ON_B)) as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
        absent = await client.post("/v1/chat/completions", json=CHAT | {"model": "absent"})
    error = OpenAIError.model_validate_json(response.content).error
    assert (response.status_code, error.code, error.type) == (403, "device_not_allowed", "permission_error")
    assert error.message.startswith("the key abcd1234 may use b/cpu:0 only, and toy (i) runs on a/cpu:0;")
    assert absent.status_code == 404
    assert not world.client.requests


async def test_an_instance_that_is_only_partly_on_allowed_devices_is_not_used(tmp_path: Path) -> None:
    state = placed(unplaced_state(), 2)
    for rank in range(2):
        state = stage(state, rank, "ready", address=STAGE_ADDRESS)
    for allowed, status in (((ON_A,), 403), ((ON_B,), 403), ((ON_B, ON_A), 200)):
        world = World(state, tmp_path)
        world.is_auto_place_enabled = False
        async with holder(limited(world, *allowed)) as client:
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == status


async def test_a_placement_without_devices_is_narrowed_to_the_allowed_ones(
    world: World, on_b: httpx.AsyncClient
) -> None:
    for body in ({}, {"node_ids": ["b"]}, {"device_ids": [ON_B]}):
        assert (await on_b.post("/instance", json={"model_id": "toy", **body})).status_code == 201
    state = world.coordinator.state
    for instance_id in state.instances.keys() - {"i"}:
        assert state.instances[instance_id].plan.is_within([ON_B])
    previews = (await on_b.get("/instance/previews", params={"model_id": "toy"})).json()["previews"]
    plans = [one["plan"] for one in previews if one["plan"] is not None]
    assert plans and {tuple(one["device_ids"]) for plan in plans for one in plan["stages"]} == {(ON_B,)}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"device_ids": ["a/cpu:0", "b/cpu:0"]}, "a/cpu:0 is asked for"),
        ({"device_ids": ["a/cpu:0", "a/cuda:0"]}, "a/cpu:0, a/cuda:0 are asked for"),
        ({"node_ids": ["b", "a"]}, "no device of a is among these"),
    ],
)
async def test_a_placement_on_others_is_refused_with_the_reason(
    world: World, on_b: httpx.AsyncClient, body: dict[str, list[str]], found: str
) -> None:
    wish = {"model_id": "toy", **body}
    expected = (
        403,
        "device_not_allowed",
        f"the key abcd1234 may use b/cpu:0 only, and {found}; use another key, or make one: "
        "exo key create --device DEVICE",
    )
    assert refusal_of(await on_b.post("/instance", json=wish)) == expected
    assert refusal_of(await on_b.get("/instance/previews", params=wish)) == expected
    assert list(world.coordinator.state.instances) == ["i"]
    async with client_of(world.app()) as local:
        assert (await local.post("/instance", json={"model_id": "toy"})).status_code == 201


async def test_what_runs_on_others_is_not_deleted_and_the_refusal_is_counted(
    world: World, on_b: httpx.AsyncClient
) -> None:
    assert refusal_of(await on_b.delete("/instance/i"))[:2] == (403, "device_not_allowed")
    assert (await on_b.delete("/instance/none")).status_code == 404
    metrics = (await on_b.get("/metrics")).text
    assert 'exo_authentication_failures_total{reason="device_not_allowed"} 1.0' in metrics
    async with holder(limited(world, ON_A)) as client:
        assert (await client.delete("/instance/i")).status_code == 200


async def test_devices_that_are_gone_leave_nothing_to_place_on(world: World, on_b: httpx.AsyncClient) -> None:
    lost = DeviceLost(node_id=NodeId("b"), device_id=ON_B, reason="gone")
    world.coordinator.set_state(fold(world.coordinator.state, lost))
    status, code, detail = refusal_of(await on_b.post("/instance", json={"model_id": "toy"}))
    assert (status, code) == (403, "device_not_allowed") and "this one is not there now" in detail


def test_devices_that_are_there_are_enough() -> None:
    state = cluster(identity("a", devices=(cpu("a", GIB), gpu("a", GIB)), models=(card(),)))
    request = PlacementRequest(model_id=ModelId("toy"))
    caller = Caller(kind="key", limits=KeyLimits(device_ids=(ON_B, DeviceId("a/cuda:0"))))
    assert narrowed(caller, state, request).device_ids == ("a/cuda:0",)
    assert narrowed(Caller(kind="key"), state, request) is request
    with pytest.raises(AccessRefused, match="these are not there now"):
        narrowed(caller, cluster(identity("c")), request)


async def test_limits_are_given_shown_and_written_down(world: World) -> None:
    rule(world)
    body = {
        "scopes": ["infer"],
        "requests_per_minute": 60,
        "tokens_per_day": 1000,
        "device_ids": [ON_B, ON_A, ON_B],
    }
    async with client_of(world.app()) as local:
        made = parse(KeyMade, (await local.post("/keys", json=body)).content)
        (listed,) = parse(KeyList, (await local.get("/keys")).content).keys
        (line,) = (await local.get("/audit")).json()["entries"]
        for wrong in ({"requests_per_minute": 0}, {"tokens_per_day": 1.5}, {"device_ids": ["nowhere"]}):
            response = await local.post("/keys", json={"scopes": ["infer"], **wrong})
            assert response.status_code == 422
    for one in (made, listed):
        assert (one.requests_per_minute, one.tokens_per_day, one.device_ids) == (60, 1000, [ON_B, ON_A])
    assert line["details"]["requests_per_minute"] == 60 and line["details"]["tokens_per_day"] == 1000
    assert line["details"]["device_ids"] == [ON_B, ON_A, ON_B]


def test_no_remedy_leads_to_devices_or_instances_of_others() -> None:
    state = placed(unplaced_state())
    asked = PlacementRequest(model_id=ModelId("toy"), device_ids=(ON_B,), min_nodes=2)
    same = Remedy(words="x", request=asked)
    fewer, others, stopped = (
        Preview(title="x", request=asked, remedy=remedy)
        for remedy in (
            replace(same, request=replace(asked, min_nodes=1)),
            replace(same, request=replace(asked, device_ids=())),
            replace(same, instead=("i",)),
        )
    )
    on_b, on_all = (Caller(kind="key", limits=KeyLimits(device_ids=own)) for own in ((ON_B,), (ON_A, ON_B)))
    assert with_own_remedy(on_b, fewer, state) == fewer
    assert with_own_remedy(on_b, others, state).remedy is None
    assert with_own_remedy(Caller(kind="key"), others, state) == others
    # What runs on devices of others is not the caller's to stop.
    assert with_own_remedy(on_b, stopped, state).remedy is None
    assert with_own_remedy(on_all, stopped, state) == stopped
