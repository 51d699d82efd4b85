"""Nodes and zones asked for together: every plan belongs to one part, and the parts close what bonuses leave open."""

import itertools
import random

import pytest
from benchmarks.placement.rules import pairs_of_devices
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.field import field_of
from exo.master.placement.ladder.parts import parts_of
from exo.master.placement.ladder.problem import AtLeast, AtMost, CostProblem, canonical, device_groups
from exo.master.placement.ladder.rules import keeps_rules
from exo.master.placement.ladder.solve import solve
from exo.master.placement.ladder.units import units_of
from support.cost_problems import shuffled


def asked(problem: CostProblem, nodes: int, zones: int) -> CostProblem:
    by_node = device_groups(problem.devices, by="node_id")
    by_zone = device_groups(problem.devices, by="zone")
    rules = (
        AtLeast(groups=by_node, count=min(nodes, len(by_node)), reason="nodes"),
        AtLeast(groups=by_zone, count=min(zones, len(by_zone)), reason="zones"),
    )
    return canonical(replace(problem, rules=rules))


def in_zones(problem: CostProblem, count: int) -> CostProblem:
    """The same nodes, in so many zones in turn."""
    hosts = sorted({one.host for one in problem.devices})
    return replace(
        problem,
        devices=tuple(replace(one, zone=f"zone-{hosts.index(one.host) % count}") for one in problem.devices),
    )


@pytest.mark.parametrize(("seed", "zones", "least"), [(0, 3, 2), (1, 4, 2), (2, 4, 3), (3, 3, 3)])
def test_every_set_of_devices_that_keeps_both_rules_is_in_one_part(seed: int, zones: int, least: int) -> None:
    of = field_of(asked(in_zones(pairs_of_devices(seed, 5), zones), nodes=4, zones=least))
    parts = parts_of(of, units_of(of))
    if least == zones:
        # All zones are demanded: there is nothing to choose.
        assert parts is None
        return
    assert parts is not None
    told = [
        (field.problem.rules, {of.devices[index].device_id for index in kept.tolist()})
        for field, kept in parts
    ]
    names = [one.device_id for one in of.devices]
    for size in range(1, 8):
        for used in itertools.combinations(names, size):
            times = sum(set(used) <= kept and keeps_rules(used, rules) for rules, kept in told)
            assert times == keeps_rules(used, of.problem.rules)


def test_there_are_no_parts_without_a_second_rule_that_counts() -> None:
    problem = asked(in_zones(pairs_of_devices(0, 6), 3), nodes=4, zones=2)
    for rules in ((), problem.rules[:1], (AtMost(device_ids=(problem.devices[0].device_id,), count=0),)):
        of = field_of(replace(problem, rules=rules))
        assert parts_of(of, units_of(of)) is None
    many = field_of(asked(in_zones(pairs_of_devices(0, 40), 20), nodes=30, zones=10))
    assert parts_of(many, units_of(many)) is None


@pytest.mark.parametrize(("seed", "nodes", "zones"), [(0, 6, 2), (1, 6, 2), (3, 10, 3)])
def test_many_nodes_in_some_zones_are_proven(seed: int, nodes: int, zones: int) -> None:
    problem = asked(pairs_of_devices(seed, 64), nodes, zones)
    found = solve(problem)
    assert isinstance(found, Solution)
    assert found.gap < 2e-4
    assert found.assessment.violations == ()
    assert solve(shuffled(problem, random.Random(seed))) == found


@pytest.mark.parametrize("seed", range(4))
def test_the_oracle_finds_the_same(seed: int) -> None:
    pytest.importorskip("ortools", reason="OR-tools is not installed: uv sync --group check")
    from benchmarks.placement.oracle import cp_sat

    problem = asked(in_zones(pairs_of_devices(seed, 7), 3), nodes=4, zones=2)
    found, oracle = solve(problem), cp_sat(problem)
    assert oracle.is_proven
    assert isinstance(found, Solution) == (oracle.best_ns is not None)
    if isinstance(found, Solution) and oracle.best_ns is not None:
        assert found.lower_bound_ns <= oracle.best_ns <= found.assessment.round_ns <= oracle.best_ns * 1.0002
