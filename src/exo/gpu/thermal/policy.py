"""The numbers that somebody may want to change: margins, horizons, and what is done when nothing is known."""

import msgspec


class ThermalPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Margins in degrees, times in seconds, work as a fraction of what the device could do."""

    margin_c: float = 5.0
    """Predicted temperatures stay this far below the limit."""
    unforeseen_margin_c: float = 1.0
    """Added to that while there is no model to foresee anything with."""
    hysteresis_c: float = 10.0
    """A device that was paused goes on when it is this much below limit and margin."""
    early_s: float = 6.0
    """A first look ahead: the die is quick."""
    horizon_s: float = 12.0
    """A second one, past every delay of sensor and engine. Longer ones waste what a cool body could take up."""
    shown_s: float = 30.0
    """What people are told is predicted this far ahead."""
    raise_per_s: float = 0.04
    """How fast work comes back at most; it goes down at once."""
    trusted_raise_per_s: float = 0.08
    """The same while predictions come true."""
    trusted_error_c: float = 2.5
    calibrated_error_c: float = 5.0
    """With errors above this the model is not used."""
    calibrated_windows: int = 6
    calibrated_judgements: int = 4
    least_fraction: float = 0.05
    """Less is not worth while: it is paused instead."""
    stale_after_s: float = 8.0
    """Without a reading: from here on work fades."""
    fade_s: float = 20.0
    blind_after_s: float = 60.0
    """Without a reading: paused until there is one."""
    error_weight: float = 0.5
    error_free_c: float = 1.0
    """Prediction errors up to this are what a good sensor does; more of it widens the margin by its half."""
    scatter_free_c: float = 0.9
    """Scatter of the readings around the filtered temperature beyond this widens the margin."""
    guard_free_c: float = 1.0
    guard_max_c: float = 4.0
    guard_fade_s: float = 180.0
    """An overshoot beyond the margin by more than `guard_free_c` widens the margin, for some minutes."""

    @property
    def pause_margin_c(self) -> float:
        """Nearer to the limit than this, work stops at once."""
        return self.margin_c / 2


class BatteryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """On battery: slow below one charge, pause below another; go back `hysteresis_percent` above."""

    slow_below_percent: float = 30.0
    pause_below_percent: float = 15.0
    slow_fraction: float = 0.5
    hysteresis_percent: float = 5.0
