"""Unequal layers on more devices than can all be tried: legal plans, true bounds, and no plan overlooked."""

import itertools
import random

import pytest
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Solution
from exo.master.placement.ladder.evaluate import assess
from exo.master.placement.ladder.field import field_of, limited
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.problem import CostProblem, canonical
from exo.master.placement.ladder.ring import link_matrices
from exo.master.placement.ladder.solve import solve
from exo.master.placement.ladder.uneven import UnevenSearch
from exo.master.placement.ladder.uneven_bound import WindowBound, start_price_ns
from support.cost_problems import random_problem


def never() -> bool:
    return False


def uneven(seed: int, devices: int, layers: int, tightness: float) -> CostProblem:
    return random_problem(
        random.Random(seed),
        devices=devices,
        layers=layers,
        uneven=True,
        zones=3,
        shared_pools=False,
        tightness=tightness,
    )


@pytest.mark.parametrize(("devices", "layers"), [(7, 20), (12, 30), (30, 40), (70, 40)])
def test_plans_of_many_devices_are_legal_and_bounded(devices: int, layers: int) -> None:
    found = solve(uneven(1, devices, layers, tightness=4))
    assert isinstance(found, Solution)
    assert found.assessment.violations == ()
    assert 0 < found.lower_bound_ns <= found.assessment.round_ns


def six(seed: int) -> tuple[CostProblem, int | None]:
    """Six devices, and the best of all orders of all subsets, each split by the prefix programme."""
    problem = canonical(uneven(seed, 6, 9, tightness=1.6))
    of = field_of(problem)
    splits = PrefixProgramme(of)
    forward, back = link_matrices(of)
    best: int | None = None
    for size in range(1, 7):
        for ring in itertools.permutations(range(6), size):
            found = splits.split(ring)
            if found is not None:
                hops = sum(int(forward[one, other]) for one, other in itertools.pairwise(ring))
                cost = found[0] + (hops + int(back[ring[-1], ring[0]]) if size > 1 else 0)
                best = cost if best is None else min(best, cost)
    return problem, best


@pytest.mark.parametrize("seed", range(6))
def test_no_plan_of_six_devices_is_overlooked_and_no_bound_is_false(seed: int) -> None:
    problem, best = six(seed)
    found = solve(problem)
    assert isinstance(found, Solution) == (best is not None)
    if isinstance(found, Solution) and best is not None:
        assert found.lower_bound_ns <= best <= found.assessment.round_ns
        assert found.assessment.round_ns == best
    else:
        assert isinstance(found, Infeasible)
        assert found.code == "infeasible"


@pytest.mark.parametrize("seed", range(4))
def test_every_round_of_prices_gives_a_true_bound(seed: int) -> None:
    problem, best = six(seed)
    of = field_of(problem)
    for start in (0.0, start_price_ns(of, range(6)), 1e9):
        bound = WindowBound(of).bound_ns(2**60, start, never)
        assert best is None or bound <= best or bound == 2**60
    assert WindowBound(of).bound_ns(2**60, 0.0, lambda: True) == 0


@pytest.mark.parametrize("devices", [9, 16])
def test_a_plan_is_found_where_averages_find_none(devices: int) -> None:
    problem = canonical(uneven(3, devices, 20, tightness=1.5))
    search = UnevenSearch(field_of(problem), never)
    search.find_any()
    assert search.best is not None
    stopped = UnevenSearch(field_of(problem), lambda: True)
    assert not stopped.find_any() or devices > 13
    limit = limited(field_of(problem), 1)
    assert not UnevenSearch(limit, never).try_ring(search.best.ring)


def test_devices_of_one_pool_share_it_among_unequal_layers() -> None:
    problem = uneven(5, 4, 10, tightness=3)
    devices = tuple(
        replace(one, host="h", zone="z", pool_id=problem.devices[0].pool_id, is_required=number < 2)
        for number, one in enumerate(problem.devices)
    )
    model = problem.model
    room = sum(layer.size_bytes for layer in model.layers) + model.first_bytes + model.last_bytes + 60
    pools = (replace(problem.pools[0], pool_id=problem.devices[0].pool_id, room_bytes=room),)
    found = solve(replace(problem, devices=devices, pools=pools))
    assert isinstance(found, Solution)
    assert assess(replace(problem, devices=devices, pools=pools), found.stages).violations == ()
