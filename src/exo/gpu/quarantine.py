"""Keeps a device that failed from being used, and decides when it is tried again. Pure: times are passed in.

A circuit breaker (M. Nygard, "Release It!", 2007; M. Fowler, "CircuitBreaker", 2014): closed while the device is
trusted; open for a while after it failed; then half-open, on trial. Each time it fails, on trial or soon after, it
stays out for twice as long; being trusted makes up for that only slowly, as in Envoy's outlier detection. So a device
that comes and goes is out most of the time.
"""

from typing import Literal

import msgspec
from msgspec.structs import replace

Phase = Literal["closed", "open", "half_open"]


class QuarantinePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long a device stays out, in seconds."""

    first_s: float = 30.0
    growth: float = 2.0
    longest_s: float = 3600.0
    forgiven_after_s: float = 1800.0
    """So long trusted without a failure, and one earlier failure is forgotten."""


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """One device's. Times are monotonic seconds."""

    trips: int = 0
    """Failures that are not forgotten."""
    until_s: float | None = None
    """From then on it is on trial; None: it is trusted."""
    trusted_since_s: float | None = None
    """None: always."""


_POLICY = QuarantinePolicy()


def phase(quarantine: Quarantine, now_s: float) -> Phase:
    """Say whether the device is trusted (closed), kept out (open) or on trial (half-open)."""
    if quarantine.until_s is None:
        return "closed"
    return "open" if now_s < quarantine.until_s else "half_open"


def length_s(trips: int, policy: QuarantinePolicy = _POLICY) -> float:
    """Return for how long a device stays out when it has failed so often."""
    wanted_s = policy.first_s
    for _ in range(trips - 1):
        if wanted_s >= policy.longest_s:
            break
        wanted_s *= policy.growth
    return min(wanted_s, policy.longest_s)


def tripped(quarantine: Quarantine, now_s: float, policy: QuarantinePolicy = _POLICY) -> Quarantine:
    """Return it after the device failed. While it is kept out already, that changes nothing."""
    now = phase(quarantine, now_s)
    if now == "open":
        return quarantine
    trips = (quarantine.trips if now == "half_open" else remembered(quarantine, now_s, policy)) + 1
    return Quarantine(trips=trips, until_s=now_s + length_s(trips, policy))


def returned(
    quarantine: Quarantine, gone_at_s: float, now_s: float, policy: QuarantinePolicy = _POLICY
) -> Quarantine:
    """Return it after the device was away from `gone_at_s` to `now_s` without having failed before.

    Going away is failing. Unlike a failure it counts while the device is kept out as well: it is what flapping is.
    Whoever was away for so long that a failure would be forgotten does not flap.
    """
    if now_s - gone_at_s > policy.forgiven_after_s:
        return quarantine
    is_closed = phase(quarantine, gone_at_s) == "closed"
    trips = (remembered(quarantine, gone_at_s, policy) if is_closed else quarantine.trips) + 1
    return Quarantine(trips=trips, until_s=now_s + length_s(trips, policy))


def trusted(quarantine: Quarantine, now_s: float) -> Quarantine:
    """Return it after the device has passed its trial. Its failures are not forgotten yet."""
    if phase(quarantine, now_s) != "half_open":
        return quarantine
    return replace(quarantine, until_s=None, trusted_since_s=now_s)


def remembered(quarantine: Quarantine, now_s: float, policy: QuarantinePolicy = _POLICY) -> int:
    """Return how many failures of a trusted device still count."""
    if quarantine.trusted_since_s is None:
        return quarantine.trips
    forgotten = int(max(0.0, now_s - quarantine.trusted_since_s) / policy.forgiven_after_s)
    return max(0, quarantine.trips - forgotten)
