"""The memory-weighted ring over 1,000 devices: the answer that is there before anything slow begins."""

import statistics
import time

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.clusters import random_problem
from benchmarks.results import Result
from exo.master.placement.ladder.field import field_of
from exo.master.placement.ladder.greedy import memory_weighted_ring
from exo.master.placement.ladder.problem import canonical


def run(*, quick: bool) -> list[Result]:
    """From the canonical problem to the ring, arrays included."""
    sheet = Sheet()
    times_ms: list[float] = []
    memory_weighted_ring(field_of(canonical(random_problem(0, 1000))))
    for seed in range(5 if quick else 20):
        problem = canonical(random_problem(seed, 1000))
        started_s = time.process_time()
        ring = memory_weighted_ring(field_of(problem))
        times_ms.append((time.process_time() - started_s) * 1000)
        assert ring is not None
    sheet.add("greedy ring, 1,000 devices, median", statistics.median(times_ms), "ms", at_most=5)
    sheet.add("greedy ring, 1,000 devices, slowest", max(times_ms), "ms")
    return sheet.results
