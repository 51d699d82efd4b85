"""Absurd input: a refusal with its reason or a right plan, never an exception or a hang."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Solution
from exo.master.placement.ladder.problem import AtMost, CostProblem, Layer, LinkCost, MeasuredLink, Pool
from exo.master.placement.ladder.solve import micro_batch_choices, solve, solve_rounds
from support.cost_problems import random_problem

GOOD = random_problem(random.Random(5), devices=4, layers=8, tightness=6, shared_pools=False)


def with_link(forward_ns: object) -> CostProblem:
    cost = LinkCost(forward_ns=forward_ns, return_ns=1)  # pyright: ignore[reportArgumentType]
    return replace(GOOD, links=replace(GOOD.links, cluster=cost))


def with_device(**changes: object) -> CostProblem:
    return replace(GOOD, devices=(replace(GOOD.devices[0], **changes), *GOOD.devices[1:]))


def with_layer(**changes: object) -> CostProblem:
    layers = (replace(GOOD.model.layers[0], **changes), *GOOD.model.layers[1:])
    return replace(GOOD, model=replace(GOOD.model, layers=layers))


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (replace(GOOD, devices=()), "No device"),
        (replace(GOOD, model=replace(GOOD.model, layers=())), "no layers"),
        (replace(GOOD, devices=(*GOOD.devices, GOOD.devices[0])), "one id"),
        (replace(GOOD, pools=(*GOOD.pools, GOOD.pools[0])), "one id"),
        (replace(GOOD, pools=GOOD.pools[1:]), "not there"),
        (replace(GOOD, pools=(replace(GOOD.pools[0], room_bytes=-1), *GOOD.pools[1:])), "-1 bytes"),
        (replace(GOOD, model=replace(GOOD.model, layers=GOOD.model.layers * 1000)), "at most 4096"),
        (replace(GOOD, model=replace(GOOD.model, head_bytes=-5)), "The head has -5"),
        (replace(GOOD, min_stages=-1), "-1 stages"),
        (replace(GOOD, concurrency=0), "micro-batches"),
        (replace(GOOD, micro_batches=3, concurrency=2), "micro-batches"),
        (replace(GOOD, rules=(AtMost(device_ids=("nobody",), count=1),)), "'nobody'"),
        (with_link(-1), "costs -1"),
        (with_link(float("nan")), "costs nan"),
        (with_link(float("inf")), "costs inf"),
        (with_link(10**30), "costs 1000"),
        (with_device(layer_ns=0), "0 ns per layer"),
        (with_device(layer_ns=float("nan")), "nan ns per layer"),
        (with_device(overhead_ns=-3), "-3 ns of overhead"),
        (with_layer(weight_bytes=-1), "-1 bytes of weights"),
        (with_layer(weight_bytes=0, cache_bytes=0), "0 bytes of weights"),
        (with_layer(time_weight=-1), "time weight -1"),
        (with_device(pool_id=GOOD.devices[1].pool_id, host="elsewhere"), "two hosts"),
    ],
)
def test_what_no_arithmetic_should_be_done_on_is_refused(problem: CostProblem, words: str) -> None:
    found = solve(problem)
    assert isinstance(found, Infeasible)
    assert found.code == "invalid"
    assert any(words in reason for reason in found.reasons), found.reasons


def test_a_measured_link_to_nobody_is_refused() -> None:
    link = MeasuredLink(
        source_device_id="device-000", target_device_id="ghost", cost=LinkCost(forward_ns=1, return_ns=1)
    )
    found = solve(replace(GOOD, links=replace(GOOD.links, measured=(link,))))
    assert isinstance(found, Infeasible)
    assert "'ghost'" in found.reasons[0]


def test_zero_memory_and_more_stages_than_layers_are_refused_with_what_would_help() -> None:
    empty = solve(replace(GOOD, pools=tuple(replace(pool, room_bytes=0) for pool in GOOD.pools)))
    assert isinstance(empty, Infeasible)
    assert [one.constraint for one in empty.relaxations] == ["memory"]
    many = solve(replace(GOOD, min_stages=4, model=replace(GOOD.model, layers=GOOD.model.layers[:3])))
    assert isinstance(many, Infeasible)
    assert [one.constraint for one in many.relaxations] == ["min_stages"]


def test_one_device_takes_all_or_nothing() -> None:
    roomy = replace(
        GOOD, devices=GOOD.devices[:1], pools=(Pool(pool_id=GOOD.devices[0].pool_id, room_bytes=10**9),)
    )
    found = solve(roomy)
    assert isinstance(found, Solution)
    assert [(stage.start_layer, stage.end_layer) for stage in found.stages] == [(0, 8)]
    assert found.gap == 0


@settings(max_examples=15)
@given(st.integers(0, 2**40), st.data())
def test_extremes_within_the_limits_do_not_break_anything(seed: int, data: st.DataObject) -> None:
    chance = random.Random(seed)
    problem = random_problem(chance, devices=5, layers=7, irregular=chance.random() < 0.5)
    sizes = st.sampled_from([0, 1, 2**40, 2**56])
    times = st.sampled_from([1, 2, 10**6, 10**12])
    problem = replace(
        problem,
        devices=tuple(
            replace(one, layer_ns=data.draw(times), overhead_ns=data.draw(times)) for one in problem.devices
        ),
        pools=tuple(replace(one, room_bytes=data.draw(sizes)) for one in problem.pools),
        model=replace(
            problem.model,
            layers=tuple(Layer(weight_bytes=max(1, data.draw(sizes))) for _ in problem.model.layers),
        ),
    )
    found = solve(problem)
    if isinstance(found, Solution):
        assert found.assessment.violations == ()
        assert found.lower_bound_ns <= found.assessment.round_ns


def test_a_thousand_devices_with_equal_scores_get_a_proven_plan() -> None:
    twin = replace(GOOD.devices[0], layer_ns=1_000_000, overhead_ns=300_000)
    devices = tuple(
        replace(twin, device_id=f"d{i:04d}", node_id=f"n{i}", host=f"h{i}", zone="z", pool_id=f"p{i}")
        for i in range(1000)
    )
    layers = tuple(Layer(weight_bytes=100) for _ in range(126))
    problem = replace(
        GOOD,
        devices=devices,
        pools=tuple(Pool(pool_id=f"p{i}", room_bytes=1000) for i in range(1000)),
        model=replace(GOOD.model, layers=layers, embedding_bytes=0, head_bytes=0, stage_bytes=0),
    )
    found = solve(problem)
    assert isinstance(found, Solution)
    assert len(found.stages) == 13
    assert found.gap == 0


def test_the_best_number_of_micro_batches_is_found_among_several() -> None:
    assert micro_batch_choices(1) == (1,)
    assert micro_batch_choices(12) == (1, 2, 4, 8, 12)
    ways = [replace(GOOD, concurrency=4, micro_batches=count) for count in (1, 2, 4)]
    found = solve_rounds(ways)
    assert not isinstance(found, Infeasible)
    rounds = [one.assessment.round_ns for one in map(solve, ways) if isinstance(one, Solution)]
    assert found[1].assessment.round_ns == min(rounds)
    assert isinstance(solve_rounds([]), Infeasible)
