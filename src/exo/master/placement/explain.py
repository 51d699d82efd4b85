"""Plans and refusals in words and numbers."""

from collections.abc import Callable, Iterator, Sequence

from exo.master.placement.ladder.answer import Relaxation
from exo.master.placement.ladder.why import LeftOut, binding, left_out
from exo.master.placement.problem import Problem
from exo.master.placement.weigh import Weighed
from exo.master.placement.words import gibibytes, milliseconds
from exo.shared.types.commands import NodeMemory, Refusal

ShouldStop = Callable[[], bool]
_PROVEN_PERCENT = 0.005
"""A gap below what is shown."""
_UNEVEN_DEVICES_MAX = 4
"""Up to so many devices, plans of unequal layers for one request at a time are proven in milliseconds."""


def explain(problem: Problem, weighed: Weighed, *, should_stop: ShouldStop) -> str:
    """Say in a few lines who runs what, how fast it is thought to be, and who was left out for what reason."""
    stages = weighed.stages
    by_device = {one.device.device_id: one for one in problem.candidates}
    count = "one stage" if len(stages) == 1 else f"{len(stages)} stages"
    lines = [f"{problem.model.model_id}: {problem.model.layer_count} layers in {count}"]
    for stage in stages:
        candidate = by_device[stage.device_ids[0]]
        time = "" if stage.time_ms is None else f", {milliseconds(stage.time_ms)}"
        lines.append(
            f"stage {stage.rank}: layers {stage.start_layer} to {stage.end_layer - 1} on {candidate.node_name} "
            f"({candidate.device.local_alias}), {gibibytes(stage.memory_bytes)} of "
            f"{gibibytes(candidate.memory_free_bytes)} free{time}"
        )
    lines.extend(_figures(weighed))
    lines.extend(_bound_by_memory(problem, weighed, should_stop))
    lines.extend(f"note: {one}" for one in weighed.notes)
    lines.extend(_not_used(problem, weighed, should_stop))
    lines.extend(f"not used: {one.device_id}: {one.reason}" for one in problem.excluded)
    return "\n".join(lines)


def _figures(weighed: Weighed) -> Iterator[str]:
    told = weighed.prediction
    if told is None or told.ms_per_token is None or told.tokens_per_s is None:
        return
    basis = "" if told.is_calibrated else "; from makers' figures and assumptions, not from measured tokens/s"
    yield f"estimate: {milliseconds(told.ms_per_token)} per token, {told.tokens_per_s:.3g} tokens/s{basis}"
    certificate = weighed.certificate
    if certificate is not None and certificate.lower_bound_ms is not None:
        gap = certificate.gap_percent or 0.0
        bound = milliseconds(certificate.lower_bound_ms)
        if gap < _PROVEN_PERCENT:
            yield "certificate: by these figures no plan is faster"
        else:
            yield f"certificate: by these figures no plan takes less than {bound}, {gap:.2g} % less than this one"
    if weighed.is_truncated:
        yield "certificate: the deadline ended the search; with more time there may be a faster plan"
    simple = weighed.baseline
    if simple is None or simple.ms_per_token is None:
        return
    if weighed.method == "greedy":
        yield "split by memory alone: this is it"
        return
    times = simple.ms_per_token / told.ms_per_token if told.ms_per_token else 1.0
    yield f"split by memory alone: {milliseconds(simple.ms_per_token)} per token, {times:.3g} times as long"


def _bound_by_memory(problem: Problem, weighed: Weighed, should_stop: ShouldStop) -> Iterator[str]:
    if not _has_time_to_ask_why(weighed) or weighed.problem is None or weighed.solution is None:
        return
    found = binding(weighed.problem, weighed.solution, should_stop=should_stop)
    if found is not None:
        where = ", ".join(_names_of_pool(problem, found.pool_id))
        yield (
            f"memory that binds: {gibibytes(found.more_bytes)} more on {where} would save "
            f"{milliseconds(found.saved_ns / 1e6)} per token"
        )


def _not_used(problem: Problem, weighed: Weighed, should_stop: ShouldStop) -> Iterator[str]:
    used = {device for stage in weighed.stages for device in stage.device_ids}
    absent = [one for one in problem.candidates if one.device.device_id not in used]
    told: dict[str, LeftOut] = {}
    if absent and weighed.problem is not None and weighed.solution is not None:
        stops = should_stop if _has_time_to_ask_why(weighed) else lambda: True
        told = {one.device_id: one for one in left_out(weighed.problem, weighed.solution, should_stop=stops)}
    for one in absent:
        why = told.get(one.device.device_id)
        reason = "fewer nodes hold the model" if why is None else why.reason
        if why is not None and why.forcing_ns:
            reason += f"; with it each token takes {milliseconds(why.forcing_ns / 1e6)} more"
        yield f"not used: {one.node_name} ({one.device.local_alias}): {reason}"


def _has_time_to_ask_why(weighed: Weighed) -> bool:
    """Say whether each further solve is quick: with unequal layers on more than a few devices it is not."""
    problem = weighed.problem
    return (
        problem is not None
        and not weighed.is_truncated
        and (
            problem.model.is_uniform
            or (problem.concurrency == 1 and len(problem.devices) <= _UNEVEN_DEVICES_MAX)
        )
    )


def _names_of_pool(problem: Problem, pool_id: str) -> list[str]:
    return [one.node_name for one in problem.candidates if one.pool == pool_id]


def _relaxed(problem: Problem, relaxations: Sequence[Relaxation]) -> Iterator[str]:
    """Say what would help, each way for itself."""
    for one in relaxations:
        if one.missing_bytes is not None and one.pool_id is not None:
            where = ", ".join(_names_of_pool(problem, one.pool_id))
            yield f"It would fit with {gibibytes(one.missing_bytes)} more on {where} alone."
        else:
            yield one.message


def refuse_for_memory(
    problem: Problem, *, would_fit_empty: bool, relaxations: Sequence[Relaxation] = ()
) -> Refusal:
    """Say how much memory the model needs, what each node has, what is missing in all, and what would help.

    422 where the candidates' whole memory would be too small; 409 where it would fit if it were free.
    """
    needed = problem.stage_memory_bytes(0, problem.model.layer_count)
    free = sum(problem.free_bytes_by_pool.values())
    missing = max(0, needed - free)
    share = -(-needed // len(problem.candidates))
    rows = tuple(
        NodeMemory(
            node_id=one.node_id, name=one.node_name, free_bytes=one.memory_free_bytes, needed_bytes=share
        )
        for one in problem.candidates
    )
    nodes = ", ".join(f"{row.name} {gibibytes(row.free_bytes or 0)} free" for row in rows)
    shared = (
        " in memory that nodes of one machine share" if len(problem.free_bytes_by_pool) < len(rows) else ""
    )
    cause = (
        f"{gibibytes(missing)} are missing"
        if missing
        else "that is free in all, but no split over whole layers that was tried fits the single machines"
    )
    return Refusal(
        status=409 if would_fit_empty else 422,
        code="not_enough_memory",
        message=f"{problem.model.model_id} needs {gibibytes(needed)} with a context of "
        f"{problem.context_length:,} tokens; {cause} ({nodes}{shared}). "
        + " ".join(
            (
                "Free memory, add a machine, or ask for a shorter context_length.",
                *_relaxed(problem, relaxations),
            )
        ),
        needed_bytes=needed,
        missing_bytes=missing,
        nodes=rows,
    )
