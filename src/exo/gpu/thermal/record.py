"""One device's heat as it is known now. Readings come in by `observing.py`; `advising.py` decides."""

from math import sqrt

import msgspec

from exo.gpu.thermal.battery import BatteryState
from exo.gpu.thermal.calibration import Calibration
from exo.gpu.thermal.controller import Outlook
from exo.gpu.thermal.device_class import ThermalPrior
from exo.gpu.thermal.history import History
from exo.gpu.thermal.policy import BatteryPolicy, ThermalPolicy
from exo.gpu.thermal.power import PowerLine
from exo.gpu.thermal.prediction import Predictions
from exo.shared.types.devices import PowerSource

POWER_KEPT_S = 30.0
"""Without a power reading the model goes on this long with what work usually takes."""


class ThermalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is kept of a device. Times are of one monotonic clock, in seconds."""

    prior: ThermalPrior
    policy: ThermalPolicy = ThermalPolicy()
    battery_policy: BatteryPolicy = BatteryPolicy()
    told_limit_c: float | None = None
    read_s: float | None = None
    """When the last temperature was read; None: the device never told one."""
    seen_s: float | None = None
    """When the last reading came, with or without a temperature."""
    die_c: float = 0.0
    """Filtered."""
    slope_c_per_s: float = 0.0
    scatter_c2: float = 1.0
    lagged_watts: float = 0.0
    line: PowerLine = PowerLine()
    power_source: PowerSource = "none"
    power_s: float | None = None
    calibration: Calibration | None = None
    history: History = History()
    predictions: Predictions
    guard_c: float = 0.0
    worked_share: float = 0.0
    """What was worked lately, and below what was advised: an idle device proves nothing about its heat."""
    advised_share: float = 0.0
    throttled_cap: float = 1.0
    battery: BatteryState = "free"
    battery_percent: float | None = None
    # What was advised last.
    fraction: float | None = None
    advised_s: float | None = None
    is_paused: bool = False
    room_c: float | None = None

    @property
    def limit_c(self) -> float:
        """The device's own limit, else that of its class."""
        return self.prior.limit_c if self.told_limit_c is None else self.told_limit_c

    @property
    def is_calibrated(self) -> bool:
        """Enough was learnt, and what was predicted with it came true."""
        known, policy = self.calibration, self.policy
        error_c = self.predictions.near.rms_c
        return (
            known is not None
            and known.excited_windows >= policy.calibrated_windows
            and self.predictions.near.count >= policy.calibrated_judgements
            and error_c is not None
            and error_c < policy.calibrated_error_c
            and self.power_s is not None
            and self.read_s is not None
            and self.read_s - self.power_s <= POWER_KEPT_S
        )

    @property
    def target_c(self) -> float:
        """What predicted temperatures have to stay below: limit less margin, and more where that was too little."""
        policy = self.policy
        target_c = self.limit_c - policy.margin_c - self.guard_c
        target_c -= max(0.0, sqrt(self.scatter_c2) - policy.scatter_free_c)
        if self.is_calibrated:
            error_c = self.predictions.near.rms_c or 0.0
            target_c -= policy.error_weight * max(0.0, error_c - policy.error_free_c)
        else:
            target_c -= policy.unforeseen_margin_c
        return target_c

    @property
    def outlook(self) -> Outlook | None:
        """What the controller needs; None while the device is not calibrated."""
        if self.calibration is None or not self.is_calibrated:
            return None
        return Outlook(
            die_c=self.die_c,
            lagged_watts=self.lagged_watts,
            line=self.line,
            model=self.calibration.model,
            prior=self.prior,
        )


def new_record(
    prior: ThermalPrior, policy: ThermalPolicy | None = None, battery_policy: BatteryPolicy | None = None
) -> ThermalRecord:
    """Return the record of a device of which nothing was read yet."""
    policy = policy or ThermalPolicy()
    return ThermalRecord(
        prior=prior,
        policy=policy,
        battery_policy=battery_policy or BatteryPolicy(),
        predictions=Predictions(near_s=policy.horizon_s, far_s=policy.shown_s),
    )
