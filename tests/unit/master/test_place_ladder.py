"""`place_instance` with the ladder: faster than a split by memory, proven, and never past the memory there is."""

from pathlib import Path

import pytest
from benchmarks.placement.clusters import Named
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.costs import cost_rounds
from exo.master.placement.evaluate import violations
from exo.master.placement.greedy import solve_greedy
from exo.master.placement.ladder.answer import Infeasible, Options
from exo.master.placement.place import place_instance
from exo.master.placement.problem import Problem, build_problem
from exo.master.placement.weigh import Weighed, weigh
from exo.master.placement.words import milliseconds
from exo.master.solver import is_constraint_layer_wanted
from exo.shared.types.commands import Refusal
from exo.shared.types.devices import GPUDevice, ThermalStatus
from exo.shared.types.ids import ModelId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State
from support.placing import (
    MACHINES,
    MIXED,
    big,
    joined,
    machine_state,
    mixed_state,
    never,
    place,
    planned,
    reading,
)
from support.states import GIB, cpu, gpu


def hard(state: State, **request: object) -> Problem:
    asked = PlacementRequest(**{"model_id": ModelId("big"), **request})  # pyright: ignore
    node = next(iter(state.nodes.values()))
    return build_problem(state, node.identity.models[0], asked, "mlx")


def wrongs(state: State, plan: Plan, **request: object) -> list[str]:
    problem = hard(state, **request)
    return violations(
        plan.stages,
        model=problem.model,
        context_length=plan.context_length,
        concurrency=plan.concurrency,
        pool_by_device=problem.pool_by_device,
        free_bytes_by_pool=problem.free_bytes_by_pool,
    )


def shape(plan: Plan) -> list[tuple[str, int, int]]:
    return [(one.node_id, one.start_layer, one.end_layer) for one in plan.stages]


def layers_on(plan: Plan, node: str) -> int:
    return sum(one.end_layer - one.start_layer for one in plan.stages if one.node_id == node)


def ms(plan: Plan) -> float:
    assert plan.prediction is not None and plan.prediction.ms_per_token is not None
    return plan.prediction.ms_per_token


def baseline_ms(plan: Plan) -> float:
    assert plan.baseline is not None and plan.baseline.ms_per_token is not None
    return plan.baseline.ms_per_token


def assert_certified(plan: Plan) -> None:
    assert plan.prediction is not None and not plan.prediction.is_calibrated
    assert plan.certificate is not None and plan.certificate.lower_bound_ms is not None
    assert 0 < plan.certificate.lower_bound_ms <= ms(plan)
    assert plan.certificate.gap_percent is not None and 0 <= plan.certificate.gap_percent < 100
    times = [one.time_ms for one in plan.stages if one.time_ms is not None]
    assert len(times) == len(plan.stages) and sum(times) <= ms(plan) + 1e-9


@pytest.mark.parametrize("file", MACHINES, ids=lambda file: file.stem)
def test_each_known_machine_has_a_certified_plan(file: Path) -> None:
    state = machine_state(file, big(40, 200_000_000))
    plan = planned(state)
    assert_certified(plan)
    assert ms(plan) <= baseline_ms(plan) and wrongs(state, plan) == []
    assert not plan.is_truncated


# Of the five Macs the roomiest is the fastest, and holds the model alone: nothing beats that.
GAINS = {
    "studio and PCs, 70B": 1.15,
    "lab of everything, 70B": 20,
    "server room, 405B": 3,
    "five Macs, 235B mixture of experts": 1,
    "what was at hand, 32B": 2,
}


@pytest.mark.parametrize("named", MIXED.values(), ids=lambda named: named.name)
def test_mixed_clusters_gain_over_a_split_by_memory(named: Named) -> None:
    state = mixed_state(named)
    plan = planned(state)
    assert_certified(plan)
    assert wrongs(state, plan) == []
    assert plan.certificate is not None and plan.certificate.gap_percent == pytest.approx(0, abs=0.01)
    assert baseline_ms(plan) >= GAINS[named.name] * ms(plan)
    assert (plan.method == "greedy") == (baseline_ms(plan) == ms(plan))


@pytest.mark.parametrize(
    "request_", [{}, {"concurrency": 6}, {"min_nodes": 3}], ids=["one", "six", "three nodes"]
)
def test_the_order_in_which_nodes_are_known_changes_nothing(request_: dict[str, object]) -> None:
    state = mixed_state(MIXED["studio and PCs, 70B"])
    turned = replace(state, nodes=dict(reversed(state.nodes.items())))
    assert place(state, **request_) == place(turned, **request_)


def test_many_requests_are_placed_for_throughput_and_latency_when_asked_for() -> None:
    state = mixed_state(MIXED["server room, 405B"])
    many = planned(state, concurrency=8)
    soon = planned(state, concurrency=8, objective="latency")
    assert many.prediction is not None and soon.prediction is not None
    assert many.prediction.tokens_per_s is not None and soon.prediction.tokens_per_s is not None
    assert many.prediction.tokens_per_s >= soon.prediction.tokens_per_s
    for plan in (many, soon):
        assert_certified(plan)
        assert wrongs(state, plan, concurrency=8) == []


def two_cards(*free: int) -> State:
    """Equal cards on two hosts, too small for the model alone."""
    rows = [
        (name, replace(gpu(name, size), memory_bandwidth_bytes_per_s=1e12), f"host-{name}")
        for name, size in zip("ab", free, strict=True)
    ]
    return joined(rows, big(20, GIB, ends_bytes=1000))


def test_load_and_heat_move_layers_away() -> None:
    state = two_cards(16 * GIB, 16 * GIB)
    for told in (
        {"compute_utilization_percent": 60.0},
        {"thermal_temperature_c": 88.0, "thermal_throttle_threshold_c": 90.0},
        {"thermal": ThermalStatus(state="warm", reason="", work_fraction=1.0, sustained_fraction=0.5)},
    ):
        for node in "ab":
            plan = planned(reading(state, node, **told))
            other = "b" if node == "a" else "a"
            assert layers_on(plan, node) < layers_on(plan, other)
            assert ms(plan) < baseline_ms(plan)


def test_equal_devices_do_not_share_a_model_that_one_holds() -> None:
    plan = planned(two_cards(30 * GIB, 40 * GIB))
    assert shape(plan) == [("b", 0, 20)]
    assert plan.method == "greedy"


def test_a_faster_card_beats_a_roomier_processor() -> None:
    model = big(20, GIB // 2, ends_bytes=1000)
    state = joined([("a", cpu("a", 256 * GIB), "host-a"), ("b", gpu("b", 24 * GIB), "host-b")], model)
    plan = planned(state)
    assert shape(plan) == [("b", 0, 20)]
    assert baseline_ms(plan) > ms(plan)
    assert "split by memory alone: " in plan.explanation and " times as long" in plan.explanation


def test_the_explanation_has_a_line_for_each_thing() -> None:
    plan = planned(mixed_state(MIXED["studio and PCs, 70B"]))
    lines = plan.explanation.splitlines()
    for begins in (
        "big: 80 layers in 2 stages",
        "stage 0: ",
        "stage 1: ",
        "estimate: ",
        "certificate: ",
        "split by",
    ):
        assert sum(line.startswith(begins) for line in lines) == 1, plan.explanation
    assert "for what was not measured" in plan.explanation
    assert "memory that binds: " in plan.explanation
    left = [line for line in lines if line.startswith("not used: ")]
    assert len(left) == 2 and all("with it each token takes" in line for line in left)
    assert lines[1].endswith(milliseconds(plan.stages[0].time_ms or 0))


def test_a_ladder_that_is_stopped_at_once_leaves_a_plan() -> None:
    state = mixed_state(MIXED["server room, 405B"])
    request = PlacementRequest(model_id=ModelId("big"))
    plan = place_instance(state, request, should_stop=lambda: True)
    assert isinstance(plan, Plan)
    assert wrongs(state, plan) == [] and ms(plan) <= baseline_ms(plan)


def test_the_greedys_plan_stands_where_the_ladder_has_none() -> None:
    state = mixed_state(MIXED["studio and PCs, 70B"])
    problem = hard(state)
    costs = cost_rounds(state, problem)
    greedy = solve_greedy(problem)
    assert greedy is not None
    absurd = tuple(replace(one, min_stages=-1) for one in costs.rounds)
    weighed = weigh(problem, replace(costs, rounds=absurd), greedy, should_stop=never, options=Options())
    assert isinstance(weighed, Weighed)
    assert [one.device_ids for one in weighed.stages] == [one.device_ids for one in greedy]
    assert weighed.method == "greedy" and "gave none" in weighed.notes[0]
    assert weighed.prediction is not None and weighed.certificate is None
    none = weigh(problem, replace(costs, rounds=absurd), None, should_stop=never, options=Options())
    assert isinstance(none, Infeasible)


def test_a_plan_that_fails_its_check_is_not_taken() -> None:
    state = mixed_state(MIXED["studio and PCs, 70B"])
    problem = hard(state)
    costs = cost_rounds(state, problem)
    roomy = tuple(
        replace(one, pools=tuple(replace(pool, room_bytes=2**50) for pool in one.pools))
        for one in costs.rounds
    )
    greedy = solve_greedy(problem)
    weighed = weigh(problem, replace(costs, rounds=roomy), greedy, should_stop=never, options=Options())
    assert isinstance(weighed, Weighed)
    assert weighed.method == "greedy" and "failed its check" in weighed.notes[0]


def test_a_given_split_is_predicted_as_it_is() -> None:
    state = two_cards(24 * GIB, 24 * GIB)
    plan = planned(state, layer_split=(5, 15))
    assert [one.end_layer - one.start_layer for one in plan.stages] == [5, 15]
    assert plan.method == "given split" and plan.certificate is None
    assert ms(plan) > 0 and plan.stages[1].time_ms is not None


def test_a_refusal_says_what_would_help() -> None:
    state = two_cards(10 * GIB, 10 * GIB)
    answer = place(state)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code) == (422, "not_enough_memory")
    assert "It would fit with " in answer.message and " more VRAM on host-" in answer.message
    apart = place(two_cards(25 * GIB, 1000), min_nodes=2)
    assert isinstance(apart, Refusal) and "fewer than the 2 stages asked for" in apart.message


def test_where_greedy_finds_nothing_the_ladder_still_may() -> None:
    # The first stage holds an embedding that fits on the smaller card only together with few layers.
    model = replace(
        big(4, 4 * GIB, ends_bytes=1000), embedding_bytes=7 * GIB, layer_bytes=(9 * GIB, GIB, GIB, 9 * GIB)
    )
    rows = [
        (name, replace(gpu(name, size), memory_bandwidth_bytes_per_s=1e12), f"host-{name}")
        for name, size in (("a", 11 * GIB), ("b", 18 * GIB))
    ]
    state = joined(rows, model)
    plan = planned(state)
    assert wrongs(state, plan) == []
    assert shape(plan) in ([("b", 0, 3), ("a", 3, 4)], [("b", 0, 2), ("a", 2, 4)])


def test_without_the_constraint_layer_there_is_a_plan_as_well() -> None:
    state = mixed_state(MIXED["what was at hand, 32B"])
    request = PlacementRequest(model_id=ModelId("big"))
    with_it = place_instance(state, request, should_stop=never)
    without = place_instance(state, request, should_stop=never, has_constraint_layer=False)
    assert isinstance(with_it, Plan) and isinstance(without, Plan)
    assert (without.stages, without.prediction) == (with_it.stages, with_it.prediction)
    assert [is_constraint_layer_wanted({"EXO_CSP_PLACEMENT": text}) for text in ("0", "off", "1", "")] == [
        False,
        False,
        True,
        True,
    ]
    assert is_constraint_layer_wanted({})


nodes = st.lists(
    st.tuples(
        st.integers(0, 24),  # GiB of memory
        st.sampled_from(["cpu", "gpu"]),
        st.integers(0, 2),  # host
        st.sampled_from([2e10, 1e11, 1e12, None]),
        st.sampled_from([None, 0.0, 35.0, 100.0]),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(
    told=nodes,
    layer_mib=st.lists(st.integers(1, 4000), min_size=3, max_size=7),
    is_even=st.booleans(),
    has_tied_head=st.booleans(),
    min_nodes=st.integers(1, 3),
    concurrency=st.sampled_from([1, 1, 3]),
)
def test_no_plan_takes_more_than_there_is_however_memory_is_shared(
    told: list[tuple[int, str, int, float | None, float | None]],
    layer_mib: list[int],
    is_even: bool,
    has_tied_head: bool,
    min_nodes: int,
    concurrency: int,
) -> None:
    sizes = layer_mib[:1] * len(layer_mib) if is_even else layer_mib
    model = replace(
        big(len(sizes), 1),
        layer_bytes=tuple(size * 2**20 for size in sizes),
        has_tied_head=has_tied_head,
    )
    host_gib: dict[int, int] = {}
    rows: list[tuple[str, GPUDevice, str]] = []
    for number, (size, kind, host, bandwidth, _) in enumerate(told):
        name = f"node-{number}"
        # Nodes of one host tell of one memory.
        gib = size if kind == "gpu" else host_gib.setdefault(host, size)
        made = cpu(name, gib * GIB) if kind == "cpu" else gpu(name, gib * GIB)
        rows.append((name, replace(made, memory_bandwidth_bytes_per_s=bandwidth), f"host-{host}"))
    state = joined(rows, model)
    for number, (*_, load) in enumerate(told):
        state = reading(state, f"node-{number}", compute_utilization_percent=load)
    asked = {"min_nodes": min_nodes, "concurrency": concurrency}
    answer = place(state, **asked)
    greedy = solve_greedy(hard(state, **asked))
    if isinstance(answer, Refusal):
        assert greedy is None
        return
    assert wrongs(state, answer, **asked) == []
    assert len({one.node_id for one in answer.stages}) >= min_nodes
    assert_certified(answer)
    if greedy is not None:
        assert ms(answer) <= baseline_ms(answer)
