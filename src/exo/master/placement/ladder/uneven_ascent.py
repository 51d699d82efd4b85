"""Climbs a concave function of many prices that is dear to ask: a proximal bundle (Lemarechal 1975; Kiwiel 1990).

Every answer, value and slope, bounds the function from above by a plane. The next point is the highest of all planes
with a penalty on how far it lies from the best point so far. Where prices come in few kinds, moving those of a kind
together gets near the top in a handful of rounds; then finer bases follow.
"""

from collections.abc import Callable, Sequence

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


def ascend(
    value_of: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    *,
    bases: Sequence[Floats | None],
    upper: float,
    rounds_max: int,
    prices_max: float,
) -> tuple[float, Floats]:
    """Return the best value found and its prices; no value above `upper` is looked for.

    Args:
        value_of: Value and slope of the function at a point.
        start: Where to begin.
        bases: Orthonormal columns in which to move, one after the other; None moves every price by itself.
        upper: What the function cannot rise above, or need not.
        rounds_max: How often the function is asked at most.
        prices_max: Prices beyond which it is not asked.
    """
    value, slope = value_of(start)
    points, values, slopes = [start], [value], [slope]
    best, centre = value, start
    left = rounds_max - 1
    weight: float | None = None
    for basis in bases:
        widenings = nulls = 0
        while left > 0 and best < upper * (1 - _CLOSE_ENOUGH):
            planes = np.array(slopes[-_PLANES_MAX:])
            errors = np.array(values[-_PLANES_MAX:]) - best
            errors += np.einsum("ij,ij->i", planes, centre - np.array(points[-_PLANES_MAX:]))
            moved = planes if basis is None else planes @ basis
            products = moved @ moved.T
            if weight is None:
                slant = float(products[-1, -1])
                if slant < _TINY:
                    break
                aim = upper - best if len(values) == 1 else _FIRST_RISE * abs(best)
                weight = min(aim, abs(best) + 1) / slant
            shares = mixed(products, np.maximum(0.0, errors), weight)
            way = shares @ moved
            rise = float(shares @ np.maximum(0.0, errors)) + weight * float(way @ way)
            if rise < _WORTH * abs(best):
                if widenings == _WIDENINGS_MAX or float(way @ way) < _TINY:
                    break
                widenings, weight = widenings + 1, weight * 8
                continue
            point = centre + weight * (way if basis is None else basis @ way)
            if float(np.abs(point).max()) > prices_max:
                break
            value, slope = value_of(point)
            left -= 1
            points.append(point)
            values.append(value)
            slopes.append(slope)
            gain = value - best
            if gain > 0:
                best, centre = value, point
            if gain >= 0.5 * rise:
                weight *= 2
            nulls = 0 if gain >= 0.1 * rise else nulls + 1
            if nulls >= 3 or gain < -3 * rise:
                weight, nulls = weight / 2, 0
        weight = None
    return best, centre


_TINY = 1e-9


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
