"""One round of prices on layers: what each device's best run is worth, and the best plan of such runs on the tree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from exo.master.placement.ladder.draft import Draft, draft_of
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.prices import entry_costs
from exo.master.placement.ladder.programme import FIRST, INFINITE, LAST, PLAIN, run
from exo.master.placement.ladder.ring import link_matrices
from exo.master.placement.ladder.tree import Tree, hierarchy, single_linkage
from exo.master.placement.ladder.uneven_windows import Floats, Windows
from exo.master.placement.ladder.units import Units, demanded_alone, units_of

_KEPT_UP_TO = 256
"""Devices of which what they can hold is kept from round to round."""
_COUNTED_MAX = 4
"""Units that are counted; of more, the bound knows only so many."""
_OFF = 1e-9


@dataclass(frozen=True, slots=True)
class Round:
    """What a round of prices found."""

    bound_ns: int
    """`INFINITE` where there is no plan."""
    lacking: Floats
    """Of each layer, how many runs too few hold it: the slope of the bound."""
    wanted: tuple[int, ...] = ()
    """The devices whose runs were taken, in the order in which these begin."""


class Rounds:
    """Rounds of one field; sums are floats, and what they may be off by is taken off the bound."""

    def __init__(self, windows: Windows, of: Field, *, has_tree: bool = True) -> None:
        units = units_of(of)
        self.of = demanded_alone(of, units)
        self._windows = windows
        self._is_lost = units.is_impossible
        self._stages = min(_COUNTED_MAX, units.coarse_least if units.coarse else units.least)
        self._tree = _tree(self.of, units) if has_tree else None
        self._entries = entry_costs(self.of) if not has_tree else None
        self._kept: dict[int, tuple[Floats, Floats, Floats]] = {}
        self._least: tuple[int, Floats] | None = None

    def survivors(self, upper_ns: int) -> Integers:
        """Return the devices that the best prices without a tree leave for a plan that costs less."""
        if self._least is None:
            return np.arange(self.of.size)
        bound, least = self._least
        return np.flatnonzero((bound + np.maximum(0.0, least) < upper_ns) | self.of.is_required)

    def solve(self, prices: Floats, should_stop: Callable[[], bool]) -> Round:
        """Bound with given prices.

        Raises:
            StoppedError: `should_stop` said so.
        """
        lacking = np.ones(self._windows.count)
        if self._is_lost:
            return Round(INFINITE, lacking)
        paid = self._windows.paid(prices)
        tables: list[Integers] = []
        for device in range(self.of.size):
            if should_stop():
                raise StoppedError
            tables.append(self._table(device, paid))
        if self._tree is None:
            return self._by_price(prices, paid, tables)
        sums = run(self.of, self._tree, tables.__getitem__, min_stages=self._stages, should_stop=should_stop)
        draft = draft_of(self.of, sums, min_stages=self._stages)
        if draft is None:
            return Round(INFINITE, lacking)
        begins = {
            device: self._run_of(device, _part(draft, device), length, paid)
            for device, length in draft.layers.items()
        }
        for device, start in begins.items():
            lacking[start : start + draft.layers[device]] -= 1
        middle = [device for device in begins if device not in (draft.first, draft.last)]
        middle.sort(key=lambda device: (begins[device], device))
        return Round(self._total(sums.best_ns, prices), lacking, (draft.first, *middle, draft.last))

    def _held(self, device: int) -> tuple[Floats, Floats, Floats]:
        found = self._kept.get(device)
        if found is None:
            found = self._windows.held(self.of, device)
            if self.of.size <= _KEPT_UP_TO:
                self._kept[device] = found
        return found

    def _total(self, paid_ns: float, prices: Floats) -> int:
        off = _OFF * (abs(float(paid_ns)) + float(np.abs(prices).sum())) + 1
        return int(paid_ns + float(prices.sum()) - off)

    def _table(self, device: int, paid: tuple[Floats, Floats, Floats]) -> Integers:
        plain, first, last = self._held(device)
        width = len(first)
        made = np.full((4, width), np.inf)
        (plain - paid[0][:, :width]).min(axis=0, out=made[PLAIN])
        np.subtract(first, paid[1][:width], out=made[FIRST])
        np.subtract(last, paid[2][:width], out=made[LAST])
        return np.floor(np.minimum(made, float(INFINITE))).astype(np.int64)

    def _run_of(self, device: int, part: int, length: int, paid: tuple[Floats, Floats, Floats]) -> int:
        """Return where the run begins that a table's entry stands for."""
        if part == FIRST:
            return 0
        if part == LAST:
            return self._windows.count - length
        return int(np.argmin(self._held(device)[PLAIN][:, length] - paid[0][:, length]))

    def _by_price(
        self, prices: Floats, paid: tuple[Floats, Floats, Floats], tables: Sequence[Integers]
    ) -> Round:
        """As a round, with one more price on the number of layers in the place of the tree."""
        assert self._entries is not None
        forward, back = self._entries
        count = self._windows.count
        width = max(len(table[0]) for table in tables)
        rows: Integers = np.full((len(tables), width), INFINITE, dtype=np.int64)
        for row, table in zip(rows, tables, strict=True):
            row[: len(table[0])] = table.min(axis=0)
        rows += forward[:, np.newaxis]
        ends = int((back - forward).min(initial=0))
        lengths: Integers = np.arange(width, dtype=np.int64)
        widest = 2.0 * float(np.abs(rows[rows < INFINITE // 2]).max(initial=1))
        low, high = -widest, widest

        def leasts(price: float) -> Floats:
            costs: Floats = rows - price * lengths
            return costs.min(axis=1)

        def value(price: float) -> float:
            least = leasts(price)
            chosen: Floats = np.where(self.of.is_required, least, np.minimum(0.0, least))
            return price * count + float(chosen.sum()) + ends

        for _ in range(60):
            one, other = low + (high - low) / 3, high - (high - low) / 3
            low, high = (one, high) if value(one) < value(other) else (low, other)
        layer_price = (low + high) / 2
        costs: Floats = rows - layer_price * lengths
        lacking = np.ones(count)
        wanted: list[int] = np.flatnonzero((costs.min(axis=1) < 0) | self.of.is_required).tolist()
        for device in wanted:
            length = int(np.argmin(costs[device]))
            if length >= len(tables[device][0]):
                continue
            start = self._run_of(device, int(np.argmin(tables[device][:3, length])), length, paid)
            lacking[start : start + length] -= 1
        bound = self._total(value(layer_price), prices)
        if self._least is None or bound > self._least[0]:
            self._least = (bound, leasts(layer_price))
        return Round(bound, lacking, tuple(wanted))


def _part(draft: Draft, device: int) -> int:
    return FIRST if device == draft.first else LAST if device == draft.last else PLAIN


def _tree(of: Field, units: Units) -> Tree:
    if of.problem.links.is_hierarchical:
        return hierarchy(of, units=units)
    return single_linkage(of, *link_matrices(of), units=units)
