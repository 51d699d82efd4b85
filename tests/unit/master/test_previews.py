"""Several ways to place a model: each with its plan or refusal, equal plans under one title."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from exo.master.placement.evaluate import violations
from exo.master.placement.place import find_model, place_instance
from exo.master.placement.previews import preview_placements
from exo.master.placement.problem import build_problem
from exo.shared.types.commands import Preview, Refusal
from exo.shared.types.ids import ModelId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State
from support.placing import MIXED, big, mixed_state, never
from support.states import GIB, card, cluster, cpu, gpu, identity

ASKED = PlacementRequest(model_id=ModelId("big"))


def previews(state: State, **told: object) -> dict[str, Preview]:
    found = preview_placements(state, replace(ASKED, **told), share=lambda _: never)
    return {one.title: one for one in found}


def of(state: State, title: str, **told: object) -> Preview:
    """The preview with this among its titles."""
    return next(one for key, one in previews(state, **told).items() if title.lower() in key.lower())


def plan_of(state: State, title: str, **told: object) -> Plan:
    plan = of(state, title, **told).plan
    assert plan is not None
    return plan


def lab() -> State:
    return mixed_state(MIXED["what was at hand, 32B"])


def ms(plan: Plan) -> float:
    assert plan.prediction is not None and plan.prediction.ms_per_token is not None
    return plan.prediction.ms_per_token


def node_count(plan: Plan) -> int:
    return len({one.node_id for one in plan.stages})


@pytest.mark.parametrize("name", sorted(MIXED))
def test_every_plan_fits_and_none_for_one_request_is_faster_than_the_fastest(name: str) -> None:
    state = mixed_state(MIXED[name])
    found = previews(state)
    assert next(iter(found)).startswith("Fastest")
    fastest = ms(plan_of(state, "fastest"))
    plans = [one for one in found.values() if one.plan is not None]
    assert len(plans) >= 3
    for one in plans:
        assert one.plan is not None
        model = find_model(state, ASKED.model_id)
        assert not isinstance(model, Refusal)
        problem = build_problem(state, model, one.request, one.plan.engine)
        wrong = violations(
            one.plan.stages,
            model=model,
            context_length=one.plan.context_length,
            concurrency=one.plan.concurrency,
            pool_by_device=problem.pool_by_device,
            free_bytes_by_pool=problem.free_bytes_by_pool,
        )
        assert wrong == []
        if one.request.concurrency == 1:
            assert ms(one.plan) >= fastest * 0.999


def test_equal_plans_are_one_with_all_their_titles() -> None:
    found = previews(mixed_state(MIXED["lab of everything, 70B"]))
    assert next(iter(found)).startswith("Fastest, GPUs only, ")
    shapes = [
        (one.plan.concurrency, [(s.device_ids, s.start_layer) for s in one.plan.stages])
        for one in found.values()
        if one.plan is not None
    ]
    assert all(shapes.count(one) == 1 for one in shapes)


def test_gpus_and_processors_apart() -> None:
    state = lab()
    devices = {one.device_id: one for node in state.nodes.values() for one in node.identity.devices}

    def backends(plan: Plan) -> set[str]:
        return {devices[device].backend for stage in plan.stages for device in stage.device_ids}

    assert "cpu" not in backends(plan_of(state, "GPUs only"))
    assert backends(plan_of(state, "Processors only")) == {"cpu"}


def test_pipelines_have_as_many_nodes_as_they_say() -> None:
    state = lab()
    assert node_count(plan_of(state, "Pipeline over 2 nodes")) >= 2
    assert node_count(plan_of(state, "Pipeline over 3 nodes")) >= 3
    assert node_count(plan_of(state, "Pipeline over all 4 nodes")) == 4


def test_the_fewest_nodes_are_the_fewest_that_hold_it() -> None:
    # One node alone would hold it, slowly; the fastest plan takes the two graphics cards.
    state = lab()
    plan = plan_of(state, "fewest nodes")
    assert node_count(plan) == 1
    # Of those that hold it alone, the fastest: not the processor, though that is another way on one node.
    alone = [place_instance(state, replace(ASKED, node_ids=(one,)), should_stop=never) for one in state.nodes]
    assert ms(plan) == min(ms(one) for one in alone if isinstance(one, Plan))
    # 24 layers of 1 GiB: no node holds more than 10 of them.
    model = big(24, GIB)
    nodes = [identity(n, devices=[cpu(n, 11 * GIB)], models=[model], host_id=n) for n in "abcde"]
    assert node_count(plan_of(cluster(*nodes), "fewest nodes")) == 3


def test_most_throughput_is_for_many_requests_at_a_time() -> None:
    one = of(lab(), "most throughput")
    assert one.title == "Most throughput with 8 requests at a time" and one.plan is not None
    assert (one.request.concurrency, one.plan.concurrency) == (8, 8)
    asked = of(lab(), "most throughput", concurrency=16)
    assert asked.plan is not None and asked.plan.concurrency == 16


def test_tensor_parallel_is_there_with_its_refusal_while_no_engine_can() -> None:
    one = of(lab(), "tensor")
    assert one.plan is None and one.refusal is not None
    assert one.refusal.status == 422


def test_what_was_asked_for_holds_in_every_way() -> None:
    state = lab()
    slow = sorted(state.nodes)[-1]
    for one in previews(state, exclude=(slow,)).values():
        assert one.plan is None or all(stage.node_id != slow for stage in one.plan.stages)


def test_an_unknown_name_is_refused_once() -> None:
    found = previews(lab(), exclude=("zebra",))
    assert len(found) == 1
    assert found["Fastest"].refusal is not None and found["Fastest"].refusal.status == 404


def test_where_nothing_fits_every_way_says_so() -> None:
    state = cluster(identity("a", devices=[cpu("a", GIB), gpu("a", GIB)], models=[big(24, GIB)]))
    found = previews(state)
    assert found and all(one.plan is None and one.refusal is not None for one in found.values())


def test_one_small_machine_has_one_way() -> None:
    state = cluster(identity("a", models=[card("big")]))
    plans = [one for one in previews(state).values() if one.plan is not None]
    assert [one.title for one in plans] == ["Fastest, least latency, fewest nodes", plans[1].title]
    assert plans[1].title.startswith("Most throughput")


def test_when_the_time_is_over_the_rest_says_so() -> None:
    asked: list[int] = []

    def share(left: int) -> Callable[[], bool]:
        asked.append(left)
        return never if len(asked) == 1 else lambda: True

    found = preview_placements(lab(), ASKED, share=share)
    assert found[0].plan is not None
    late = [one for one in found if one.refusal is not None and one.refusal.code == "not_worked_out"]
    assert len(late) == 1 and "pipeline over 2 nodes" in late[0].title
    # Half of the time is for what would be decided.
    assert asked[0] == 2 and asked[1:] == sorted(asked[1:], reverse=True)
