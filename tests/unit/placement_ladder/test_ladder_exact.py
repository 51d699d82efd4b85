"""The ladder against a solver that tries everything, on clusters small enough for that."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.ladder import exact
from exo.master.placement.ladder.answer import Infeasible, Solution
from exo.master.placement.ladder.evaluate import assess
from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.prices import Prices, without_twins
from exo.master.placement.ladder.problem import CostProblem, Device, Pool
from exo.master.placement.ladder.solve import solve
from support.cost_problems import naive_best_ns, random_problem, shuffled, with_random_rules

SEEDS = st.integers(0, 2**40)


def tiny(seed: int, *, irregular: bool = False, uneven: bool = False, micro_batches: int = 1) -> CostProblem:
    """Up to four devices and six layers, some sharing memory, some required, some with a least number of stages."""
    chance = random.Random(seed)
    return random_problem(
        chance,
        devices=chance.randint(1, 4),
        layers=chance.randint(1, 6),
        zones=chance.randint(1, 3),
        tightness=chance.choice([2, 3, 5, 8]),
        min_stages=chance.choice([1, 1, 1, 2, 3]),
        required=chance.choice([0, 0, 0.3]),
        irregular=irregular,
        uneven=uneven,
        micro_batches=micro_batches,
    )


def checked(problem: CostProblem) -> int | None:
    """Solve; check what holds of every answer; return the round's time."""
    found = solve(problem)
    if isinstance(found, Infeasible):
        # How devices share a pool is tried in parts where layers are unequal: there alone it may stay open.
        is_open = not problem.model.is_uniform and len(problem.pools) < len(problem.devices)
        assert found.code == "infeasible" or (is_open and found.code == "undecided")
        assert found.reasons
        return None
    again = assess(problem, found.stages)
    assert again.violations == ()
    assert again.round_ns == found.assessment.round_ns
    assert found.lower_bound_ns <= found.assessment.round_ns
    if found.baseline is not None:
        assert found.assessment.round_ns <= found.baseline.round_ns
    return found.assessment.round_ns


@settings(max_examples=60)
@given(SEEDS)
def test_hierarchical_links_are_solved_to_the_optimum_and_proven(seed: int) -> None:
    problem = tiny(seed)
    best = naive_best_ns(problem)
    assert checked(problem) == best
    if best is not None:
        found = solve(problem)
        assert isinstance(found, Solution)
        assert found.lower_bound_ns == best
        assert found.gap == 0


@settings(max_examples=60)
@given(SEEDS)
def test_irregular_links_are_solved_to_the_optimum_when_few_devices_are_left(seed: int) -> None:
    problem = tiny(seed, irregular=True)
    assert checked(problem) == naive_best_ns(problem)


@settings(max_examples=40)
@given(SEEDS, st.booleans())
def test_rules_are_kept_at_the_least_cost(seed: int, irregular: bool) -> None:
    problem = with_random_rules(tiny(seed, irregular=irregular), random.Random(seed))
    best = naive_best_ns(problem)
    assert checked(problem) == best
    if best is not None:
        found = solve(problem)
        assert isinstance(found, Solution)
        assert found.lower_bound_ns <= best


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([2, 4, 16]))
def test_rounds_of_several_micro_batches_are_as_short_as_they_can_be(seed: int, micro_batches: int) -> None:
    problem = tiny(seed, micro_batches=micro_batches)
    best, got = naive_best_ns(problem), checked(problem)
    assert (got is None) == (best is None)
    if best is not None and got is not None:
        assert got <= best * (1 + 1e-4)
        found = solve(problem)
        assert isinstance(found, Solution)
        assert found.lower_bound_ns <= best


@settings(max_examples=40)
@given(SEEDS, st.booleans())
def test_uneven_layers_are_placed_legally_near_the_optimum_with_a_true_bound(
    seed: int, irregular: bool
) -> None:
    problem = tiny(seed, uneven=True, irregular=irregular)
    best, got = naive_best_ns(problem), checked(problem)
    found = solve(problem)
    if got is None:
        assert best is None or (isinstance(found, Infeasible) and found.code == "undecided")
    else:
        assert best is not None
        assert isinstance(found, Solution)
        assert found.lower_bound_ns <= best
        if len({device.pool_id for device in problem.devices}) == len(problem.devices):
            assert got == best


@settings(max_examples=20)
@given(SEEDS, st.booleans())
def test_the_order_in_which_a_problem_is_told_changes_nothing(seed: int, irregular: bool) -> None:
    chance = random.Random(seed)
    problem = random_problem(chance, devices=9, layers=20, irregular=irregular, zones=3)
    if seed % 3 == 0:
        problem = with_random_rules(problem, chance)
    once, again = solve(problem), solve(shuffled(problem, chance))
    assert once == again


@settings(max_examples=20)
@given(SEEDS)
def test_another_device_never_makes_it_worse(seed: int) -> None:
    chance = random.Random(seed)
    problem = random_problem(chance, devices=10, layers=24, zones=3, shared_pools=False)
    fewer = CostProblem(
        devices=problem.devices[:-1], pools=problem.pools, links=problem.links, model=problem.model
    )
    before, after = solve(fewer), solve(problem)
    if isinstance(before, Solution):
        assert isinstance(after, Solution)
        assert after.assessment.round_ns <= before.assessment.round_ns


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_of_many_devices_is_certified(seed: int) -> None:
    chance = random.Random(seed)
    found = solve(random_problem(chance, devices=64, layers=126, zones=6, tightness=3))
    assert isinstance(found, Solution)
    assert found.gap == 0


def many_twins(seed: int) -> CostProblem:
    """Ninety devices of three kinds, each on a host of its own; several of each are needed to hold the model."""
    chance = random.Random(seed)
    kinds = random_problem(chance, devices=3, layers=24, zones=1, shared_pools=False, tightness=1)
    devices: list[Device] = []
    pools: list[Pool] = []
    whole = sum(layer.size_bytes for layer in kinds.model.layers)
    # A little faster, a little roomier: none of the kinds is ruled out by price alone.
    for number in range(90):
        kind = number % 3
        name = f"device-{number:03}"
        layer_ns = 1_000_000 + 30_000 * kind
        one = replace(
            kinds.devices[kind],
            device_id=name,
            node_id=name,
            host=name,
            zone="zone-0",
            pool_id=name,
            layer_ns=layer_ns,
            head_ns=layer_ns,
            overhead_ns=50_000,
        )
        devices.append(one)
        room = kinds.model.embedding_bytes + kinds.model.head_bytes + whole * (4 + kind) // 24
        pools.append(Pool(pool_id=name, room_bytes=room))
    return replace(kinds, devices=tuple(devices), pools=tuple(pools))


@pytest.mark.parametrize("seed", range(6))
def test_twins_that_are_left_aside_are_not_missed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = many_twins(seed)
    left_aside: list[int] = []

    def counted(of: Field, kept: Integers, prices: Prices, upper_ns: int) -> Integers:
        found = without_twins(of, kept, prices, upper_ns)
        left_aside.append(len(kept) - len(found))
        return found

    monkeypatch.setattr(exact, "without_twins", counted)
    told = solve(problem)
    assert isinstance(told, Solution) and len(told.stages) > 2
    monkeypatch.setattr(exact, "without_twins", lambda of, kept, prices, upper_ns: kept)
    whole = solve(problem)
    assert isinstance(whole, Solution)
    assert (
        told.assessment.round_ns == whole.assessment.round_ns and told.lower_bound_ns == whole.lower_bound_ns
    )
    assert max(left_aside, default=0) > 0
