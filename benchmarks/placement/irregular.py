"""Measured links of any shape: how far plans are from CP-SAT's optimum, and whether their bounds are true."""

import json
import random
import statistics

from msgspec.structs import replace

from benchmarks.cluster.measuring import Sheet, percentile
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.oracle import OracleMissingError, cp_sat
from benchmarks.placement.record import FILE, irregular
from benchmarks.placement.timing import timed_solve, warm_up
from benchmarks.results import NotMeasured, Result
from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.problem import CostProblem, LinkCost, MeasuredLink


def run(*, quick: bool) -> list[Result | NotMeasured]:
    """The recorded clusters of 8 to 24 devices; then adversarial links, judged by CP-SAT now."""
    sheet = Sheet()
    rows = json.loads(FILE.read_text())["irregular"]
    warm_up(irregular(0))
    times_ms: list[float] = []
    excess: list[float] = []
    gaps: list[float] = []
    false_bounds = 0
    for row in rows[: 8 if quick else len(rows)]:
        found, took_ms = timed_solve(irregular(row["seed"]))
        if not isinstance(found, Solution):
            continue
        times_ms.append(took_ms)
        gaps.append(100 * found.gap)
        excess.append(100 * (found.assessment.round_ns / row["bound_ns"] - 1))
        false_bounds += found.lower_bound_ns > row["best_ns"]
    sheet.add("irregular links: furthest from the optimum", max(excess), "%", at_most=0.5)
    sheet.add("irregular links: solve, median", statistics.median(times_ms), "ms", at_most=50)
    sheet.add("irregular links: solve, p99", percentile(times_ms, 99), "ms")
    sheet.add("irregular links: certified gap, median", statistics.median(gaps), "%")
    results: list[Result | NotMeasured] = [*sheet.results]
    try:
        worst = 0.0
        for seed in range(4 if quick else 16):
            problem = adversarial(seed)
            found, oracle = timed_solve(problem)[0], cp_sat(problem)
            if isinstance(found, Solution) and oracle.best_ns is not None:
                false_bounds += found.lower_bound_ns > oracle.best_ns
                worst = max(worst, 100 * (found.assessment.round_ns / oracle.best_ns - 1))
        late = Sheet()
        late.add("adversarial links: furthest from CP-SAT", worst, "%")
        late.add(
            "irregular and adversarial links: certificates that are not true", false_bounds, "", at_most=0
        )
        results += late.results
    except OracleMissingError as error:
        results.append(NotMeasured(name="adversarial links", reason=str(error)))
    return results


def adversarial(seed: int) -> CostProblem:
    """Links that mislead: each way round its own, dear where they look near, cheap only along a hidden ring."""
    chance = random.Random(seed)
    problem = random_problem(seed, chance.randint(6, 14))
    names = [device.device_id for device in problem.devices]
    hidden = chance.sample(names, len(names))
    cheap = set(zip(hidden, hidden[1:] + hidden[:1], strict=True))
    measured = tuple(
        MeasuredLink(
            source_device_id=one,
            target_device_id=other,
            cost=LinkCost(
                forward_ns=(
                    cost := 1_000 if (one, other) in cheap else chance.choice([2_000_000, 20_000_000])
                ),
                return_ns=chance.choice([0, cost, 3 * cost]),
            ),
        )
        for one in names
        for other in names
        if one != other
    )
    return replace(problem, links=replace(problem.links, measured=measured))
