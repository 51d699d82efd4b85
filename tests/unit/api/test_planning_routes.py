"""Plans, what-if and why over HTTP: nothing is decided, and every answer has its documented shape."""

from typing import Any

import httpx
import pytest

from exo.api.routes.events import encode_item
from exo.api.schemas.instances import PreviewList
from exo.api.schemas.planning import KnownDeviceList, PlannedView, WhyView
from exo.api.schemas.problems import Problem
from exo.master.loop import Master
from exo.shared.types.commands import DeleteInstance, PlaceInstance
from exo.shared.types.ids import CommandId, InstanceId, ModelId
from exo.shared.types.instances import PlacementRequest
from support.api_world import World, parse
from support.inline_solver import InlineSolver
from support.placing import MIXED, mixed_state

WISH = {"model_id": "big"}


@pytest.fixture
def master(world: World) -> Master:
    """A real master, over a laboratory of four unequal machines."""
    world.coordinator.set_state(mixed_state(MIXED["what was at hand, 32B"]))
    return Master(world.coordinator, InlineSolver(), lambda: "id-1")


async def place(master: Master) -> None:
    request = PlacementRequest(model_id=ModelId("big"))
    await master.handle(PlaceInstance(command_id=CommandId("c"), request=request))


async def planned(http: httpx.AsyncClient, **wish: Any) -> PlannedView:
    response = await http.post("/instance/plan", json={**WISH, **wish})
    assert response.status_code == 200, response.text
    return parse(PlannedView, response.content)


async def refused(http: httpx.AsyncClient, **wish: Any) -> Problem:
    response = await http.post("/instance/plan", json={**WISH, **wish})
    assert response.status_code >= 400, response.text
    return Problem.model_validate_json(response.content)


async def test_a_plan_is_what_placing_would_decide(
    world: World, http: httpx.AsyncClient, master: Master
) -> None:
    before = world.coordinator.state
    found = await planned(http)
    assert found.before is None and found.verdict is None and found.added == []
    assert world.coordinator.state is before and world.coordinator.proposed == []
    plan = found.answer.plan
    assert plan is not None and plan.prediction is not None and plan.certificate is not None
    assert plan.baseline is not None and plan.excluded and "estimate:" in plan.explanation
    await place(master)
    decided = world.coordinator.state.instances[InstanceId("id-1")].plan
    assert [tuple(one.device_ids) for one in plan.stages] == [one.device_ids for one in decided.stages]


async def test_a_plan_that_is_refused_is_an_answer_not_an_error(
    http: httpx.AsyncClient, master: Master
) -> None:
    found = await planned(http, context_length=4096, concurrency=1_000_000)
    assert found.answer.plan is None
    assert found.answer.refusal is not None and found.answer.refusal.status in {409, 422}


async def test_a_refused_plan_names_the_one_wish_in_the_way(
    world: World, http: httpx.AsyncClient, master: Master
) -> None:
    found = await planned(http, min_nodes=len(world.coordinator.state.nodes) + 1)
    remedy = found.answer.remedy
    assert remedy is not None and remedy.words.startswith("Ask for ")
    wish = remedy.request.model_dump(mode="json")
    assert (await planned(http, **wish)).answer.plan is not None
    params = {**WISH, "min_nodes": len(world.coordinator.state.nodes) + 1}
    response = await http.get("/instance/previews", params=params)
    first, *others = parse(PreviewList, response.content).previews
    assert first.remedy == remedy
    assert all(one.remedy is None for one in others)


async def test_whatever_is_known_can_be_asked_for_by_its_name(
    http: httpx.AsyncClient, master: Master
) -> None:
    response = await http.get("/devices/known")
    known = [one for one in parse(KnownDeviceList, response.content).devices if one.kind == "gpu"]
    assert len(known) > 100 and known[0].name < known[-1].name
    names = {one.name: one for one in known}
    assert names["GeForce RTX 3090"].memory_gib == [24]
    assert names["GeForce RTX 3090"].memory_bandwidth_bytes_per_s == pytest.approx(936e9, rel=0.01)
    assert len(names["GeForce RTX 4060 Ti"].memory_gib) == 2 and names["Apple M2 Max"].memory_gib == []
    for one in known[:: len(known) // 8]:
        size = int((one.memory_gib or [32])[-1] * 2**30)
        device = {"name": one.name, "memory_total_bytes": size}
        found = await planned(http, machines=[{"name": "PC", "devices": [device]}])
        assert found.added[0].devices[0].name == one.name


async def test_a_machine_that_is_not_there_is_compared(http: httpx.AsyncClient, master: Master) -> None:
    found = await planned(http, machines=[{"name": "used PC", "devices": [{"name": "RTX 3090"}]}])
    assert found.verdict is not None and found.verdict.startswith("With used PC: ")
    assert found.before is not None and found.before.plan is not None
    assert found.answer.plan is not None
    assert found.added[0].node_id in {one.node_id for one in found.answer.plan.stages}


async def test_without_a_node(world: World, http: httpx.AsyncClient, master: Master) -> None:
    node_id = sorted(world.coordinator.state.nodes)[0]
    found = await planned(http, without=[node_id])
    assert found.answer.plan is not None
    assert node_id not in {one.node_id for one in found.answer.plan.stages}


@pytest.mark.parametrize(
    ("wish", "status", "words"),
    [
        ({"without": ["zebra"]}, 404, "'zebra' is no node or device"),
        ({"instead": ["zebra"]}, 404, "'zebra' is no instance"),
        ({"model_id": "bgi"}, 404, "did you mean big?"),
        (
            {"machines": [{"name": "PC", "devices": [{"name": "RTX 4095"}]}]},
            422,
            "the catalogue has no 'RTX 4095'",
        ),
        ({"machines": [{"name": "PC", "devices": []}]}, 422, "devices"),
        ({"machines": [{"name": "PC", "devices": [{"name": "x", "memory_total_bytes": -1}]}]}, 422, "memory"),
        ({"machines": [{"name": "PC", "devices": [{"name": "x", "flops_per_s": 1e30}]}]}, 422, "flops"),
        ({"machines": [{"name": "PC", "unknown": 1, "devices": [{"name": "x"}]}]}, 422, "unknown"),
        ({"machines": "RTX 4090"}, 422, "machines"),
    ],
)
async def test_a_question_that_makes_no_sense_is_an_error_in_words(
    http: httpx.AsyncClient, master: Master, wish: dict[str, Any], status: int, words: str
) -> None:
    found = await refused(http, **wish)
    assert found.status == status
    assert words in found.detail or any(words in one.field for one in found.errors), found


async def test_previews_are_found_by_their_own_path(http: httpx.AsyncClient, master: Master) -> None:
    response = await http.get("/instance/previews", params=WISH)
    found = parse(PreviewList, response.content).previews
    assert found[0].title.startswith("Fastest") and len(found) > 4


async def test_why_tells_the_decision_its_alternatives_and_what_changed(
    world: World, http: httpx.AsyncClient, master: Master
) -> None:
    await place(master)
    response = await http.get("/instance/id-1/why")
    assert response.status_code == 200, response.text
    found = parse(WhyView, response.content)
    assert (found.instance_id, found.model_id) == ("id-1", "big")
    assert [one.kind for one in found.decisions] == ["placed"]
    assert found.explained.is_identical is True and found.explained.differences == []
    assert found.explained.again is not None and len(found.explained.alternatives) > 4
    assert found.today is not None and found.today.plan is not None
    assert found.deleted_at is None and found.changes == []
    index = found.decisions[0].index
    assert (await http.get("/instance/id-1/why", params={"decision": index})).status_code == 200
    wrong = await http.get("/instance/id-1/why", params={"decision": 1})
    assert wrong.status_code == 404 and str(index) in wrong.json()["detail"]

    await master.handle(DeleteInstance(command_id=CommandId("d"), instance_id=InstanceId("id-1")))
    deleted = parse(WhyView, (await http.get("/instance/id-1/why")).content)
    assert deleted.deleted_at is not None and deleted.today is None


async def test_why_of_nothing_is_not_found(http: httpx.AsyncClient, master: Master) -> None:
    response = await http.get("/instance/zebra/why")
    assert response.status_code == 404
    assert "the log knows of none" in response.json()["detail"]


async def test_what_a_plan_was_decided_on_is_in_no_answer(
    world: World, http: httpx.AsyncClient, master: Master
) -> None:
    await place(master)
    assert len(world.coordinator.state.instances[InstanceId("id-1")].basis) > 100
    for path in ("/state", "/instance", "/instance/id-1", "/instance/id-1/why"):
        assert b'"basis"' not in (await http.get(path)).content
    fed = [encode_item(item) for item in world.coordinator.history]
    assert any(b"InstanceCreated" in one for one in fed)
    assert all(b'"basis":""' in one for one in fed if b'"basis"' in one)
