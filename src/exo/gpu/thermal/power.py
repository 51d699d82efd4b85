"""What work costs in watts, from power readings that are noisy and taken at odd moments."""

from math import exp

import msgspec

from exo.gpu.reading import DeviceReading
from exo.shared.types.devices import PowerSource

LONG_S = 40.0
"""Over which power is put down to work: work comes in batches, and a single reading meets one or misses it."""
RECENT_S = 8.0
FALL_S = 60.0
"""With which the price of work falls; it rises at once."""
IDLE_SHARE = 0.05
"""Of the time: less than this is no work."""
WORKING_SHARE = 0.08


def power_of(reading: DeviceReading) -> tuple[float | None, PowerSource]:
    """Return a reading's power and where it is from.

    Where the device tells only its utilisation and its power limit, the product is an estimate, and called one.
    """
    if reading.power_watts is not None:
        return reading.power_watts, "measured"
    if reading.compute_utilization_percent is not None and reading.power_limit_watts is not None:
        return reading.compute_utilization_percent / 100 * reading.power_limit_watts, "estimated"
    return None, "none"


class PowerLine(msgspec.Struct, frozen=True, kw_only=True):
    """Means of power and of the share of time that was worked, long and recent ones."""

    idle_watts: float | None = None
    long_watts: float = 0.0
    long_share: float = 0.0
    recent_watts: float = 0.0
    recent_share: float = 0.0
    watts_per_work: float | None = None
    """What full work takes beyond idling. Follows bursts up at once, so that their next one is expected."""
    count: int = 0

    def with_reading(
        self, power_watts: float, worked_share: float, elapsed_s: float
    ) -> tuple["PowerLine", float]:
        """Return the line with one more reading, and the mean power since the one before."""
        weight = 1 / (self.count + 1) if self.count <= 8 else 1 - exp(-elapsed_s / LONG_S)
        long_watts = self.long_watts + weight * (power_watts - self.long_watts)
        long_share = self.long_share + weight * (worked_share - self.long_share)
        idle = self.idle_watts
        if worked_share < IDLE_SHARE and self.recent_share < IDLE_SHARE:
            idle = power_watts if idle is None else idle + 0.2 * (power_watts - idle)
        mean_watts = power_watts
        floor = min(idle or 0.0, long_watts)
        if long_share > IDLE_SHARE:
            mean_watts = floor + worked_share * (long_watts - floor) / long_share
        weight = 1.0 if self.count == 0 else 1 - exp(-elapsed_s / RECENT_S)
        recent_watts = self.recent_watts + weight * (mean_watts - self.recent_watts)
        recent_share = self.recent_share + weight * (worked_share - self.recent_share)
        price = self.watts_per_work
        if recent_share > WORKING_SHARE:
            now = max(0.0, recent_watts - floor) / recent_share
            price = now if price is None else max(now, price + (now - price) * (1 - exp(-elapsed_s / FALL_S)))
        line = PowerLine(
            idle_watts=idle,
            long_watts=long_watts,
            long_share=long_share,
            recent_watts=recent_watts,
            recent_share=recent_share,
            watts_per_work=price,
            count=self.count + 1,
        )
        return line, mean_watts

    def going_on_at(self, power_watts: float) -> "PowerLine":
        """Return the line at another moment: what was learnt, and the share of work that this power speaks of."""
        if not self.watts_per_work:
            return self
        share = (power_watts - (self.idle_watts or 0.0)) / self.watts_per_work
        return msgspec.structs.replace(self, recent_watts=power_watts, recent_share=min(1.0, max(0.0, share)))

    def watts_at(self, work_fraction: float) -> float:
        """Return the power to be expected at a share of work, going out from what it is now."""
        return max(
            0.0, self.recent_watts + (work_fraction - self.recent_share) * (self.watts_per_work or 0.0)
        )
