"""How a device warms up and cools down: one resistance, one capacity, and how far the die is ahead of its body.

The body follows `dT/dt = (P - h (T - T_ambient)) / C`, Newton's law of cooling with one lump of heat (the usual
"RC model" of thermal circuits; for chips: Skadron et al., "Temperature-Aware Microarchitecture", 2003). What is
measured is the die, which stands above the body in proportion to the power, a few seconds late. With
`die_c_per_w = 0` this is the bare model.
"""

from math import exp

import msgspec


class RCModel(msgspec.Struct, frozen=True, kw_only=True):
    """The constants of one device."""

    heat_capacity_j_per_c: float
    heat_loss_w_per_c: float
    ambient_c: float
    die_c_per_w: float = 0.0
    die_lag_s: float = 4.5
    """Time constant with which the die follows the power."""

    @property
    def time_constant_s(self) -> float:
        """After which 63 % of the body's way are gone."""
        return self.heat_capacity_j_per_c / self.heat_loss_w_per_c

    def body_after_c(self, body_c: float, power_watts: float, elapsed_s: float) -> float:
        """Return the body's temperature after a time at constant power: the exact solution, for any step."""
        steady_c = self.ambient_c + power_watts / self.heat_loss_w_per_c
        return steady_c + (body_c - steady_c) * exp(-elapsed_s / self.time_constant_s)

    def lagged_after_watts(self, lagged_watts: float, power_watts: float, elapsed_s: float) -> float:
        """Return the power that the die has followed, after a time at constant power."""
        return power_watts + (lagged_watts - power_watts) * exp(-elapsed_s / self.die_lag_s)

    def body_of_c(self, die_c: float, lagged_watts: float) -> float:
        """Return the body's temperature under a die."""
        return die_c - self.die_c_per_w * lagged_watts

    def die_after_c(self, die_c: float, lagged_watts: float, power_watts: float, elapsed_s: float) -> float:
        """Return the die's temperature after a time at constant power."""
        body_c = self.body_after_c(self.body_of_c(die_c, lagged_watts), power_watts, elapsed_s)
        return body_c + self.die_c_per_w * self.lagged_after_watts(lagged_watts, power_watts, elapsed_s)

    def rise_c_per_w(self, elapsed_s: float) -> float:
        """Return how much hotter the die is after a time for each watt more."""
        body = (1 - exp(-elapsed_s / self.time_constant_s)) / self.heat_loss_w_per_c
        return body + self.die_c_per_w * (1 - exp(-elapsed_s / self.die_lag_s))

    def steady_watts(self, die_c: float) -> float:
        """Return the power at which the die stays at a temperature for good."""
        return (die_c - self.ambient_c) / (1 / self.heat_loss_w_per_c + self.die_c_per_w)
