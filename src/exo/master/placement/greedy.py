"""The memory-weighted ring: the first and always available answer, for homogeneous clusters and as a fallback."""

from collections.abc import Sequence

from exo.master.placement.held import process_bytes
from exo.master.placement.problem import Candidate, Problem
from exo.master.placement.wishes import in_turn
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import StagePlan

Group = Sequence[Candidate]
"""Candidates that share one memory pool, next to each other in the ring."""


def memory_weighted_split(
    layer_count: int, weights: Sequence[int], least: Sequence[int] | None = None
) -> list[int]:
    """Split `layer_count` layers in proportion to `weights`, by largest remainder, each getting at least `least`.

    Ties go to the earlier one, so that the answer depends on nothing but the input. `least` is one each where it
    is not given.

    Raises:
        ValueError: There are no weights, or too few layers for what each gets at least.
    """
    least = least or [1] * len(weights)
    if not weights or sum(least) > layer_count:
        raise ValueError(f"cannot split {layer_count} layers into {len(weights)} stages")
    total = sum(weights)
    shares = [layer_count * weight / total if total else layer_count / len(weights) for weight in weights]
    counts = [max(low, int(share)) for low, share in zip(least, shares, strict=True)]
    while sum(counts) > layer_count:
        # Those raised to their least are paid for by whoever is furthest above its share.
        dearest = max(
            (i for i, count in enumerate(counts) if count > least[i]),
            key=lambda i: (counts[i] - shares[i], -i),
        )
        counts[dearest] -= 1
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - shares[i], i))
    for i in order[: layer_count - sum(counts)]:
        counts[i] += 1
    return counts


def solve_greedy(problem: Problem) -> tuple[StagePlan, ...] | None:
    """Return stages over as few devices as hold the model and keep the request's wishes, roomiest first, or None.

    With `layer_split` in the request, its stages go to the roomiest devices in that order.
    """
    roomiest, wanted = in_turn(problem)
    layer_count = problem.model.layer_count
    split = problem.request.layer_split
    if split:
        is_possible = wanted <= len(split) <= len(roomiest)
        return _stages(problem, roomiest[: len(split)], split) if is_possible else None
    least_bytes = problem.stage_memory_bytes(0, layer_count)
    room_bytes = 0
    pools: set[str] = set()
    for count, last in enumerate(roomiest[:layer_count], start=1):
        room_bytes += last.memory_free_bytes if last.pool not in pools else 0
        pools.add(last.pool)
        if count < wanted or room_bytes < least_bytes:
            continue
        for ring in _rings(_groups(roomiest[:count])):
            # VRAM is filled before what only joins for want of it.
            weights = [0 if group[0].is_offload else group[0].memory_free_bytes for group in ring]
            least = [len(group) for group in ring]
            proportional = memory_weighted_split(layer_count, weights, least)
            for counts in (proportional, _mended(problem, ring, proportional)):
                stages = _spread(problem, ring, counts)
                if stages is not None:
                    return stages
    return None


def _groups(chosen: Sequence[Candidate]) -> list[Group]:
    """Return the pools in ring order: roomiest first, those of one node next to each other, offload at the end."""
    pools: dict[str, list[Candidate]] = {}
    for one in chosen:
        pools.setdefault(one.pool, []).append(one)
    nodes: dict[NodeId, int] = {}
    for one in chosen:
        nodes.setdefault(one.node_id, len(nodes))
    return sorted(pools.values(), key=lambda group: (group[0].is_offload, nodes[group[0].node_id]))


def _rings(groups: list[Group]) -> list[list[Group]]:
    """Orders to try: roomiest first, and with the two roomiest at the ends, which embedding and head weigh down."""
    if len(groups) < 3 or groups[-1][0].is_offload:
        return [groups]
    return [groups, [groups[0], *groups[2:], groups[1]]]


def _spread(problem: Problem, ring: Sequence[Group], counts: Sequence[int]) -> tuple[StagePlan, ...] | None:
    """Give each group its layers, evenly among its nodes."""
    split: list[int] = []
    for group, count in zip(ring, counts, strict=True):
        if count < len(group):
            return None
        split.extend(memory_weighted_split(count, [1] * len(group)))
    return _stages(problem, [one for group in ring for one in group], split)


def _stages(
    problem: Problem, chosen: Sequence[Candidate], counts: Sequence[int]
) -> tuple[StagePlan, ...] | None:
    """Return the stages, or None where a pool would overflow."""
    left = {one.pool: one.memory_free_bytes for one in chosen}
    stages: list[StagePlan] = []
    start = 0
    for rank, (candidate, count) in enumerate(zip(chosen, counts, strict=True)):
        needed = problem.stage_memory_bytes(start, start + count)
        left[candidate.pool] -= needed
        if count < 1 or left[candidate.pool] < 0:
            return None
        stages.append(
            StagePlan(
                rank=rank,
                node_id=candidate.node_id,
                device_ids=(candidate.device.device_id,),
                start_layer=start,
                end_layer=start + count,
                memory_bytes=needed,
                is_offloaded=candidate.is_offload,
            )
        )
        start += count
    return tuple(stages) if start == problem.model.layer_count else None


def _fits(problem: Problem, group: Group, start: int, end: int) -> bool:
    """Say whether a group holds these layers, its nodes' reserves and a second embedding included."""
    needed = problem.stage_memory_bytes(start, end) + (len(group) - 1) * process_bytes(problem.model)
    if len(group) > 1 and start == 0 and end == problem.model.layer_count and problem.model.has_tied_head:
        needed += problem.model.embedding_bytes
    return end - start >= len(group) and needed <= group[0].memory_free_bytes


def _mended(problem: Problem, ring: Sequence[Group], counts: Sequence[int]) -> list[int]:
    """Fill the groups in turn, each with its share or what it holds, and more where the rest could not hold its own.

    The proportional split can miss by a layer where layers, embedding or head are of unequal size.
    """
    layer_count = problem.model.layer_count
    mended: list[int] = []
    start = 0
    for position, group in enumerate(ring):
        rest = ring[position + 1 :]
        most = layer_count - start - sum(len(later) for later in rest)
        count = min(most, counts[position]) if rest else most
        while count > len(group) and not _fits(problem, group, start, start + count):
            count -= 1
        while (
            rest
            and count < most
            and _fits(problem, group, start, start + count + 1)
            and not _rest_fits(problem, rest, start + count)
        ):
            count += 1
        mended.append(count)
        start += count
    return mended


def _rest_fits(problem: Problem, rest: Sequence[Group], start: int) -> bool:
    """Say whether the layers from `start` on fit into the rest when each group is filled to the brim."""
    layer_count = problem.model.layer_count
    for position, group in enumerate(rest):
        end = layer_count - sum(len(later) for later in rest[position + 1 :])
        while end > start and not _fits(problem, group, start, end):
            end -= 1
        if end <= start:
            return False
        start = end
    return start == layer_count
