"""The ladder's parts against slower twins: products, windows, fillings, rings, subsets, splits."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Solution
from exo.master.placement.ladder.draft import draft_of
from exo.master.placement.ladder.evaluate import Stage, assess
from exo.master.placement.ladder.field import Field, field_of, limited, narrowed
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.greedy import largest_remainder, memory_weighted_ring
from exo.master.placement.ladder.moves import drops, insertions, reorderings
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.prices import entry_costs, price
from exo.master.placement.ladder.problem import canonical
from exo.master.placement.ladder.programme import INFINITE, leaf_tables, min_plus, run
from exo.master.placement.ladder.ring import hierarchical_order, link_matrices
from exo.master.placement.ladder.solve import solve
from exo.master.placement.ladder.tree import hierarchy, single_linkage
from exo.master.placement.ladder.water import ring_ns
from support.cost_problems import random_problem

SEEDS = st.integers(0, 2**40)


def field(seed: int, *, devices: int = 6, layers: int = 12, **more: object) -> Field:
    chance = random.Random(seed)
    problem = random_problem(chance, devices=devices, layers=layers, zones=3, tightness=4, **more)  # pyright: ignore[reportArgumentType]
    return field_of(canonical(problem))


@settings(max_examples=20)
@given(SEEDS)
def test_the_product_of_tables_is_the_least_of_all_sums(seed: int) -> None:
    chance = random.Random(seed)
    left = np.array([[chance.choice([INFINITE, chance.randint(0, 99)]) for _ in range(7)] for _ in range(2)])
    right = np.array([[chance.choice([INFINITE, chance.randint(0, 99)]) for _ in range(4)] for _ in range(2)])
    right[:, 0] = left[:, 0] = INFINITE
    made = min_plus(left, right, 9)
    for row in range(2):
        for total in range(9):
            sums = [
                int(left[row, total - part] + right[row, part])
                for part in range(1, 4)
                if 0 <= total - part < 7
            ]
            assert min(int(made[row, total]), INFINITE) == min([*sums, INFINITE])


@settings(max_examples=20)
@given(SEEDS)
def test_sliding_windows_give_what_plain_products_give(seed: int) -> None:
    of = field(seed, layers=40)
    tree = hierarchy(of)
    fast = run(of, tree, leaf_tables(of), min_stages=1)
    uneven = Field(
        **{name: getattr(of, name) for name in Field.__slots__ if name != "is_even"}, is_even=False
    )  # pyright: ignore[reportAttributeAccessIssue]
    slow = run(uneven, tree, leaf_tables(of), min_stages=1)
    assert fast.best_ns == slow.best_ns


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 4))
def test_balanced_and_chained_trees_agree(seed: int, min_stages: int) -> None:
    of = field(seed, devices=9)
    values = {
        run(of, hierarchy(of, is_balanced=is_balanced), leaf_tables(of), min_stages=min_stages).best_ns
        for is_balanced in (True, False)
    }
    assert len(values) == 1


@settings(max_examples=20)
@given(SEEDS)
def test_the_draft_costs_what_the_programme_says(seed: int) -> None:
    of = field(seed, devices=8)
    sums = run(of, hierarchy(of), leaf_tables(of), min_stages=1)
    draft = draft_of(of, sums, min_stages=1)
    assert (draft is None) == (sums.best_ns >= INFINITE)
    if draft is not None:
        ring = hierarchical_order(of, sorted(draft.layers), draft.first, draft.last)
        stages: list[Stage] = []
        for index in ring:
            start = stages[-1].end_layer if stages else 0
            stages.append(
                Stage(
                    device_id=of.devices[index].device_id,
                    start_layer=start,
                    end_layer=start + draft.layers[index],
                )
            )
        found = assess(of.problem, stages)
        assert found.violations == ()
        assert found.latency_ns == draft.cost_ns == sums.best_ns


@settings(max_examples=20)
@given(SEEDS)
def test_the_order_of_a_ring_on_hierarchical_links_is_the_cheapest_of_all(seed: int) -> None:
    of = field(seed, devices=5)
    forward, back = link_matrices(of)
    first, last = random.Random(seed).sample(range(5), 2)
    middle = [index for index in range(5) if index not in (first, last)]

    def hops(ring: list[int]) -> int:
        return int(sum(forward[a, b] for a, b in itertools.pairwise(ring)) + back[ring[-1], ring[0]])

    best = min(hops([first, *order, last]) for order in itertools.permutations(middle))
    assert hops(hierarchical_order(of, range(5), first, last)) == best
    assert ring_ns(of, range(5)) == min(
        int(forward[ring[-1], ring[0]] + sum(forward[a, b] for a, b in itertools.pairwise(ring)))
        for ring in itertools.permutations(range(5))
    )


@settings(max_examples=20)
@given(SEEDS)
def test_the_tree_under_irregular_links_bounds_every_hop(seed: int) -> None:
    of = field(seed, devices=7, irregular=True)
    forward, back = link_matrices(of)
    tree = single_linkage(of, forward, back)
    below: list[list[int]] = []
    for node in tree.nodes:
        if isinstance(node, int):
            below.append([node])
            continue
        for one in below[node.left]:
            for other in below[node.right]:
                assert node.forward_ns <= min(forward[one, other], forward[other, one])
                assert node.to_left_ns <= back[other, one]
                assert node.to_right_ns <= back[one, other]
        below.append(below[node.left] + below[node.right])
    assert sorted(below[-1]) == list(range(7))


@settings(max_examples=20)
@given(SEEDS)
def test_filling_the_fastest_first_is_the_best_split(seed: int) -> None:
    of = field(seed, devices=3, layers=7)
    filler = Filler(of)
    first, last = random.Random(seed).sample(range(3), 2)
    ring = [first, *(index for index in range(3) if index not in (first, last)), last]
    best: int | None = None
    for cuts in itertools.combinations(range(1, 7), 2):
        bounds = (0, *cuts, 7)
        stages = [
            Stage(device_id=of.devices[index].device_id, start_layer=bounds[rank], end_layer=bounds[rank + 1])
            for rank, index in enumerate(ring)
        ]
        found = assess(of.problem, stages)
        if not [one for one in found.violations if "bytes" in one]:
            best = min(best or found.latency_ns, found.latency_ns - sum(found.link_ns))
    filled = filler.fill(filler.rank(ring), first, last)
    assert (filled[0] if filled is not None else None) == best


@settings(max_examples=20)
@given(SEEDS)
def test_splits_of_unequal_layers_are_the_best_for_their_ring(seed: int) -> None:
    of = field(seed, devices=3, layers=7, uneven=True, shared_pools=False)
    ring = random.Random(seed).sample(range(3), 3)
    best: int | None = None
    for cuts in itertools.combinations(range(1, 7), 2):
        bounds = (0, *cuts, 7)
        stages = [
            Stage(device_id=of.devices[index].device_id, start_layer=bounds[rank], end_layer=bounds[rank + 1])
            for rank, index in enumerate(ring)
        ]
        found = assess(of.problem, stages)
        if not found.violations:
            cost = found.latency_ns - sum(found.link_ns)
            best = cost if best is None else min(best, cost)
    split = PrefixProgramme(of).split(ring)
    assert (split[0] if split is not None else None) == best


@settings(max_examples=20)
@given(SEEDS)
def test_prices_bound_the_optimum(seed: int) -> None:
    of = field(seed, devices=8, irregular=seed % 2 == 0)
    found = solve(of.problem)
    if isinstance(found, Solution) and len(found.stages) > 1:
        prices = price(of, entry_costs(of))
        assert prices.lower_bound_ns <= found.assessment.latency_ns


def test_a_limit_on_stages_cuts_layers() -> None:
    of = field(3)
    for limit_ns in (0, 10**6, 10**7, 10**8):
        cut = limited(of, limit_ns)
        for index in range(of.size):
            count = int(cut.last_layers[index])
            time = count * int(of.layer_ns[index]) + int(of.overhead_ns[index] + of.head_ns[index])
            assert count == 0 or time <= limit_ns
            assert count <= of.last_layers[index]
    part = narrowed(of, np.array([1, 4]))
    assert [one.device_id for one in part.devices] == ["device-001", "device-004"]


def test_memory_is_split_by_largest_remainder_with_one_layer_at_least() -> None:
    no_limit = np.array([99, 99, 99])
    assert largest_remainder(10, np.array([5.0, 3.0, 2.0]), no_limit) == [5, 3, 2]
    assert largest_remainder(10, np.array([1.0, 1.0, 1.0]), no_limit) == [4, 3, 3]
    assert largest_remainder(4, np.array([98.0, 1.0, 1.0]), no_limit) == [2, 1, 1]
    assert largest_remainder(10, np.array([5.0, 3.0, 2.0]), np.array([3, 99, 99])) == [3, 4, 3]
    assert largest_remainder(10, np.array([5.0, 3.0, 2.0]), np.array([3, 3, 3])) is None
    assert largest_remainder(4, np.array([0.0, 0.0, 0.0]), no_limit) == [2, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_memory_weighted_ring_is_over_the_fewest_that_hold_the_model(seed: int) -> None:
    of = field(seed, devices=20, layers=40)
    ring = memory_weighted_ring(of)
    assert ring is not None
    assert sum(count for _, count in ring) == 40
    fewest = len(memory_weighted_ring(field_of(replace(of.problem, min_stages=len(ring) + 2))) or [])
    assert fewest >= len(ring) + 2


def test_moves_are_all_different_rings_of_the_same_devices() -> None:
    for count in (4, 6):
        rows = [tuple(row) for row in reorderings(count).tolist()]
        assert len(rows) == len(set(rows))
        assert all(sorted(row) == list(range(count)) for row in rows)
        assert [set(range(count)) - set(row) for row in drops(count).tolist()] == [{i} for i in range(count)]
        assert sorted(insertions(count).tolist()[0]) == list(range(count + 1))


@settings(max_examples=25)
@given(SEEDS)
def test_what_is_said_to_be_missing_is_what_is_missing(seed: int) -> None:
    chance = random.Random(seed)
    problem = random_problem(chance, devices=3, layers=5, tightness=0.8)
    found = solve(problem)
    if not isinstance(found, Infeasible):
        return
    memory = [one for one in found.relaxations if one.constraint == "memory"]
    assert len(memory) == 1

    def grown(more_bytes: int) -> bool:
        pools = tuple(
            replace(
                pool, room_bytes=pool.room_bytes + (more_bytes if pool.pool_id == memory[0].pool_id else 0)
            )
            for pool in problem.pools
        )
        return isinstance(solve(replace(problem, pools=pools)), Solution)

    missing = memory[0].missing_bytes
    assert missing is not None
    assert grown(missing)
    assert not grown(missing - 1)
