"""The constraint layer where devices differ: it looks for a faster set of devices than was found, or proves it."""

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Options, Solution
from exo.master.placement.ladder.branch import branch
from exo.master.placement.ladder.evaluate import Stage, assess
from exo.master.placement.ladder.field import Field, field_of
from exo.master.placement.ladder.problem import CostProblem, canonical
from exo.master.placement.ladder.water import Filled

DEVICES_MAX = 32
"""Of more, the search seldom ends within its limits."""
_BRANCHES_MAX = 128
"""On links of a hierarchy two or three are enough; on measured ones thousands rarely find more."""


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """What the constraint layer says of a plan."""

    solution: Solution
    """The plan, or a faster one, with the better of the bounds."""
    branch_count: int
    """Assignments that were tried."""
    is_whole: bool
    """Whether every set of devices was seen or ruled out."""


def confirm(
    problem: CostProblem, solution: Solution, *, options: Options, should_stop: Callable[[], bool]
) -> Confirmed | None:
    """Search all sets of devices for a faster plan. None: that was done already, or it is not for this problem.

    Rules are the constraint layer's own work on the ladder. Here it is for one micro-batch at a time, layers of one
    kind and up to `DEVICES_MAX` devices.
    """
    told = canonical(problem)
    is_suited = told.model.is_uniform and told.micro_batches == 1 and not told.rules
    if not is_suited or not 2 <= len(told.devices) <= DEVICES_MAX or solution.is_truncated:
        return None
    of = field_of(told)
    known = _filled(of, solution)
    found = branch(
        of,
        relaxed=known,
        relaxed_bound_ns=solution.lower_bound_ns,
        known=known,
        branches_max=min(_BRANCHES_MAX, options.branches_max),
        should_stop=should_stop,
    )
    bound_ns = max(solution.lower_bound_ns, min(found.lower_bound_ns, solution.assessment.round_ns))
    better = _solution(of, solution, found.plan, bound_ns)
    return Confirmed(solution=better, branch_count=found.branches, is_whole=found.is_whole)


def _filled(of: Field, solution: Solution) -> Filled:
    index_of = {one.device_id: index for index, one in enumerate(of.devices)}
    return Filled(
        solution.assessment.latency_ns,
        tuple(index_of[stage.device_id] for stage in solution.stages),
        tuple(stage.end_layer - stage.start_layer for stage in solution.stages),
    )


def _solution(of: Field, before: Solution, plan: Filled | None, bound_ns: int) -> Solution:
    if plan is None or plan.cost_ns >= before.assessment.latency_ns:
        return replace(before, lower_bound_ns=min(bound_ns, before.assessment.round_ns))
    stages: list[Stage] = []
    start = 0
    for index, count in zip(plan.ring, plan.layers, strict=True):
        name = of.devices[index].device_id
        stages.append(Stage(device_id=name, start_layer=start, end_layer=start + count))
        start += count
    told = assess(of.problem, stages)
    if told.violations or told.round_ns >= before.assessment.round_ns:
        return before
    return replace(
        before,
        stages=tuple(stages),
        assessment=told,
        lower_bound_ns=min(bound_ns, told.round_ns),
        method="constraint layer",
    )
