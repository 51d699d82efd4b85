"""Whether any order of any subset of few devices holds unequal layers: how far each subset gets at most.

The further a set of stages gets, the less is left for the others, so that of all orders of a subset only the furthest
counts (a dynamic programme over subsets, as Held and Karp's).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from exo.master.placement.ladder.field import Field, Flags, Integers
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.rules import rule_masks


def rings_that_reach(of: Field, prefix: PrefixProgramme, order: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield a ring for each subset and last device that hold all layers and keep the rules, small subsets first.

    Without shared pools each of them is a plan, and there is no plan where none is yielded.
    """
    size, layer_count, min_stages = len(order), of.layer_count, of.problem.min_stages
    is_allowed = _allowed(of, order)
    counts = np.array([mask.bit_count() for mask in range(1 << size)])
    masks = np.arange(1 << size)
    starts = range(layer_count + 1)
    first = [prefix.reach(0, index, is_first=True) for index in order]
    middle = np.array([[prefix.reach(start, index, is_first=False) for start in starts] for index in order])
    closes = np.array(
        [[prefix.reaches_end(start, index, is_first=False) for start in starts] for index in order]
    )
    for place, index in enumerate(order):
        if min_stages <= 1 and is_allowed[1 << place] and prefix.reaches_end(0, index, is_first=True):
            yield (order[place],)
    reached: Integers = np.zeros(1 << size, dtype=np.int64)
    came_by = np.full(1 << size, -1)
    for stages in range(1, size):
        # What comes behind needs a layer each.
        most = layer_count - max(1, min_stages - stages)
        sources = masks[(counts == stages - 1) & ((reached > 0) | (stages == 1))]
        for place in range(size):
            free = sources[sources >> place & 1 == 0]
            if not free.size:
                continue
            ends = np.minimum(middle[place, reached[free]] if stages > 1 else first[place], most)
            target = free | 1 << place
            is_better = (ends > reached[free]) & (ends > reached[target])
            reached[target[is_better]] = np.broadcast_to(ends, target.shape)[is_better]
            came_by[target[is_better]] = place
        if stages + 1 < min_stages:
            continue
        held = masks[(counts == stages) & (reached > 0)]
        for place in range(size):
            free = held[(held >> place & 1 == 0) & is_allowed[held | 1 << place]]
            for mask in free[closes[place, reached[free]]].tolist():
                ring, left = [order[place]], mask
                while left:
                    ring.append(order[int(came_by[left])])
                    left &= ~(1 << int(came_by[left]))
                yield tuple(reversed(ring))


def _allowed(of: Field, order: Sequence[int]) -> Flags:
    """Say of every subset of the devices in this order whether it keeps the rules and has those that are required."""
    masks = np.arange(1 << len(order))[:, np.newaxis]
    used = np.zeros((len(masks), of.size), dtype=np.bool_)
    used[:, list(order)] = masks >> np.arange(len(order)) & 1 == 1
    return rule_masks(of)(used) & used[:, of.is_required].all(axis=1)
