"""Which devices could make a known plan faster: never one too few, against every plan of small clusters."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.master.placement.ladder.evaluate import assess
from exo.master.placement.ladder.joining import worth_joining
from support.cost_problems import all_plans, random_problem


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
