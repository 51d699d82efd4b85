"""Plans and refusals in words and numbers."""

from collections.abc import Sequence

from exo.master.placement.problem import Problem
from exo.shared.types.commands import NodeMemory, Refusal
from exo.shared.types.instances import StagePlan


def gibibytes(size_bytes: float) -> str:
    """A size for people: `1.5 GiB`, `300 MiB`."""
    mebibytes = size_bytes / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"


def explain(problem: Problem, stages: Sequence[StagePlan]) -> str:
    """Say in a few lines who runs what, and who was left out for what reason."""
    by_device = {one.device.device_id: one for one in problem.candidates}
    count = "one stage" if len(stages) == 1 else f"{len(stages)} stages"
    lines = [f"{problem.model.model_id}: {problem.model.layer_count} layers in {count}"]
    for stage in stages:
        candidate = by_device[stage.device_ids[0]]
        lines.append(
            f"stage {stage.rank}: layers {stage.start_layer} to {stage.end_layer - 1} on {candidate.node_name} "
            f"({candidate.device.local_alias}), {gibibytes(stage.memory_bytes)} of "
            f"{gibibytes(candidate.memory_free_bytes)} free"
        )
    used = {device for stage in stages for device in stage.device_ids}
    lines.extend(
        f"not used: {one.node_name} ({one.device.local_alias}): fewer nodes hold the model"
        for one in problem.candidates
        if one.device.device_id not in used
    )
    lines.extend(f"not used: {one.device_id}: {one.reason}" for one in problem.excluded)
    return "\n".join(lines)


def refuse_for_memory(problem: Problem, *, would_fit_empty: bool) -> Refusal:
    """Say how much memory the model needs, what each node has, and what is missing in all.

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
        "Free memory, add a machine, or ask for a shorter context_length.",
        needed_bytes=needed,
        missing_bytes=missing,
        nodes=rows,
    )
