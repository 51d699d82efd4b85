"""64 and 1,000 devices on hierarchical links: how near the plan is proven to be, and how soon."""

import statistics

from benchmarks.cluster.measuring import Sheet, percentile
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.timing import timed_solve, warm_up
from benchmarks.results import Result
from exo.master.placement.ladder.answer import Solution


def run(*, quick: bool) -> list[Result]:
    """100 clusters of 64 devices, 20 of 1,000. What cannot hold its model is timed apart."""
    sheet = Sheet()
    warm_up(random_problem(0, 64))
    for devices, count, gap, median_ms, p99_ms in ((64, 100, 0.5, 10, 50), (1000, 20, 0.1, 100, None)):
        times_ms: list[float] = []
        refused_ms: list[float] = []
        gaps: list[float] = []
        for seed in range(count // 5 if quick else count):
            found, took_ms = timed_solve(random_problem(seed, devices))
            if isinstance(found, Solution):
                times_ms.append(took_ms)
                gaps.append(100 * found.gap)
            else:
                refused_ms.append(took_ms)
        name = f"{devices} devices"
        sheet.add(f"{name}: largest certified gap", max(gaps), "%", at_most=gap)
        sheet.add(f"{name}: solve, median", statistics.median(times_ms), "ms", at_most=median_ms)
        sheet.add(f"{name}: solve, p99", percentile(times_ms, 99), "ms", at_most=p99_ms)
        if refused_ms:
            sheet.add(f"{name}: refusal with what would help, slowest", max(refused_ms), "ms")
    return sheet.results
