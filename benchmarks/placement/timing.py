"""Times solves. Nothing waits for anything in them, so the processor's time is what counts."""

import time
from collections.abc import Callable

from exo.master.placement.ladder.answer import Infeasible, Solution
from exo.master.placement.ladder.problem import CostProblem
from exo.master.placement.ladder.solve import ShouldStop, solve


def timed_solve(
    problem: CostProblem, should_stop: ShouldStop | None = None
) -> tuple[Solution | Infeasible, float]:
    """Solve once; return the answer and the milliseconds of processor time."""
    started_s = time.process_time()
    found = solve(problem) if should_stop is None else solve(problem, should_stop=should_stop)
    return found, (time.process_time() - started_s) * 1000


def deadline(ms: float) -> ShouldStop:
    """A `should_stop` that says so after so many milliseconds of processor time from now."""
    end_s = time.process_time() + ms / 1000
    return lambda: time.process_time() >= end_s


def warm_up(problem: CostProblem, solver: Callable[[CostProblem], object] = solve) -> None:
    """Have what is loaded or made once out of the way."""
    solver(problem)
