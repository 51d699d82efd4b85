"""A device on battery gives way before it is empty: slower below one charge, paused below another."""

from typing import Literal

from exo.gpu.thermal.policy import BatteryPolicy

BatteryState = Literal["free", "slow", "paused"]


def battery_state(
    before: BatteryState, percent: float | None, is_plugged_in: bool | None, policy: BatteryPolicy
) -> BatteryState:
    """Return what the charge allows.

    A device that is plugged in, or that has no battery, is free. One that does not tell whether it is plugged in is
    treated as on battery. Without a reading of the charge what was decided before stays.
    """
    if is_plugged_in:
        return "free"
    if percent is None:
        return before if is_plugged_in is False else "free"
    pause_below = policy.pause_below_percent
    if percent < pause_below + (policy.hysteresis_percent if before == "paused" else 0):
        return "paused"
    slow_below = policy.slow_below_percent
    if percent < slow_below + (policy.hysteresis_percent if before != "free" else 0):
        return "slow"
    return "free"
