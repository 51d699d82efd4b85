"""What a device's heat means for its work until the next advice."""

import msgspec

from exo.shared.types.devices import ThermalState


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
