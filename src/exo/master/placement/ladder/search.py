"""The ladder itself: each rung improves the plan at hand or its bound, and the plan is checked before it leaves."""

from collections.abc import Callable

from exo.master.placement.ladder.answer import Infeasible, Method, Options, Solution
from exo.master.placement.ladder.evaluate import Assessment, Stage, assess
from exo.master.placement.ladder.exact import best_hierarchical
from exo.master.placement.ladder.field import Field, field_of
from exo.master.placement.ladder.greedy import memory_weighted_ring
from exo.master.placement.ladder.irregular import Outcome, search_irregular
from exo.master.placement.ladder.problem import CostProblem


class Search:
    """One solve: the plan at hand, its bound, and what is left to spend."""

    def __init__(self, problem: CostProblem, should_stop: Callable[[], bool], options: Options) -> None:
        self.problem = problem
        self.field = field_of(problem)
        self.should_stop = should_stop
        self.options = options
        self.lower_bound_ns = 0
        self.is_truncated = False
        self.evaluations = 0
        self._stages: tuple[Stage, ...] | None = None
        self._assessment: Assessment | None = None
        self._method: Method = "memory-weighted ring"

    def run(self) -> Solution | Infeasible:
        """Climb the ladder."""
        ring = memory_weighted_ring(self.field)
        if ring is not None:
            self.offer(_stages(self.field, tuple(i for i, _ in ring), tuple(n for _, n in ring)), self._method)
        baseline = self._assessment
        outcome = self._latency(self.field)
        if outcome.plan is None:
            return Infeasible(code="infeasible", reasons=("",))
        self.offer(_stages(self.field, outcome.plan.ring, outcome.plan.layers), outcome.method)
        self.lower_bound_ns = outcome.lower_bound_ns
        assert self._stages is not None
        assert self._assessment is not None
        return Solution(
            stages=self._stages,
            assessment=self._assessment,
            lower_bound_ns=self.lower_bound_ns,
            method=self._method,
            is_truncated=self.is_truncated,
            evaluations=self.evaluations,
            baseline=baseline,
        )

    def _latency(self, of: Field) -> Outcome:
        """Return a plan of least latency and its bound, as exactly as the links allow."""
        if of.problem.links.is_hierarchical:
            plan = best_hierarchical(of)
            method: Method = "single device" if plan is not None and len(plan.ring) == 1 else "dynamic programme"
            return Outcome(plan, 0 if plan is None else plan.cost_ns, method, 0, is_truncated=False)
        outcome = search_irregular(of, self.options, self.should_stop)
        self.evaluations += outcome.weighed
        self.is_truncated |= outcome.is_truncated
        return outcome

    def offer(self, stages: tuple[Stage, ...], method: Method) -> bool:
        """Take a plan if it is legal and better than the one at hand."""
        assessment = assess(self.problem, stages)
        if assessment.violations:
            return False
        if self._assessment is not None and assessment.round_ns >= self._assessment.round_ns:
            return False
        self._stages, self._assessment, self._method = stages, assessment, method
        return True


def _stages(of: Field, ring: tuple[int, ...], layers: tuple[int, ...]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    start = 0
    for index, count in zip(ring, layers, strict=True):
        stages.append(
            Stage(device_id=of.devices[index].device_id, start_layer=start, end_layer=start + count)
        )
        start += count
    return tuple(stages)
