"""Several devices of a node in one plan, nodes that must be so many, and what must be used: against all plans."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.decide import decide
from exo.master.placement.costs import cost_rounds
from exo.master.placement.evaluate import broken_wishes, violations
from exo.master.placement.greedy import solve_greedy
from exo.master.placement.ladder.evaluate import Stage, assess
from exo.master.placement.place import place_instance
from exo.master.placement.problem import Problem, build_problem
from exo.shared.types.commands import CommitPlan, Refusal
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId, device_id
from exo.shared.types.instances import PlacementRequest, Plan, StagePlan
from exo.shared.types.nodes import Link
from exo.shared.types.state import NodeTelemetry, State
from support.placing import big, never, place, planned, reading
from support.states import GIB, cluster, cpu, gpu, identity

MODEL = big(20, GIB, ends_bytes=1000)


def card(node: str, number: int, gib: int, bandwidth: float = 1e12) -> GPUDevice:
    return replace(
        gpu(node, gib * GIB, f"cuda:{number}"), memory_bandwidth_bytes_per_s=bandwidth, name=f"GPU {number}"
    )


def machines(
    *nodes: tuple[str, Sequence[GPUDevice]], model: object = MODEL, zones: Sequence[str] = ()
) -> State:
    """Nodes with their devices, each on a host of its own."""
    return cluster(
        *(
            replace(
                identity(name, models=[model], devices=devices, host_id=f"host-{name}"),  # pyright: ignore
                zone=zones[number] if zones else "",
            )
            for number, (name, devices) in enumerate(nodes)
        )
    )


def two_pcs(*gib: int) -> State:
    """Two nodes with two cards each."""
    return machines(*((name, [card(name, 0, gib[0]), card(name, 1, gib[1])]) for name in "ab"))


def used(plan: Plan) -> list[str]:
    return [one for stage in plan.stages for one in stage.device_ids]


def refused(state: State, **request: object) -> Refusal:
    answer = place(state, **request)
    assert isinstance(answer, Refusal), answer
    return answer


def test_two_cards_of_a_pc_are_two_stages() -> None:
    state = machines(("a", [cpu("a", 64 * GIB), card("a", 0, 12), card("a", 1, 12)]))
    plan = planned(state)
    assert sorted(used(plan)) == ["a/cuda:0", "a/cuda:1"]
    assert {one.node_id for one in plan.stages} == {"a"}
    request = PlacementRequest(model_id=ModelId("big"))
    command = CommitPlan(command_id=CommandId("c"), instance_id=InstanceId("i"), request=request, plan=plan)
    assert isinstance(decide(state, command), list)
    # Cards of one node are near each other: nothing but memory spreads the plan further.
    assert [one.node_id for one in planned(two_pcs(12, 12)).stages] in (["a", "a"], ["b", "b"])


def test_min_nodes_counts_nodes_and_not_stages() -> None:
    plan = planned(two_pcs(12, 12), min_nodes=2)
    assert {one.node_id for one in plan.stages} == {"a", "b"}
    assert refused(two_pcs(12, 12), min_nodes=3).code == "too_few_nodes"
    wide = machines(*((name, [card(name, 0, 12), card(name, 1, 24)]) for name in "abc"))
    assert {one.node_id for one in planned(wide, min_nodes=3).stages} == {"a", "b", "c"}


def test_a_split_goes_to_the_roomiest_devices_in_that_order() -> None:
    state = machines(("a", [card("a", 0, 12), card("a", 1, 24)]), ("b", [card("b", 0, 16)]))
    plan = planned(state, layer_split=(8, 7, 5))
    assert used(plan) == ["a/cuda:1", "b/cuda:0", "a/cuda:0"]
    assert refused(state, layer_split=(5, 5, 5, 5)).code == "too_few_nodes"


def test_a_processor_told_of_by_three_nodes_is_no_faster_by_three() -> None:
    def on_one_host(count: int) -> State:
        return cluster(
            *(
                identity(name, models=[MODEL], devices=[cpu(name, 64 * GIB)], host_id="host")
                for name in "abc"[:count]
            )
        )

    def speed(state: State, **request: object) -> float:
        told = planned(state, concurrency=8, objective="throughput", **request).prediction
        assert told is not None and told.tokens_per_s is not None
        return told.tokens_per_s

    alone = speed(on_one_host(1))
    assert speed(on_one_host(3)) == alone
    assert speed(on_one_host(3), min_nodes=3) <= alone


def test_a_measured_link_holds_for_all_devices_of_its_nodes() -> None:
    state = two_pcs(12, 12)
    link = Link(source_node_id=NodeId("a"), dest_node_id=NodeId("b"), latency_ms=2.0, bandwidth_mbps=800.0)
    state = replace(state, live={NodeId("a"): NodeTelemetry(links={NodeId("b"): link})})
    problem = build_problem(state, MODEL, PlacementRequest(model_id=ModelId("big")), "mlx")
    measured = cost_rounds(state, problem).rounds[0].links.measured
    assert {(one.source_device_id, one.target_device_id) for one in measured} == {
        (f"a/cuda:{one}", f"b/cuda:{other}") for one in (0, 1) for other in (0, 1)
    }


def test_a_busy_card_of_a_pc_gets_fewer_layers_than_its_twin() -> None:
    state = reading(two_pcs(16, 16), "a", compute_utilization_percent=60.0)
    plan = planned(state, node_ids=(NodeId("a"),))
    layers: dict[str, int] = {one.device_ids[0]: one.end_layer - one.start_layer for one in plan.stages}
    assert layers["a/cuda:0"] < layers["a/cuda:1"]


# --- against all plans ------------------------------------------------------------------------------------------

SMALL = replace(big(4, GIB, ends_bytes=1000), layer_bytes=(GIB,) * 4)

small_devices = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([1e11, 5e11, 1e12])), min_size=1, max_size=2
)


@settings(max_examples=60, deadline=None)
@given(
    told=st.lists(st.tuples(small_devices, st.sampled_from(["", "x"])), min_size=1, max_size=3),
    min_nodes=st.integers(1, 3),
    min_zones=st.integers(1, 2),
    must=st.sets(st.sampled_from(["a", "b", "a/cuda:0", "a/cuda:1", "b/cuda:0"]), max_size=2),
)
def test_no_plan_is_faster_and_no_refusal_is_false(
    told: list[tuple[list[tuple[int, float]], str]], min_nodes: int, min_zones: int, must: set[str]
) -> None:
    state = machines(
        *(
            (name, [card(name, number, *figures) for number, figures in enumerate(devices)])
            for name, (devices, _) in zip("abc", told, strict=False)
        ),
        model=SMALL,
        zones=[zone for _, zone in told],
    )
    asked = PlacementRequest(
        model_id=ModelId("big"), min_nodes=min_nodes, min_zones=min_zones, must_use=tuple(sorted(must))
    )
    answer = place_instance(state, asked, should_stop=never)
    problem = build_problem(state, SMALL, asked, "mlx")
    naive = naive_best_ms(state, problem)
    if isinstance(answer, Refusal):
        assert naive is None, answer.message
        assert answer.status in (404, 409, 422)
        return
    assert naive is not None
    assert answer.prediction is not None and answer.certificate is not None
    assert answer.prediction.ms_per_token == pytest.approx(naive)
    assert answer.certificate.lower_bound_ms is not None
    assert answer.certificate.lower_bound_ms <= naive + 1e-9
    greedy = solve_greedy(problem)
    assert greedy is None or broken_wishes(greedy, asked, zones_of(state)) == []


def naive_best_ms(state: State, problem: Problem) -> float | None:
    """Try every order of every set of devices with every split; None: there is no plan."""
    if not problem.candidates:
        return None
    costs = replace(cost_rounds(state, problem).rounds[0], rules=(), min_stages=1)
    costs = replace(costs, devices=tuple(replace(one, is_required=False) for one in costs.devices))
    best: float | None = None
    for plan in every_plan(problem):
        stages = [
            Stage(device_id=one.device_ids[0], start_layer=one.start_layer, end_layer=one.end_layer)
            for one in plan
        ]
        told = assess(costs, stages)
        if told.violations or broken_wishes(plan, problem.request, zones_of(state)):
            continue
        assert not violations(
            plan,
            model=problem.model,
            context_length=problem.context_length,
            concurrency=1,
            pool_by_device=problem.pool_by_device,
            free_bytes_by_pool=problem.free_bytes_by_pool,
        )
        best = told.round_ns / 1e6 if best is None else min(best, told.round_ns / 1e6)
    return best


def every_plan(problem: Problem) -> Iterator[list[StagePlan]]:
    layer_count = problem.model.layer_count
    for count in range(1, min(len(problem.candidates), layer_count) + 1):
        for cuts in combinations(range(1, layer_count), count - 1):
            bounds = list(pairwise((0, *cuts, layer_count)))
            for ring in permutations(problem.candidates, count):
                yield [
                    StagePlan(
                        rank=rank,
                        node_id=one.node_id,
                        device_ids=(one.device.device_id,),
                        start_layer=start,
                        end_layer=end,
                        memory_bytes=problem.stage_memory_bytes(start, end),
                    )
                    for rank, (one, (start, end)) in enumerate(zip(ring, bounds, strict=True))
                ]


def zones_of(state: State) -> dict[NodeId, str]:
    return {node_id: node.identity.zone for node_id, node in state.nodes.items()}


def test_wishes_that_a_plan_breaks_are_told() -> None:
    state = two_pcs(12, 12)
    plan = planned(state)
    zones = zones_of(state)

    def broken(**request: object) -> str:
        asked = PlacementRequest(**{"model_id": ModelId("big"), **request})  # pyright: ignore
        return " ".join(broken_wishes(plan.stages, asked, zones))

    other = "b" if plan.stages[0].node_id == "a" else "a"
    own = device_id(plan.stages[0].node_id, "cuda:0")
    assert broken() == ""
    assert "1 of 2 nodes take part" in broken(min_nodes=2)
    assert f"{other} takes no part" in broken(must_use=(other,))
    assert "excluded" in broken(exclude=(own,))
    assert "1 of 2 zones take part" in broken(min_zones=2)
    assert "not only in" in broken(zones=("x",))
    assert "other nodes" in broken(node_ids=(NodeId(other),))
    assert "other devices" in broken(device_ids=(DeviceId(own),))
    assert "stages" in broken(layer_split=(19, 1))


@settings(max_examples=40, deadline=None)
@given(
    told=st.lists(
        st.tuples(st.integers(0, 6), st.lists(st.integers(0, 4), max_size=2)),
        min_size=1,
        max_size=2,
    ),
    min_nodes=st.integers(1, 2),
)
def test_processors_beside_gpus_join_exactly_where_nothing_else_fits_or_is_as_fast(
    told: list[tuple[int, list[int]]], min_nodes: int
) -> None:
    state = machines(
        *(
            (
                name,
                [
                    replace(cpu(name, ram * GIB), memory_bandwidth_bytes_per_s=5e10),
                    *(card(name, number, gib) for number, gib in enumerate(vram)),
                ],
            )
            for name, (ram, vram) in zip("ab", told, strict=False)
        ),
        model=SMALL,
    )
    asked = PlacementRequest(model_id=ModelId("big"), min_nodes=min_nodes)
    answer = place_instance(state, asked, should_stop=never)
    problem = build_problem(state, SMALL, asked, "mlx")
    at_first, joined = naive_best_ms(state, problem), naive_best_ms(state, problem.with_offload())
    if isinstance(answer, Refusal):
        assert at_first is None and joined is None
        return
    assert joined is not None
    assert answer.prediction is not None and answer.prediction.ms_per_token == pytest.approx(joined)
    offloaded = {one.node_id for one in answer.stages if one.is_offloaded}
    assert bool(offloaded) == (at_first is None or joined < at_first)
    with_gpu = {name for name, (_, vram) in zip("ab", told, strict=False) if vram}
    assert offloaded <= with_gpu
