"""Bounds plans of unequal layers: every stage may take any run of neighbouring layers, whoever else has them.

Prices on the layers' total time and total size put that right (Lagrangian relaxation), so that a plan gains nothing
from taking light layers twice. Sums are floats here; what they may be off by is taken off the bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from exo.master.placement.ladder.draft import draft_of
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.prices import entry_costs
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT
from exo.master.placement.ladder.programme import FIRST, INFINITE, LAST, PLAIN, run
from exo.master.placement.ladder.ring import link_matrices
from exo.master.placement.ladder.tree import hierarchy, single_linkage

Floats = npt.NDArray[np.float64]
_TREE_UP_TO = 64
"""Devices for which the bound comes from the tree; beyond, from the price of a layer alone."""
_ROUNDS, _ROUNDS_LARGE = 10, 4
_LARGE_FROM = 24
_LAYERS_UP_TO = 512
"""Layers of which all runs are looked at."""
_OFF = 1e-9


class WindowBound:
    """All runs of neighbouring layers of a model, and the bound for one field."""

    def __init__(self, of: Field) -> None:
        layers = of.problem.model.layers
        self._of = of
        self._count = count = len(layers)
        self._weight = np.concatenate(
            ([0.0], np.cumsum([layer.time_weight / AVERAGE_TIME_WEIGHT for layer in layers]))
        )
        self._size = np.concatenate(([0.0], np.cumsum([float(layer.size_bytes) for layer in layers])))
        starts, lengths = np.arange(count)[:, np.newaxis], np.arange(count + 1)[np.newaxis]
        ends = np.minimum(starts + lengths, count)
        is_run = (lengths > 0) & (starts + lengths <= count)
        # A stage in the middle leaves a layer before it and one behind.
        self._is_plain = is_run & (starts > 0) & (starts + lengths < count)
        self._weights = self._weight[ends] - self._weight[starts]
        self._sizes = self._size[ends] - self._size[starts]
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
        is_large = of.size > _TREE_UP_TO
        most = INFINITE / (8 * min(of.size, self._count))
        prices = np.array([min(most, start_price * self._weight[-1]), 0.0])
        best, scale = 0, 1.0
        at, slope, value = prices, np.zeros(2), 0
        for _ in range(_ROUNDS_LARGE if of.size > _LARGE_FROM else _ROUNDS):
            try:
                found = self._round(relaxed, prices, is_large, should_stop)
            except StoppedError:
                return best
            if found.bound_ns >= INFINITE:
                return INFINITE
            if found.bound_ns > best or not slope.any():
                best = max(best, found.bound_ns)
                at, slope, value = prices, found.slope, found.bound_ns
            else:
                # Too far: from the best prices again, half as far.
                scale /= 2
            length = float(slope @ slope)
            if best >= upper_ns or length < 1e-12:
                break
            aim = max(0.0, min(upper_ns, 2 * max(best, 1)) - value)
            prices = at + scale * aim / length * slope
            if float(np.abs(prices).max()) > most:
                # Beyond what sums of 64 bits hold.
                break
        return best

    def _round(
        self, relaxed: Field, prices: Floats, is_large: bool, should_stop: Callable[[], bool]
    ) -> "_Round":
        """Bound with given prices on all time and all size, and say how far either is from adding up."""
        if is_large:
            return self._by_price(relaxed, prices, should_stop)
        forward = link_matrices(relaxed)
        tree = (
            hierarchy(relaxed) if relaxed.problem.links.is_hierarchical else single_linkage(relaxed, *forward)
        )
        tables = [self._table(device, prices) for device in range(relaxed.size)]
        stages = relaxed.problem.min_stages
        sums = run(relaxed, tree, lambda device: tables[device], min_stages=stages, should_stop=should_stop)
        draft = draft_of(relaxed, sums, min_stages=stages)
        if draft is None:
            return _Round(INFINITE, np.zeros(2))
        used = np.zeros(2)
        for device, length in draft.layers.items():
            part = FIRST if device == draft.first else LAST if device == draft.last else PLAIN
            used += self._run_of(device, part, length, prices)
        return _Round(self._total(sums.best_ns, prices), 1.0 - used)

    def _total(self, paid_ns: float, prices: Floats) -> int:
        off = _OFF * (abs(float(paid_ns)) + float(np.abs(prices).sum())) + 1
        return int(paid_ns + float(prices.sum()) - off)

    def _costs(self, device: int, prices: Floats, weights: Floats, sizes: Floats) -> Floats:
        per_weight = self._of.devices[device].layer_ns - prices[0] / max(self._weight[-1], 1e-30)
        return per_weight * weights - prices[1] / self._size[-1] * sizes

    def _is_held(
        self, device: int, part: int, weights: Floats, sizes: Floats, length: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """Say which runs a device can hold in a part; their lengths are the last axis, or all `length`."""
        model = self._of.problem.model
        held = (model.stage_bytes, model.first_bytes, model.last_bytes)[part]
        allowed = sizes <= float(self._of.room_bytes[self._of.pool[device]] - held)
        if self._of.limit_ns is not None:
            fixed = int(self._of.overhead_ns[device]) + (int(self._of.head_ns[device]) if part == LAST else 0)
            time = self._of.devices[device].layer_ns * weights - (self._rounded if length is None else length)
            allowed &= time * (1 - _OFF) + fixed <= self._of.limit_ns
        return allowed

    def _table(self, device: int, prices: Floats) -> Integers:
        of, count = self._of, self._count
        made = np.full((4, count + 1), np.inf)
        plain = self._costs(device, prices, self._weights, self._sizes)
        is_held = self._is_plain & self._is_held(device, PLAIN, self._weights, self._sizes)
        made[PLAIN] = np.where(is_held, plain, np.inf).min(axis=0)
        for part, weights, sizes in (
            (FIRST, self._weight, self._size),
            (LAST, self._weight[-1] - self._weight[::-1], self._size[-1] - self._size[::-1]),
        ):
            costs = self._costs(device, prices, weights, sizes)
            made[part] = np.where(self._is_held(device, part, weights, sizes), costs, np.inf)
        made[LAST] += int(of.head_ns[device])
        made += int(of.overhead_ns[device]) - self._rounded
        made[:, 0] = np.inf
        return np.where(np.isfinite(made), np.floor(np.nan_to_num(made, posinf=0.0)), float(INFINITE)).astype(
            np.int64
        )

    def _run_of(self, device: int, part: int, length: int, prices: Floats) -> Floats:
        """Return the shares of all time and of all size of the run that a table's entry stands for."""
        if part == FIRST:
            weight, size = self._weight[length], self._size[length]
        elif part == LAST:
            weight, size = (
                self._weight[-1] - self._weight[-1 - length],
                self._size[-1] - self._size[-1 - length],
            )
        else:
            weights, sizes = self._weights[:, length], self._sizes[:, length]
            costs = self._costs(device, prices, weights, sizes)
            held = self._is_plain[:, length] & self._is_held(device, PLAIN, weights, sizes, length)
            start = int(np.argmin(np.where(held, costs, np.inf)))
            weight, size = weights[start], sizes[start]
        return np.array([weight / max(self._weight[-1], 1e-30), size / self._size[-1]])

    def _by_price(self, relaxed: Field, prices: Floats, should_stop: Callable[[], bool]) -> "_Round":
        """As a round, with a price on each layer in the place of the tree."""
        forward, back = entry_costs(relaxed)
        tables: list[Integers] = []
        for device in range(relaxed.size):
            if should_stop():
                raise StoppedError
            tables.append(self._table(device, prices).min(axis=0) + int(forward[device]))
        rows = np.array(tables)
        ends = int((back - forward).min(initial=0))
        lengths = np.arange(self._count + 1)
        low, high = (
            -2.0 * float(np.abs(rows[rows < INFINITE // 2]).max(initial=1)),
            2.0 * float(np.abs(rows[rows < INFINITE // 2]).max(initial=1)),
        )

        def value(price: float) -> float:
            least: Floats = (rows - price * lengths).min(axis=1)
            chosen: Floats = np.where(relaxed.is_required, least, np.minimum(0.0, least))
            return price * self._count + float(chosen.sum()) + ends

        for _ in range(60):
            one, other = low + (high - low) / 3, high - (high - low) / 3
            low, high = (one, high) if value(one) < value(other) else (low, other)
        layer_price = (low + high) / 2
        costs = rows - layer_price * lengths
        slope = np.ones(2)
        for device in np.flatnonzero((costs.min(axis=1) < 0) | relaxed.is_required).tolist():
            length = int(np.argmin(costs[device]))
            slope -= self._run_of(device, PLAIN, length, prices)
        return _Round(self._total(value(layer_price), prices), slope)


@dataclass(frozen=True, slots=True)
class _Round:
    bound_ns: int
    slope: Floats
    """What is missing of all time and all size: the direction in which prices should rise."""


def start_price_ns(of: Field, ring: Sequence[int]) -> float:
    """Return a price to begin with: the time per average layer of the slowest device of a plan."""
    return float(max((of.devices[index].layer_ns for index in ring), default=0))
