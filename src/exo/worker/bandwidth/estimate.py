"""From single transfers to one figure: how large the next transfer has to be, and what many of them say. Pure."""

from collections.abc import Sequence
from statistics import median

import msgspec

_BITS_PER_BYTE = 8
_BITS_PER_MEGABIT = 1_000_000
_OUTLIER_SCORE = 3.5
_NORMAL = 0.6745
"""The median absolute deviation of a normal distribution, in its standard deviations."""


class TransferLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far a measurement goes."""

    first_bytes: int = 64 * 1024
    growth_max: int = 8
    """A transfer is at most so many times as large as the one before it."""
    bytes_max: int = 64 * 1024 * 1024
    wanted_s: float = 0.05
    """A shorter transfer says more of its beginning than of the way."""
    count: int = 5
    """How many transfers of the last size are measured."""


class Sample(msgspec.Struct, frozen=True):
    """So many bytes came within that time."""

    size_bytes: int
    duration_s: float

    @property
    def bytes_per_s(self) -> float | None:
        """None where the clock was too coarse for it."""
        return self.size_bytes / self.duration_s if self.duration_s > 0 and self.size_bytes > 0 else None


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a way."""

    bandwidth_mbps: float
    latency_ms: float
    measurement_count: int
    """Transfers that the figure is made of; outliers are not among them."""
    outlier_count: int


def next_size_bytes(size_bytes: int, sample: Sample, limits: TransferLimits) -> int | None:
    """Return how large the next transfer has to be to take long enough; None: the last one was.

    Args:
        size_bytes: Of the last transfer.
        sample: What came of it.
        limits: How far to go.
    """
    if sample.duration_s >= limits.wanted_s or size_bytes >= limits.bytes_max:
        return None
    rate = sample.bytes_per_s
    wanted = limits.growth_max * size_bytes
    if rate is not None:
        # A quarter more, since a longer transfer is often a faster one.
        wanted = min(wanted, int(1.25 * rate * limits.wanted_s))
    return min(limits.bytes_max, max(2 * size_bytes, wanted))


def without_outliers(values: Sequence[float]) -> list[float]:
    """Return the values that belong together.

    Modified z-scores from the median absolute deviation; B. Iglewicz and D. Hoaglin, "How to Detect and Handle
    Outliers", 1993. Where more than half are equal there is no deviation to measure by, and all are kept.
    """
    if len(values) < 3:
        return list(values)
    middle = median(values)
    deviation = median(abs(value - middle) for value in values)
    if deviation == 0:
        return list(values)
    return [value for value in values if _NORMAL * abs(value - middle) / deviation <= _OUTLIER_SCORE]


def estimate(samples: Sequence[Sample], round_trips_s: Sequence[float]) -> Estimate | None:
    """Return what the transfers of one size and the round trips say; None where they say nothing.

    Args:
        samples: The transfers.
        round_trips_s: Of as little as can be sent; half of one is the latency.
    """
    rates = [rate for sample in samples if (rate := sample.bytes_per_s) is not None]
    kept = without_outliers(rates)
    if not kept or not round_trips_s:
        return None
    return Estimate(
        bandwidth_mbps=median(kept) * _BITS_PER_BYTE / _BITS_PER_MEGABIT,
        latency_ms=median(without_outliers(round_trips_s)) * 1000 / 2,
        measurement_count=len(kept),
        outlier_count=len(rates) - len(kept),
    )
