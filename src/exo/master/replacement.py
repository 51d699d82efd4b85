"""Of several plans for an instance that is placed already, the one for which the least has to be moved. Pure."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from exo.master.placement.problem import Candidate, Problem
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.instances import Instance, Plan, StagePlan
from exo.shared.types.models import ModelCard

NEAR_ENOUGH = 1.03
"""Plans that take at most so many times the best one's time are as good as it: by how much predictions are off after
calibration is of this order, while a byte that has to be read is certain."""
SPARES_MAX = 48
"""Devices that are tried in a lost one's place: those of the fastest plan first, then the roomiest."""
_FINE_SPARES_MAX = 3
"""Of these, so many are also tried with a part of what was lost, and its neighbours with the rest."""
_CUTS_MAX = 5
_ORDERED_STAGES_MAX = 5
"""Up to so many stages, all of their orders are tried."""
_VARIANTS_MAX = 600

_EMBEDDING, _HEAD = -1, -2

Range = tuple[Candidate, int, int]
"""A device with its first layer and the one behind its last."""


def held_pieces(instance: Instance) -> dict[NodeId, set[int]]:
    """Return which layers of the model each node has at hand: those that stages there have read, or are reading.

    A new generation's processes read their weights anew, but from the memory in which the system keeps files that were
    read lately. Embedding and head count as pieces of their own.
    """
    held: dict[NodeId, set[int]] = {}
    for plan, stage in zip(instance.plan.stages, instance.stages, strict=True):
        if stage.phase != "pending":
            held.setdefault(plan.node_id, set()).update(_pieces(instance.model, plan))
    return held


def moved_bytes(plan: Plan, instance: Instance) -> int:
    """Return how many bytes of weights the nodes of a plan have to read that they do not have at hand."""
    held = held_pieces(instance)
    needed: dict[NodeId, set[int]] = {}
    for stage in plan.stages:
        needed.setdefault(stage.node_id, set()).update(_pieces(instance.model, stage))
    return sum(
        _piece_bytes(instance.model, piece)
        for node_id, pieces in needed.items()
        for piece in pieces - held.get(node_id, set())
    )


def least_moved(plans: Sequence[Plan], instance: Instance) -> Plan:
    """Return, of the plans within `NEAR_ENOUGH` of the fastest, the one that moves the fewest bytes.

    Of those that move as few the fastest, and of equals the first. Where the first one's time is not known, there is
    nothing to compare, and it is the answer.

    Raises:
        ValueError: There are no plans.
    """
    if not plans:
        raise ValueError("there is no plan to choose from")
    timed = [(time_ms, plan) for plan in plans if (time_ms := _time_ms(plan)) is not None]
    if _time_ms(plans[0]) is None:
        return plans[0]
    best_ms = min(time_ms for time_ms, _ in timed)
    near = [(time_ms, plan) for time_ms, plan in timed if time_ms <= best_ms * NEAR_ENOUGH]
    return min(near, key=lambda one: (moved_bytes(one[1], instance), one[0]))[1]


def kept_variants(instance: Instance, problem: Problem, fastest: Plan) -> Iterator[tuple[StagePlan, ...]]:
    """Yield stages that leave as much as possible where it is, each only once. Whether they fit is not looked at.

    These are: the instance as it is; what is lost given to its neighbours; another device in the place of a lost one,
    with all of its layers or with a part of them; and the fastest plan's stages in another order, so that they meet
    more of what their nodes have.
    """
    if any(len(stage.device_ids) != 1 for stage in (*instance.plan.stages, *fastest.stages)):
        return  # A group of devices holds parts of layers: nothing of it is kept by another one.
    candidates = {one.device.device_id: one for one in problem.candidates}
    ranges = itertools.islice(_ranges(instance, candidates, fastest), _VARIANTS_MAX)
    yield from _as_stages(problem, ranges)


def neighbours(instance: Instance, problem: Problem, plan: Plan) -> Iterator[tuple[StagePlan, ...]]:
    """Yield what is one step from a plan and may move less, each only once: another border, or a device it was on."""
    if any(len(stage.device_ids) != 1 for stage in (*instance.plan.stages, *plan.stages)):
        return
    candidates = {one.device.device_id: one for one in problem.candidates}
    known = [
        (candidates.get(stage.device_ids[0]), stage.start_layer, stage.end_layer) for stage in plan.stages
    ]
    ranges = [(one, start, end) for one, start, end in known if one is not None]
    if len(ranges) == len(plan.stages):
        yield from _as_stages(problem, _steps(instance, candidates, ranges))


def _steps(
    instance: Instance, candidates: Mapping[DeviceId, Candidate], ranges: Sequence[Range]
) -> Iterator[Sequence[Range]]:
    used = {one.device.device_id for one, _, _ in ranges}
    had = [stage.device_ids[0] for stage in instance.plan.stages]
    survivors = [candidates[one] for one in had if one in candidates and one not in used]
    for position, (_, start, end) in enumerate(ranges):
        for other in survivors:
            yield [*ranges[:position], (other, start, end), *ranges[position + 1 :]]
    borders = {stage.end_layer for stage in instance.plan.stages}
    for position, (left, right) in enumerate(itertools.pairwise(ranges)):
        near = {left[2] + step * sign for step in (1, 2, 4, 8) for sign in (-1, 1)}
        for border in sorted((borders | near) - {left[2]}):
            if left[1] < border < right[2]:
                moved = [(left[0], left[1], border), (right[0], border, right[2])]
                yield [*ranges[:position], *moved, *ranges[position + 2 :]]


def _as_stages(problem: Problem, found: Iterable[Sequence[Range]]) -> Iterator[tuple[StagePlan, ...]]:
    """Return device ranges as stages, each only once."""
    split = problem.request.layer_split
    seen: set[tuple[tuple[DeviceId, int, int], ...]] = set()
    for ranges in found:
        key = tuple((one.device.device_id, start, end) for one, start, end in ranges)
        is_split_kept = not split or split == tuple(end - start for _, start, end in ranges)
        if key in seen or not is_split_kept:
            continue
        seen.add(key)
        yield tuple(
            StagePlan(
                rank=rank,
                node_id=candidate.node_id,
                device_ids=(candidate.device.device_id,),
                start_layer=start,
                end_layer=end,
                memory_bytes=problem.stage_memory_bytes(start, end),
                is_offloaded=candidate.is_offload,
            )
            for rank, (candidate, start, end) in enumerate(ranges)
        )


def _ranges(
    instance: Instance, candidates: Mapping[DeviceId, Candidate], fastest: Plan
) -> Iterator[Sequence[Range]]:
    present = instance.plan.stages
    kept = [candidates.get(stage.device_ids[0]) for stage in present]
    if all(one is not None for one in kept):
        yield [
            (one, stage.start_layer, stage.end_layer)
            for one, stage in zip(kept, present, strict=True)
            if one is not None
        ]
    elif any(one is not None for one in kept):
        yield from _filled(present, kept, _spares(present, candidates, fastest))
    yield from _reordered(instance, candidates, fastest)


def _spares(
    present: Sequence[StagePlan], candidates: Mapping[DeviceId, Candidate], fastest: Plan
) -> list[Candidate]:
    """Return devices that the instance is not on, the fastest plan's first, then the roomiest."""
    had = {stage.device_ids[0] for stage in present}
    wanted = {stage.device_ids[0] for stage in fastest.stages}
    spares = [one for device_id, one in candidates.items() if device_id not in had]
    spares.sort(
        key=lambda one: (
            one.device.device_id not in wanted,
            -one.memory_free_bytes,
            one.device.device_id,
        )
    )
    return spares[:SPARES_MAX]


def _filled(
    present: Sequence[StagePlan], kept: Sequence[Candidate | None], spares: Sequence[Candidate]
) -> Iterator[Sequence[Range]]:
    """Fill the gaps that lost stages leave: by their neighbours, by a spare device each, by both together."""
    survivors: list[Range] = [
        (one, stage.start_layer, stage.end_layer)
        for one, stage in zip(kept, present, strict=True)
        if one is not None
    ]
    gaps = _gaps(survivors, present[-1].end_layer)
    if len(gaps) > 1:
        for take_left in (True, False):
            yield _stretched(survivors, [end if take_left else start for start, end in gaps], gaps)
        if len(spares) >= len(gaps):
            yield sorted(
                [*survivors, *((one, *gap) for one, gap in zip(spares, gaps, strict=False))], key=_start
            )
        return
    ((start, end),) = gaps
    for cut in range(start, end + 1):
        yield _stretched(survivors, [cut], gaps)
    for spare in spares:
        yield sorted([*survivors, (spare, start, end)], key=_start)
    for spare in spares[:_FINE_SPARES_MAX]:
        for first, last in itertools.combinations(_cuts(start, end), 2):
            yield _stretched_around(survivors, (spare, first, last), start, end)


def _gaps(survivors: Sequence[Range], layer_count: int) -> list[tuple[int, int]]:
    ends = [0, *(end for _, _, end in survivors)]
    starts = [*(start for _, start, _ in survivors), layer_count]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]


def _stretched(
    survivors: Sequence[Range], cuts: Sequence[int], gaps: Sequence[tuple[int, int]]
) -> list[Range]:
    """Have the stage before each gap take its layers up to the cut, and the one behind it the others."""
    stretched = list(survivors)
    for cut, (gap_start, gap_end) in zip(cuts, gaps, strict=True):
        has_before = any(end == gap_start for _, _, end in survivors)
        has_behind = any(start == gap_end for _, start, _ in survivors)
        for position, (one, start, end) in enumerate(stretched):
            if end == gap_start:
                stretched[position] = (one, start, cut if has_behind else gap_end)
            elif start == gap_end:
                stretched[position] = (one, cut if has_before else gap_start, end)
    return stretched


def _stretched_around(survivors: Sequence[Range], middle: Range, start: int, end: int) -> list[Range]:
    """Have a device take the middle of a gap, and the stages around it the rest."""
    _, first, last = middle
    around = [
        (
            one,
            last if begins == end else begins,
            first if ends == start else ends,
        )
        for one, begins, ends in survivors
    ]
    return sorted([*around, middle], key=_start)


def _cuts(start: int, end: int) -> list[int]:
    """Return a few places between two layers, both ends among them."""
    step = max(1, (end - start) // (_CUTS_MAX - 1))
    return sorted({*range(start, end, step), end})


def _reordered(
    instance: Instance, candidates: Mapping[DeviceId, Candidate], fastest: Plan
) -> Iterator[Sequence[Range]]:
    """Yield the fastest plan's devices with as many layers as there, in other orders."""
    sized = [
        (candidates[stage.device_ids[0]], stage.end_layer - stage.start_layer)
        for stage in fastest.stages
        if stage.device_ids[0] in candidates
    ]
    if len(sized) != len(fastest.stages):
        return
    held = held_pieces(instance)

    def middle(one: tuple[Candidate, int]) -> float:
        layers = [piece for piece in held.get(one[0].node_id, ()) if piece >= 0]
        return sum(layers) / len(layers) if layers else instance.model.layer_count / 2

    orders: Iterator[Sequence[tuple[Candidate, int]]] = iter((sorted(sized, key=middle),))
    if len(sized) <= _ORDERED_STAGES_MAX:
        orders = itertools.chain(orders, itertools.permutations(sized))
    for order in orders:
        ends = list(itertools.accumulate(count for _, count in order))
        yield [(one, end - count, end) for (one, count), end in zip(order, ends, strict=True)]


def _start(one: Range) -> int:
    return one[1]


def _pieces(model: ModelCard, stage: StagePlan) -> Iterator[int]:
    yield from range(stage.start_layer, stage.end_layer)
    is_last = stage.end_layer == model.layer_count
    if stage.start_layer == 0 or (is_last and model.has_tied_head):
        yield _EMBEDDING
    if is_last:
        yield _HEAD


def _piece_bytes(model: ModelCard, piece: int) -> int:
    if piece == _EMBEDDING:
        return model.embedding_bytes
    return model.head_bytes if piece == _HEAD else model.layer_bytes[piece]


def _time_ms(plan: Plan) -> float | None:
    return plan.prediction.ms_per_token if plan.prediction is not None else None
