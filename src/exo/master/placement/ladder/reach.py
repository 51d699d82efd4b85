"""Whether any order of any subset of devices holds unequal layers: how far each subset gets at most.

The further a set of stages gets, the less is left for the others, so that of all orders of a subset only the furthest
counts (a dynamic programme over subsets, as Held and Karp's). Sets after which the others cannot hold the rest, even
if each got the run that fills it best, are left out: where memory is tight, and the question hard, few remain.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from exo.master.placement.ladder.field import Field, Flags, Integers
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.problem import AtMost
from exo.master.placement.ladder.rules import rule_masks

_DEVICES_MAX = 62
"""What fits into the bits of a number."""


class Reach:
    """Rings that hold all layers and keep the rules, one for each subset and last device, small subsets first.

    Without shared pools each of them is a plan, and there is no plan where none is yielded and `is_whole` is set.

    Args:
        of: The devices and their rules.
        prefix: Says how far a device gets from a start.
        order: The devices that may take part.
        sets_max: Subsets of one size to look at; of more, those that lose least memory.
        should_stop: Ends it early.
    """

    def __init__(
        self,
        of: Field,
        prefix: PrefixProgramme,
        order: Sequence[int],
        *,
        sets_max: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self.is_whole = len(order) <= _DEVICES_MAX
        self._of = of
        self._prefix = prefix
        self._order = list(order[:_DEVICES_MAX])
        self._sets_max = sets_max
        self._should_stop = should_stop
        self._levels: list[tuple[Integers, Integers]] = []
        """Of sets of one, two ... devices: the sets, and who comes last."""

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Yield the rings."""
        of, prefix, order = self._of, self._prefix, self._order
        count, min_stages = of.layer_count, of.problem.min_stages
        alone = self._keep(np.array([1 << place for place in range(len(order))], dtype=np.int64))
        for place, index in enumerate(order):
            if min_stages <= 1 and alone[place] and prefix.reaches_end(0, index, is_first=True):
                yield (index,)
        if len(order) < 2:
            return
        starts = range(count + 1)
        first = np.array([prefix.reach(0, index, is_first=True) for index in order])
        middle = np.array(
            [[prefix.reach(start, index, is_first=False) for start in starts] for index in order]
        ).reshape(len(order), -1)
        closes = np.array(
            [[prefix.reaches_end(start, index, is_first=False) for start in starts] for index in order]
        ).reshape(len(order), -1)
        rest = _Rest(of, order, middle, closes)
        sets, reached = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        if int(rest.spare_bytes(sets, reached)[0]) < 0:
            return
        for stages in range(1, len(order)):
            # What comes behind needs a layer each.
            most = count - max(1, min_stages - stages)
            found: list[tuple[Integers, Integers, Integers]] = []
            for place in range(len(order)):
                if self._should_stop():
                    self.is_whole = False
                    return
                free = sets >> place & 1 == 0
                ends = np.minimum(
                    middle[place, reached[free]] if stages > 1 else np.full(int(free.sum()), first[place]),
                    most,
                )
                gets_on = ends > reached[free]
                found.append(
                    (
                        sets[free][gets_on] | 1 << place,
                        ends[gets_on],
                        np.full(int(gets_on.sum()), place),
                    )
                )
            sets, reached, came_by = _furthest(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
            spare = rest.spare_bytes(sets, reached)
            kept = np.flatnonzero((spare >= 0) & self._may_become_allowed(sets))
            if len(kept) > self._sets_max:
                self.is_whole = False
                kept = np.sort(kept[np.argsort(-spare[kept], kind="stable")[: self._sets_max]])
            sets, reached = sets[kept], reached[kept]
            self._levels.append((sets, came_by[kept]))
            if not len(sets):
                return
            if stages + 1 >= min_stages:
                yield from self._closed(sets, reached, closes)

    def _closed(self, sets: Integers, reached: Integers, closes: Flags) -> Iterator[tuple[int, ...]]:
        for place, index in enumerate(self._order):
            closing = sets[(sets >> place & 1 == 0) & closes[place, reached]]
            allowed: list[int] = closing[self._keep(closing | 1 << place)].tolist()
            for before in allowed:
                yield (*self._walked(before), index)

    def _walked(self, used: int) -> list[int]:
        """Return the devices of a set in the order that gets furthest."""
        ring: list[int] = []
        while used:
            sets, came_by = self._levels[used.bit_count() - 1]
            place = int(came_by[int(np.searchsorted(sets, used))])
            ring.append(self._order[place])
            used &= ~(1 << place)
        return ring[::-1]

    def _keep(self, sets: Integers) -> Flags:
        """Say of sets whether they keep all rules and have every device that is required."""
        used = np.zeros((len(sets), self._of.size), dtype=np.bool_)
        used[:, self._order] = sets[:, np.newaxis] >> np.arange(len(self._order)) & 1 == 1
        return rule_masks(self._of)(used) & used[:, self._of.is_required].all(axis=1)

    def _may_become_allowed(self, sets: Integers) -> Flags:
        """Say of sets whether they have no more of any devices than a rule allows."""
        kept = np.ones(len(sets), dtype=np.bool_)
        names = [self._of.devices[index].device_id for index in self._order]
        for rule in self._of.problem.rules:
            if isinstance(rule, AtMost):
                places = [place for place, name in enumerate(names) if name in rule.device_ids]
                kept &= np.sum([sets >> place & 1 for place in places], axis=0) <= rule.count
        return kept


class _Rest:
    """What the devices outside of a set can hold at most, each the run that fills it best."""

    def __init__(self, of: Field, order: Sequence[int], middle: Integers, closes: Flags) -> None:
        sizes = [layer.size_bytes for layer in of.problem.model.layers]
        self._size = np.concatenate(([0], np.cumsum(np.array(sizes, dtype=np.int64))))
        held = self._size[middle] - self._size
        self._most: list[int] = held.max(axis=1, initial=0).tolist()
        last = np.where(closes, self._size[-1] - self._size, 0).max(axis=1, initial=0)
        # One of them has the head besides.
        self._less = min(
            0, max((int(one) - most for one, most in zip(last, self._most, strict=True)), default=0)
        )
        names = [of.devices[index].device_id for index in order]
        self._at_most = [
            (rule.count, [place for place, name in enumerate(names) if name in rule.device_ids])
            for rule in of.problem.rules
            if isinstance(rule, AtMost)
        ]

    def spare_bytes(self, sets: Integers, reached: Integers) -> Integers:
        """Return how much more than the rest the others may hold, of sets that got so far; negative: too little."""
        whole, barred = self._outside(sets, range(len(self._most))), np.zeros(len(sets), dtype=np.int64)
        for count, places in self._at_most:
            # No more of them may come than the rule leaves, each at most as large as the largest.
            left = count - np.sum([sets >> place & 1 for place in places], axis=0)
            largest = max((self._most[place] for place in places), default=0)
            barred = np.maximum(barred, self._outside(sets, places) - np.maximum(0, left) * largest)
        return whole - barred + self._less + self._size[reached] - self._size[-1]

    def _outside(self, sets: Integers, places: Sequence[int]) -> Integers:
        """Return what those of some devices that are not in a set can hold."""
        total = np.zeros(len(sets), dtype=np.int64)
        for place in places:
            total += np.where(sets >> place & 1 == 0, self._most[place], 0)
        return total


def _furthest(sets: Integers, ends: Integers, came_by: Integers) -> tuple[Integers, Integers, Integers]:
    """Keep of each set the furthest, and of equals who has the least place; sorted by set."""
    order = np.lexsort((came_by, -ends, sets))
    sets, ends, came_by = sets[order], ends[order], came_by[order]
    is_first = np.ones(len(sets), dtype=np.bool_)
    is_first[1:] = sets[1:] != sets[:-1]
    return sets[is_first], ends[is_first], came_by[is_first]
