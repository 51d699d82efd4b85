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
from exo.master.placement.ladder.uneven_ascent import ascend
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
_DRAFTS_MAX = 4


class WindowBound:
    """The bound for one field, and the plans that its prices come upon."""

    def __init__(self, of: Field) -> None:
        self._of = of
        self._windows = Windows(of)
        self._bases = bases_of(of.problem.model.layers)
        self._rounds_max = _ROUNDS if of.problem.micro_batches == 1 else _ROUNDS_AGAIN
        self._drafts: list[tuple[int, tuple[int, ...]]] = []

    @property
    def drafts(self) -> list[tuple[int, ...]]:
        """Rings of the best rounds: who took part, in the order of their runs. They may not hold all layers."""
        found = sorted(self._drafts, key=lambda one: (-one[0], one[1]))
        return list(dict.fromkeys(ring for _, ring in found))[:_DRAFTS_MAX]

    def bound_ns(self, upper_ns: int, start_price: float, should_stop: Callable[[], bool]) -> int:
        """Return a cost that no plan of several stages can beat; `INFINITE` where there is none."""
        of, count = self._of, self._windows.count
        if of.size < 2 or count < 2:
            return INFINITE
        if count > _LAYERS_UP_TO:
            return 0
        least = min(layer.size_bytes for layer in of.problem.model.layers)
        relaxed = replace(of, layer_bytes=least, is_even=False)
        prices = start_price * self._windows.weights
        best = 0
        kept = np.arange(of.size)
        if of.size > _BY_PRICE_FROM:
            by_price = Rounds(self._windows, relaxed, has_tree=False)
            best, prices = self._climbed(by_price, kept, prices, upper_ns, _ROUNDS_BY_PRICE, should_stop)
            if best >= upper_ns:
                return best
            kept = by_price.survivors(upper_ns)
        if len(kept) > _TREE_UP_TO:
            return best
        if len(kept) < 2:
            return upper_ns
        part = narrowed(relaxed, kept)
        if len(kept) <= _CORE:
            rounds = Rounds(self._windows, part)
            found, _ = self._climbed(rounds, kept, prices, upper_ns, self._rounds_max, should_stop)
        else:
            found = self._by_core(part, kept, prices, upper_ns, should_stop)
        # A better plan has none of those that were ruled out.
        return max(best, found) if len(kept) == of.size else min(upper_ns, max(best, found))

    def _climbed(
        self,
        rounds: Rounds,
        kept: Integers,
        prices: Floats,
        upper_ns: int,
        rounds_max: int,
        should_stop: Callable[[], bool],
    ) -> tuple[int, Floats]:
        """Move the prices up to their best; return the bound there, and the prices."""
        best = 0
        most = INFINITE / (8 * self._windows.count * max(1, min(rounds.of.size, self._windows.count)))
        prices = np.minimum(prices, most)
        best_prices = prices

        def value_of(at: Floats) -> tuple[float, Floats]:
            nonlocal best, best_prices
            found = rounds.solve(at, should_stop)
            if found.bound_ns >= INFINITE:
                best = INFINITE
                raise StoppedError
            if found.bound_ns > best:
                best, best_prices = found.bound_ns, at
            self._drafts.append((found.bound_ns, tuple(kept[list(found.wanted)].tolist())))
            return float(found.bound_ns), found.lacking

        try:
            ascend(
                value_of,
                prices,
                bases=self._bases,
                upper=float(upper_ns),
                rounds_max=rounds_max,
                prices_max=most,
            )
        except StoppedError:
            return best, best_prices
        return best, best_prices

    def _by_core(
        self, of: Field, kept: Integers, prices: Floats, upper_ns: int, should_stop: Callable[[], bool]
    ) -> int:
        """Find prices on the cheapest devices, then bound with all; whoever is wanted at those prices joins them."""
        everybody = Rounds(self._windows, of)
        core = set(np.argsort(of.layer_ns, kind="stable")[: _CORE // 2].tolist())
        best = 0
        for last in [False] * (_CORES_MAX if of.problem.micro_batches == 1 else 1) + [True]:
            try:
                found = everybody.solve(prices, should_stop)
            except StoppedError:
                return best
            best = max(best, found.bound_ns)
            if last or best >= upper_ns * (1 - _CLOSE_ENOUGH) or not found.lacking.any():
                break
            core |= set(found.wanted)
            inside = np.array(sorted(core), dtype=np.int64)
            rounds = Rounds(self._windows, narrowed(of, inside))
            _, prices = self._climbed(rounds, kept[inside], prices, upper_ns, self._rounds_max, should_stop)
        return best


def start_price_ns(of: Field, ring: Sequence[int]) -> float:
    """Return a price to begin with: the time per average layer of the slowest device of a plan."""
    return float(max((of.devices[index].layer_ns for index in ring), default=0))
