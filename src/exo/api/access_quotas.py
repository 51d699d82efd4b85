"""How much of a key's quotas is used, and when they are free again. Pure: the time is passed in.

Minutes and days are those of the clock (days of UTC), not the last 60 seconds: so nodes that never met agree on which
one it is, and what each of them counted can be added up. Nodes whose clocks differ disagree for as long.
"""

import math
from collections.abc import Iterable

import msgspec

from exo.shared.types.access import KeyLimits, KeyUsage

MINUTE_S = 60
DAY_S = 86400

REQUESTS_CODE = "requests_per_minute_used_up"
TOKENS_CODE = "tokens_per_day_used_up"


class UsedUp(msgspec.Struct, frozen=True, kw_only=True):
    """A quota of which nothing is left."""

    code: str
    limit: int
    used: int
    free_at_s: float
    """Unix seconds."""
    wait_s: int
    """Until then, in whole seconds, at least 1."""


def present_usage(usage: KeyUsage | None, now_s: float) -> KeyUsage:
    """Return what counts of a usage at a time: of a minute or a day that is over nothing does.

    Args:
        usage: As last counted; None: nothing was.
        now_s: Unix seconds.
    """
    minute, day = int(now_s // MINUTE_S), int(now_s // DAY_S)
    if usage is None:
        return KeyUsage(minute, 0, day, 0)
    requests = usage.requests if usage.minute == minute else 0
    tokens = usage.tokens if usage.day == day else 0
    return KeyUsage(minute, requests, day, tokens)


def add_usage(usage: KeyUsage | None, now_s: float, *, requests: int = 0, tokens: int = 0) -> KeyUsage:
    """Return a usage with so much more at a time in Unix seconds."""
    before = present_usage(usage, now_s)
    return KeyUsage(before.minute, before.requests + requests, before.day, before.tokens + tokens)


def sum_usages(usages: Iterable[KeyUsage], now_s: float) -> KeyUsage:
    """Return what several nodes counted together, as far as it counts at a time in Unix seconds."""
    total = present_usage(None, now_s)
    for usage in usages:
        counting = present_usage(usage, now_s)
        total = add_usage(total, now_s, requests=counting.requests, tokens=counting.tokens)
    return total


def used_up(limits: KeyLimits, used: KeyUsage, now_s: float) -> UsedUp | None:
    """Say which quota leaves no room for another generation; of both the one that takes longer.

    Args:
        limits: Of the key.
        used: By all nodes, as `sum_usages` returns it for this time.
        now_s: Unix seconds.
    """
    quotas = (
        (TOKENS_CODE, limits.tokens_per_day, used.tokens, (used.day + 1) * DAY_S),
        (REQUESTS_CODE, limits.requests_per_minute, used.requests, (used.minute + 1) * MINUTE_S),
    )
    for code, limit, count, free_at_s in quotas:
        if limit is not None and count >= limit:
            wait_s = max(1, math.ceil(free_at_s - now_s))
            return UsedUp(code=code, limit=limit, used=count, free_at_s=free_at_s, wait_s=wait_s)
    return None
