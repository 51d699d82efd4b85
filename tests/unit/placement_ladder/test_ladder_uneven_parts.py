"""The parts that place unequal layers, each against a slower twin: moves of rings, prices, runs, and what fits."""

import itertools
import random

import numpy as np
import pytest
from benchmarks.placement.clusters import random_problem as large_problem
from benchmarks.placement.uneven_shapes import SHAPES
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Options, Solution
from exo.master.placement.ladder.field import Field, field_of, limited
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.problem import AtLeast, AtMost, CostProblem, canonical
from exo.master.placement.ladder.programme import FIRST, LAST, PLAIN
from exo.master.placement.ladder.reach import Reach
from exo.master.placement.ladder.ring import link_matrices
from exo.master.placement.ladder.rules import keeps_rules
from exo.master.placement.ladder.solve import solve
from exo.master.placement.ladder.uneven_ascent import Ascent, mixed
from exo.master.placement.ladder.uneven_bound import WindowBound, start_price_ns
from exo.master.placement.ladder.uneven_moves import FAR, RingMoves, changed, changes_of, joined
from exo.master.placement.ladder.uneven_windows import Windows, bases_of
from support.cost_problems import naive_best_ns, random_problem, shuffled


def never() -> bool:
    return False


def uneven(seed: int, devices: int, layers: int, tightness: float) -> CostProblem:
    return canonical(
        random_problem(
            random.Random(seed),
            devices=devices,
            layers=layers,
            uneven=True,
            zones=2,
            shared_pools=False,
            tightness=tightness,
        )
    )


def true_cost_ns(of: Field, splits: PrefixProgramme, ring: tuple[int, ...]) -> int:
    found = splits.split(ring)
    if found is None:
        return FAR
    forward, back = link_matrices(of)
    hops = sum(int(forward[one, other]) for one, other in itertools.pairwise(ring))
    return found[0] + hops + int(back[ring[-1], ring[0]])


@pytest.mark.parametrize(("seed", "size"), [(1, 5), (2, 7), (3, 2), (4, 1)])
@pytest.mark.parametrize("share", [None, 0.7])
def test_all_changes_of_a_ring_cost_what_the_prefix_programme_says(
    seed: int, size: int, share: float | None
) -> None:
    of = field_of(uneven(seed, 9, 14, tightness=3))
    if share is not None:
        slowest = max(one.layer_ns * 14 for one in of.devices)
        of = limited(of, int(slowest * share / 3))
    ring = tuple(random.Random(seed).sample(range(9), size))
    changes = changes_of(ring, [one for one in range(9) if one not in ring][:3], span_max=9)
    splits, moves = PrefixProgramme(of), RingMoves(of)
    costs = moves.costs_ns(ring, changes)
    rings = [changed(ring, one) for one in changes]
    assert all(len(set(one)) == len(one) > 1 for one in rings)
    assert costs.tolist() == [true_cost_ns(of, splits, one) for one in rings]
    assert moves.weighed == len(changes)
    if share is None:
        middle = int(np.median(moves.costs_ns(ring, changes)))
        some = moves.costs_ns(ring, changes, hops_max_ns=middle)
        assert all(one in (FAR, other) for one, other in zip(some.tolist(), costs.tolist(), strict=True))


def test_changes_are_all_that_there_are_of_a_small_ring() -> None:
    ring = (3, 1, 4)
    made = {changed(ring, one) for one in changes_of(ring, [5], span_max=3)}
    swaps = set(itertools.permutations(ring)) - {ring, (4, 3, 1), (1, 4, 3)}
    moves = {(4, 3, 1), (1, 4, 3)}
    drops = {(1, 4), (3, 4), (3, 1)}
    exchanged = {(5, 1, 4), (3, 5, 4), (3, 1, 5)}
    added = {(5, 3, 1, 4), (3, 5, 1, 4), (3, 1, 5, 4), (3, 1, 4, 5)}
    assert made == swaps | moves | drops | exchanged | added


@pytest.mark.parametrize("seed", range(20))
def test_changes_that_do_not_touch_make_a_ring_together(seed: int) -> None:
    chance = random.Random(seed)
    ring = tuple(chance.sample(range(30), chance.randint(2, 12)))
    absent = [one for one in range(30) if one not in ring][:4]
    changes = changes_of(ring, absent, span_max=3)
    chance.shuffle(changes)
    for one in joined(ring, changes):
        assert len(set(one)) == len(one)
        assert set(one) <= set(ring) | set(absent)


def test_the_ascent_finds_the_top_of_planes_as_a_grid_does() -> None:
    chance = np.random.default_rng(3)
    slopes, offsets = chance.normal(size=(12, 2)), chance.uniform(5, 9, size=12)
    slopes[:4] = [[1, 0], [-1, 0], [0, 1], [0, -1]]

    def value_of(point: np.ndarray) -> tuple[float, np.ndarray]:
        values = offsets + slopes @ point
        return float(values.min()), slopes[int(np.argmin(values))]

    grid = np.linspace(-8, 8, 321)
    top = max(value_of(np.array([one, other]))[0] for one in grid for other in grid)
    for basis in (None, np.eye(2)):
        ascent = Ascent(value_of, np.array([7.0, -6.0]), prices_max=1e9)
        assert ascent.climb(basis, upper=1e3, rounds_max=60) <= 60
        assert ascent.best >= top - 0.02
        assert value_of(ascent.point)[0] == ascent.best
    along = Ascent(value_of, np.array([7.0, -6.0]), prices_max=1e9)
    along.climb(np.array([[1.0], [0.0]]), upper=1e3, rounds_max=60)
    assert along.point[1] == -6.0


def test_shares_of_planes_are_the_best_of_a_grid() -> None:
    chance = np.random.default_rng(5)
    planes, errors = chance.normal(size=(3, 4)), chance.uniform(0, 1, size=3)
    products = planes @ planes.T

    def worth(shares: np.ndarray) -> float:
        return float(0.7 / 2 * shares @ products @ shares + errors @ shares)

    found = mixed(products, errors, 0.7)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1)
    steps = range(41)
    best = min(
        worth(np.array([one, other, 40 - one - other]) / 40)
        for one in steps
        for other in steps
        if one + other <= 40
    )
    assert worth(found) <= best + 1e-6


def test_runs_that_devices_hold_are_those_that_fit() -> None:
    of = field_of(uneven(6, 4, 9, tightness=2.2))
    model, layers = of.problem.model, of.problem.model.layers
    for field in (of, limited(of, int(of.layer_ns.mean() * 3))):
        for device in range(4):
            tables = dict(zip((PLAIN, FIRST, LAST), Windows(field).held(field, device), strict=True))
            room = int(of.room_bytes[of.pool[device]])
            for part, held in (
                (PLAIN, model.stage_bytes),
                (FIRST, model.first_bytes),
                (LAST, model.last_bytes),
            ):
                for start, end in itertools.combinations(range(10), 2):
                    if (part == FIRST and start) or (part == LAST and end < 9):
                        continue
                    if part == PLAIN and (not start or end == 9):
                        continue
                    took = int(of.overhead_ns[device]) + (int(of.head_ns[device]) if part == LAST else 0)
                    took += sum(
                        of.devices[device].layer_ns * one.time_weight // 10**6 for one in layers[start:end]
                    )
                    fits = held + sum(one.size_bytes for one in layers[start:end]) <= room
                    fits &= field.limit_ns is None or took <= field.limit_ns
                    table, length = tables[part], end - start
                    told = np.inf
                    if length < table.shape[-1]:
                        told = table[start, length] if part == PLAIN else table[length]
                    if fits:
                        # Each layer is rounded down on its own.
                        assert took - 2 * length <= told <= took
                    else:
                        assert told == np.inf


def test_prices_move_by_kinds_then_at_the_ends_then_all() -> None:
    shape = SHAPES["front and windows"](large_problem(0, 8, 30), 0)
    kinds, ends, single = bases_of(shape.model.layers)
    assert kinds is not None and ends is not None and single is None
    assert kinds.shape[1] == 3
    assert ends.shape[1] == 12 + 2
    for basis in (kinds, ends):
        assert np.allclose(basis.T @ basis, np.eye(basis.shape[1]))
    features, rest = bases_of(SHAPES["10 % of noise"](large_problem(0, 8, 30), 0).model.layers)
    assert features is not None and features.shape[1] == 3 and rest is None


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("seed", [1, 2])
def test_bounds_are_below_the_best_plan_that_cp_sat_finds(name: str, seed: int) -> None:
    pytest.importorskip("ortools", reason="OR-tools is not installed: uv sync --group check")
    from benchmarks.placement.uneven_oracle import cp_sat_uneven

    problem = replace(canonical(SHAPES[name](large_problem(seed, 6, 15), seed)), min_stages=2)
    found, oracle = solve(problem), cp_sat_uneven(problem)
    assert oracle.is_proven
    assert isinstance(found, Solution) == (oracle.best_ns is not None)
    if isinstance(found, Solution) and oracle.best_ns is not None:
        assert found.lower_bound_ns <= oracle.best_ns <= found.assessment.round_ns
        assert found.assessment.round_ns <= oracle.best_ns * 1.005
        of = field_of(problem)
        bound = WindowBound(of)
        upper = found.assessment.round_ns
        first = bound.bound_ns(upper, start_price_ns(of, range(6)), never)
        assert first <= bound.refined_ns(upper) <= oracle.best_ns
        assert bound.drafts


@pytest.mark.parametrize("name", list(SHAPES))
def test_sixteen_devices_are_nearly_proven_in_any_order(name: str) -> None:
    problem = SHAPES[name](large_problem(0, 16), 0)
    found = solve(problem)
    assert isinstance(found, Solution)
    assert found.gap < 0.005
    assert not found.is_truncated
    assert found == solve(shuffled(problem, random.Random(1)))


def rings_by_trying(of: Field, min_stages: int) -> set[frozenset[int]]:
    """Sets of devices of which some order holds the layers and keeps the rules."""
    splits = PrefixProgramme(of)
    found: set[frozenset[int]] = set()
    for size in range(max(1, min_stages), of.size + 1):
        for ring in itertools.permutations(range(of.size), size):
            names = [of.devices[one].device_id for one in ring]
            if keeps_rules(names, of.problem.rules) and splits.split(ring) is not None:
                found.add(frozenset(ring))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_just_those_sets_reach_the_end_that_hold_the_layers_in_some_order(seed: int) -> None:
    chance = random.Random(seed)
    problem = uneven(seed, 6, 9, tightness=chance.choice([1.1, 1.3, 1.6]))
    names = [one.device_id for one in problem.devices]
    rules = (
        AtMost(device_ids=tuple(names[:3]), count=2),
        AtLeast(groups=(tuple(names[2:4]), tuple(names[4:])), count=chance.choice([1, 2])),
    )
    problem = replace(problem, rules=rules if seed % 2 else (), min_stages=chance.choice([1, 3]))
    of = field_of(problem)
    splits = PrefixProgramme(of)
    reach = Reach(of, splits, list(range(6)), sets_max=100, should_stop=never)
    rings = list(reach)
    assert reach.is_whole
    assert all(splits.split(ring) is not None for ring in rings)
    assert {frozenset(ring) for ring in rings} == rings_by_trying(of, problem.min_stages)
    few = Reach(of, splits, list(range(6)), sets_max=1, should_stop=never)
    found = {frozenset(ring) for ring in few}
    assert found <= {frozenset(ring) for ring in rings}
    assert not few.is_whole or found == {frozenset(ring) for ring in rings}
    stopped = Reach(of, splits, list(range(6)), sets_max=100, should_stop=lambda: True)
    assert all(len(ring) == 1 for ring in stopped)
    assert not (stopped.is_whole and any(len(ring) > 1 for ring in rings))


def test_devices_without_memory_reach_nothing() -> None:
    of = field_of(uneven(1, 3, 4, tightness=2))
    splits = PrefixProgramme(of)
    for order in ([], [0]):
        assert all(ring == (0,) for ring in Reach(of, splits, order, sets_max=9, should_stop=never))
    empty = replace(of.problem, pools=tuple(replace(one, room_bytes=0) for one in of.problem.pools))
    found = solve(empty)
    assert isinstance(found, Infeasible)
    assert found.code == "infeasible"


@pytest.mark.parametrize(("devices", "seed"), [(14, 1), (18, 0), (20, 3)])
def test_tight_problems_of_many_devices_are_decided(devices: int, seed: int) -> None:
    problem = uneven(seed, devices, 40, tightness=1.06)
    found = solve(problem, options=Options(wants_any=True))
    assert not isinstance(found, Infeasible) or found.code == "infeasible"
    if isinstance(found, Solution):
        assert found.assessment.violations == ()


@pytest.mark.parametrize("seed", [3164, 3292, 8179, 9252])
def test_what_was_undecided_among_random_problems_is_decided(seed: int) -> None:
    from benchmarks.placement.faults import _problem

    found = solve(_problem(random.Random(seed), seed), options=Options(wants_any=True))
    assert isinstance(found, Infeasible)
    assert found.code == "infeasible"


@pytest.mark.parametrize("seed", range(3))
def test_rules_and_throughput_end_by_count(seed: int) -> None:
    problem = SHAPES["front and windows"](large_problem(seed, 12, 40), seed)
    names = [one.device_id for one in problem.devices]
    ruled = replace(problem, rules=(AtMost(device_ids=tuple(names[:6]), count=2),))
    for asked in (ruled, replace(problem, concurrency=8, micro_batches=4)):
        found = solve(asked)
        assert isinstance(found, Solution)
        assert not found.is_truncated
        assert found.evaluations < 120_000
        assert found.gap < 0.05


@pytest.mark.parametrize("seed", range(6))
def test_bounds_with_rules_are_true_and_plans_keep_them(seed: int) -> None:
    problem = uneven(seed, 7, 5, tightness=3)
    names = [one.device_id for one in sorted(problem.devices, key=lambda one: one.layer_ns)]
    rules = (
        AtMost(device_ids=tuple(names[:3]), count=1),
        AtLeast(groups=(tuple(names[2:4]), tuple(names[3:6]), tuple(names[6:])), count=2),
    )
    asked = replace(problem, rules=rules)
    found, best = solve(asked), naive_best_ns(asked)
    assert isinstance(found, Solution) == (best is not None)
    if isinstance(found, Solution) and best is not None:
        assert found.assessment.violations == ()
        assert found.lower_bound_ns <= best <= found.assessment.round_ns <= best * 1.01
