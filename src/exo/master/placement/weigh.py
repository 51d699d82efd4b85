"""Weighs plans by predicted time: the greedy's is there first, and the ladder's takes its place where it is faster."""

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from exo.master.placement.confirm import DEVICES_MAX, Confirmed, confirm
from exo.master.placement.costs import Costs
from exo.master.placement.evaluate import violations
from exo.master.placement.held import process_bytes
from exo.master.placement.ladder.answer import Infeasible, Options, Solution
from exo.master.placement.ladder.evaluate import Assessment, Stage, assess
from exo.master.placement.ladder.problem import CostProblem
from exo.master.placement.ladder.solve import solve, solve_rounds
from exo.master.placement.problem import Problem
from exo.shared.types.ids import DeviceId
from exo.shared.types.instances import Certificate, Prediction, StagePlan

ShouldStop = Callable[[], bool]
_NS_PER_MS = 1e6


class Offload(msgspec.Struct, frozen=True, kw_only=True):
    """What it costs that layers run from host memory."""

    layer_count: int
    more_bytes: int
    """So much more VRAM on one GPU would hold them."""
    device_id: DeviceId
    """That GPU."""
    in_vram_ms: float | None
    """What each token would take then; None where that could not be told."""
    on_gpus_ms: float | None = None
    """What each token takes on GPUs alone, where they hold the model but are slower; None where they do not."""


class Weighed(msgspec.Struct, frozen=True, kw_only=True):
    """The plan that stands, and what is known of it."""

    stages: tuple[StagePlan, ...]
    method: str
    problem: CostProblem | None = None
    """The cost problem that it was weighed on; None where it could not be weighed."""
    solution: Solution | None = None
    """The plan as the ladder's answer, with its bound; None where the ladder had none."""
    assessment: Assessment | None = None
    """The plan's times on that problem."""
    prediction: Prediction | None = None
    certificate: Certificate | None = None
    baseline: Prediction | None = None
    is_truncated: bool = False
    notes: tuple[str, ...] = ()
    """What did not go as usual, for the explanation."""
    heterogeneity: str | None = None
    """How devices differ and what the constraint layer had to do with it, in words; None: they are alike."""
    offload: Offload | None = None
    """Set where processors beside GPUs hold layers."""


class _Rated(msgspec.Struct, frozen=True, kw_only=True):
    """The greedy's plan under the cost problem that suits it best."""

    problem: CostProblem
    stages: tuple[Stage, ...]
    assessment: Assessment


def weigh(
    problem: Problem,
    costs: Costs,
    incumbent: Sequence[StagePlan] | None,
    *,
    should_stop: ShouldStop,
    options: Options,
) -> Weighed | Infeasible:
    """Return the incumbent or the ladder's plan, whichever is predicted to be faster; of equals the incumbent.

    Args:
        problem: What may take part.
        costs: The same as cost problems.
        incumbent: The greedy's plan; None where it found none.
        should_stop: Asked between steps of a long search.
        options: Limits of the ladder.

    Returns:
        An `Infeasible` only where there is no plan at all.
    """
    rated = _rate(costs, incumbent) if incumbent is not None else None
    found: tuple[int, Solution] | Infeasible | None = None
    if incumbent is None and len(costs.rounds) > 1:
        # What does not fit in one micro-batch fits in none: they all keep the same caches.
        first = solve(costs.rounds[0], should_stop=should_stop, options=options)
        found = first if isinstance(first, Infeasible) else None
    if found is None:
        found = solve_rounds(costs.rounds, should_stop=should_stop, options=options)
    if isinstance(found, Infeasible):
        if incumbent is None:
            return found
        note = f"the search for a faster plan gave none: {found.reasons[0]}"
        return _standing(incumbent, rated, notes=(*costs.notes, note), is_truncated=found.code == "undecided")
    place, solution = found
    confirmed = _confirm(costs, solution, options, should_stop)
    if confirmed is not None:
        solution = confirmed.solution
    stages = _stage_plans(problem, costs, solution)
    wrong = _check(problem, stages)
    if wrong is not None:
        if incumbent is None:
            reason = f"The plan that was found failed its check: {wrong}."
            return Infeasible(code="undecided", reasons=(reason,))
        note = f"a plan that was predicted to be faster failed its check: {wrong}"
        return _standing(incumbent, rated, notes=(*costs.notes, note), is_truncated=solution.is_truncated)
    baseline = rated.assessment if rated is not None else solution.baseline
    chosen, on, method = solution, costs.rounds[place], str(solution.method)
    if (
        incumbent is not None
        and rated is not None
        and rated.assessment.round_ns <= solution.assessment.round_ns
    ):
        bound_ns = min(solution.lower_bound_ns, rated.assessment.round_ns)
        chosen = replace(solution, stages=rated.stages, assessment=rated.assessment, lower_bound_ns=bound_ns)
        stages, on, method = tuple(incumbent), rated.problem, "greedy"
    return Weighed(
        stages=_timed(stages, chosen.assessment),
        method=method,
        problem=on,
        solution=chosen,
        assessment=chosen.assessment,
        prediction=_prediction(chosen.assessment),
        certificate=_certificate(chosen),
        baseline=_prediction(baseline) if baseline is not None else None,
        is_truncated=solution.is_truncated,
        notes=costs.notes,
        heterogeneity=_told_of_variety(costs, solution, confirmed, options),
    )


def _confirm(costs: Costs, solution: Solution, options: Options, should_stop: ShouldStop) -> Confirmed | None:
    """Have the constraint layer take part where devices differ."""
    if not costs.heterogeneity or not options.has_constraint_layer or options.wants_any:
        return None
    return (
        confirm(costs.rounds[0], solution, options=options, should_stop=should_stop)
        if len(costs.rounds) == 1
        else None
    )


def _told_of_variety(
    costs: Costs, solution: Solution, confirmed: Confirmed | None, options: Options
) -> str | None:
    """Say how devices differ, and what the constraint layer did about it; None: they are alike."""
    if not costs.heterogeneity:
        return None
    if not options.has_constraint_layer:
        part = "the constraint layer was left out (EXO_CSP_PLACEMENT=0)"
    elif confirmed is not None:
        tried = f"the constraint layer tried {confirmed.branch_count} sets of devices"
        if confirmed.solution.method == "constraint layer":
            part = f"{tried} and found this plan"
        elif confirmed.is_whole and confirmed.solution.gap == 0:
            part = f"{tried} and ruled out all others: none is faster"
        else:
            part = f"{tried} and found none that is faster"
    elif costs.rounds[0].rules:
        part = "the constraint layer kept the rules that were asked for"
    else:
        part = (
            "the other solvers decided alone: with several micro-batches, unequal layers or more than "
            f"{DEVICES_MAX} devices the constraint layer only keeps rules"
        )
    return f"{', '.join(costs.heterogeneity)}; {part}"


def weigh_given(costs: Costs, stages: Sequence[StagePlan], method: str) -> Weighed:
    """Predict a plan that was asked for as it is: nothing is searched, so there is no certificate."""
    return replace(_standing(stages, _rate(costs, stages), notes=costs.notes), method=method, baseline=None)


def bounded(weighed: Weighed, lower_bound_ns: int) -> Weighed:
    """Return a plan with a bound that holds for more devices than those it was found on: the lower of both."""
    known = weighed.solution
    if known is None or lower_bound_ns >= known.lower_bound_ns:
        return weighed
    known = replace(known, lower_bound_ns=lower_bound_ns)
    return replace(weighed, solution=known, certificate=_certificate(known))


def _certificate(solution: Solution) -> Certificate | None:
    """Return how far the plan can be from the best one; None where nothing is known, as in a search cut short."""
    if solution.lower_bound_ns <= 0:
        return None
    return Certificate(lower_bound_ms=solution.lower_bound_ns / _NS_PER_MS, gap_percent=solution.gap * 100)


def _rate(costs: Costs, stages: Sequence[StagePlan]) -> _Rated | None:
    as_seen = tuple(
        Stage(device_id=stage_device_id(one), start_layer=one.start_layer, end_layer=one.end_layer)
        for one in stages
    )
    rated = [
        _Rated(problem=problem, stages=as_seen, assessment=assess(problem, as_seen))
        for problem in costs.rounds
    ]
    legal = [one for one in rated if not one.assessment.violations]
    return min(legal, key=lambda one: one.assessment.round_ns) if legal else None


def _standing(
    stages: Sequence[StagePlan], rated: _Rated | None, *, notes: tuple[str, ...], is_truncated: bool = False
) -> Weighed:
    """Return a plan without anything to compare it to."""
    if rated is None:
        return Weighed(stages=tuple(stages), method="greedy", is_truncated=is_truncated, notes=notes)
    return Weighed(
        stages=_timed(stages, rated.assessment),
        method="greedy",
        problem=rated.problem,
        assessment=rated.assessment,
        prediction=_prediction(rated.assessment),
        baseline=_prediction(rated.assessment),
        is_truncated=is_truncated,
        notes=notes,
    )


def stage_device_id(stage: StagePlan) -> str:
    """Return what the cost problems call the device or the tensor group that a stage runs on."""
    return "+".join(stage.device_ids)


def _stage_plans(problem: Problem, costs: Costs, solution: Solution) -> tuple[StagePlan, ...]:
    by_device = {one.device.device_id: one for one in problem.candidates}
    stages: list[StagePlan] = []
    for rank, one in enumerate(solution.stages):
        group = costs.groups.get(one.device_id)
        names = group.device_ids if group is not None else (one.device_id,)
        device_ids = tuple(DeviceId(name) for name in names)
        first = by_device[device_ids[0]]
        own_bytes = problem.stage_memory_bytes(one.start_layer, one.end_layer)
        stages.append(
            StagePlan(
                rank=rank,
                node_id=first.node_id,
                device_ids=device_ids,
                start_layer=one.start_layer,
                end_layer=one.end_layer,
                memory_bytes=own_bytes + (len(device_ids) - 1) * process_bytes(problem.model),
                is_offloaded=first.is_offload,
            )
        )
    return tuple(stages)


def _check(problem: Problem, stages: Sequence[StagePlan]) -> str | None:
    wrong = violations(
        stages,
        model=problem.model,
        context_length=problem.context_length,
        concurrency=problem.request.concurrency,
        pool_by_device=problem.pool_by_device,
        free_bytes_by_pool=problem.free_bytes_by_pool,
    )
    return wrong[0] if wrong else None


def _timed(stages: Sequence[StagePlan], assessment: Assessment) -> tuple[StagePlan, ...]:
    return tuple(
        replace(one, time_ms=time_ns / _NS_PER_MS)
        for one, time_ns in zip(stages, assessment.stage_ns, strict=True)
    )


def _prediction(assessment: Assessment) -> Prediction:
    return Prediction(ms_per_token=assessment.round_ns / _NS_PER_MS, tokens_per_s=assessment.tokens_per_s)
