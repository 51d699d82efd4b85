"""Layers of unequal size and time: how near plans are proven to be to the best, and how soon."""

import statistics

from msgspec.structs import replace

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.ruled import ruled_problem
from benchmarks.placement.timing import deadline, timed_solve, warm_up
from benchmarks.placement.uneven_shapes import SHAPES, front_and_windows
from benchmarks.results import Result
from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.problem import CostProblem

_FAIR_PERCENT = 0.5


def run(*, quick: bool) -> list[Result]:
    """Shapes that models have, and noise, on clusters of 4 to 64 devices; then with rules, and for throughput."""
    sheet = Sheet()
    count = 4 if quick else 12
    warm_up(front_and_windows(random_problem(0, 8), 0))
    for name, shape in SHAPES.items():
        for devices in (4, 16, 64):
            problems = [shape(random_problem(seed, devices), seed) for seed in range(count)]
            bar = None if name == "10 % of noise" else _FAIR_PERCENT
            _add(sheet, f"unequal layers ({name}), {devices} devices", problems, bar)
    some = range(2 if quick else 6)
    ruled = [front_and_windows(ruled_problem(seed, 16), seed) for seed in some]
    _add(sheet, "unequal layers with rules, 16 devices", ruled, None)
    for_many = [
        replace(front_and_windows(random_problem(seed, 16), seed), concurrency=8, micro_batches=4)
        for seed in some
    ]
    _add(sheet, "unequal layers for throughput, 16 devices", for_many, None)
    return sheet.results


def _add(sheet: Sheet, name: str, problems: list[CostProblem], bar_percent: float | None) -> None:
    times_ms: list[float] = []
    gaps: list[float] = []
    for problem in problems:
        found, took_ms = timed_solve(problem, deadline(5000))
        if isinstance(found, Solution):
            times_ms.append(took_ms)
            gaps.append(100 * found.gap)
    sheet.add(f"{name}: certified gap, median", statistics.median(gaps), "%", at_most=bar_percent)
    sheet.add(f"{name}: certified gap, largest", max(gaps), "%")
    sheet.add(f"{name}: solve, median", statistics.median(times_ms), "ms")
    sheet.add(f"{name}: solve, slowest", max(times_ms), "ms")
