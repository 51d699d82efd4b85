"""Least numbers of nodes and zones, and nodes that must be used: counted in the programme, or all plans tried."""

import random

import pytest
from benchmarks.placement.rules import pairs_of_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Options, Solution
from exo.master.placement.ladder.evaluate import assess
from exo.master.placement.ladder.field import field_of
from exo.master.placement.ladder.problem import AtLeast, CostProblem, Rule, canonical, device_groups
from exo.master.placement.ladder.solve import solve
from exo.master.placement.ladder.units import units_of
from support.cost_problems import naive_best_ns, random_problem, shuffled


def with_nodes(problem: CostProblem, chance: random.Random) -> CostProblem:
    """Devices of one host become devices of one node or of two, those that share memory of one."""
    devices = tuple(
        replace(one, node_id=one.pool_id if chance.random() < 0.2 else one.host) for one in problem.devices
    )
    owner: dict[str, str] = {}
    return replace(
        problem,
        devices=tuple(replace(one, node_id=owner.setdefault(one.pool_id, one.node_id)) for one in devices),
    )


def with_unit_rules(problem: CostProblem, chance: random.Random) -> CostProblem:
    by_node = device_groups(problem.devices, by="node_id")
    by_zone = device_groups(problem.devices, by="zone")
    rules: list[Rule] = []
    if chance.random() < 0.6:
        rules.append(AtLeast(groups=by_node, count=chance.randint(0, min(4, len(by_node))), reason="nodes"))
    if chance.random() < 0.4:
        rules.append(AtLeast(groups=by_zone, count=chance.randint(1, 2), reason="zones"))
    for group in chance.sample(by_node, min(len(by_node), chance.choice([0, 1, 1, 2]))):
        rules.append(AtLeast(groups=(group,), count=1, reason="must use"))
    return replace(problem, rules=tuple(rules))


def tiny(seed: int, *, irregular: bool = False, uneven: bool = False, micro_batches: int = 1) -> CostProblem:
    chance = random.Random(seed)
    problem = random_problem(
        chance,
        devices=chance.randint(2, 5),
        layers=chance.randint(2, 5),
        zones=chance.randint(1, 3),
        tightness=chance.choice([3, 5, 8]),
        required=chance.choice([0, 0, 0.2]),
        min_stages=chance.choice([1, 1, 2, 3]),
        irregular=irregular,
        uneven=uneven,
        micro_batches=micro_batches,
    )
    return with_unit_rules(with_nodes(problem, chance), chance)


def checked(problem: CostProblem, *, is_exact: bool) -> None:
    found, best = solve(problem), naive_best_ns(problem)
    if isinstance(found, Infeasible):
        assert best is None and found.code == "infeasible"
        return
    assert best is not None
    assert assess(problem, found.stages).violations == ()
    assert found.lower_bound_ns <= best <= found.assessment.round_ns
    if is_exact:
        assert found.assessment.round_ns == best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40))
def test_hierarchical_links(seed: int) -> None:
    checked(tiny(seed), is_exact=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40))
def test_irregular_links(seed: int) -> None:
    checked(tiny(seed, irregular=True), is_exact=True)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40))
def test_throughput(seed: int) -> None:
    problem = tiny(seed, micro_batches=3)
    found, best = solve(problem), naive_best_ns(problem)
    assert isinstance(found, Solution) == (best is not None)
    if isinstance(found, Solution) and best is not None:
        assert found.lower_bound_ns <= best <= found.assessment.round_ns <= best * 1.001


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**40))
def test_order_does_not_matter(seed: int) -> None:
    problem = tiny(seed, irregular=seed % 2 == 0)
    assert solve(problem) == solve(shuffled(problem, random.Random(seed)))


@pytest.mark.parametrize("seed", range(4))
def test_many_nodes_of_two_devices_are_decided_without_a_search(seed: int) -> None:
    problem = pairs_of_devices(seed, 32)
    most = dict(zip((one.device_id for one in problem.devices), field_of(problem).most_layers, strict=True))
    groups = device_groups(problem.devices, by="node_id")
    groups = (*[one for one in groups if max(most[name] for name in one) > 0],)
    empty = tuple(
        one.device_id for one in problem.devices if one.device_id not in {n for g in groups for n in g}
    )
    problem = replace(problem, devices=tuple(one for one in problem.devices if one.device_id not in empty))
    for rules in (
        (AtLeast(groups=groups, count=10, reason="ten nodes"),),
        tuple(AtLeast(groups=(group,), count=1, reason="must use") for group in groups[::8]),
        (
            AtLeast(groups=groups, count=8, reason="eight nodes"),
            *(AtLeast(groups=(group,), count=1, reason="must use") for group in groups[3::16]),
        ),
    ):
        asked = replace(problem, rules=rules)
        found = solve(asked, options=Options(has_constraint_layer=False))
        assert isinstance(found, Solution)
        assert assess(asked, found.stages).violations == ()
        assert found.gap < 0.01 and not found.is_truncated


def test_counting_by_bonus_agrees_with_counting_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    from exo.master.placement.ladder import counting

    for seed in range(6):
        problem = pairs_of_devices(seed, 12)
        groups = device_groups(problem.devices, by="node_id")
        asked = replace(problem, rules=(AtLeast(groups=groups, count=6, reason="six nodes"),))
        with monkeypatch.context() as patched:
            patched.setattr(counting, "_EXACT_AT_ONCE", 99)
            exact = solve(asked)
        found = solve(asked)
        assert isinstance(exact, Solution) == isinstance(found, Solution)
        if isinstance(exact, Solution) and isinstance(found, Solution):
            assert exact.gap == 0
            assert found.lower_bound_ns <= exact.assessment.round_ns <= found.assessment.round_ns
            assert found.assessment.round_ns <= exact.assessment.round_ns * 1.0002


def test_groups_that_cut_through_shared_memory_are_left_to_the_constraint_layer() -> None:
    problem = random_problem(random.Random(3), devices=6, layers=6, shared_pools=False, tightness=5)
    home = problem.devices[0]
    shared = tuple(
        replace(one, host=home.host, zone=home.zone, pool_id=home.pool_id) for one in problem.devices
    )
    names = [one.device_id for one in shared]
    rule = AtLeast(groups=(tuple(names[:2]), tuple(names[2:4]), tuple(names[4:])), count=2, reason="pairs")
    cut = canonical(replace(problem, devices=shared, rules=(rule,), pools=problem.pools))
    assert units_of(field_of(cut)).kept == ()
    own = canonical(replace(problem, rules=(rule,)))
    whole = replace(own, devices=tuple(replace(one, host=home.host, zone=home.zone) for one in own.devices))
    assert units_of(field_of(whole)).kept == whole.rules


def test_more_groups_than_there_are_is_refused_with_the_rule() -> None:
    problem = random_problem(random.Random(3), devices=4, layers=6, shared_pools=False, tightness=9)
    groups = device_groups(problem.devices, by="device_id")
    found = solve(replace(problem, rules=(AtLeast(groups=groups, count=5, reason="five nodes"),)))
    assert isinstance(found, Infeasible)
    assert "five nodes" in [one.constraint for one in found.relaxations]
