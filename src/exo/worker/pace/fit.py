"""From times of decoding steps to what a step, a layer and a byte take: weighted least squares with a prior. Pure.

A step takes `step overhead + layers * layer overhead + bytes * seconds per byte`. Stages of one size cannot tell the
three apart; then each keeps as close to what was assumed of it as the measured time allows, in proportion to how
uncertain that was (Gaussian priors: C. Bishop, "Pattern Recognition and Machine Learning", 2006, 3.3).
"""

import math
from collections.abc import Sequence

import msgspec

_SPREAD = 0.02
"""How far single times are from the model in any case, in parts of themselves."""
_NOISE = 0.06
"""What is left of noise in one sample of weight 1, in parts of itself."""
_LEAST_S = 1e-6
"""No clock is better than this."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What steps of one kind of stage took."""

    layers: float
    read_bytes: float
    seconds: float
    weight: float
    """In independent measurements; above 0."""


class Prior(msgspec.Struct, frozen=True, kw_only=True):
    """What is assumed of a device before anything is measured, and how far off that may well be.

    The spreads are wide, so that what is measured counts; their proportions say what a time is put down to that one
    size of stages leaves open.
    """

    bandwidth_bytes_per_s: float
    step_overhead_s: float = 0.0003
    step_overhead_spread_s: float = 0.003
    layer_overhead_s: float = 0.00005
    layer_overhead_spread_s: float = 0.0005
    bandwidth_spread: float = 3.0
    """Of the time for a byte, in parts of itself."""


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """What a device's steps take. No figure is negative."""

    step_overhead_s: float
    layer_overhead_s: float
    byte_s: float
    error: float
    """Root mean square of how far it is from the samples, by weight, in parts of their times."""

    def step_s(self, layers: float, read_bytes: float) -> float:
        """Return what a step takes by this."""
        return self.step_overhead_s + layers * self.layer_overhead_s + read_bytes * self.byte_s


def fit(samples: Sequence[Sample], prior: Prior) -> Fit:
    """Return what explains the samples best, the prior being one of them."""
    byte_s = 1.0 / prior.bandwidth_bytes_per_s
    expected = (prior.step_overhead_s, prior.layer_overhead_s, byte_s)
    spread = (
        prior.step_overhead_spread_s,
        prior.layer_overhead_spread_s,
        byte_s * prior.bandwidth_spread,
    )
    # In units of the prior's spread the unknowns are of one size, and the prior is the unit matrix.
    least = (-expected[0] / spread[0], -expected[1] / spread[1], (byte_s * 1e-3 - expected[2]) / spread[2])
    rows: list[tuple[tuple[float, float, float], float]] = []
    for one in samples:
        terms = (1.0, one.layers, one.read_bytes)
        off_s = one.seconds - sum(term * value for term, value in zip(terms, expected, strict=True))
        sigma_s = max(_LEAST_S, one.seconds * math.sqrt(_SPREAD**2 + _NOISE**2 / one.weight))
        scaled = [term * width / sigma_s for term, width in zip(terms, spread, strict=True)]
        rows.append(((scaled[0], scaled[1], scaled[2]), off_s / sigma_s))
    found = _solve(rows, least)
    step_s, layer_s, per_byte_s = (
        value + width * change for value, width, change in zip(expected, spread, found, strict=True)
    )
    result = Fit(
        step_overhead_s=max(0.0, step_s), layer_overhead_s=max(0.0, layer_s), byte_s=per_byte_s, error=0.0
    )
    return msgspec.structs.replace(result, error=_error(result, samples))


def _solve(
    rows: Sequence[tuple[tuple[float, float, float], float]], least: tuple[float, float, float]
) -> list[float]:
    """Return the unknowns that minimise the squares of rows and prior together, none below its least value.

    By active sets (C. Lawson and R. Hanson, "Solving Least Squares Problems", 1974, 23.3): with three unknowns all
    sets of those that are at their least value can be tried.
    """
    matrix = [[float(i == j) + sum(row[i] * row[j] for row, _ in rows) for j in range(3)] for i in range(3)]
    right = [sum(row[i] * value for row, value in rows) for i in range(3)]
    best: list[float] | None = None
    best_cost = math.inf
    for held in range(8):
        free = [i for i in range(3) if not held >> i & 1]
        values = [least[i] if held >> i & 1 else 0.0 for i in range(3)]
        system = [
            [matrix[i][j] for j in free] + [right[i] - sum(matrix[i][j] * values[j] for j in range(3))]
            for i in free
        ]
        for place, value in zip(free, _eliminate(system), strict=True):
            values[place] = value
        if any(values[i] < least[i] - 1e-12 for i in free):
            continue
        cost = sum(values[i] * sum(matrix[i][j] * values[j] for j in range(3)) for i in range(3))
        cost -= 2 * sum(values[i] * right[i] for i in range(3))
        if cost < best_cost:
            best, best_cost = values, cost
    assert best is not None, "with all unknowns held there is always a solution"
    return best


def _eliminate(system: list[list[float]]) -> list[float]:
    """Solve a small positive definite system, given with its right side as the last column."""
    size = len(system)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(system[row][column]))
        system[column], system[pivot] = system[pivot], system[column]
        for row in range(column + 1, size):
            factor = system[row][column] / system[column][column]
            system[row] = [a - factor * b for a, b in zip(system[row], system[column], strict=True)]
    values = [0.0] * size
    for row in reversed(range(size)):
        rest = system[row][size] - sum(system[row][i] * values[i] for i in range(row + 1, size))
        values[row] = rest / system[row][row]
    return values


def _error(found: Fit, samples: Sequence[Sample]) -> float:
    weight = sum(one.weight for one in samples)
    if not weight:
        return 0.0
    squares = sum(
        one.weight * (found.step_s(one.layers, one.read_bytes) / one.seconds - 1) ** 2 for one in samples
    )
    return math.sqrt(squares / weight)
