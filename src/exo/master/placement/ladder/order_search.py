"""Local search over rings on irregular links: which devices, in which order. Limited by rings weighed, not by time.

Moves: drop, insert, replace, reverse a part (2-opt; Croes 1958) and move a part (Or-opt; Or 1976), all of one kind
bounded at once; when none helps, a random kick and again (iterated local search; Lourenco, Martin and Stuetzle
2003), with a fixed seed.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from exo.master.placement.ladder.field import Flags, Integers
from exo.master.placement.ladder.moves import drops, insertions, reorderings
from exo.master.placement.ladder.rings import RingScale
from exo.master.placement.ladder.water import Filled

Ring = tuple[int, ...]
_SEED = 20
_FAR = 2**60
_WEIGHED_MAX = 6
"""Rings of one neighbourhood that are weighed in full, most promising first."""
_IDLE_KICKS_MAX = 25


class OrderSearch:
    """One search; `best` is the best ring so far."""

    def __init__(
        self,
        scale: RingScale,
        size: int,
        *,
        required: frozenset[int],
        min_stages: int,
        most_stages: int,
        evaluations_max: int,
        should_stop: Callable[[], bool],
        keeps_rules: Callable[[Flags], Flags] | None = None,
    ) -> None:
        """`keeps_rules` says of sets of devices, one a row, which are allowed; without it all are."""
        self.best: Filled | None = None
        self._keeps_rules = keeps_rules
        self.is_truncated = False
        self._scale = scale
        self._size = size
        self._required = required
        self._least = max(2, min_stages, len(required))
        self._most = min(most_stages, size)
        self._limit = evaluations_max
        self._should_stop = should_stop
        self._chance = random.Random(_SEED)

    def start(self, ring: Sequence[int]) -> None:
        """Descend from a ring."""
        if len(ring) < self._least or (
            self._keeps_rules is not None
            and not self._keeps_rules(self._masks(np.array([ring], dtype=np.int64)))[0]
        ):
            return
        found = self._scale.weigh(ring, 2**60)
        if found is None:
            return
        found = self._descended(found)
        if self.best is None or found.cost_ns < self.best.cost_ns:
            self.best = found

    def iterate(self, lower_bound_ns: int) -> None:
        """Kick and descend until the rings are used up, the bound is met, or nothing new is found."""
        idle = 0
        while self.best is not None and self.best.cost_ns > lower_bound_ns and not self._is_over():
            before = self.best.cost_ns
            self.start(self._kicked(self.best.ring))
            idle = 0 if self.best.cost_ns < before else idle + 1
            if idle > _IDLE_KICKS_MAX:
                return

    def _is_over(self) -> bool:
        if self._should_stop():
            self.is_truncated = True
        return self.is_truncated or self._scale.weighed >= self._limit

    def _descended(self, found: Filled) -> Filled:
        improved = True
        while improved and not self._is_over():
            improved = False
            for orders, floors in self._neighbourhoods(np.array(found.ring, dtype=np.int64)):
                bounds = floors + self._scale.least_hops_ns(orders)
                self._scale.weighed += len(orders)
                promising = np.flatnonzero(bounds < found.cost_ns)
                ranked = promising[np.argsort(bounds[promising], kind="stable")][:_WEIGHED_MAX]
                for row in ranked.tolist():
                    if int(bounds[row]) >= found.cost_ns:
                        break
                    better = self._scale.weigh(orders[row].tolist(), found.cost_ns)
                    if better is not None:
                        found, improved = better, True
                if improved:
                    break
        return found

    def _neighbourhoods(self, ring: Integers) -> Iterator[tuple[Integers, Integers]]:
        """Yield the rings of each kind of move, with a bound on the stages' time of each."""
        count = len(ring)
        used = np.zeros(self._size, dtype=np.bool_)
        used[ring] = True
        floor = self._scale.floors_ns(ring[np.newaxis])
        if count > 3:
            yield ring[reorderings(count)], floor
        loose = np.array([index not in self._required for index in ring.tolist()])
        absent = np.flatnonzero(~used)
        if count > self._least and loose.any():
            rests = ring[drops(count)][loose]
            yield rests, self._floors_ns(rests)
        if absent.size and loose.any():
            rests = ring[drops(count)][loose]
            sets = np.concatenate(
                [
                    np.repeat(rests, len(absent), axis=0),
                    np.tile(absent, len(rests))[:, np.newaxis],
                ],
                axis=1,
            )
            yield self._placed(sets)
        if absent.size and count < self._most:
            sets = np.concatenate(
                [np.tile(ring, (len(absent), 1)), absent[:, np.newaxis]],
                axis=1,
            )
            yield self._placed(sets)

    def _placed(self, sets: Integers) -> tuple[Integers, Integers]:
        """Put the last device of each row into every place of the ring of the others."""
        places = insertions(sets.shape[1] - 1)
        orders = sets[:, places].reshape(-1, sets.shape[1])
        return orders, np.repeat(self._floors_ns(sets), len(places))

    def _floors_ns(self, sets: Integers) -> Integers:
        floors = self._scale.floors_ns(sets)
        if self._keeps_rules is None:
            return floors
        return np.where(self._keeps_rules(self._masks(sets)), floors, _FAR)

    def _masks(self, rows: Integers) -> Flags:
        masks = np.zeros((len(rows), self._size), dtype=np.bool_)
        masks[np.arange(len(rows))[:, np.newaxis], rows] = True
        return masks

    def _kicked(self, ring: Ring) -> Ring:
        """Exchange, drop or add some devices at random, or cut the ring into parts and join them anew."""
        chance = self._chance
        changed = list(ring)
        absent = [index for index in range(self._size) if index not in ring]
        if len(changed) >= 4 and (not absent or chance.random() < 0.3):
            one, two, three = sorted(chance.sample(range(1, len(changed) + 1), 3))
            return tuple(changed[:one] + changed[two:three] + changed[one:two] + changed[three:])
        for _ in range(chance.randint(1, 3)):
            movable = [index for index in changed if index not in self._required]
            if movable and len(changed) > 1:
                changed.remove(chance.choice(movable))
            if absent and (len(changed) < self._least or chance.random() < 0.8):
                other = absent.pop(chance.randrange(len(absent)))
                changed.insert(chance.randrange(len(changed) + 1), other)
        while absent and len(changed) < self._most:
            if len(changed) >= self._least and self._scale.floor_ns(tuple(sorted(changed))) is not None:
                break
            changed.insert(chance.randrange(len(changed) + 1), absent.pop(chance.randrange(len(absent))))
        return tuple(changed)
