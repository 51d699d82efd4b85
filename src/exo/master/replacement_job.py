"""Runs in the solver process: what else would do for an instance that is placed already, and how fast it is now."""

import time
from collections.abc import Callable, Iterator

import msgspec
from msgspec.structs import replace

from exo.master.placement.basis import encode_reduced
from exo.master.placement.costs import cost_rounds
from exo.master.placement.evaluate import broken_wishes, violations
from exo.master.placement.explain import explain
from exo.master.placement.place import find_model, place_instance
from exo.master.placement.problem import Problem, build_problem
from exo.master.placement.reasons import reasons_of
from exo.master.placement.weigh import weigh_given
from exo.master.placement.words import gibibytes, milliseconds
from exo.master.replacement import kept_variants, least_moved, moved_bytes, neighbours
from exo.shared.types.commands import Refusal
from exo.shared.types.instances import Certificate, Instance, PlacementRequest, Plan, Prediction, StagePlan
from exo.shared.types.models import ModelCard
from exo.shared.types.state import State

KEEP_DEADLINE_S = 1.0
"""For looking at variants of a present plan: those that were looked at by then are what is chosen from."""
METHOD = "kept"
"""Of plans that were made from the present one."""


class KeepJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: which plan to take for an instance."""

    state: State
    """Without the instance: what it takes is free."""
    instance: Instance
    request: PlacementRequest
    fastest: Plan
    """The answer to the request."""
    deadline_s: float
    has_constraint_layer: bool = True


class _PackedJob(msgspec.Struct, frozen=True, kw_only=True):
    """The same on its way to the solver process."""

    state: msgspec.Raw
    instance: Instance
    request: PlacementRequest
    fastest: Plan
    deadline_s: float
    has_constraint_layer: bool


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The plan to take."""

    plan: Plan
    moved_bytes: int
    """Weights that its nodes do not have at hand."""
    fastest_moved_bytes: int
    """The same of the fastest plan."""
    present: Prediction | None = None
    """How fast the instance is where it is, by today's figures; None where it cannot stay there."""
    plain_present_ms: float | None = None
    """The same in ms per token by makers' figures alone. Where only one of two plans was measured, they are compared
    so: what was measured is mostly slower than what makers promise, wherever it was measured."""
    plain_ms: float | None = None
    """Of the plan to take, by makers' figures alone."""


def pack_keep_job(job: KeepJob) -> bytes:
    """Run in a thread: a job for `keep_job`, its state reduced to what placement reads."""
    return msgspec.msgpack.encode(
        _PackedJob(
            state=encode_reduced(job.state, job.request),
            instance=replace(job.instance, basis=b""),
            request=job.request,
            fastest=job.fastest,
            deadline_s=job.deadline_s,
            has_constraint_layer=job.has_constraint_layer,
        )
    )


def keep_job(packed: bytes) -> bytes:
    """Return, of the fastest plan and what can be made of the present one, the one that moves the least."""
    job = msgspec.msgpack.decode(packed, type=KeepJob)
    ends_s = time.monotonic() + job.deadline_s
    return msgspec.msgpack.encode(
        kept(
            job.state,
            job.instance,
            job.request,
            job.fastest,
            should_stop=lambda: time.monotonic() > ends_s,
            has_constraint_layer=job.has_constraint_layer,
        )
    )


def kept(
    state: State,
    instance: Instance,
    request: PlacementRequest,
    fastest: Plan,
    *,
    should_stop: Callable[[], bool],
    has_constraint_layer: bool = True,
) -> Kept:
    """See `keep_job`. Pure, but for `should_stop`, which is asked between plans."""
    model = find_model(state, request.model_id)
    present, chosen = None, fastest
    plain_present_ms = plain_ms = None
    if not isinstance(model, Refusal):
        weigher = _Weigher(state, build_problem(state, model, request, fastest.engine), fastest)
        present = _present(state, model, instance, request)
        chosen = least_moved(
            [fastest, *_others(weigher, instance, should_stop, has_constraint_layer)], instance
        )
        chosen = _polished(weigher, instance, chosen, should_stop)
        if chosen.method == METHOD:
            chosen = weigher.explained(chosen, instance)
        plain = _unmeasured(state)
        plain_present_ms = _time_ms(_present(plain, model, instance, request))
        plain_ms = _time_ms(_present(plain, model, replace(instance, plan=chosen), request))
    return Kept(
        plain_present_ms=plain_present_ms,
        plain_ms=plain_ms,
        plan=chosen,
        moved_bytes=moved_bytes(chosen, instance),
        fastest_moved_bytes=moved_bytes(fastest, instance),
        present=present,
    )


class _Weigher:
    """Turns stages into plans with their predictions.

    Args:
        state: Without the instance.
        problem: What may take part.
        fastest: The answer to it.
    """

    def __init__(self, state: State, problem: Problem, fastest: Plan) -> None:
        used = {one for stage in fastest.stages for one in stage.device_ids}
        is_wider = any(one.device.device_id in used for one in problem.spare)
        self.state = state
        self.problem = problem.with_offload() if is_wider else problem
        self.fastest = fastest
        self._costs = cost_rounds(state, self.problem)

    def plan(self, stages: tuple[StagePlan, ...]) -> Plan | None:
        """Return stages as a plan, with the bound of the fastest one; None where they are not legal."""
        if _wrong(self.state, self.problem, stages):
            return None
        weighed = weigh_given(self._costs, stages, METHOD)
        told, bound = weighed.prediction, self.fastest.certificate
        if told is None or told.ms_per_token is None:
            return None
        certificate = None
        if bound is not None and bound.lower_bound_ms is not None:
            # No bound is above what has been found, however it was rounded.
            least_ms = min(bound.lower_bound_ms, told.ms_per_token)
            gap_percent = 100 * (1 - least_ms / told.ms_per_token) if told.ms_per_token else 0.0
            certificate = Certificate(lower_bound_ms=least_ms, gap_percent=gap_percent)
        weighed = replace(weighed, certificate=certificate, baseline=self.fastest.baseline)
        return replace(
            self.fastest,
            stages=weighed.stages,
            method=METHOD,
            prediction=told,
            certificate=certificate,
            explanation="",
            binding=None,
        )

    def explained(self, plan: Plan, instance: Instance) -> Plan:
        """Return a plan made here with what people are told of it."""
        weighed = weigh_given(self._costs, plan.stages, METHOD)
        weighed = replace(weighed, certificate=plan.certificate, baseline=plan.baseline)
        reasons = reasons_of(self.problem, self._costs, weighed, should_stop=lambda: True)
        text = explain(self.problem, weighed, reasons)
        excluded = sorted((*reasons.unused, *self.problem.excluded), key=lambda one: one.device_id)
        return replace(
            plan,
            stages=reasons.stages,
            excluded=tuple(excluded),
            explanation=f"{text}\n{_why(self.fastest, plan, instance)}",
        )


def _present(
    state: State, model: ModelCard, instance: Instance, request: PlacementRequest
) -> Prediction | None:
    """Return how fast the instance is where it is, or None where it cannot be there or that cannot be weighed."""
    stages = instance.plan.stages
    narrow = PlacementRequest(
        model_id=request.model_id,
        engine=request.engine,
        prefer_gpu=request.prefer_gpu,
        # Named as what must be used, so that a processor beside a GPU is one of the candidates.
        device_ids=tuple(one for stage in stages for one in stage.device_ids),
        must_use=tuple(one for stage in stages for one in stage.device_ids),
        context_length=instance.plan.context_length,
        concurrency=instance.plan.concurrency,
        objective=request.objective,
    )
    problem = build_problem(state, model, narrow, instance.plan.engine)
    # A former release may have promised it less than is reckoned with now.
    stages = tuple(
        replace(
            one,
            memory_bytes=max(one.memory_bytes, problem.stage_memory_bytes(one.start_layer, one.end_layer)),
        )
        for one in stages
    )
    return (
        None
        if _wrong(state, problem, stages)
        else weigh_given(cost_rounds(state, problem), stages, METHOD).prediction
    )


def _unmeasured(state: State) -> State:
    """Return the state as it was before stages were timed."""
    live = {node_id: replace(one, paces={}) for node_id, one in state.live.items()}
    return replace(state, live=live)


def _time_ms(prediction: Prediction | None) -> float | None:
    return prediction.ms_per_token if prediction is not None else None


def _others(
    weigher: _Weigher, instance: Instance, should_stop: Callable[[], bool], has_constraint_layer: bool
) -> Iterator[Plan]:
    """Yield what can be made of the present plan, and the fastest plan on the nodes that it has now."""
    for stages in kept_variants(instance, weigher.problem, weigher.fastest):
        if should_stop():
            return
        plan = weigher.plan(stages)
        if plan is not None:
            yield plan
    state, request = weigher.state, weigher.problem.request
    here = dict.fromkeys(stage.node_id for stage in instance.plan.stages if stage.node_id in state.nodes)
    narrow = tuple(one for one in here if not request.node_ids or one in request.node_ids)
    if narrow and not should_stop():
        answer = place_instance(
            state,
            replace(request, node_ids=narrow),
            should_stop=should_stop,
            has_constraint_layer=has_constraint_layer,
        )
        if isinstance(answer, Plan):
            yield answer


def _polished(weigher: _Weigher, instance: Instance, chosen: Plan, should_stop: Callable[[], bool]) -> Plan:
    """Go on from a plan step by step, as long as each step moves less and the plan stays near the fastest."""
    while not should_stop():
        steps = (weigher.plan(stages) for stages in neighbours(instance, weigher.problem, chosen))
        found = [weigher.fastest, chosen, *(one for one in steps if one is not None)]
        better = least_moved(found, instance)
        if moved_bytes(better, instance) >= moved_bytes(chosen, instance):
            return chosen
        chosen = better
    return chosen


def _wrong(state: State, problem: Problem, stages: tuple[StagePlan, ...]) -> bool:
    zones = {node_id: node.identity.zone for node_id, node in state.nodes.items()}
    return bool(broken_wishes(stages, problem.request, zones)) or bool(
        violations(
            stages,
            model=problem.model,
            context_length=problem.context_length,
            concurrency=problem.request.concurrency,
            pool_by_device=problem.pool_by_device,
            free_bytes_by_pool=problem.free_bytes_by_pool,
        )
    )


def _why(fastest: Plan, plan: Plan, instance: Instance) -> str:
    told = fastest.prediction
    time_ms = told.ms_per_token if told is not None else None
    takes = "" if time_ms is None else f"takes {milliseconds(time_ms)} per token and "
    return (
        f"kept as it was as far as possible: {gibibytes(moved_bytes(plan, instance))} of weights are moved; "
        f"the fastest plan {takes}moves {gibibytes(moved_bytes(fastest, instance))}"
    )
