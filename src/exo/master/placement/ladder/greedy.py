"""The memory-weighted ring: a plan at once, over the roomiest devices that hold the model. Fallback and baseline."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.problem import AtMost
from exo.master.placement.ladder.ring import hierarchical_order

Ring = list[tuple[int, int]]
"""Devices in ring order with their layer counts."""
_TRIES_MAX = 12


def memory_weighted_ring(of: Field) -> Ring | None:
    """Return the ring over as few devices as hold the model, layers in proportion to their memory, or None.

    None does not mean that there is no plan: only that this simple split found none in a few tries.
    """
    order, wanted = _roomiest_first(of)
    least = max(1, of.problem.min_stages, wanted)
    if not order or least > min(len(order), of.layer_count):
        return None
    pools: set[int] = set()
    plain = of.plain_layers
    holds = 0
    count = 0
    for position, index in enumerate(order, start=1):
        pool = int(of.pool[index])
        holds += int(plain[index]) if pool not in pools else 0
        pools.add(pool)
        if position >= least and holds >= of.layer_count:
            count = position
            break
    if not count:
        count = min(len(order), of.layer_count)
    for step in range(_TRIES_MAX):
        if count > min(len(order), of.layer_count):
            return None
        ring = split_by_memory(of, order[:count])
        if ring is not None:
            return ring
        count += 1 + step // 4
    return None


def _roomiest_first(of: Field) -> tuple[list[int], int]:
    """Required ones first, then by room; a second one of a pool adds no memory, so it comes after all first ones.

    Returns the order and how many at its head must be taken.
    """
    room = of.room_bytes[of.pool]
    usable = np.flatnonzero((of.most_layers > 0) | (of.only_layers > 0))
    ordered = usable[np.lexsort((usable, -room[usable], ~of.is_required[usable]))].tolist()
    turns: dict[int, int] = {}
    keyed: list[tuple[bool, int, int]] = []
    for position, index in enumerate(ordered):
        pool = int(of.pool[index])
        turns[pool] = turns.get(pool, 0) + 1
        keyed.append((not of.is_required[index], turns[pool], position))
    ordered = [ordered[position] for _, _, position in sorted(keyed)]
    return _within_rules(of, ordered) if of.problem.rules else (ordered, int(of.is_required.sum()))


def _within_rules(of: Field, ordered: Sequence[int]) -> tuple[list[int], int]:
    """Put forward what the rules ask for, and leave out what they forbid."""
    ids = [one.device_id for one in of.devices]
    allowed = [(set(rule.device_ids), rule.count) for rule in of.problem.rules if isinstance(rule, AtMost)]
    groups = [rule for rule in of.problem.rules if not isinstance(rule, AtMost)]
    taken: set[str] = set()
    kept: list[int] = []

    def take(index: int) -> None:
        name = ids[index]
        if name in taken or any(name in group and len(group & taken) >= most for group, most in allowed):
            return
        taken.add(name)
        kept.append(index)

    for index in ordered:
        if of.is_required[index]:
            take(index)
    for rule in groups:
        for index in ordered:
            met = sum(1 for group in rule.groups if taken & set(group))
            if met >= rule.count:
                break
            if any(ids[index] in group and not taken & set(group) for group in rule.groups):
                take(index)
    wanted = len(kept)
    for index in ordered:
        take(index)
    return kept, wanted


def split_by_memory(of: Field, chosen: Sequence[int]) -> Ring | None:
    """Return the chosen devices as a ring with layers in proportion to their memory, or None where they do not fit."""
    if len(chosen) > of.layer_count:
        return None
    if len(chosen) == 1:
        return [(chosen[0], of.layer_count)] if of.only_layers[chosen[0]] >= of.layer_count else None
    sharers: dict[int, int] = {}
    for index in chosen:
        sharers[int(of.pool[index])] = sharers.get(int(of.pool[index]), 0) + 1
    filler = Filler(of)
    ranked = filler.rank(chosen)
    for first, last in _ends(of, chosen):
        filled = filler.fill(ranked, first, last)
        if filled is None:
            continue
        ring = hierarchical_order(of, chosen, first, last)
        most = np.array([_most(of, index, first, last) for index in ring], dtype=np.int64)
        weights = np.array(
            [int(of.room_bytes[of.pool[index]]) // sharers[int(of.pool[index])] for index in ring],
            dtype=np.float64,
        )
        counts = largest_remainder(of.layer_count, weights, most)
        if counts is None or not _fits(of, ring, counts):
            return [(index, filled[1][index]) for index in ring]
        return list(zip(ring, counts, strict=True))
    return None


def _ends(of: Field, chosen: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of first and last stage to try, roomiest first: embedding and head weigh on them."""
    by_room = sorted(chosen, key=lambda index: (-int(of.room_bytes[of.pool[index]]), index))[:4]
    return [(first, last) for last in by_room for first in by_room if first != last]


def _most(of: Field, index: int, first: int, last: int) -> int:
    if index == first:
        return int(of.first_layers[index])
    return int(of.last_layers[index] if index == last else of.plain_layers[index])


def largest_remainder(
    layer_count: int, weights: npt.NDArray[np.float64], most: npt.NDArray[np.int64]
) -> list[int] | None:
    """Split layers in proportion to `weights`, one each at least and `most` each at most; None where they are too few.

    Ties go to the earlier one.
    """
    if int(most.sum()) < layer_count or (most < 1).any() or len(weights) > layer_count:
        return None
    total = weights.sum()
    shares = layer_count * weights / total if total > 0 else np.full(len(weights), layer_count / len(weights))
    counts = np.clip(shares.astype(np.int64), 1, most)
    while (missing := layer_count - int(counts.sum())) != 0:
        owed = shares - counts
        if missing > 0:
            movable = np.flatnonzero(counts < most)
            order = movable[np.argsort(-owed[movable], kind="stable")][:missing]
            counts[order] += 1
        else:
            movable = np.flatnonzero(counts > 1)
            order = movable[np.argsort(owed[movable], kind="stable")][:-missing]
            counts[order] -= 1
    return counts.tolist()


def _fits(of: Field, ring: Sequence[int], counts: Sequence[int]) -> bool:
    model = of.problem.model
    taken: dict[int, int] = {}
    for position, (index, count) in enumerate(zip(ring, counts, strict=True)):
        held = model.stage_bytes
        if position == 0:
            held = model.first_bytes
        elif position == len(ring) - 1:
            held = model.last_bytes
        pool = int(of.pool[index])
        taken[pool] = taken.get(pool, 0) + held + count * of.layer_bytes
    return all(size <= of.room_bytes[pool] for pool, size in taken.items())
