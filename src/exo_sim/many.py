"""Many runs, in several processes where there are processors for that."""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from exo_sim.schedule import Outcome, run_schedule

_CHUNK = 10


def _run_chunk(work: tuple[Sequence[int], str | None]) -> tuple[list[Outcome], float]:
    """Run some seeds; returns with them the processor time that they took."""
    seeds, mode = work
    began_s = time.process_time()
    outcomes = [run_schedule(seed, mode) for seed in seeds]
    return outcomes, time.process_time() - began_s


def run_many(seeds: range, mode: str | None, job_count: int) -> Iterator[tuple[list[Outcome], float]]:
    """Run seeds, several at a time where there are jobs for that; yields what became of some of them."""
    chunks: Iterable[tuple[Sequence[int], str | None]] = (
        (seeds[start : start + _CHUNK], mode) for start in range(0, len(seeds), _CHUNK)
    )
    if job_count == 1:
        yield from map(_run_chunk, chunks)
        return
    with ProcessPoolExecutor(job_count, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_run_chunk, chunks)
