"""Plans for layers of unequal size or time: found on average layers, split with true ones, bounded by relaxed ones."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations

import numpy as np

from exo.master.placement.ladder.branch import keeps_rules
from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.prices import entry_costs, price
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT
from exo.master.placement.ladder.programme import INFINITE, LeafTable, run
from exo.master.placement.ladder.ring import link_matrices
from exo.master.placement.ladder.tree import hierarchy, single_linkage
from exo.master.placement.ladder.water import Filled

_TREE_UP_TO = 64
"""Devices for which the bound comes from the tree; beyond, from the price alone."""
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


def relaxed_bound_ns(of: Field, slopes: Sequence[int]) -> int:
    """Return a cost that no plan can beat: each stage may take the cheapest layers there are, whoever else has them.

    That total of time weights is then put right by a price on them, for which some slopes are tried (Lagrange).
    """
    times = _windows([layer.time_weight for layer in of.problem.model.layers])
    sizes = _windows([layer.size_bytes for layer in of.problem.model.layers])
    layer_bytes = min(layer.size_bytes for layer in of.problem.model.layers)
    relaxed = replace(of, layer_bytes=layer_bytes, is_even=False)
    if of.size < 2:
        return INFINITE
    if of.size > _TREE_UP_TO:
        lightest = min(layer.time_weight for layer in of.problem.model.layers)
        whole = np.array([one.layer_ns for one in of.devices], dtype=np.int64)
        roomy = np.full(of.size, of.layer_count, dtype=np.int64)
        free = replace(
            relaxed,
            layer_ns=whole * lightest // AVERAGE_TIME_WEIGHT,
            plain_layers=roomy,
            first_layers=roomy,
            last_layers=roomy,
        )
        return max(0, price(free, entry_costs(free), min_stages=of.problem.min_stages).lower_bound_ns)
    is_exact_tree = of.problem.links.is_hierarchical
    tree = hierarchy(relaxed) if is_exact_tree else single_linkage(relaxed, *link_matrices(relaxed))
    total = sum(layer.time_weight for layer in of.problem.model.layers)
    best = 0
    for slope in dict.fromkeys((0, *slopes)):
        found = run(
            relaxed, tree, _relaxed_tables(relaxed, times, sizes, slope), min_stages=of.problem.min_stages
        )
        if found.best_ns >= INFINITE:
            return INFINITE
        best = max(best, found.best_ns + slope * total // AVERAGE_TIME_WEIGHT)
    return best


@dataclass(frozen=True, slots=True)
class _Windows:
    """Sums of neighbouring layers by their number: least, most, those of the first and of the last ones."""

    least: Integers
    most: Integers
    first: Integers
    last: Integers


def _windows(values: Sequence[int]) -> _Windows:
    sums = np.concatenate(([0], np.cumsum(np.array(values, dtype=np.int64))))
    count = len(values)
    every = [sums[size:] - sums[: count + 1 - size] for size in range(count + 1)]
    return _Windows(
        least=np.array([window.min() for window in every], dtype=np.int64),
        most=np.array([window.max() for window in every], dtype=np.int64),
        first=sums,
        last=sums[-1] - sums[::-1],
    )


def _relaxed_tables(of: Field, times: _Windows, sizes: _Windows, slope: int) -> LeafTable:
    model = of.problem.model
    counts = np.arange(of.layer_count + 1, dtype=np.int64)

    def table(device: int) -> Integers:
        room, layer_ns = int(of.room_bytes[of.pool[device]]), of.devices[device].layer_ns
        made = np.full((4, of.layer_count + 1), INFINITE, dtype=np.int64)
        freely = times.least if layer_ns >= slope else times.most
        head = int(of.head_ns[device])
        for part, weights, lightest, held, end in (
            (0, freely, sizes.least, model.stage_bytes, 0),
            (1, times.first, sizes.first, model.first_bytes, 0),
            (2, times.last, sizes.last, model.last_bytes, head),
        ):
            fixed = int(of.overhead_ns[device]) + end
            least = times.least if part == 0 else weights
            allowed = lightest + held <= room
            if of.limit_ns is not None:
                # Rounding takes less than one nanosecond off each layer.
                allowed &= least * layer_ns // AVERAGE_TIME_WEIGHT - counts + fixed <= of.limit_ns
            allowed[0] = False
            costs = (layer_ns - slope) * weights // AVERAGE_TIME_WEIGHT - counts + fixed
            made[part, allowed] = costs[allowed]
        return made

    return table
