"""Which devices could make a known plan faster: never one too few, against every plan of small clusters."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.master.placement.ladder.evaluate import assess
from exo.master.placement.ladder.joining import worth_joining
from exo.master.placement.ladder.problem import (
    AVERAGE_TIME_WEIGHT,
    CostProblem,
    Device,
    Layer,
    LinkCost,
    Links,
    Model,
    Pool,
)
from support.cost_problems import all_plans, naive_best_ns, random_problem


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    is_uneven=st.booleans(),
    is_irregular=st.booleans(),
    min_stages=st.integers(1, 3),
    micro_batches=st.sampled_from([1, 3]),
)
def test_no_device_of_a_faster_plan_is_ruled_out(
    seed: int, is_uneven: bool, is_irregular: bool, min_stages: int, micro_batches: int
) -> None:
    chance = random.Random(seed)
    problem = random_problem(
        chance,
        devices=3,
        layers=5,
        irregular=is_irregular,
        uneven=is_uneven,
        min_stages=min_stages,
        micro_batches=micro_batches,
        required=0.1,
        tightness=3,
    )
    rounds = [
        (told.round_ns, {stage.device_id for stage in plan})
        for plan in all_plans(problem)
        if not (told := assess(problem, plan)).violations
    ]
    for upper_ns in {one for one, _ in rounds} | {one + 1 for one, _ in rounds}:
        worth = worth_joining(problem, [one.device_id for one in problem.devices], upper_ns)
        used = {name for taken, names in rounds if taken < upper_ns for name in names}
        assert used <= worth


@pytest.mark.parametrize("is_uneven", [False, True])
def test_a_slow_device_is_ruled_out_and_only_those_asked_for_are_told(is_uneven: bool) -> None:
    chance = random.Random(7)
    problem = random_problem(chance, devices=6, layers=12, uneven=is_uneven, tightness=9)
    names = [one.device_id for one in sorted(problem.devices, key=lambda one: one.layer_ns)]
    alone = [one for one in problem.devices if one.device_id == names[0]]
    least_ns = alone[0].layer_ns * 12 // 2
    assert worth_joining(problem, names, least_ns) == frozenset()
    assert worth_joining(problem, names[:1], 2**50) == {names[0]}


def on_one_host(rows: dict[str, tuple[int, int, int]], weights: tuple[float, ...]) -> CostProblem:
    """Devices of one host, with free hops: time of an average layer, time of taking part, layers that have room."""
    free = LinkCost(forward_ns=0, return_ns=0)
    return CostProblem(
        devices=tuple(
            Device(
                device_id=name,
                node_id=name,
                host="h",
                zone="z",
                pool_id=name,
                layer_ns=layer_ns,
                overhead_ns=overhead_ns,
            )
            for name, (layer_ns, overhead_ns, _) in rows.items()
        ),
        pools=tuple(Pool(pool_id=name, room_bytes=1000 * room) for name, (_, _, room) in rows.items()),
        links=Links(host=free, zone=free, cluster=free),
        model=Model(
            layers=tuple(
                Layer(weight_bytes=1000, time_weight=int(one * AVERAGE_TIME_WEIGHT)) for one in weights
            )
        ),
    )


@pytest.mark.parametrize(("overhead_ns", "is_worth"), [(78_000, True), (81_000, False)])
def test_it_is_told_to_the_last_microsecond(overhead_ns: int, is_worth: bool) -> None:
    rows = {
        "fast": (100_000, 0, 4),
        "joining": (280_000, overhead_ns, 4),
        "known": (300_000, 0, 4),
    }
    problem = on_one_host(rows, (1.0,) * 8)
    assert (naive_best_ns(problem) == 1_598_000) == is_worth
    assert worth_joining(problem, ["joining"], 1_600_000) == ({"joining"} if is_worth else set())


def test_room_for_one_layer_that_is_worth_more_than_an_average_one_counts() -> None:
    rows = {"alone": (100_000, 0, 8), "joining": (10_000, 120_000, 1)}
    problem = on_one_host(rows, (1.5, 0.5) * 4)
    best_ns = naive_best_ns(problem)
    assert best_ns is not None and best_ns < 790_000
    assert worth_joining(problem, ["joining"], 800_000) == {"joining"}
