"""From a problem to the plan that stands: greedy and ladder, and processors beside GPUs where those help."""

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from exo.master.placement.at_hand import weigh_at_hand
from exo.master.placement.costs import Costs, cost_rounds
from exo.master.placement.greedy import solve_greedy
from exo.master.placement.ladder.answer import Infeasible, Options
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.joining import worth_joining
from exo.master.placement.ladder.quick_bound import bound_without_links_ns
from exo.master.placement.problem import Problem
from exo.master.placement.weigh import Offload, Weighed, bounded, weigh, weigh_given
from exo.shared.types.instances import StagePlan
from exo.shared.types.models import TENSOR_ENGINES
from exo.shared.types.state import State

ShouldStop = Callable[[], bool]


class Solved(msgspec.Struct, frozen=True, kw_only=True):
    """What was solved last, and its answer."""

    problem: Problem
    costs: Costs
    answer: Weighed | Infeasible


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """What a solve may use."""

    options: Options
    tensor_engines: frozenset[str] = TENSOR_ENGINES
    """Those that can run a stage on several GPUs."""


def solve_placement(state: State, problem: Problem, *, should_stop: ShouldStop, means: Means) -> Solved:
    """Solve; processors beside GPUs join where VRAM does not hold the model, and where a plan with them is faster."""
    found = _solve(state, problem, should_stop, means)
    if not problem.spare:
        return found
    if isinstance(found.answer, Weighed):
        return _joined(state, found, found.answer, should_stop, means)
    again = _solve(state, problem.with_offload(), should_stop, means)
    if isinstance(again.answer, Weighed) and not means.options.wants_any:
        price = _price_offload(state, problem, again.answer, should_stop, means)
        again = replace(again, answer=replace(again.answer, offload=price))
    return again


def _joined(state: State, found: Solved, on_gpus: Weighed, should_stop: ShouldStop, means: Means) -> Solved:
    """Let processors join a model that GPUs hold, if that is faster; most are ruled out by price, without a solve."""
    known = on_gpus.solution
    if known is None or means.options.wants_any:
        return found
    upper_ns = known.assessment.round_ns
    spare = [one.device.device_id for one in found.problem.spare]
    problem = found.problem.with_offload()
    bound_ns = 0
    try:
        costs = cost_rounds(state, problem, means.tensor_engines, should_stop=should_stop)
        worth = {name for one in costs.rounds for name in worth_joining(one, spare, upper_ns)}
        if not worth:
            return found
        bound_ns = min(bound_without_links_ns(one) for one in costs.rounds)
        if on_gpus.is_truncated or should_stop():
            return replace(found, answer=_cut_short(on_gpus, bound_ns))
        if len(worth) < len(spare):
            problem = found.problem.with_offload(worth)
            costs = cost_rounds(state, problem, means.tensor_engines, should_stop=should_stop)
    except StoppedError:
        return replace(found, answer=_cut_short(on_gpus, bound_ns))
    answer = weigh(problem, costs, None, should_stop=should_stop, options=means.options)
    if isinstance(answer, Infeasible) or answer.solution is None:
        return replace(found, answer=_cut_short(on_gpus, bound_ns))
    if answer.solution.assessment.round_ns >= upper_ns:
        bound_ns = max(bound_ns, answer.solution.lower_bound_ns)
        ended = _cut_short if answer.is_truncated else bounded
        return replace(found, answer=ended(on_gpus, bound_ns))
    told = on_gpus.prediction.ms_per_token if on_gpus.prediction is not None else None
    price = _price_offload(state, found.problem, answer, should_stop, means)
    if price is not None:
        price = replace(price, on_gpus_ms=told)
    answer = replace(answer, offload=price, baseline=on_gpus.baseline)
    return Solved(problem=problem, costs=costs, answer=_confirmed(answer, costs))


def _cut_short(on_gpus: Weighed, lower_bound_ns: int) -> Weighed:
    """Return the plan on GPUs where there was no time to let processors join: what it proved holds for GPUs alone.

    Args:
        on_gpus: The plan.
        lower_bound_ns: What no plan beats, with processors or without; 0: not known.
    """
    return replace(bounded(on_gpus, lower_bound_ns), is_truncated=True)


def would_fit_empty(state: State, problem: Problem, should_stop: ShouldStop, means: Means) -> bool:
    """Would it fit if everything were free? Then it may fit later: a conflict with the present, not more."""
    emptied = replace(
        problem,
        candidates=tuple(
            replace(one, memory_free_bytes=one.memory_total_bytes) for one in problem.candidates
        ),
    )
    any_will_do = replace(means, options=replace(means.options, wants_any=True))
    found = _solve(state, emptied, should_stop, any_will_do)
    return isinstance(found.answer, Weighed)


def _solve(state: State, problem: Problem, should_stop: ShouldStop, means: Means) -> Solved:
    """Take the greedy's plan, which is there at once, and the ladder's instead where it is faster."""
    # By memory alone there are only pipelines of single devices.
    stages = solve_greedy(problem) if problem.request.sharding in {"auto", "pipeline"} else None
    if problem.request.layer_split and stages is None:
        answer = Infeasible(code="infeasible", reasons=("The split that was given does not fit.",))
        return Solved(problem=problem, costs=Costs(rounds=(), notes=()), answer=answer)
    try:
        # Links cost time, never a plan.
        has_links = not means.options.wants_any
        costs = cost_rounds(
            state, problem, means.tensor_engines, should_stop=should_stop, has_links=has_links
        )
    except StoppedError as stopped:
        return _at_hand(state, problem, stages, stopped, should_stop, means)
    if problem.request.layer_split and stages is not None:
        answer = weigh_given(costs, stages, "given split")
    else:
        answer = weigh(problem, costs, stages, should_stop=should_stop, options=means.options)
    return Solved(problem=problem, costs=costs, answer=_confirmed(answer, costs))


def _at_hand(
    state: State,
    problem: Problem,
    stages: Sequence[StagePlan] | None,
    stopped: StoppedError,
    should_stop: ShouldStop,
    means: Means,
) -> Solved:
    """Return the greedy's plan where there was no time for the costs of all; where it has none, any that there is."""
    method = "given split" if problem.request.layer_split else "greedy"
    if stages is None:
        costs = cost_rounds(state, problem, means.tensor_engines, has_links=False)
        any_will_do = replace(means.options, wants_any=True)
        found = weigh(problem, costs, None, should_stop=should_stop, options=any_will_do)
        if isinstance(found, Infeasible):
            return Solved(problem=problem, costs=costs, answer=found)
        stages, method = found.stages, found.method
    costs, answer = weigh_at_hand(
        state,
        problem,
        stages,
        method,
        tensor_engines=means.tensor_engines,
        lower_bound_ns=stopped.lower_bound_ns,
    )
    if method == "greedy":
        answer = replace(answer, baseline=answer.prediction)
    elif problem.request.layer_split:
        # Nothing was to be searched.
        answer = replace(answer, certificate=None, is_truncated=False)
    return Solved(problem=problem, costs=costs, answer=_confirmed(answer, costs))


def _confirmed(answer: Weighed | Infeasible, costs: Costs) -> Weighed | Infeasible:
    """Say of a prediction whether it rests on what was measured."""
    if isinstance(answer, Infeasible) or answer.prediction is None or costs.calibration is None:
        return answer
    is_calibrated = costs.calibration.confirms(answer.stages)
    return replace(answer, prediction=replace(answer.prediction, is_calibrated=is_calibrated))


def _price_offload(
    state: State, problem: Problem, weighed: Weighed, should_stop: ShouldStop, means: Means
) -> Offload | None:
    """Ask what each token would take if the plan's roomiest GPU had the memory that is taken beside processors."""
    moved = [stage for stage in weighed.stages if stage.is_offloaded]
    cards = [one for one in problem.candidates if one.device.memory_kind == "vram"]
    if not moved or not cards:
        return None
    more_bytes = sum(stage.memory_bytes for stage in moved)
    used = {name for stage in weighed.stages for name in stage.device_ids}
    most = max(
        cards, key=lambda one: (one.device.device_id in used, one.memory_free_bytes, one.device.device_id)
    )
    grown = replace(
        problem,
        candidates=tuple(
            replace(one, memory_free_bytes=one.memory_free_bytes + more_bytes) if one is most else one
            for one in problem.candidates
        ),
    )
    found = None if should_stop() else _solve(state, grown, should_stop, means).answer
    told = found.prediction if isinstance(found, Weighed) else None
    return Offload(
        layer_count=sum(stage.end_layer - stage.start_layer for stage in moved),
        more_bytes=more_bytes,
        device_id=most.device.device_id,
        in_vram_ms=told.ms_per_token if told is not None else None,
    )
