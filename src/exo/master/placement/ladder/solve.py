"""The front door of the ladder: `solve` takes a cost problem and returns a plan with its certificate, or why not."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Options, Solution
from exo.master.placement.ladder.check import complaints
from exo.master.placement.ladder.infeasible import explain_infeasible
from exo.master.placement.ladder.problem import CostProblem, canonical
from exo.master.placement.ladder.search import Search

ShouldStop = Callable[[], bool]


def solve(
    problem: CostProblem, *, should_stop: ShouldStop = lambda: False, options: Options | None = None
) -> Solution | Infeasible:
    """Return the best plan found, with a lower bound that no plan can beat.

    Equal problems give equal plans, whatever the order of their devices. `should_stop` is a safety net: it is
    asked between steps and in the leaves of searches, and ends them with the plan at hand and `is_truncated` set.

    Where any plan will do, a refusal does not say what would help.

    Never raises for bad input: that is an `Infeasible` with the code `invalid`.
    """
    wrong = complaints(problem)
    if wrong:
        return Infeasible(code="invalid", reasons=tuple(wrong))
    told = canonical(problem)
    found = Search(told, should_stop, options or Options()).run()
    if isinstance(found, Solution) or found.code != "infeasible" or (options or Options()).wants_any:
        return found
    return explain_infeasible(told, found, should_stop)


def solve_rounds(
    problems: Sequence[CostProblem],
    *,
    should_stop: ShouldStop = lambda: False,
    options: Options | None = None,
) -> tuple[int, Solution] | Infeasible:
    """Solve the same request cut into different numbers of micro-batches; return the place of the best, and its plan.

    Few suit latency, many throughput; the shortest round, which is the most tokens per second, decides. Its lower
    bound is that over all ways.
    """
    found = [solve(problem, should_stop=should_stop, options=options) for problem in problems]
    solved = [(place, one) for place, one in enumerate(found) if isinstance(one, Solution)]
    if not solved:
        refused = [one for one in found if isinstance(one, Infeasible)]
        return refused[0] if refused else Infeasible(code="invalid", reasons=("There is nothing to solve.",))
    place, best = min(solved, key=lambda one: (one[1].assessment.round_ns, one[0]))
    is_open = any(isinstance(one, Infeasible) and one.code == "undecided" for one in found)
    bound = 0 if is_open else min(one.lower_bound_ns for _, one in solved)
    return place, replace(best, lower_bound_ns=min(bound, best.lower_bound_ns))


def micro_batch_choices(concurrency: int) -> tuple[int, ...]:
    """Return numbers of micro-batches worth trying: one, the powers of two, and one for each sequence."""
    powers = [
        2**exponent for exponent in range(max(1, concurrency).bit_length()) if 2**exponent < concurrency
    ]
    return tuple(sorted({1, *powers, max(1, concurrency)}))
