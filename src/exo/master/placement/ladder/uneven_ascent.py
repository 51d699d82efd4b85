"""Climbs a concave function of many prices that is dear to ask: a proximal bundle (Lemarechal 1975; Kiwiel 1990).

Every answer, value and slope, bounds the function from above by a plane. The next point is the highest of all planes
with a penalty on how far it lies from the best point so far. Where prices come in few kinds, moving those of a kind
together gets near the top in a handful of rounds; then finer bases follow.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_CLOSE_ENOUGH = 1e-4
_WORTH = 1e-4
"""A rise that the planes promise, as a share of the value, below which a basis has nothing more to give."""
_PLANES_MAX = 60
_WIDENINGS_MAX = 2
"""How often further steps are tried where near ones promise nothing."""
_FIRST_RISE = 0.002
"""What a first step in a finer basis aims at, as a share of the value."""
_EXCHANGES_MAX = 200
_TINY = 1e-9


class Ascent:
    """One climb, from basis to basis.

    Args:
        value_of: Value and slope of the function at a point.
        start: Where to begin.
        prices_max: Prices beyond which the function is not asked.
    """

    def __init__(
        self, value_of: Callable[[Floats], tuple[float, Floats]], start: Floats, *, prices_max: float
    ) -> None:
        self._value_of = value_of
        self._prices_max = prices_max
        value, slope = value_of(start)
        self.best = value
        """The greatest value so far."""
        self.point = start
        """Where it is."""
        self._points, self._values, self._slopes = [start], [value], [slope]

    def climb(self, basis: Floats | None, *, upper: float, rounds_max: int) -> int:
        """Move in the span of a basis (orthonormal columns; None: all prices by themselves); return the rounds taken.

        No value above `upper` is looked for.
        """
        weight: float | None = None
        rounds = widenings = nulls = 0
        while rounds < rounds_max and self.best < upper * (1 - _CLOSE_ENOUGH):
            planes, errors = self._planes()
            moved = planes if basis is None else planes @ basis
            products = moved @ moved.T
            if weight is None:
                slant = float(products[-1, -1])
                if slant < _TINY:
                    break
                aim = upper - self.best if len(self._values) == 1 else _FIRST_RISE * abs(self.best)
                weight = min(aim, abs(self.best) + 1) / slant
            shares = mixed(products, errors, weight)
            way = shares @ moved
            rise = float(shares @ errors) + weight * float(way @ way)
            if rise < _WORTH * abs(self.best):
                if widenings == _WIDENINGS_MAX or float(way @ way) < _TINY:
                    break
                widenings, weight = widenings + 1, weight * 8
                continue
            point = self.point + weight * (way if basis is None else basis @ way)
            if float(np.abs(point).max()) > self._prices_max:
                break
            rounds += 1
            gain = self._ask(point)
            if gain >= 0.5 * rise:
                weight *= 2
            nulls = 0 if gain >= 0.1 * rise else nulls + 1
            if nulls >= 3 or gain < -3 * rise:
                weight, nulls = weight / 2, 0
        return rounds

    def _planes(self) -> tuple[Floats, Floats]:
        """Return the slopes of the last planes, and how far each lies above the best value at the best point."""
        planes = np.array(self._slopes[-_PLANES_MAX:])
        ways = self.point - np.array(self._points[-_PLANES_MAX:])
        errors = np.array(self._values[-_PLANES_MAX:]) - self.best + np.einsum("ij,ij->i", planes, ways)
        return planes, np.maximum(0.0, errors)

    def _ask(self, point: Floats) -> float:
        """Return how much higher the function is at a point than at the best one."""
        value, slope = self._value_of(point)
        self._points.append(point)
        self._values.append(value)
        self._slopes.append(slope)
        gain = value - self.best
        if gain > 0:
            self.best, self.point = value, point
        return gain


def mixed(products: Floats, errors: Floats, weight: float) -> Floats:
    """Return shares of the planes, at least 0 and 1 in sum, with the least `weight / 2 * |mixture|^2 + errors`.

    `products` holds the planes' scalar products. The two planes that gain most by it exchange shares, again and again.
    """
    shares = np.zeros(len(errors))
    first = int(np.argmin(weight / 2 * products.diagonal() + errors))
    shares[first] = 1.0
    slope = weight * products[first] + errors
    for _ in range(_EXCHANGES_MAX):
        to = int(np.argmin(slope))
        source = int(np.argmax(np.where(shares > 0, slope, -np.inf)))
        gain = float(slope[source] - slope[to])
        if gain <= 1e-6 * (abs(float(slope[source])) + _TINY):
            break
        bend = weight * float(products[to, to] + products[source, source] - 2 * products[to, source])
        step = min(float(shares[source]), gain / bend) if bend > 0 else float(shares[source])
        shares[to] += step
        shares[source] = max(0.0, float(shares[source]) - step)
        slope += weight * step * (products[to] - products[source])
    return shares
