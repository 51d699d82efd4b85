"""Learns a device's constants while it works: recursive least squares that forgets, told only by real excitation.

The model is integrated over a window instead of differentiated, so that whole degrees and odd intervals do little
harm: `T2 - T1 = alpha X - b Y + c (t2 - t1) + r (x2 - x1)`, linear in the four unknowns, where X and Y are the
integrals of the power and of the temperature (integral-equation identification: Unbehauen & Rao, "Continuous-time
approaches to system identification", Automatica 26, 1990). The recursion is the Kalman filter of parameters that walk
at random (Ljung & Soederstrom, "Theory and Practice of Recursive Identification", 1983, 2.6): old facts fade at a
rate of their own for each constant, instead of all at one.

Without excitation (power and temperature as they were) only the room's temperature is learnt; the rest is left alone,
uncertainty never grows beyond that of the prior, and the constants never leave their physical bounds: no wind-up.
"""

from math import sqrt

import msgspec

from exo.gpu.thermal.device_class import ThermalPrior
from exo.gpu.thermal.rc_model import RCModel

Numbers = tuple[float, ...]
Matrix = tuple[Numbers, ...]
"""Four by four, in the order of the equation above: alpha, rate, offset, die."""

REFERENCE_C = 45.0
"""Temperatures are counted from here, so that loss and ambient are told apart more easily."""
SPREAD_SHARE = 0.5
"""Of the prior's constants: one standard deviation."""
AMBIENT_SPREAD_C = 12.0
CONSTANT_WALK_SHARE = 0.01
"""Of the prior's constants, for each square root of a second of excitation."""
AMBIENT_WALK_C = 0.05
"""For each square root of a second."""
WINDOW_NOISE_C = 1.0
WINDOW_NOISE_SHARE = 0.1
"""Of the window's change: what one capacity cannot explain."""
EXCITED_POWER_SHARE = 0.12
EXCITED_CHANGE_C = 3.0
AMBIENT_RANGE_C = (-30.0, 95.0)
ALPHA_RANGE = (0.5, 4.0)
RATE_RANGE = (0.4, 2.5)
DIE_RANGE = (0.4, 2.5)
"""As shares of the prior's."""
DIE_SHARE_MAX = 0.8
"""Of the warming that is the die's own, at most: the body has a capacity of its own."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two readings that lie some way apart."""

    change_c: float
    power_j: float
    temperature_c_s: float
    """Integral of the temperature above `REFERENCE_C`."""
    elapsed_s: float
    lagged_change_watts: float
    lagged_spread_watts: float
    """Most less least within the window."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What is known so far. Rates for the power `prior.full_watts` as one."""

    prior: ThermalPrior
    start: Numbers
    estimate: Numbers
    spread: Numbers
    """Variances of the prior: where uncertainty ends."""
    covariance: Matrix
    excited_windows: int = 0

    @property
    def model(self) -> RCModel:
        """The constants in their units."""
        alpha, rate, offset, die = self.estimate
        capacity = self.prior.full_watts / (alpha - rate * die)
        return RCModel(
            heat_capacity_j_per_c=capacity,
            heat_loss_w_per_c=rate * capacity,
            ambient_c=REFERENCE_C + offset / rate,
            die_c_per_w=die / self.prior.full_watts,
            die_lag_s=self.prior.model.die_lag_s,
        )


def start(prior: ThermalPrior, first_c: float) -> Calibration:
    """Begin with the constants of a class, in surroundings as warm as the first reading."""
    rate = 1 / prior.model.time_constant_s
    die = prior.model.die_c_per_w * prior.full_watts
    alpha = prior.full_watts / prior.model.heat_capacity_j_per_c + rate * die
    spread = (
        (SPREAD_SHARE * alpha) ** 2,
        (SPREAD_SHARE * rate) ** 2,
        (AMBIENT_SPREAD_C * rate) ** 2,
        (SPREAD_SHARE * die) ** 2,
    )
    values = (alpha, rate, rate * (first_c - REFERENCE_C), die)
    return Calibration(
        prior=prior,
        start=values,
        estimate=values,
        spread=spread,
        covariance=(
            (spread[0], 0.0, 0.0, 0.0),
            (0.0, spread[1], 0.0, 0.0),
            (0.0, 0.0, spread[2], 0.0),
            (0.0, 0.0, 0.0, spread[3]),
        ),
    )


def learn(known: Calibration, window: Window, since_last_s: float) -> Calibration:
    """Return what is known after one more window; `since_last_s` after the one before."""
    full_watts = known.prior.full_watts
    is_excited = (
        window.lagged_spread_watts > EXCITED_POWER_SHARE * full_watts
        or abs(window.change_c) > EXCITED_CHANGE_C
    )
    row = (
        window.power_j / full_watts,
        -window.temperature_c_s,
        window.elapsed_s,
        window.lagged_change_watts / full_watts,
    )
    covariance = _forget(known, is_excited=is_excited, elapsed_s=since_last_s)
    weighted = [sum(one * other for one, other in zip(line, row, strict=True)) for line in covariance]
    if not is_excited:
        weighted = [0.0, 0.0, covariance[2][2] * row[2], 0.0]
    noise = WINDOW_NOISE_C + (WINDOW_NOISE_SHARE * window.change_c) ** 2
    scale = noise + sum(one * other for one, other in zip(row, weighted, strict=True))
    surprise = window.change_c - sum(one * other for one, other in zip(row, known.estimate, strict=True))
    gain = [one / scale for one in weighted]
    if is_excited:
        covariance = [[covariance[i][j] - gain[i] * weighted[j] for j in range(4)] for i in range(4)]
    else:
        _shrink(covariance, 2, sqrt(1 - gain[2] * row[2]))
    moved = [value + one * surprise for value, one in zip(known.estimate, gain, strict=True)]
    return msgspec.structs.replace(
        known,
        estimate=_bounded(known.start, moved),
        covariance=tuple(tuple(line) for line in covariance),
        excited_windows=known.excited_windows + is_excited,
    )


def _bounded(first: Numbers, moved: list[float]) -> Numbers:
    alpha = _clip(moved[0], ALPHA_RANGE[0] * first[0], ALPHA_RANGE[1] * first[0])
    rate = _clip(moved[1], RATE_RANGE[0] * first[1], RATE_RANGE[1] * first[1])
    coldest_c, warmest_c = AMBIENT_RANGE_C
    offset = _clip(moved[2], rate * (coldest_c - REFERENCE_C), rate * (warmest_c - REFERENCE_C))
    die = _clip(moved[3], DIE_RANGE[0] * first[3], DIE_RANGE[1] * first[3])
    # What is left for the body has to be positive: part of the full load's warming goes into it.
    return (alpha, rate, offset, min(die, DIE_SHARE_MAX * alpha / rate))


def _clip(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)


def _forget(known: Calibration, *, is_excited: bool, elapsed_s: float) -> list[list[float]]:
    """Let uncertainty grow with time, but never beyond the prior's."""
    covariance = [list(line) for line in known.covariance]
    rate = known.estimate[1]
    covariance[2][2] += (AMBIENT_WALK_C * rate) ** 2 * elapsed_s
    if is_excited:
        for index in (0, 1, 3):
            covariance[index][index] += (CONSTANT_WALK_SHARE * known.start[index]) ** 2 * elapsed_s
    for index in range(4):
        if covariance[index][index] > known.spread[index]:
            _shrink(covariance, index, sqrt(known.spread[index] / covariance[index][index]))
    return covariance


def _shrink(covariance: list[list[float]], index: int, factor: float) -> None:
    """Scale one standard deviation. With what goes along with it: else the matrix would be that of nothing real."""
    for other in range(4):
        covariance[index][other] *= factor
        covariance[other][index] *= factor
