"""A deadline holds while costs are made: by a clock that counts what is done between two of its questions."""

import random
from collections.abc import ItemsView
from itertools import count

import pytest
from benchmarks.placement.front import large_state
from benchmarks.placement.judge import faults
from msgspec.structs import replace

from exo.master.placement.costs import QUICK_DEVICES_MAX, cost_rounds
from exo.master.placement.figures import figures_of
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.place import place_instance
from exo.master.placement.problem import build_problem
from exo.shared.types.commands import Refusal
from exo.shared.types.ids import ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.nodes import Link
from exo.shared.types.state import NodeTelemetry, State
from support.placing import never

NODES = 70
MESH = large_state(3, NODES, NODES - 1)
PAIRS = large_state(4, 36, 35, each=2)
BIG = PlacementRequest(model_id=ModelId("big"))


class Clock:
    """Says that time is over after so many questions; counts links that are read."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self.asked = 0
        self.read_now = 0
        self.read_most = 0
        """Links read between two questions."""

    @property
    def is_over(self) -> bool:
        return self.asked > self._calls

    def __call__(self) -> bool:
        self.asked += 1
        self.read_most = max(self.read_most, self.read_now)
        self.read_now = 0
        return self.is_over


class CountedLinks(dict[NodeId, Link]):
    """The links of a node; the clock is told when they are read."""

    clock: Clock | None = None

    def items(self) -> ItemsView[NodeId, Link]:
        if self.clock is not None:
            self.clock.read_now += len(self)
        return super().items()


def counted(state: State) -> State:
    live = {
        node_id: NodeTelemetry(links=CountedLinks(told.links))  # pyright: ignore[reportArgumentType]
        for node_id, told in state.live.items()
    }
    return replace(state, live=live)


def timed(state: State, clock: Clock, request: PlacementRequest = BIG) -> Plan:
    for told in state.live.values():
        assert isinstance(told.links, CountedLinks)
        told.links.clock = clock
    plan = place_instance(state, request, should_stop=clock)
    assert isinstance(plan, Plan), plan
    return plan


def test_the_clock_is_asked_at_every_node_whose_links_are_read() -> None:
    clock = Clock(10**9)
    plan = timed(counted(MESH), clock)
    assert not plan.is_truncated
    assert clock.read_most == NODES - 1
    assert clock.asked > NODES


@pytest.mark.parametrize(
    "request_",
    [BIG, replace(BIG, min_nodes=4), replace(BIG, concurrency=4), replace(BIG, must_use=("node-0007",))],
    ids=["any", "four nodes", "throughput", "one that must be used"],
)
@pytest.mark.parametrize("state", [MESH, PAIRS], ids=["mesh", "pairs"])
def test_whenever_time_is_over_the_plan_at_hand_stands(state: State, request_: PlacementRequest) -> None:
    whole = place_instance(state, request_, should_stop=never)
    assert isinstance(whole, Plan) and whole.prediction is not None and whole.certificate is not None
    best_ms = whole.certificate.lower_bound_ms
    best_ms = best_ms if best_ms is not None else 0.0
    read = counted(state)
    chance = random.Random(1)
    for calls in (*range(6), *(chance.randrange(6, 2 * NODES) for _ in range(12)), 3 * NODES):
        clock = Clock(calls)
        plan = timed(read, clock, request_)
        assert faults(state, request_, plan) == []
        assert plan.prediction is not None and plan.prediction.ms_per_token is not None
        # No faster than what none can beat, and its own bound is one.
        assert plan.prediction.ms_per_token >= best_ms * (1 - 1e-9)
        bound = plan.certificate.lower_bound_ms if plan.certificate is not None else None
        told = whole.prediction.ms_per_token
        assert bound is None or (told is not None and bound <= told * (1 + 1e-9))
        assert plan.is_truncated == clock.is_over or plan.prediction == whole.prediction
        if clock.is_over:
            # What is done after it: the links of the plan's own nodes, and a question or two of each later step.
            nodes = {stage.node_id for stage in plan.stages}
            assert clock.read_now <= len(nodes) * (NODES - 1)
            assert clock.asked - calls <= 8, clock.asked


def test_a_plan_that_is_cut_short_says_so_and_predicts_what_the_whole_costs_predict() -> None:
    plan = timed(counted(MESH), Clock(3))
    assert plan.is_truncated and plan.method == "greedy"
    assert "the deadline ended the search" in plan.explanation
    split = tuple(one.end_layer - one.start_layer for one in plan.stages)
    devices = tuple(one.device_ids[0] for one in plan.stages)
    asked = replace(BIG, layer_split=split, device_ids=devices)
    given = place_instance(MESH, asked, should_stop=never)
    assert isinstance(given, Plan) and [one.device_ids for one in given.stages] == [(one,) for one in devices]
    assert given.prediction == plan.prediction
    assert all(one.shares is not None and one.time_ms is not None for one in plan.stages)


def test_devices_known_before_the_links_bound_all_plans() -> None:
    problem = build_problem(MESH, next(iter(MESH.nodes.values())).identity.models[0], BIG, "mlx")
    with pytest.raises(StoppedError) as early:
        cost_rounds(MESH, problem, should_stop=lambda: True)
    assert early.value.lower_bound_ns == 0
    asks = count()
    figures_of(MESH, problem, should_stop=lambda: next(asks) < 0)
    known = next(asks)
    clock = Clock(known + 5)
    with pytest.raises(StoppedError) as later:
        cost_rounds(MESH, problem, should_stop=clock)
    whole = place_instance(MESH, BIG, should_stop=never)
    assert isinstance(whole, Plan) and whole.prediction is not None
    bound_ms = later.value.lower_bound_ns / 1e6
    assert whole.prediction.ms_per_token is not None
    assert 0.5 * whole.prediction.ms_per_token < bound_ms <= whole.prediction.ms_per_token
    plan = timed(counted(MESH), clock := Clock(known + 5))
    assert plan.certificate is not None and plan.certificate.lower_bound_ms == bound_ms
    assert clock.is_over and f"no plan takes less than {bound_ms:.3g} ms" in plan.explanation


@pytest.mark.parametrize("what", ["alone", "processors may join", "several at a time"])
def test_devices_bound_only_plans_that_are_of_them_alone_and_not_cut_into_rounds(what: str) -> None:
    """Processors that join, or smaller batches, take less than what these devices take at least."""
    asked = replace(BIG, concurrency=4, objective="throughput") if what == "several at a time" else BIG
    problem = build_problem(MESH, next(iter(MESH.nodes.values())).identity.models[0], asked, "mlx")
    if what == "processors may join":
        problem = replace(problem, candidates=problem.candidates[1:], spare=problem.candidates[:1])
    asks = count()
    figures_of(MESH, problem, should_stop=lambda: next(asks) < 0)
    with pytest.raises(StoppedError) as stopped:
        cost_rounds(MESH, problem, should_stop=Clock(next(asks) + 5))
    assert (stopped.value.lower_bound_ns > 0) == (what == "alone")


def test_without_a_plan_by_memory_alone_any_plan_is_looked_for() -> None:
    state = _with_heads(PAIRS)
    asked = replace(BIG, sharding="hybrid")
    for calls in (0, 3, 20):
        clock = Clock(calls)
        answer = place_instance(state, asked, should_stop=clock, tensor_engines=frozenset({"mlx"}))
        assert isinstance(answer, Plan) and faults(state, asked, answer) == [], calls
        assert answer.sharding == "hybrid" and answer.is_truncated and clock.is_over
        assert answer.prediction is not None and answer.certificate is None


def test_a_model_that_fits_nowhere_is_refused_as_it_is_with_time() -> None:
    small = replace(
        MESH,
        nodes={
            name: replace(
                node,
                identity=replace(
                    node.identity,
                    devices=tuple(replace(one, memory_total_bytes=2 << 30) for one in node.identity.devices),
                ),
            )
            for name, node in MESH.nodes.items()
        },
    )
    whole = place_instance(small, BIG, should_stop=never)
    assert isinstance(whole, Refusal) and whole.status == 422
    for calls in (0, 5, 80):
        answer = place_instance(small, BIG, should_stop=Clock(calls))
        assert isinstance(answer, Refusal), answer
        assert (answer.code, answer.missing_bytes) == (whole.code, whole.missing_bytes)


def test_of_few_devices_all_costs_are_made_whatever_the_clock_says() -> None:
    few = large_state(5, QUICK_DEVICES_MAX, QUICK_DEVICES_MAX - 1)
    problem = build_problem(few, next(iter(few.nodes.values())).identity.models[0], BIG, "mlx")
    assert cost_rounds(few, problem, should_stop=lambda: True) == cost_rounds(few, problem)
    plan = place_instance(few, BIG, should_stop=lambda: True)
    assert isinstance(plan, Plan) and plan.certificate is not None and plan.is_truncated


def _with_heads(state: State) -> State:
    model = replace(state.nodes[NodeId("node-0000")].identity.models[0], attention_heads=64, kv_heads=8)
    nodes = {
        name: replace(node, identity=replace(node.identity, models=(model,)))
        for name, node in state.nodes.items()
    }
    return replace(state, nodes=nodes)
