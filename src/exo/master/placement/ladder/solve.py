"""The front door of the ladder: `solve` takes a cost problem and returns a plan with its certificate, or why not."""

from collections.abc import Callable

from exo.master.placement.ladder.answer import Infeasible, Options, Solution
from exo.master.placement.ladder.check import complaints
from exo.master.placement.ladder.problem import CostProblem, canonical
from exo.master.placement.ladder.search import Search

ShouldStop = Callable[[], bool]


def solve(
    problem: CostProblem, *, should_stop: ShouldStop = lambda: False, options: Options | None = None
) -> Solution | Infeasible:
    """Return the best plan found, with a lower bound that no plan can beat.

    Equal problems give equal plans, whatever the order of their devices. `should_stop` is a safety net: it is
    asked between steps and in the leaves of searches, and ends them with the plan at hand and `is_truncated` set.

    Never raises for bad input: that is an `Infeasible` with the code `invalid`.
    """
    wrong = complaints(problem)
    if wrong:
        return Infeasible(code="invalid", reasons=tuple(wrong))
    return Search(canonical(problem), should_stop, options or Options()).run()
