"""Tensor groups and hybrids: they compete on predicted time where the engine can, and are told of where it cannot."""

from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.costs import cost_rounds
from exo.master.placement.evaluate import broken_wishes, violations
from exo.master.placement.held import process_bytes
from exo.master.placement.ladder.cost_model import LinkFigures
from exo.master.placement.ladder.evaluate import Stage, assess
from exo.master.placement.place import place_instance
from exo.master.placement.problem import build_problem
from exo.master.placement.tensor_groups import tensor_groups
from exo.shared.types.commands import Refusal
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import TENSOR_ENGINES, ModelCard
from exo.shared.types.nodes import DeviceLink
from exo.shared.types.state import NodeTelemetry, State
from exo.worker.models.card import read_card
from support.placing import big, never
from support.states import GIB, cluster, cpu, gpu, identity

ABLE = frozenset({"mlx"})
MODEL = replace(big(20, GIB, ends_bytes=1000), attention_heads=32, kv_heads=8)


def card(node: str, gib: int, number: int = 0, bandwidth: float = 1e12) -> GPUDevice:
    made = gpu(node, gib * GIB, f"cuda:{number}")
    return replace(made, memory_bandwidth_bytes_per_s=bandwidth, flops_per_s=1e15, name="GPU")


def machines(model: ModelCard = MODEL, **devices: list[GPUDevice]) -> State:
    return cluster(
        *(
            identity(name, models=[model], devices=own, host_id=f"host-{name}")
            for name, own in devices.items()
        )
    )


def place(state: State, engines: frozenset[str] = ABLE, **request: Any) -> Plan | Refusal:
    asked = PlacementRequest(**{"model_id": ModelId("big"), **request})
    return place_instance(state, asked, should_stop=never, tensor_engines=engines)


def planned(state: State, **request: Any) -> Plan:
    answer = place(state, **request)
    assert isinstance(answer, Plan), answer
    return answer


def refused(state: State, engines: frozenset[str] = ABLE, **request: Any) -> Refusal:
    answer = place(state, engines, **request)
    assert isinstance(answer, Refusal), answer
    return answer


def ms(plan: Plan) -> float:
    assert plan.prediction is not None and plan.prediction.ms_per_token is not None
    return plan.prediction.ms_per_token


TWO = machines(a=[card("a", 24), card("a", 24, 1)])
FOUR = machines(a=[card("a", 8, number) for number in range(4)])


def test_auto_takes_the_group_where_it_is_faster_and_shares_memory_evenly() -> None:
    plan = planned(TWO)
    (stage,) = plan.stages
    assert plan.sharding == "tensor" and stage.device_ids == ("a/cuda:0", "a/cuda:1")
    alone = planned(TWO, sharding="pipeline")
    assert alone.sharding == "pipeline" and ms(plan) < ms(alone)
    assert planned(TWO, sharding="tensor").stages == plan.stages
    problem = build_problem(TWO, MODEL, PlacementRequest(model_id=ModelId("big")), "mlx")
    assert stage.memory_bytes == problem.stage_memory_bytes(0, 20) + process_bytes(MODEL)
    assert "cuda:0+cuda:1" in plan.explanation and "of 48.0 GiB free" in plan.explanation
    assert plan.certificate is not None and plan.certificate.gap_percent == pytest.approx(0, abs=1e-6)
    assert plan.baseline is not None and plan.baseline.ms_per_token == pytest.approx(ms(alone))


def test_slow_ways_between_gpus_leave_the_pipeline_alone() -> None:
    links = {
        f"a/cuda:{one} a/cuda:{other}": DeviceLink(
            source_device_id=f"a/cuda:{one}",  # pyright: ignore
            dest_device_id=f"a/cuda:{other}",  # pyright: ignore
            latency_ms=2.0,
            bandwidth_mbps=1000.0,
            measurement_count=3,
        )
        for one, other in ((0, 1), (1, 0))
    }
    slow = replace(TWO, live={NodeId("a"): NodeTelemetry(device_links=links)})
    assert planned(slow).sharding == "pipeline"
    forced = planned(slow, sharding="tensor")
    assert forced.sharding == "tensor" and ms(forced) > ms(planned(slow))
    shares = forced.stages[0].shares
    assert shares is not None and forced.stages[0].time_ms is not None
    # Twenty layers with two all-reduces of two steps each, 2 ms a step.
    assert shares.network_ms == pytest.approx(20 * 2 * 2 * (2.0 + 8192 / 125e6 * 1000), rel=1e-3)
    parts = (
        shares.memory_ms,
        shares.utilization_ms,
        shares.thermal_ms,
        shares.overhead_ms,
        shares.network_ms,
    )
    assert sum(parts) == pytest.approx(forced.stages[0].time_ms)


def test_a_hybrid_is_a_pipeline_with_a_group() -> None:
    state = machines(a=[card("a", 6), card("a", 6, 1)], b=[card("b", 6), card("b", 6, 1)])
    plan = planned(state, sharding="hybrid")
    assert plan.sharding == "hybrid" and len(plan.stages) > 1
    assert any(len(stage.device_ids) == 2 for stage in plan.stages)
    used = [one for stage in plan.stages for one in stage.device_ids]
    assert len(used) == len(set(used))
    assert ms(planned(state)) <= ms(plan)
    assert refused(state, sharding="tensor").code == "not_enough_memory"
    both = planned(state, sharding="hybrid", min_nodes=2)
    assert {stage.node_id for stage in both.stages} == {"a", "b"}


def test_groups_stand_for_their_members_where_something_must_be_used() -> None:
    plan = planned(FOUR, sharding="tensor", must_use=("a/cuda:3",))
    assert any("a/cuda:3" in stage.device_ids for stage in plan.stages)
    assert planned(FOUR, must_use=("a",)).stages
    other = machines(a=[card("a", 24), card("a", 24, 1)], b=[card("b", 40), card("b", 40, 1)])
    assert {one.node_id for one in planned(other, sharding="tensor", must_use=("a",)).stages} == {"a"}


def test_groups_are_of_one_node_one_kind_of_memory_and_sizes_that_divide_the_heads() -> None:
    def degrees(state: State, model: ModelCard = MODEL) -> list[tuple[str, ...]]:
        problem = build_problem(state, model, PlacementRequest(model_id=ModelId("big")), "mlx")
        return [one.device_ids for one in tensor_groups(state, problem)]

    assert degrees(FOUR) == [
        ("a/cuda:0", "a/cuda:1"),
        ("a/cuda:2", "a/cuda:3"),
        ("a/cuda:0", "a/cuda:1", "a/cuda:2", "a/cuda:3"),
    ]
    assert degrees(FOUR, replace(MODEL, attention_heads=6, kv_heads=3)) == [
        ("a/cuda:0", "a/cuda:1", "a/cuda:2")
    ]
    assert degrees(FOUR, replace(MODEL, attention_heads=0, kv_heads=0)) == []
    assert degrees(machines(a=[card("a", 8)], b=[card("b", 8)])) == []
    assert degrees(machines(a=[cpu("a", 8 * GIB), card("a", 8)])) == []


def test_pipelines_asked_for_are_pipelines_and_splits_are_theirs() -> None:
    assert planned(TWO, sharding="pipeline", min_nodes=1).sharding == "pipeline"
    assert refused(TWO, sharding="tensor", layer_split=(20,)).code == "contradictory_request"


def test_where_no_gpus_can_share_a_layer_that_is_said() -> None:
    alone = machines(a=[card("a", 24)])
    answer = refused(alone, sharding="tensor")
    assert (answer.status, answer.code) == (409, "no_tensor_group")
    unknown = refused(machines(replace(MODEL, attention_heads=0), a=[card("a", 24)]), sharding="hybrid")
    assert (unknown.status, unknown.code) == (422, "no_tensor_group")
    assert "attention heads" in unknown.message


def test_an_engine_that_cannot_is_refused_with_what_one_that_can_would_do() -> None:
    assert frozenset() == TENSOR_ENGINES
    answer = refused(TWO, TENSOR_ENGINES, sharding="tensor")
    would = planned(TWO, sharding="tensor")
    assert (answer.status, answer.code) == (422, "sharding_unsupported")
    assert would.prediction is not None and would.prediction.tokens_per_s is not None
    assert f"{would.prediction.tokens_per_s:.3g} tokens/s" in answer.message
    assert "a/cuda:0+a/cuda:1" in answer.message
    none = refused(machines(a=[card("a", 40)]), TENSOR_ENGINES, sharding="hybrid")
    assert none.code == "sharding_unsupported" and "No node has two or more GPUs" in none.message
    # And auto does without.
    quiet = place(TWO, TENSOR_ENGINES)
    assert isinstance(quiet, Plan) and quiet.sharding == "pipeline"


def test_ways_of_one_host_are_assumed_where_they_are_not_measured() -> None:
    problem = build_problem(TWO, MODEL, PlacementRequest(model_id=ModelId("big")), "mlx")
    (group,) = tensor_groups(TWO, problem)
    assumed = LinkFigures(latency_s=30e-6, bandwidth_bytes_per_s=10e9)
    assert (group.latency_s, group.bandwidth_bytes_per_s) == (
        assumed.latency_s,
        assumed.bandwidth_bytes_per_s,
    )


SMALL = replace(big(4, GIB, ends_bytes=1000), attention_heads=4, kv_heads=4)


@settings(max_examples=40, deadline=None)
@given(
    first=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    second=st.lists(st.integers(1, 4), max_size=1),
    sharding=st.sampled_from(["auto", "tensor", "hybrid"]),
    min_nodes=st.integers(1, 2),
)
def test_against_every_plan_of_devices_and_groups(
    first: list[int], second: list[int], sharding: str, min_nodes: int
) -> None:
    rows = {"a": [card("a", gib, place, 1e12 / (1 + place)) for place, gib in enumerate(first)]}
    if second:
        rows["b"] = [card("b", second[0])]
    state = machines(SMALL, **rows)
    asked: dict[str, Any] = {"sharding": sharding, "min_nodes": min_nodes}
    answer = place(state, **asked)
    request = PlacementRequest(**{"model_id": ModelId("big"), **asked})
    problem = build_problem(state, SMALL, request, "mlx")
    costs = cost_rounds(state, problem, ABLE)
    plain = replace(costs.rounds[0], rules=(), min_stages=1)
    members = {one.device_id: (one.device_id,) for one in plain.devices}
    members |= {name: group.device_ids for name, group in costs.groups.items()}
    best: int | None = None
    for count in range(1, min(4, len(members)) + 1):
        for ring in permutations(plain.devices, count):
            used = [one for device in ring for one in members[device.device_id]]
            nodes = {device.node_id for device in ring}
            groups = sum(len(members[device.device_id]) > 1 for device in ring)
            is_kind = {
                "auto": True,
                "tensor": count == 1 and groups == 1,
                "hybrid": count > 1 and groups > 0,
            }[sharding]
            if len(set(used)) < len(used) or len(nodes) < min_nodes or not is_kind:
                continue
            for cuts in combinations(range(1, 4), count - 1):
                stages = [
                    Stage(device_id=device.device_id, start_layer=start, end_layer=end)
                    for device, (start, end) in zip(ring, pairwise((0, *cuts, 4)), strict=True)
                ]
                told = assess(plain, stages)
                if not told.violations and (best is None or told.round_ns < best):
                    best = told.round_ns
    if isinstance(answer, Refusal):
        assert best is None, answer.message
        return
    assert best is not None and ms(answer) == pytest.approx(best / 1e6)
    assert broken_wishes(answer.stages, request, {}) == []
    assert not violations(
        answer.stages,
        model=SMALL,
        context_length=answer.context_length,
        concurrency=1,
        pool_by_device=problem.pool_by_device,
        free_bytes_by_pool=problem.free_bytes_by_pool,
    )


def test_cards_tell_their_heads() -> None:
    directory = Path(__file__).parents[3] / "src/exo/worker/models/bundled/exo-tiny"
    told = read_card(ModelId("exo-tiny"), directory)
    assert (told.attention_heads, told.kv_heads) == (4, 2)
