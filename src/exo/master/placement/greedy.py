"""The memory-weighted ring: the first, always available answer, for homogeneous clusters and as a fallback."""

from collections.abc import Sequence

from exo.master.placement.problem import Candidate, Problem
from exo.shared.types.instances import StagePlan


def memory_weighted_split(layer_count: int, weights: Sequence[int]) -> list[int]:
    """Split `layer_count` layers in proportion to `weights`, at least one each, by largest remainder.

    Ties go to the earlier one, so that the answer depends on nothing but the input.

    Raises:
        ValueError: There are more weights than layers, or none.
    """
    if not 0 < len(weights) <= layer_count:
        raise ValueError(f"cannot split {layer_count} layers into {len(weights)} stages")
    total = sum(weights)
    shares = [layer_count * weight / total if total else layer_count / len(weights) for weight in weights]
    counts = [max(1, int(share)) for share in shares]
    while sum(counts) > layer_count:
        # Those raised to one layer are paid for by whoever is furthest above its share.
        dearest = max(
            (i for i, count in enumerate(counts) if count > 1), key=lambda i: (counts[i] - shares[i], -i)
        )
        counts[dearest] -= 1
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - shares[i], i))
    for i in order[: layer_count - sum(counts)]:
        counts[i] += 1
    return counts


def solve_greedy(problem: Problem) -> tuple[StagePlan, ...] | None:
    """Return stages over as few nodes as hold the model (at least `min_nodes`), roomiest first, or None.

    With `layer_split` in the request, its stages go to the roomiest nodes in that order.
    """
    roomiest = sorted(problem.candidates, key=lambda one: (-one.memory_free_bytes, one.device.device_id))
    layer_count = problem.model.layer_count
    split = problem.request.layer_split
    if split:
        return _fitting(problem, roomiest[: len(split)], split) if len(split) <= len(roomiest) else None
    for count in range(max(1, problem.request.min_nodes), min(len(roomiest), layer_count) + 1):
        chosen = roomiest[:count]
        weights = [one.memory_free_bytes for one in chosen]
        counts = memory_weighted_split(layer_count, weights)
        stages = _fitting(problem, chosen, counts) or _fitting(
            problem, chosen, _mended(problem, chosen, counts)
        )
        if stages is not None:
            return stages
    return None


def _fitting(
    problem: Problem, chosen: Sequence[Candidate], counts: Sequence[int]
) -> tuple[StagePlan, ...] | None:
    stages: list[StagePlan] = []
    start = 0
    for rank, (candidate, count) in enumerate(zip(chosen, counts, strict=True)):
        needed = problem.stage_memory_bytes(start, start + count)
        if count < 1 or needed > candidate.memory_free_bytes:
            return None
        stages.append(
            StagePlan(
                rank=rank,
                node_id=candidate.node_id,
                device_ids=(candidate.device.device_id,),
                start_layer=start,
                end_layer=start + count,
                memory_bytes=needed,
            )
        )
        start += count
    return tuple(stages) if start == problem.model.layer_count else None


def _mended(problem: Problem, chosen: Sequence[Candidate], counts: Sequence[int]) -> list[int]:
    """Fill the stages in turn, each as full as it can be while every later one keeps a layer.

    The proportional split can miss by a layer where layers, embedding or head are of unequal size.
    """
    layer_count = problem.model.layer_count
    mended: list[int] = []
    start = 0
    for rank, candidate in enumerate(chosen):
        later = len(chosen) - rank - 1
        most = layer_count - start - later
        count = min(most, counts[rank]) if later else most
        while count > 1 and problem.stage_memory_bytes(start, start + count) > candidate.memory_free_bytes:
            count -= 1
        while (
            later
            and count < most
            and problem.stage_memory_bytes(start, start + count + 1) <= candidate.memory_free_bytes
            and not _rest_fits(problem, chosen[rank + 1 :], start + count)
        ):
            count += 1
        mended.append(count)
        start += count
    return mended


def _rest_fits(problem: Problem, rest: Sequence[Candidate], start: int) -> bool:
    """Say whether the layers from `start` on fit into the rest when each stage is filled to the brim."""
    layer_count = problem.model.layer_count
    for position, candidate in enumerate(rest):
        later = len(rest) - position - 1
        end = layer_count - later
        while end > start and problem.stage_memory_bytes(start, end) > candidate.memory_free_bytes:
            end -= 1
        if end == start:
            return False
        start = end
    return start == layer_count
