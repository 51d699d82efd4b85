"""Plans and refusals in words and numbers."""

from collections.abc import Iterator, Sequence

from exo.master.placement.ladder.answer import Relaxation
from exo.master.placement.problem import Candidate, Problem
from exo.master.placement.reasons import Reasons
from exo.master.placement.weigh import Weighed
from exo.master.placement.words import gibibytes, milliseconds, rate
from exo.shared.types.commands import NodeMemory, Refusal
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import PlacementRequest, Plan

_PROVEN_PERCENT = 0.005
"""A gap below what is shown."""
_LONGER_FROM = 1.005
"""Times that differ by less are told as equal."""
_NOT_USED_MAX = 16
"""Devices without a price that an explanation names; the plan has them all."""


def explain(problem: Problem, weighed: Weighed, reasons: Reasons) -> str:
    """Say in a few lines who runs what, how fast it is thought to be, and who was left out for what reason."""
    stages = reasons.stages
    by_device = {one.device.device_id: one for one in problem.candidates}
    count = "one stage" if len(stages) == 1 else f"{len(stages)} stages"
    lines = [f"{problem.model.model_id}: {problem.model.layer_count} layers in {count}"]
    for stage in stages:
        candidate = by_device[stage.device_ids[0]]
        aliases = "+".join(by_device[one].device.local_alias for one in stage.device_ids)
        free = sum(by_device[one].memory_free_bytes for one in stage.device_ids)
        kind = ", from host memory" if stage.is_offloaded else ""
        time = "" if stage.time_ms is None else f", {milliseconds(stage.time_ms)}"
        lines.append(
            f"stage {stage.rank}: layers {stage.start_layer} to {stage.end_layer - 1} on {candidate.node_name} "
            f"({aliases}{kind}), {gibibytes(stage.memory_bytes)} of "
            f"{gibibytes(free)} free{time}"
        )
    lines.extend(_figures(weighed))
    lines.extend(_different(weighed))
    lines.extend(_offloaded(problem, weighed))
    lines.extend(_bound_by_memory(problem, reasons))
    lines.extend(f"note: {one}" for one in weighed.notes)
    lines.extend(_not_used(problem, reasons))
    return "\n".join(lines)


def _figures(weighed: Weighed) -> Iterator[str]:
    told = weighed.prediction
    if told is None or told.ms_per_token is None or told.tokens_per_s is None:
        return
    basis = "with makers' figures and assumptions for what was not measured"
    if told.is_calibrated:
        basis = "from measured tokens/s"
    yield f"estimate: {milliseconds(told.ms_per_token)} per token, {rate(told.tokens_per_s)} tokens/s; {basis}"
    certificate = weighed.certificate
    is_proven = False
    if certificate is not None and certificate.lower_bound_ms is not None:
        gap = certificate.gap_percent or 0.0
        bound = milliseconds(certificate.lower_bound_ms)
        is_proven = gap < _PROVEN_PERCENT
        if is_proven:
            yield "certificate: by these figures no plan is faster"
        else:
            yield f"certificate: by these figures no plan takes less than {bound}, {gap:.2g} % less than this one"
    if weighed.is_truncated and not is_proven:
        yield "certificate: the deadline ended the search; with more time there may be a faster plan"
    simple = weighed.baseline
    if simple is None or simple.ms_per_token is None:
        return
    if weighed.method == "greedy":
        yield "split by memory alone: this is it"
        return
    times = simple.ms_per_token / told.ms_per_token if told.ms_per_token else 1.0
    longer = f"{times:.3g} times as long" if times >= _LONGER_FROM else "about as long"
    yield f"split by memory alone: {milliseconds(simple.ms_per_token)} per token, {longer}"


def _different(weighed: Weighed) -> Iterator[str]:
    if weighed.heterogeneity is not None:
        yield f"heterogeneous: {weighed.heterogeneity}"


def _offloaded(problem: Problem, weighed: Weighed) -> Iterator[str]:
    told = weighed.offload
    if told is None:
        return
    layers = "layer runs" if told.layer_count == 1 else "layers run"
    card = next(one for one in problem.candidates if one.device.device_id == told.device_id)
    line = f"offloaded: {told.layer_count} {layers} from host memory, since "
    if told.on_gpus_ms is None:
        line += "VRAM does not hold the model"
    else:
        line += f"on GPUs alone each token would take {milliseconds(told.on_gpus_ms)}"
    now_ms = weighed.prediction.ms_per_token if weighed.prediction is not None else None
    if now_ms is not None and told.in_vram_ms is not None and told.in_vram_ms < now_ms:
        line += (
            f"; with {gibibytes(told.more_bytes)} more VRAM on {card.node_name} ({card.device.local_alias}) all "
            f"would run there, and each token take {milliseconds(told.in_vram_ms)} instead of {milliseconds(now_ms)}"
        )
    yield line


def _bound_by_memory(problem: Problem, reasons: Reasons) -> Iterator[str]:
    found = reasons.binding
    if found is not None:
        sharers = [one for one in problem.candidates if one.device.device_id in found.device_ids]
        yield (
            f"memory that binds: {gibibytes(found.more_bytes)} more {_memory_words(sharers)} on "
            f"{_names_of(sharers)} would save {milliseconds(found.saved_ms)} per token"
        )


def _not_used(problem: Problem, reasons: Reasons) -> Iterator[str]:
    """Name those whose price is known, and a few of the others."""
    by_device = {one.device.device_id: one for one in problem.candidates}
    priced = [one for one in reasons.unused if one.forcing_ms is not None]
    others = [one for one in reasons.unused if one.forcing_ms is None]
    for one in (*priced, *others[:_NOT_USED_MAX]):
        candidate = by_device[one.device_id]
        line = f"not used: {candidate.node_name} ({candidate.device.local_alias}"
        line += f"): {one.reason}" if one.score is None else f", score {one.score:.2f}): {one.reason}"
        if one.forcing_ms:
            line += f"; with it each token takes {milliseconds(one.forcing_ms)} more"
        yield line
    if len(others) > _NOT_USED_MAX:
        yield f"not used: {len(others) - _NOT_USED_MAX} more that could take part"
    for one in problem.excluded[:_NOT_USED_MAX]:
        yield f"not used: {problem.excluded_names.get(one.device_id, one.device_id)}: {one.reason}"
    if len(problem.excluded) > _NOT_USED_MAX:
        yield f"not used: {len(problem.excluded) - _NOT_USED_MAX} more that could not take part"


def _names_of(candidates: Sequence[Candidate]) -> str:
    """Name a memory by its nodes, and by its device where that has it for itself."""
    if any(one.device.memory_kind == "vram" for one in candidates):
        return ", ".join(f"{one.node_name} ({one.device.local_alias})" for one in candidates)
    return ", ".join(dict.fromkeys(one.node_name for one in candidates))


def _memory_words(candidates: Sequence[Candidate]) -> str:
    """Name the kind of a memory, so that VRAM and RAM are never confused."""
    kinds = {one.device.memory_kind for one in candidates}
    return "VRAM" if kinds == {"vram"} else "unified memory" if "unified" in kinds else "RAM"


def _relaxed(problem: Problem, relaxations: Sequence[Relaxation]) -> Iterator[str]:
    """Say what would help, each way for itself."""
    for one in relaxations:
        if one.missing_bytes is not None and one.pool_id is not None:
            # A tensor group's pool is called as its members are.
            pools = one.pool_id.split("+")
            sharers = [candidate for candidate in problem.candidates if candidate.pool in pools]
            yield (
                f"It would fit with {gibibytes(one.missing_bytes)} more {_memory_words(sharers)} "
                f"on {_names_of(sharers)} alone."
            )
        else:
            yield one.message


def refuse_sharding(engine: str, request: PlacementRequest, would: Plan | Refusal) -> Refusal:
    """Say that an engine cannot split layers over GPUs, and what such a plan would do."""
    told = f"The {engine} engine cannot run {request.sharding} sharding yet"
    if isinstance(would, Refusal):
        told += f", and here no engine could: {would.message}"
    else:
        where = ", ".join("+".join(stage.device_ids) for stage in would.stages)
        what = ""
        if would.prediction is not None and would.prediction.tokens_per_s is not None:
            what = (
                f" and do {rate(would.prediction.tokens_per_s)} tokens/s, "
                f"{milliseconds(would.prediction.ms_per_token or 0.0)} per token, by estimate"
            )
        told += f". One that can would use {where}{what}. Ask for pipeline or auto."
    return Refusal(status=422, code="sharding_unsupported", message=told)


def refuse_for_memory(
    problem: Problem, *, would_fit_empty: bool, relaxations: Sequence[Relaxation] = ()
) -> Refusal:
    """Say how much memory the model needs, what each node has, what is missing in all, and what would help.

    422 where the candidates' whole memory would be too small; 409 where it would fit if it were free.
    """
    needed = problem.stage_memory_bytes(0, problem.model.layer_count)
    free = sum(problem.free_bytes_by_pool.values())
    missing = max(0, needed - free)
    by_node: dict[NodeId, list[Candidate]] = {}
    for one in problem.candidates:
        by_node.setdefault(one.node_id, []).append(one)
    share = -(-needed // len(by_node))
    rows = tuple(
        NodeMemory(
            node_id=node_id, name=devices[0].node_name, free_bytes=_free_bytes(devices), needed_bytes=share
        )
        for node_id, devices in by_node.items()
    )
    nodes = ", ".join(f"{devices[0].node_name} {_free_words(devices)} free" for devices in by_node.values())
    shared = (
        " in memory that nodes of one machine share"
        if sum(len({one.pool for one in devices}) for devices in by_node.values())
        > len(problem.free_bytes_by_pool)
        else ""
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


def _free_bytes(devices: Sequence[Candidate]) -> int:
    return sum({one.pool: one.memory_free_bytes for one in devices}.values())


def _free_words(devices: Sequence[Candidate]) -> str:
    """Say what is free on a node; VRAM and RAM apart where it has both."""
    kinds: dict[str, list[Candidate]] = {}
    for one in devices:
        kinds.setdefault(_memory_words([one]), []).append(one)
    if len(kinds) == 1:
        return gibibytes(_free_bytes(devices))
    return " and ".join(f"{gibibytes(_free_bytes(some))} of {kind}" for kind, some in sorted(kinds.items()))
