"""What a device's heat means for its work, as people and the engine's loop are told."""

from typing import Literal

import msgspec

from exo.gpu.thermal.power import PowerSource
from exo.gpu.thermal.rc_model import RCModel

ThermalState = Literal["cool", "warm", "slowed", "paused", "unknown"]
"""`warm`: full work, but within the hysteresis of the margin. `unknown`: the device tells no temperature."""


class ThermalAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """How much to work until the next advice."""

    work_fraction: float
    """0 to 1 of what the device could do."""
    is_paused: bool
    state: ThermalState
    reason: str
    """For a person."""
    predicted_peak_c: float | None = None
    """Of the next seconds under this advice; None while the device is not calibrated."""


class ThermalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A device's heat for `/gpu/info` and for placement. What is not known is None."""

    state: ThermalState
    reason: str
    work_fraction: float
    is_calibrated: bool
    power_source: PowerSource
    temperature_c: float | None = None
    limit_c: float | None = None
    is_limit_assumed: bool = False
    """The device does not tell its limit: it is the one of its class."""
    predicted_30s_c: float | None = None
    prediction_error_c: float | None = None
    """Root mean square of the last predictions of that horizon, the sensor's noise included."""
    sustained_fraction: float | None = None
    """How much of full work the device is predicted to hold for good."""
    model: RCModel | None = None
    """Only from measured power: from an estimate it would be an invention."""
