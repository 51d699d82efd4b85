"""What holds of every placement: `benchmarks.placement.faults` and `front_faults` ask 10,000 each."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.faults import faults
from benchmarks.placement.front_faults import KINDS, front_faults
from benchmarks.placement.random_problems import with_rules
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Solution
from exo.master.placement.ladder.problem import AtLeast, CostProblem, Pool, device_groups
from exo.master.placement.ladder.solve import solve

ROOT = Path(__file__).parents[2]
BATCHES = 6
"""Of the fixed seeds, so that a failure names a few of them."""


@pytest.mark.parametrize("batch", range(BATCHES))
def test_answers_to_random_requests_are_right_by_a_judge_of_their_own(batch: int) -> None:
    """No over-commit, each layer once, wishes kept, no false refusal, order and more machines do no harm."""
    found = front_faults(12, first=100_000 + 12 * batch)
    assert {kind: found[kind] for kind in KINDS if found[kind]} == {}
    assert found["plans"] > 2


@pytest.mark.parametrize("batch", range(BATCHES))
def test_plans_of_random_cost_problems_are_legal_bounded_and_not_overlooked(batch: int) -> None:
    found = faults(20, first=100_000 + 20 * batch)
    wrong = {kind: count for kind, count in found.items() if kind not in {"plans", "refusals", "undecided"}}
    assert {kind: count for kind, count in wrong.items() if count} == {}


DIGEST = """
import hashlib, sys
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.states import random_asked
from exo.master.placement.ladder.solve import solve
from exo.master.placement.place import place_instance
said = hashlib.sha256()
for seed in range(8):
    asked = random_asked(300 + seed)
    said.update(repr(place_instance(asked.state, asked.request, should_stop=lambda: False)).encode())
    said.update(repr(solve(random_problem(seed, 3 + seed, 40, irregular=seed % 2 == 0))).encode())
print(said.hexdigest())
"""


def test_another_process_with_other_hashes_finds_the_same_plans() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "4242")
    ]
    said = [one.communicate(timeout=120)[0].strip() for one in running]
    assert [one.returncode for one in running] == [0, 0]
    assert len(said[0]) == 64 and said[0] == said[1]


def with_one_more(problem: CostProblem, seed: int) -> CostProblem:
    """A device more, on a host of its own."""
    chance = random.Random(seed)
    like = chance.choice(problem.devices)
    device = replace(
        like,
        device_id="more",
        node_id="more",
        host="more",
        pool_id="more",
        layer_ns=max(1, int(like.layer_ns * chance.uniform(0.3, 3))),
        is_required=False,
    )
    pool = Pool(pool_id="more", room_bytes=chance.choice(problem.pools).room_bytes)
    return replace(problem, devices=(*problem.devices, device), pools=(*problem.pools, pool))


@pytest.mark.parametrize("batch", range(4))
def test_a_device_more_never_makes_it_slower(batch: int) -> None:
    for seed in range(batch * 25, batch * 25 + 25):
        problem = random_problem(seed, 2 + seed % 14, 40, irregular=seed % 5 == 0, min_stages=1 + seed % 3)
        if seed % 4 == 0:
            problem = with_rules(problem, random.Random(seed))
        before, after = solve(problem), solve(with_one_more(problem, seed))
        if isinstance(before, Infeasible):
            continue
        assert isinstance(after, Solution)
        best = after.lower_bound_ns if after.gap else after.assessment.round_ns
        assert best <= before.assessment.round_ns


@pytest.mark.parametrize("seed", range(8))
def test_least_numbers_of_nodes_and_demanded_ones_are_the_oracles(seed: int) -> None:
    pytest.importorskip("ortools", reason="OR-tools is not installed: uv sync --group check")
    from benchmarks.placement.oracle import cp_sat

    chance = random.Random(seed)
    problem = random_problem(seed, 2 * chance.randint(3, 6), 40)
    zones = [one.zone for one in problem.devices]
    devices = tuple(
        replace(one, node_id=f"node-{i // 2}", host=f"host-{i // 2}", zone=zones[i // 2 * 2])
        for i, one in enumerate(problem.devices)
    )
    nodes = device_groups(devices, by="node_id")
    asked = replace(
        problem,
        devices=devices,
        rules=(
            AtLeast(groups=nodes, count=chance.randint(2, len(nodes)), reason="nodes"),
            AtLeast(groups=(chance.choice(nodes),), count=1, reason="must use"),
        ),
    )
    found, oracle = solve(asked), cp_sat(asked)
    assert isinstance(found, Solution) == (oracle.best_ns is not None)
    if isinstance(found, Solution) and oracle.best_ns is not None:
        assert found.lower_bound_ns <= oracle.best_ns
        assert oracle.best_ns <= found.assessment.round_ns <= oracle.best_ns * 1.0002
