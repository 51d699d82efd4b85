"""How much work a calibrated device may do: the most that keeps its predicted temperature below a target.

One step of model predictive control with a constant input over the horizon (Richalet et al., "Model predictive
heuristic control", Automatica 14, 1978): with one capacity the hottest moment is an end of the horizon, so that the
optimum is a formula. It goes out from the power that is measured now, which takes constant errors of the model out
of the steady state.
"""

import msgspec

from exo.gpu.thermal.device_class import ThermalPrior
from exo.gpu.thermal.policy import ThermalPolicy
from exo.gpu.thermal.power import PowerLine
from exo.gpu.thermal.rc_model import RCModel


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one moment."""

    die_c: float
    lagged_watts: float
    line: PowerLine
    model: RCModel
    prior: ThermalPrior

    def predicted_c(self, work_fraction: float, ahead_s: float) -> float:
        """Return the die's temperature after a time at this much work."""
        return self.model.die_after_c(
            self.die_c, self.lagged_watts, self.line.watts_at(work_fraction), ahead_s
        )

    def peak_c(self, work_fraction: float, policy: ThermalPolicy) -> float:
        """Return the hottest of now and the two looks ahead."""
        ahead = (self.predicted_c(work_fraction, after) for after in (policy.early_s, policy.horizon_s))
        return max(self.die_c, *ahead)


def most_work(outlook: Outlook, target_c: float, policy: ThermalPolicy) -> float:
    """Return the largest work fraction, 0 to 1, after which the die is not above `target_c` at either look ahead.

    Work is never taken to heat less than in the middle of the device's class: a model that was fooled into too little
    would answer each degree with too much work, and swing.
    """
    line = outlook.line
    price_watts = line.watts_per_work
    if not price_watts:
        return 1.0
    most = 1.0
    for ahead_s in (policy.early_s, policy.horizon_s):
        room_c = target_c - outlook.model.die_after_c(
            outlook.die_c, outlook.lagged_watts, line.recent_watts, ahead_s
        )
        rise = max(outlook.model.rise_c_per_w(ahead_s), outlook.prior.model.rise_c_per_w(ahead_s))
        most = min(most, line.recent_share + room_c / (rise * price_watts))
    return max(0.0, most)


def sustained_fraction(outlook: Outlook, target_c: float) -> float:
    """Return the work fraction that the device can hold for good below `target_c`."""
    price_watts = outlook.line.watts_per_work
    if not price_watts:
        return 1.0
    idle_watts = outlook.line.idle_watts or 0.0
    return min(1.0, max(0.0, (outlook.model.steady_watts(target_c) - idle_watts) / price_watts))
