"""Layers of unequal size and time: how near plans are proven to be to the best, and how soon."""

import random
import statistics

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.random_problems import uneven
from benchmarks.placement.timing import timed_solve
from benchmarks.results import Result
from exo.master.placement.ladder.answer import Solution


def run(*, quick: bool) -> list[Result]:
    """Three unlike layers in front, the others within 10 %; clusters of 4 to 64 devices."""
    sheet = Sheet()
    for devices in (4, 16, 64):
        times_ms: list[float] = []
        gaps: list[float] = []
        for seed in range(4 if quick else 12):
            problem = uneven(random_problem(seed, devices), random.Random(seed))
            found, took_ms = timed_solve(problem)
            if isinstance(found, Solution):
                times_ms.append(took_ms)
                gaps.append(100 * found.gap)
        sheet.add(f"unequal layers, {devices} devices: certified gap, median", statistics.median(gaps), "%")
        sheet.add(f"unequal layers, {devices} devices: solve, median", statistics.median(times_ms), "ms")
    return sheet.results
