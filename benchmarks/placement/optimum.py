"""Up to 16 devices on hierarchical links: the recorded CP-SAT optima of 500 clusters, and 20 solved by it now."""

import json
import statistics

from benchmarks.cluster.measuring import Sheet, percentile
from benchmarks.placement.oracle import OracleMissingError, cp_sat
from benchmarks.placement.record import FILE, HIERARCHICAL, hierarchical
from benchmarks.placement.timing import timed_solve, warm_up
from benchmarks.results import NotMeasured, Result
from exo.master.placement.ladder.answer import Solution


def run(*, quick: bool) -> list[Result | NotMeasured]:
    """Compare all of the recorded ones, or the first 60."""
    sheet = Sheet()
    rows = json.loads(FILE.read_text())["hierarchical"][: 60 if quick else HIERARCHICAL]
    warm_up(hierarchical(0))
    times_ms: list[float] = []
    equal = proven = 0
    for row in rows:
        found, took_ms = timed_solve(hierarchical(row["seed"]))
        times_ms.append(took_ms)
        cost = found.assessment.round_ns if isinstance(found, Solution) else None
        equal += cost == row["best_ns"]
        proven += not isinstance(found, Solution) or found.gap == 0
    sheet.add("16 devices: equal to the recorded optimum", 100 * equal / len(rows), "%", at_least=99.5)
    sheet.add("16 devices: proven to be so", 100 * proven / len(rows), "%")
    sheet.add("16 devices: solve, median", statistics.median(times_ms), "ms", at_most=3)
    sheet.add("16 devices: solve, p99", percentile(times_ms, 99), "ms", at_most=20)
    results: list[Result | NotMeasured] = [*sheet.results]
    live = Sheet()
    seeds = range(1000, 1000 + (5 if quick else 20))
    try:
        same = 0
        for seed in seeds:
            found = timed_solve(hierarchical(seed))[0]
            cost = found.assessment.round_ns if isinstance(found, Solution) else None
            same += cost == cp_sat(hierarchical(seed)).best_ns
        live.add("16 devices: equal to CP-SAT, solved now", 100 * same / len(seeds), "%", at_least=100)
        results += live.results
    except OracleMissingError as error:
        results.append(NotMeasured(name="16 devices: equal to CP-SAT, solved now", reason=str(error)))
    return results
