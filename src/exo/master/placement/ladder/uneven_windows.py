"""All runs of neighbouring layers of a model, which of them each device can hold, and what prices pay for them."""

import numpy as np
import numpy.typing as npt

from exo.master.placement.ladder.field import Field, Flags, Integers
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT, Layer

Floats = npt.NDArray[np.float64]
_OFF = 1e-9
_KINDS_MAX = 8
"""Kinds of layers up to which each has a price of its own from the start."""
_ENDS = 6
"""Layers at either end whose prices are moved by themselves before all others are."""


class Windows:
    """The runs of one model."""

    def __init__(self, of: Field) -> None:
        layers = of.problem.model.layers
        self.count = count = len(layers)
        self.weights = np.array([layer.time_weight / AVERAGE_TIME_WEIGHT for layer in layers])
        self._weight = np.concatenate(([0.0], np.cumsum(self.weights)))
        self._size = np.concatenate(([0], np.cumsum([layer.size_bytes for layer in layers])))
        self._starts = np.arange(count)[:, np.newaxis]
        self._ends = np.minimum(self._starts + np.arange(count + 1), count)
        # Times are rounded down layer by layer: less than one nanosecond each.
        self._rounded = np.arange(count + 1, dtype=np.float64)

    def held(self, of: Field, device: int) -> tuple[Floats, Floats, Floats]:
        """Return what the runs that a device can hold cost it, infinite where it cannot: in the middle, first, last.

        By start and length in the middle, by length alone at the ends; none longer than the longest of them.
        """
        model, count = of.problem.model, self.count
        room = int(of.room_bytes[of.pool[device]])
        layer_ns, fixed = of.devices[device].layer_ns, float(of.overhead_ns[device])
        limit_ns = np.inf if of.limit_ns is None else of.limit_ns
        size, weight = self._size, self._weight

        def costs(weights: Floats, lengths: Integers, fits: Flags, fixed: float) -> Floats:
            times = layer_ns * weights - self._rounded[lengths]
            fits &= times * (1 - _OFF) + fixed <= limit_ns
            return np.where(fits, times + fixed, np.inf)

        lengths = np.arange(count + 1)
        first = costs(weight, lengths, (lengths > 0) & (size <= room - model.first_bytes), fixed)
        last = costs(
            weight[-1] - weight[::-1],
            lengths,
            (lengths > 0) & (size[-1] - size[::-1] <= room - model.last_bytes),
            fixed + float(of.head_ns[device]),
        )
        reached = np.searchsorted(size, size[:-1] + (room - model.stage_bytes), side="right") - 1
        # A stage in the middle leaves a layer before it and one behind.
        most = np.minimum(reached, count - 1) - np.arange(count)
        most[0] = 0
        width = 1 + max(0, int(most.max()), _longest(first), _longest(last))
        ends, among = self._ends[:, :width], lengths[:width]
        plain = costs(
            weight[ends] - weight[self._starts], among, (among > 0) & (among <= most[:, np.newaxis]), fixed
        )
        return plain, first[:width], last[:width]

    def paid(self, prices: Floats) -> tuple[Floats, Floats, Floats]:
        """Return what the prices pay for each run: by start and length, of the first layers, of the last ones."""
        sums = np.concatenate(([0.0], np.cumsum(prices)))
        return sums[self._ends] - sums[self._starts], sums, sums[-1] - sums[::-1]


def _longest(costs: Floats) -> int:
    held = np.flatnonzero(np.isfinite(costs))
    return int(held[-1]) if held.size else 0


def bases_of(layers: tuple[Layer, ...]) -> list[Floats | None]:
    """Return the directions in which to move prices: by kinds of layers, then those at the ends apart, then all.

    Where nearly every layer is a kind of its own, by time and size.
    """
    names = [(layer.size_bytes, layer.time_weight) for layer in layers]
    if len(set(names)) > _KINDS_MAX:
        features = np.array([(1.0, layer.time_weight, float(layer.size_bytes)) for layer in layers])
        return [_independent(features / np.linalg.norm(features, axis=0).clip(1e-9)), None]
    inside = range(_ENDS, len(layers) - _ENDS)
    with_ends = [name if place in inside else (place,) for place, name in enumerate(names)]
    return [_together(names), _together(with_ends), None]


def _independent(features: Floats) -> Floats:
    """Return orthonormal columns that span the same."""
    left, strengths, _ = np.linalg.svd(features, full_matrices=False)
    return left[:, strengths > 1e-9 * strengths.max(initial=0.0)]


def _together(names: list[tuple[int, ...]] | list[tuple[int, int]]) -> Floats:
    """Return a column for each name, of its places."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    columns = np.zeros((len(names), len(order)))
    for place, name in enumerate(names):
        columns[place, order[name]] = 1.0
    return columns / np.sqrt(columns.sum(axis=0))
