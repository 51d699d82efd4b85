"""The ladder against CP-SAT, where OR-tools is installed."""

import random

import pytest

from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.solve import solve
from support.cost_problems import naive_best_ns, random_problem, with_random_rules

pytest.importorskip("ortools", reason="OR-tools is not installed: uv sync --group check")

from benchmarks.placement.oracle import cp_sat
from benchmarks.placement.record import hierarchical, irregular, ruled


@pytest.mark.parametrize("seed", range(12))
def test_the_oracle_itself_is_right_on_tiny_clusters(seed: int) -> None:
    chance = random.Random(seed)
    problem = random_problem(
        chance, devices=chance.randint(2, 4), layers=5, irregular=seed % 2 == 0, tightness=4, zones=2
    )
    if seed % 3 == 0:
        problem = with_random_rules(problem, chance)
    assert cp_sat(problem).best_ns == naive_best_ns(problem)


@pytest.mark.parametrize("seed", range(100, 112))
def test_hierarchical_optima_are_the_oracles(seed: int) -> None:
    problem = hierarchical(seed)
    found, oracle = solve(problem), cp_sat(problem)
    assert oracle.is_proven
    assert (found.assessment.round_ns if isinstance(found, Solution) else None) == oracle.best_ns
    if isinstance(found, Solution):
        assert found.lower_bound_ns == oracle.best_ns


@pytest.mark.parametrize("seed", range(100, 104))
def test_irregular_plans_are_near_the_oracles_and_truly_bounded(seed: int) -> None:
    problem = irregular(seed)
    found, oracle = solve(problem), cp_sat(problem)
    assert isinstance(found, Solution)
    assert oracle.best_ns is not None
    assert found.assessment.round_ns <= oracle.best_ns * 1.005
    assert found.lower_bound_ns <= oracle.best_ns
    assert oracle.bound_ns <= found.assessment.round_ns


@pytest.mark.parametrize("seed", range(4))
def test_ruled_plans_are_near_the_oracles(seed: int) -> None:
    problem = ruled(seed)
    found, oracle = solve(problem), cp_sat(problem)
    assert isinstance(found, Solution)
    assert oracle.best_ns is not None
    assert found.assessment.round_ns <= oracle.best_ns * 1.002
    assert found.lower_bound_ns <= oracle.best_ns
