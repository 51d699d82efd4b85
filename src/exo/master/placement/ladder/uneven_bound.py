"""Bounds plans of unequal layers: every stage may take any run of neighbouring layers, whoever else has them.

A price on each layer puts that right (Lagrangian relaxation; Held and Karp 1970): what is taken twice gets cheaper to
leave, what nobody takes gets dearer, until the runs nearly add up.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field, Integers, narrowed
from exo.master.placement.ladder.programme import INFINITE
from exo.master.placement.ladder.uneven_ascent import Ascent
from exo.master.placement.ladder.uneven_rounds import Rounds
from exo.master.placement.ladder.uneven_windows import Floats, Windows, bases_of

_TREE_UP_TO, _BY_PRICE_FROM = 256, 96
"""Devices for which the bound comes from the tree; of more, the price of a layer alone first rules some out."""
_CORE, _CORES_MAX = 64, 3
"""Devices on which prices are found where there are more; how often those that are wanted then join them."""
_ROUNDS, _ROUNDS_AGAIN, _ROUNDS_BY_PRICE = 40, 8, 6
"""Moves of the prices; fewer where one request asks for many bounds, as throughput does."""
_CLOSE_ENOUGH = 1e-4
_LAYERS_UP_TO = 512
"""Layers of which all runs are looked at."""


class WindowBound:
    """The bound for one field, and the plans that its prices come upon."""

    def __init__(self, of: Field) -> None:
        self._of = of
        self._windows = Windows(of)
        self._bases = bases_of(of.problem.model.layers)
        self._rounds_left = _ROUNDS if of.problem.micro_batches == 1 else _ROUNDS_AGAIN
        self._drafts: list[tuple[int, tuple[int, ...]]] = []
        self._climb: _Climb | None = None
        self._best = 0

    @property
    def drafts(self) -> list[tuple[int, ...]]:
        """Rings of the rounds, the best first: who took part, in the order of their runs.

        They may not hold all layers.
        """
        found = sorted(self._drafts, key=lambda one: (-one[0], one[1]))
        return list(dict.fromkeys(ring for _, ring in found))

    def bound_ns(self, upper_ns: int, start_price: float, should_stop: Callable[[], bool]) -> int:
        """Return a cost that no plan of several stages can beat; `INFINITE` where there is none.

        Layers of a kind have one price, so that it takes few rounds.
        """
        of, count = self._of, self._windows.count
        if of.size < 2 or count < 2:
            return INFINITE
        if count > _LAYERS_UP_TO:
            return 0
        least = min(layer.size_bytes for layer in of.problem.model.layers)
        relaxed = replace(of, layer_bytes=least, is_even=False)
        prices = start_price * self._windows.weights
        kept = np.arange(of.size)
        if of.size > _BY_PRICE_FROM:
            by_price = Rounds(self._windows, relaxed, has_tree=False)
            first = _Climb(by_price, kept, prices, self._drafts, should_stop)
            first.up(self._bases[0], upper_ns, _ROUNDS_BY_PRICE)
            self._best, prices = first.best, first.prices
            if self._best >= upper_ns:
                return self._best
            kept = by_price.survivors(upper_ns)
        if len(kept) > _TREE_UP_TO:
            return self._best
        if len(kept) < 2:
            return upper_ns
        part = narrowed(relaxed, kept)
        if len(kept) <= _CORE:
            self._climb = _Climb(Rounds(self._windows, part), kept, prices, self._drafts, should_stop)
            self._rounds_left -= self._climb.up(self._bases[0], upper_ns, self._rounds_left)
            found = self._climb.best
        else:
            found = self._by_core(part, kept, prices, upper_ns, should_stop)
        # A better plan has none of those that were ruled out.
        self._best = max(self._best, found if len(kept) == of.size else min(upper_ns, found))
        return self._best

    def refined_ns(self, upper_ns: int) -> int:
        """Return the bound after layers of one kind got prices of their own, those at the ends of the model first."""
        if self._climb is None or self._best >= upper_ns:
            return self._best
        for basis in self._bases[1:]:
            self._rounds_left -= self._climb.up(basis, upper_ns, self._rounds_left)
        self._best = max(self._best, min(upper_ns, self._climb.best))
        return self._best

    def _by_core(
        self, of: Field, kept: Integers, prices: Floats, upper_ns: int, should_stop: Callable[[], bool]
    ) -> int:
        """Find prices on the cheapest devices, then bound with all; whoever is wanted at those prices joins them."""
        everybody = Rounds(self._windows, of)
        core = set(np.argsort(of.layer_ns, kind="stable")[: _CORE // 2].tolist())
        best = 0
        for is_last in [False] * (_CORES_MAX if of.problem.micro_batches == 1 else 1) + [True]:
            try:
                found = everybody.solve(prices, should_stop)
            except StoppedError:
                return best
            best = max(best, found.bound_ns)
            if is_last or best >= upper_ns * (1 - _CLOSE_ENOUGH) or not found.lacking.any():
                break
            core |= set(found.wanted)
            inside = np.array(sorted(core), dtype=np.int64)
            rounds = Rounds(self._windows, narrowed(of, inside))
            climb = _Climb(rounds, kept[inside], prices, self._drafts, should_stop)
            for basis in self._bases:
                climb.up(basis, upper_ns, self._rounds_left // len(self._bases))
            prices = climb.prices
        return best


class _Climb:
    """The prices of one set of devices, on their way up.

    Args:
        rounds: Bounds with given prices.
        kept: The devices' names outside.
        prices: Where to begin.
        drafts: Takes the bound and the ring of each round.
        should_stop: Ends it early.
    """

    def __init__(
        self,
        rounds: Rounds,
        kept: Integers,
        prices: Floats,
        drafts: list[tuple[int, tuple[int, ...]]],
        should_stop: Callable[[], bool],
    ) -> None:
        count = len(prices)
        # Beyond it, sums of prices exceed what 64 bits hold.
        self._most = INFINITE / (8 * count * max(1, min(rounds.of.size, count)))
        self.best = 0
        self.prices = np.minimum(prices, self._most)
        self._rounds = rounds
        self._kept = kept
        self._drafts = drafts
        self._should_stop = should_stop
        self._ascent: Ascent | None = None
        self._is_over = False

    def up(self, basis: Floats | None, upper_ns: int, rounds_max: int) -> int:
        """Climb in a basis; return the rounds taken."""
        if self._is_over or rounds_max < 1:
            return 0
        try:
            if self._ascent is None:
                self._ascent = Ascent(self._value_of, self.prices, prices_max=self._most)
            return self._ascent.climb(basis, upper=float(upper_ns), rounds_max=rounds_max)
        except StoppedError:
            self._is_over = True
            return rounds_max

    def _value_of(self, prices: Floats) -> tuple[float, Floats]:
        found = self._rounds.solve(prices, self._should_stop)
        if found.bound_ns >= INFINITE:
            self.best = INFINITE
            raise StoppedError
        if found.bound_ns > self.best:
            self.best, self.prices = found.bound_ns, prices
        self._drafts.append((found.bound_ns, tuple(self._kept[list(found.wanted)].tolist())))
        return float(found.bound_ns), found.lacking


def start_price_ns(of: Field, ring: Sequence[int]) -> float:
    """Return a price to begin with: the time per average layer of the slowest device of a plan."""
    return float(max((of.devices[index].layer_ns for index in ring), default=0))
