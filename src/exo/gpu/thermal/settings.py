"""What of the governing of heat a user can set, by the environment; the defaults just work."""

from collections.abc import Mapping

import msgspec

from exo.gpu.thermal.policy import BatteryPolicy, ThermalPolicy
from exo.shared.environment import is_off, number_from

STALE_INTERVALS = 3.0
"""Where devices are read seldom: so many readings may be missing before work fades."""
BLIND_INTERVALS = 10.0


class ThermalSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whether work is held back for heat and battery, and how close to the limits it may come."""

    is_enabled: bool = True
    policy: ThermalPolicy = ThermalPolicy()
    battery: BatteryPolicy = BatteryPolicy()

    @staticmethod
    def from_environment(environment: Mapping[str, str], interval_s: float) -> "ThermalSettings":
        """Read `EXO_THERMAL*` and `EXO_BATTERY*`.

        Args:
            environment: Usually `os.environ`.
            interval_s: Between two readings of a device.

        Raises:
            ConfigurationError: A value is no number, or none that makes sense; the message names it.
        """
        usual, battery = ThermalPolicy(), BatteryPolicy()
        slow_below = number_from(
            environment, "EXO_BATTERY_SLOW_BELOW", battery.slow_below_percent, least=0, most=100
        )
        pause_below = number_from(
            environment, "EXO_BATTERY_PAUSE_BELOW", battery.pause_below_percent, least=0, most=100
        )
        return ThermalSettings(
            is_enabled=not is_off(environment, "EXO_THERMAL"),
            policy=msgspec.structs.replace(
                usual,
                margin_c=number_from(environment, "EXO_THERMAL_MARGIN", usual.margin_c, least=1, most=40),
                hysteresis_c=number_from(
                    environment, "EXO_THERMAL_HYSTERESIS", usual.hysteresis_c, least=1, most=40
                ),
                stale_after_s=max(usual.stale_after_s, STALE_INTERVALS * interval_s),
                blind_after_s=max(usual.blind_after_s, BLIND_INTERVALS * interval_s),
            ),
            battery=msgspec.structs.replace(
                battery, slow_below_percent=slow_below, pause_below_percent=pause_below
            ),
        )
