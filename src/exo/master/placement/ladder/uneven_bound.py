"""Bounds plans of unequal layers: every stage may take any run of neighbouring layers, whoever else has them.

A price on each layer puts that right (Lagrangian relaxation; Held and Karp 1970): what is taken twice gets cheaper to
leave, what nobody takes gets dearer, until the runs nearly add up. Sums are floats here; what they may be off by is
taken off the bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from exo.master.placement.ladder.draft import draft_of
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field, Flags, Integers, narrowed
from exo.master.placement.ladder.prices import entry_costs
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT
from exo.master.placement.ladder.programme import FIRST, INFINITE, LAST, PLAIN, run
from exo.master.placement.ladder.ring import link_matrices
from exo.master.placement.ladder.tree import Tree, hierarchy, single_linkage
from exo.master.placement.ladder.units import Units, demanded_alone, units_of

Floats = npt.NDArray[np.float64]
_TREE_UP_TO, _BY_PRICE_FROM = 256, 96
"""Devices for which the bound comes from the tree; of more, the price of a layer alone first rules some out."""
_CORE, _CORES_MAX = 24, 3
"""Devices on which prices are found where there are more; how often those that are wanted then join them."""
_ROUNDS, _ROUNDS_AGAIN, _ROUNDS_BY_PRICE = 40, 8, 6
"""Moves of the prices; fewer where one request asks for many bounds, as throughput does."""
_CLOSE_ENOUGH = 1e-4
_COUNTED_MAX = 4
"""Units that are counted; of more, the bound knows only so many."""
_LAYERS_UP_TO = 512
"""Layers of which all runs are looked at."""
_KEPT_OF_SLOPE = 0.3
_OFF = 1e-9


class WindowBound:
    """All runs of neighbouring layers of a model, and the bound for one field."""

    def __init__(self, of: Field) -> None:
        layers = of.problem.model.layers
        self._of = of
        self._count = count = len(layers)
        times = np.array([layer.time_weight / AVERAGE_TIME_WEIGHT for layer in layers])
        self._weights_of_layers = times
        self._weight = np.concatenate(([0.0], np.cumsum(times)))
        self._size = np.concatenate(([0.0], np.cumsum([float(layer.size_bytes) for layer in layers])))
        starts, lengths = np.arange(count)[:, np.newaxis], np.arange(count + 1)[np.newaxis]
        self._starts, self._ends = starts, np.minimum(starts + lengths, count)
        is_run = (lengths > 0) & (starts + lengths <= count)
        # A stage in the middle leaves a layer before it and one behind.
        self._is_plain = is_run & (starts > 0) & (starts + lengths < count)
        self._weights = self._weight[self._ends] - self._weight[starts]
        self._sizes = self._size[self._ends] - self._size[starts]
        # Times are rounded down layer by layer: less than one nanosecond each.
        self._rounded = np.arange(count + 1, dtype=np.float64)

    def bound_ns(self, upper_ns: int, start_price: float, should_stop: Callable[[], bool]) -> int:
        """Return a cost that no plan of several stages can beat; `INFINITE` where there is none."""
        of = self._of
        if of.size < 2 or self._count < 2:
            return INFINITE
        if self._count > _LAYERS_UP_TO:
            return 0
        least = min(layer.size_bytes for layer in of.problem.model.layers)
        relaxed = replace(of, layer_bytes=least, is_even=False)
        prices = start_price * self._weights_of_layers
        if of.size <= _CORE:
            return self._climb(_Rounds(self, relaxed), prices, upper_ns, 0, should_stop)
        best = 0
        kept = np.arange(of.size)
        if of.size > _BY_PRICE_FROM:
            by_price = _Rounds(self, relaxed, has_tree=False)
            best = self._climb(by_price, prices, upper_ns, 0, should_stop)
            if best >= upper_ns:
                return best
            kept = by_price.survivors(upper_ns)
            prices = by_price.prices
        if len(kept) > _TREE_UP_TO:
            return best
        if len(kept) < 2:
            return upper_ns
        # A better plan has none of the others.
        return min(upper_ns, max(best, self._by_core(narrowed(relaxed, kept), prices, upper_ns, should_stop)))

    def _by_core(self, of: Field, prices: Floats, upper_ns: int, should_stop: Callable[[], bool]) -> int:
        """Find prices on the cheapest devices, then bound with all; whoever is wanted at those prices joins them."""
        everybody = _Rounds(self, of)
        core = set(np.argsort(of.layer_ns, kind="stable")[: _CORE // 2].tolist())
        best = 0
        for _ in range(_CORES_MAX if of.problem.micro_batches == 1 else 1):
            try:
                bound, lacking, wanted = everybody.solve(prices, should_stop)
            except StoppedError:
                return best
            best = max(best, bound)
            if best >= upper_ns * (1 - _CLOSE_ENOUGH) or bound >= INFINITE or not lacking.any():
                return best
            core |= set(wanted)
            inside = _Rounds(self, narrowed(of, np.array(sorted(core), dtype=np.int64)))
            self._climb(inside, prices, upper_ns, 0, should_stop)
            prices = inside.prices
        try:
            return max(best, everybody.solve(prices, should_stop)[0])
        except StoppedError:
            return best

    def _climb(
        self, rounds: "_Rounds", prices: Floats, upper_ns: int, best: int, should_stop: Callable[[], bool]
    ) -> int:
        """Move the prices towards what the last runs lacked, in steps after Polyak, and return the best bound."""
        most = INFINITE / (8 * self._count * max(1, min(rounds.of.size, self._count)))
        prices = np.minimum(prices, most)
        scale, since = 1.0, 0
        rounds.prices = prices
        slope = np.zeros(self._count)
        for number in range(rounds.most):
            try:
                bound, lacking, _ = rounds.solve(prices, should_stop)
            except StoppedError:
                return best
            if bound >= INFINITE:
                return INFINITE
            since = 0 if bound > best else since + 1
            if bound > best:
                best, rounds.prices = bound, prices
            if since >= 3:
                scale, since, prices = scale / 2, 0, rounds.prices
            slope = lacking if number == 0 else lacking + _KEPT_OF_SLOPE * slope
            length = float(slope @ slope)
            if best >= upper_ns * (1 - _CLOSE_ENOUGH) or length < 1e-12:
                break
            aim = max(0.0, min(upper_ns, 2 * max(best, 1)) - bound)
            prices = prices + scale * aim / length * slope
            if float(np.abs(prices).max()) > most:
                # Beyond what sums of 64 bits hold.
                break
        return best

    def held(self, of: Field, device: int, part: int) -> Floats:
        """Return what the runs that a device can hold in a part cost it; infinite where it cannot.

        By start and length in the middle, by length alone at the ends.
        """
        if part == PLAIN:
            weights, sizes, allowed = self._weights, self._sizes, self._is_plain
        elif part == FIRST:
            weights, sizes, allowed = self._weight, self._size, np.ones(self._count + 1, dtype=np.bool_)
        else:
            weights = self._weight[-1] - self._weight[::-1]
            sizes = self._size[-1] - self._size[::-1]
            allowed = np.ones(self._count + 1, dtype=np.bool_)
        model = of.problem.model
        held = (model.stage_bytes, model.first_bytes, model.last_bytes)[part]
        fits: Flags = allowed & (sizes <= float(of.room_bytes[of.pool[device]] - held))
        times = of.devices[device].layer_ns * weights
        fixed = int(of.overhead_ns[device]) + (int(of.head_ns[device]) if part == LAST else 0)
        if of.limit_ns is not None:
            fits &= (times - self._rounded) * (1 - _OFF) + fixed <= of.limit_ns
        return np.where(fits, times + (fixed - self._rounded), np.inf)

    def paid(self, prices: Floats) -> tuple[Floats, Floats, Floats]:
        """Return what the prices pay for each run: by start and length, of the first layers, of the last ones."""
        sums = np.concatenate(([0.0], np.cumsum(prices)))
        return sums[self._ends] - sums[self._starts], sums, sums[-1] - sums[::-1]


class _Rounds:
    """Rounds of one field: what every device can hold is kept from one to the next."""

    def __init__(self, windows: WindowBound, of: Field, *, has_tree: bool = True) -> None:
        units = units_of(of)
        self.of = demanded_alone(of, units)
        rounds = _ROUNDS if of.problem.micro_batches == 1 else _ROUNDS_AGAIN
        self.most = rounds if has_tree else _ROUNDS_BY_PRICE
        self.prices = np.zeros(0)
        """Those of the best bound."""
        self._windows = windows
        self._is_lost = units.is_impossible
        self._count = of.layer_count
        self._stages = min(_COUNTED_MAX, units.coarse_least if units.coarse else units.least)
        self._tree = _tree(self.of, units) if has_tree else None
        self._entries = entry_costs(self.of)
        self._kept: dict[int, tuple[Floats, Floats, Floats]] = {}
        self._least: tuple[int, Floats] | None = None

    def _held(self, device: int) -> tuple[Floats, Floats, Floats]:
        found = self._kept.get(device)
        if found is None:
            ways = self._windows
            found = (
                ways.held(self.of, device, PLAIN),
                ways.held(self.of, device, FIRST),
                ways.held(self.of, device, LAST),
            )
            if self.of.size <= _TREE_UP_TO:
                self._kept[device] = found
        return found

    def survivors(self, upper_ns: int) -> Integers:
        """Return the devices that the last prices leave for a plan that costs less."""
        if self._least is None:
            return np.arange(self.of.size)
        bound, least = self._least
        return np.flatnonzero((bound + np.maximum(0.0, least) < upper_ns) | self.of.is_required)

    def solve(self, prices: Floats, should_stop: Callable[[], bool]) -> tuple[int, Floats, list[int]]:
        """Bound with given prices, say of each layer what is missing of it, and who is wanted at those."""
        if self._is_lost:
            return INFINITE, np.zeros(self._count), []
        paid = self._windows.paid(prices)
        tables: list[Integers] = []
        for device in range(self.of.size):
            if should_stop():
                raise StoppedError
            tables.append(self._table(device, paid))
        lacking = np.ones(self._count)
        if self._tree is None:
            return self._by_price(prices, paid, tables)
        sums = run(self.of, self._tree, tables.__getitem__, min_stages=self._stages, should_stop=should_stop)
        draft = draft_of(self.of, sums, min_stages=self._stages)
        if draft is None:
            return INFINITE, lacking, []
        for device, length in draft.layers.items():
            part = FIRST if device == draft.first else LAST if device == draft.last else PLAIN
            start, end = self._run_of(device, part, length, paid)
            lacking[start:end] -= 1
        return self._total(sums.best_ns, prices), lacking, list(draft.layers)

    def _total(self, paid_ns: float, prices: Floats) -> int:
        off = _OFF * (abs(float(paid_ns)) + float(np.abs(prices).sum())) + 1
        return int(paid_ns + float(prices.sum()) - off)

    def _table(self, device: int, paid: tuple[Floats, Floats, Floats]) -> Integers:
        plain, first, last = self._held(device)
        made = np.full((4, self._count + 1), np.inf)
        made[PLAIN] = (plain - paid[0]).min(axis=0)
        made[FIRST] = first - paid[1]
        made[LAST] = last - paid[2]
        made[:, 0] = np.inf
        return np.where(np.isfinite(made), np.floor(np.nan_to_num(made, posinf=0.0)), float(INFINITE)).astype(
            np.int64
        )

    def _run_of(
        self, device: int, part: int, length: int, paid: tuple[Floats, Floats, Floats]
    ) -> tuple[int, int]:
        """Return the run that a table's entry stands for."""
        if part == FIRST:
            return 0, length
        if part == LAST:
            return self._count - length, self._count
        start = int(np.argmin(self._held(device)[PLAIN][:, length] - paid[0][:, length]))
        return start, start + length

    def _by_price(
        self, prices: Floats, paid: tuple[Floats, Floats, Floats], tables: Sequence[Integers]
    ) -> tuple[int, Floats, list[int]]:
        """As a round, with one more price on the number of layers in the place of the tree."""
        forward, back = self._entries
        rows = np.array([table.min(axis=0) for table in tables]) + forward[:, np.newaxis]
        ends = int((back - forward).min(initial=0))
        lengths = np.arange(self._count + 1)
        widest = 2.0 * float(np.abs(rows[rows < INFINITE // 2]).max(initial=1))
        low, high = -widest, widest

        def leasts(price: float) -> Floats:
            return (rows - price * lengths).min(axis=1)

        def value(price: float) -> float:
            least = leasts(price)
            chosen: Floats = np.where(self.of.is_required, least, np.minimum(0.0, least))
            return price * self._count + float(chosen.sum()) + ends

        for _ in range(60):
            one, other = low + (high - low) / 3, high - (high - low) / 3
            low, high = (one, high) if value(one) < value(other) else (low, other)
        layer_price = (low + high) / 2
        costs = rows - layer_price * lengths
        lacking = np.ones(self._count)
        wanted: list[int] = np.flatnonzero((costs.min(axis=1) < 0) | self.of.is_required).tolist()
        for device in wanted:
            length = int(np.argmin(costs[device]))
            start, end = self._run_of(device, int(np.argmin(tables[device][:3, length])), length, paid)
            lacking[start:end] -= 1
        bound = self._total(value(layer_price), prices)
        if self._least is None or bound > self._least[0]:
            self._least = (bound, leasts(layer_price))
        return bound, lacking, wanted


def _tree(of: Field, units: Units) -> Tree:
    if of.problem.links.is_hierarchical:
        return hierarchy(of, units=units)
    return single_linkage(of, *link_matrices(of), units=units)


def start_price_ns(of: Field, ring: Sequence[int]) -> float:
    """Return a price to begin with: the time per average layer of the slowest device of a plan."""
    return float(max((of.devices[index].layer_ns for index in ring), default=0))
