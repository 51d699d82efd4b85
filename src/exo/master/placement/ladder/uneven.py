"""Plans for layers of unequal size or time: rings found on average layers, split with the true ones, and varied."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise, permutations

import numpy as np

from exo.master.placement.ladder.branch import keeps_rules
from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.programme import INFINITE
from exo.master.placement.ladder.ring import link_matrices
from exo.master.placement.ladder.water import Filled

_REACHES_UP_TO = 13
"""Devices for which it is decided exactly whether any order of any subset holds the layers."""
_ALL_UP_TO = 5
"""Devices of which every order of every subset is tried."""
_SPLITS_MAX = 400
_ORDERS_MAX = 200
_SEED = 21


class UnevenSearch:
    """Tries rings with the true sizes of the layers."""

    def __init__(self, of: Field, should_stop: Callable[[], bool]) -> None:
        self.of = of
        self.best: Filled | None = None
        self.splits = 0
        self.is_truncated = False
        self._should_stop = should_stop
        self._has_own_pools = len(set(of.pool.tolist())) == of.size
        self._prefix = PrefixProgramme(self.of)
        forward, back = link_matrices(self.of)
        self._forward: list[list[int]] = forward.tolist()
        self._back: list[list[int]] = back.tolist()
        self._names = [one.device_id for one in self.of.devices]
        self._seen: set[tuple[int, ...]] = set()

    def try_ring(self, ring: Sequence[int]) -> bool:
        """Split the layers over a ring; say whether that is the best so far."""
        key = tuple(ring)
        if key in self._seen or not self._is_allowed(key):
            return False
        self._seen.add(key)
        self.splits += 1
        found = self._prefix.split(key)
        if found is None:
            return False
        cost = found[0] + self._hops_ns(key)
        if self.best is not None and cost >= self.best.cost_ns:
            return False
        self.best = Filled(cost, key, tuple(found[1]))
        return True

    def _is_allowed(self, ring: tuple[int, ...]) -> bool:
        problem = self.of.problem
        if len(ring) < max(1, problem.min_stages) or not keeps_rules(
            [self._names[one] for one in ring], problem.rules
        ):
            return False
        return all(index in ring for index in np.flatnonzero(self.of.is_required).tolist())

    def _hops_ns(self, ring: tuple[int, ...]) -> int:
        if len(ring) < 2:
            return 0
        return self._back[ring[-1]][ring[0]] + sum(
            self._forward[source][target] for source, target in pairwise(ring)
        )

    def climb(self) -> None:
        """Drop, exchange, add and swap devices of the best ring as long as that helps."""
        improved = True
        while improved and self.best is not None:
            improved = False
            for ring in self._around(self.best.ring):
                if self.splits >= _SPLITS_MAX:
                    return
                if self._should_stop():
                    self.is_truncated = True
                    return
                if self.try_ring(ring):
                    improved = True
                    break

    def try_all(self) -> bool:
        """Try every order of every subset where there are few devices; say whether that proves the best."""
        usable = self._by_speed()
        if len(usable) > _ALL_UP_TO:
            return False
        for size in range(1, min(len(usable), self.of.layer_count) + 1):
            for ring in permutations(usable, size):
                if self._should_stop():
                    self.is_truncated = True
                    return False
                self.try_ring(ring)
        return self._has_own_pools

    def _around(self, ring: tuple[int, ...]) -> list[tuple[int, ...]]:
        absent = [index for index in self._by_speed() if index not in ring][:8]
        around = [ring[turn:] + ring[:turn] for turn in range(1, len(ring))]
        for one in range(len(ring)):
            rest = ring[:one] + ring[one + 1 :]
            around.append(rest)
            around.extend(_put(rest, other, ring[one]) for other in range(one + 1, len(ring)))
            around.extend(_put(rest, one, index) for index in absent)
        around.extend(_put(ring, place, index) for place in range(len(ring) + 1) for index in absent)
        return around

    def _by_speed(self) -> list[int]:
        usable = np.flatnonzero(self.of.room_bytes[self.of.pool] > 0)
        order: list[int] = usable[np.lexsort((usable, self.of.layer_ns[usable]))].tolist()
        return order

    def _find_by_chance(self, order: Sequence[int]) -> bool:
        """Try the roomiest and some random orders, each filled to the brim as far as the layers go."""
        chance = random.Random(_SEED)
        rooms = self.of.room_bytes[self.of.pool]
        tried = sorted(order, key=lambda index: (-int(rooms[index]), index))
        for _ in range(_ORDERS_MAX):
            start, ring = 0, list[int]()
            for index in tried:
                if self._prefix.reaches_end(start, index, is_first=not ring) and self.try_ring(
                    [*ring, index]
                ):
                    return True
                end = self._prefix.reach(start, index, is_first=not ring)
                if end > start:
                    start = end
                    ring.append(index)
            tried = chance.sample(list(order), len(order))
        return False

    def find_any(self) -> bool:
        """Find a plan where there is one, for few devices by how far each subset gets; say whether that was exact.

        Devices that share a pool are weighed as if each had it alone, so that only a found plan is certain then.
        """
        order = self._by_speed()
        if len(order) > _REACHES_UP_TO:
            return self._find_by_chance(order)
        furthest: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
        for mask in range(1 << len(order)):
            if mask not in furthest:
                continue
            if self._should_stop():
                self.is_truncated = True
                return False
            start, ring = furthest[mask]
            for position, index in enumerate(order):
                if mask >> position & 1:
                    continue
                if self._prefix.reaches_end(start, index, is_first=not ring) and self.try_ring(
                    (*ring, index)
                ):
                    return True
                end = self._prefix.reach(start, index, is_first=not ring)
                grown = mask | 1 << position
                if end > start and (grown not in furthest or end > furthest[grown][0]):
                    furthest[grown] = (end, (*ring, index))
        return self.best is not None or self._has_own_pools


def _put(ring: tuple[int, ...], place: int, index: int) -> tuple[int, ...]:
    return (*ring[:place], index, *ring[place:])


def best_single_uneven(of: Field, search: UnevenSearch) -> int:
    """Try every device alone; return the least time, for the bound on several leaves these out."""
    rooms = of.room_bytes[of.pool]
    whole = of.problem.model.only_bytes + sum(layer.size_bytes for layer in of.problem.model.layers)
    roomy: list[int] = np.flatnonzero(rooms >= whole).tolist()
    for index in roomy:
        search.try_ring((index,))
    return INFINITE if search.best is None else search.best.cost_ns
