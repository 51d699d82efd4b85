"""Plans for layers of unequal size or time: rings found on average layers, split with the true ones, and varied."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise, permutations
from math import perm

import numpy as np

from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.programme import INFINITE
from exo.master.placement.ladder.reach import Reach
from exo.master.placement.ladder.ring import hierarchical_order, link_matrices
from exo.master.placement.ladder.rules import keeps_rules
from exo.master.placement.ladder.uneven_moves import RingMoves, changed, changes_of, joined
from exo.master.placement.ladder.water import Filled

_REACHES_UP_TO = 13
"""Devices for which subsets are looked at at once; of more, some orders are tried first."""
_SETS_MAX = 60_000
"""Subsets of one size of which it is decided exactly how far they get."""
_ALL_UP_TO, _ALL_WORK_MAX = 6, 80_000
"""Devices of which every order of every subset is tried, where orders times layers are not too many."""
_REACHING_MAX = 4_000
"""Rings that reach the end, but break a rule or overfill a pool, after which no more are tried."""
_WEIGHED_MAX = 12_000
"""Changes of rings that are weighed at most."""
_DRAFTS_MAX, _STARTS_MAX = 4, 3
_CLOSE_ENOUGH, _FAIR = 1e-4, 3e-3
"""Gaps at which all search ends, and at which no ring is changed by chance any more."""
_NEAR, _WIDE = 2, 10
"""Over how many places devices swap and move."""
_ABSENT_MAX = 6
"""Devices outside of a ring that are tried in it."""
_LOOKED_AT_MAX, _TRIED_MAX = 40, 8
"""Changes that look better: those that are looked at, and those of which the true cost is asked."""
_IDLE_KICKS_MAX = 12
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
        self._required = frozenset(np.flatnonzero(of.is_required).tolist())
        self._seen: set[tuple[int, ...]] = set()
        self._settled: set[tuple[int, ...]] = set()
        """Rings that no near change helps."""
        self._least_ns = 0
        self._moves: RingMoves | None = None
        self._favoured: list[int] = []
        self._slower: list[int] = []

    def try_ring(self, ring: Sequence[int]) -> bool:
        """Split the layers over a ring; say whether that is the best so far."""
        before = self.best
        self._weighed(tuple(ring))
        return self.best is not before

    def _weighed(self, ring: tuple[int, ...]) -> Filled | None:
        """Return the plan of a ring that was not tried before, and keep it if it is the best."""
        if ring in self._seen or not self._is_allowed(ring):
            return None
        self._seen.add(ring)
        self.splits += 1
        found = self._prefix.split(ring)
        if found is None:
            return None
        plan = Filled(found[0] + self._hops_ns(ring), ring, tuple(found[1]))
        if self.best is None or plan.cost_ns < self.best.cost_ns:
            self.best = plan
        return plan

    def _is_allowed(self, ring: tuple[int, ...]) -> bool:
        problem = self.of.problem
        if len(ring) < max(1, problem.min_stages) or not keeps_rules(
            [self._names[one] for one in ring], problem.rules
        ):
            return False
        return self._required <= set(ring)

    def _hops_ns(self, ring: tuple[int, ...]) -> int:
        if len(ring) < 2:
            return 0
        return self._back[ring[-1]][ring[0]] + sum(
            self._forward[source][target] for source, target in pairwise(ring)
        )

    def descend(self, drafts: Sequence[tuple[int, ...]] = (), *, least_ns: int = 0) -> None:
        """Drop, exchange, add, swap and move devices of the best rings as long as that helps.

        `drafts` are rings that may not hold all layers, but nearly do. No plan costs less than `least_ns`.
        """
        if least_ns >= INFINITE:
            return
        moves = self._moves = self._moves or RingMoves(self.of)
        self._least_ns = least_ns
        uses = Counter(index for draft in drafts for index in draft)
        order = self._by_speed()
        self._favoured = sorted((one for one in order if uses[one]), key=lambda one: -uses[one])
        self._slower = [one for one in order if not uses[one]]
        starts = [self.best] if self.best is not None else []
        for draft in drafts[:_DRAFTS_MAX]:
            found = [self._weighed(ring) for ring in self._ordered(draft)]
            fits = [one for one in found if one is not None]
            if not fits and len(starts) < 2:
                near = self._changed(moves, Filled(INFINITE, draft, ()), _NEAR)
                fits = [near] if near is not None else []
            starts.extend(fits)
        for start in sorted(starts, key=lambda one: (one.cost_ns, one.ring))[:_STARTS_MAX]:
            if start.ring not in self._settled:
                self._descend(moves, start, _NEAR)

    def wander(self) -> None:
        """Descend with changes over more places, then from a changed ring again."""
        moves = self._moves
        chance = random.Random(_SEED)
        at = self.best
        idle = 0
        while moves is not None and at is not None and self.best is not None and idle < _IDLE_KICKS_MAX:
            before = self.best
            self._descend(moves, at, _WIDE)
            if self._is_over(moves) or self._is_within(_FAIR):
                return
            idle = idle + 1 if self.best is before else 0
            at = self._weighed(self._kicked(self.best.ring, chance)) or self.best

    @property
    def evaluations(self) -> int:
        """Rings that were split or weighed."""
        return self.splits + (self._moves.weighed if self._moves is not None else 0)

    def _ordered(self, draft: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return a ring as it is, with hosts and zones kept together where they come on average, and by name."""
        devices = self.of.devices
        places: dict[tuple[str, ...], list[int]] = {}
        for place, index in enumerate(draft):
            one = devices[index]
            for key in ((one.zone,), (one.zone, one.host)):
                places.setdefault(key, []).append(place)
        mean = {key: sum(inside) / len(inside) for key, inside in places.items()}
        together = sorted(
            range(len(draft)),
            key=lambda place: (
                mean[(zone := devices[draft[place]].zone,)],
                zone,
                mean[zone, (host := devices[draft[place]].host)],
                host,
                place,
            ),
        )
        by_name = hierarchical_order(self.of, draft, draft[0], draft[-1])
        return list(dict.fromkeys((draft, tuple(draft[place] for place in together), tuple(by_name))))

    def _descend(self, moves: RingMoves, at: Filled, span_max: int) -> None:
        """Take the best change of all, first of the near ones, until none helps."""
        span = _NEAR
        while not self._is_over(moves):
            found = self._changed(moves, at, span)
            if found is not None:
                at, span = found, _NEAR
            elif span >= min(span_max, len(at.ring) - 1):
                self._settled.add(at.ring)
                return
            else:
                span = span_max

    def _is_over(self, moves: RingMoves) -> bool:
        """Say whether the search is done; it ends by count, so that equal input gives the equal plan."""
        if self._should_stop():
            self.is_truncated = True
        return self.is_truncated or self._is_within(_CLOSE_ENOUGH) or moves.weighed >= _WEIGHED_MAX

    def _is_within(self, share: float) -> bool:
        return self.best is not None and self.best.cost_ns * (1 - share) <= self._least_ns

    def _changed(self, moves: RingMoves, at: Filled, span: int) -> Filled | None:
        """Return the best change that helps; memory that devices share is only looked at here."""
        changes = changes_of(at.ring, self._absent(at.ring), span_max=span)
        # What stages save is less than what a best plan would.
        hops_max_ns = self._hops_ns(at.ring) + at.cost_ns - self._least_ns
        costs = moves.costs_ns(at.ring, changes, hops_max_ns=hops_max_ns)
        order = np.argsort(costs, kind="stable")
        better: list[int] = order[costs[order] < at.cost_ns][:_LOOKED_AT_MAX].tolist()
        together = joined(at.ring, [changes[one] for one in better])
        tried = 0
        for ring in (*together, *(changed(at.ring, changes[one]) for one in better)):
            if ring in self._seen or not self._is_allowed(ring):
                continue
            tried += 1
            found = self._weighed(ring)
            if found is not None and found.cost_ns < at.cost_ns:
                return found
            if tried >= _TRIED_MAX:
                break
        return None

    def _absent(self, ring: tuple[int, ...]) -> list[int]:
        """Return devices outside of a ring, those first that drafts use, then by speed."""
        inside = set(ring)
        return [index for index in (*self._favoured, *self._slower) if index not in inside][:_ABSENT_MAX]

    def _kicked(self, ring: tuple[int, ...], chance: random.Random) -> tuple[int, ...]:
        """Exchange two devices for others, or shuffle a part."""
        changed = list(ring)
        absent = [index for index in self._by_speed() if index not in ring]
        for _ in range(2):
            if absent:
                changed[chance.randrange(len(changed))] = absent.pop(chance.randrange(len(absent)))
        if not absent or chance.random() < 0.5:
            chance.shuffle(changed)
        return tuple(dict.fromkeys(changed))

    def try_all(self) -> bool:
        """Try every order of every subset where there are few devices; say whether that proves the best."""
        usable = self._by_speed()
        size = len(usable)
        orders = sum(perm(size, count) for count in range(1, size + 1)) if size <= _ALL_UP_TO else 0
        if not 0 < orders * self.of.layer_count <= _ALL_WORK_MAX:
            return False
        for size in range(1, min(len(usable), self.of.layer_count) + 1):
            for ring in permutations(usable, size):
                if self._should_stop():
                    self.is_truncated = True
                    return False
                self.try_ring(ring)
        return self._has_own_pools

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

    def find_any(self, *, sets_max: int = _SETS_MAX) -> bool:
        """Find a plan where there is one, by how far each subset gets; say whether that was exact.

        Devices that share a pool are weighed as if each had it alone: what fits then may not in truth.
        """
        order = self._by_speed()
        if len(order) > _REACHES_UP_TO and self._find_by_chance(order):
            return True
        is_open = False
        rings = Reach(self.of, self._prefix, order, sets_max=sets_max, should_stop=self._should_stop)
        for tried, ring in enumerate(rings, start=1):
            if self.try_ring(ring):
                return True
            is_open |= self._is_allowed(ring) and self._prefix.is_roomy(ring)
            if tried >= _REACHING_MAX:
                return False
        if not rings.is_whole:
            self.is_truncated |= self._should_stop()
            return False
        return self._has_own_pools or not is_open


def best_single_uneven(of: Field, search: UnevenSearch) -> int:
    """Try every device alone; return the least time, for the bound on several leaves these out."""
    rooms = of.room_bytes[of.pool]
    whole = of.problem.model.only_bytes + sum(layer.size_bytes for layer in of.problem.model.layers)
    roomy: list[int] = np.flatnonzero(rooms >= whole).tolist()
    for index in roomy:
        search.try_ring((index,))
    return INFINITE if search.best is None else search.best.cost_ns
