"""How an engine does less: lower precision, smaller batches, pauses between batches, in the order of what they cost."""

import msgspec


class EngineAbilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine can change while it runs. Every engine can pause between two batches."""

    batch_fraction_min: float | None = None
    """The smallest share of its batch that is still worth while; None: the batch is fixed."""
    low_precision_power_share: float | None = None
    """The share of power that its lower precision takes for the same work; None: there is none, or it may not be
    used: results differ, so it is the user's to allow."""


class SlowDown(msgspec.Struct, frozen=True, kw_only=True):
    """What to do until the next advice. A pause of None: no work at all."""

    is_low_precision: bool
    batch_fraction: float
    pause_s_per_busy_s: float | None


LOW_PRECISION_BELOW = 0.75
"""Work fraction: small reductions are not worth a change of results."""


def plan_slow_down(work_fraction: float, abilities: EngineAbilities) -> SlowDown:
    """Return how to bring the heat down to `work_fraction` of full work.

    Raises:
        ValueError: The fraction is not within 0 and 1.
    """
    if not 0 <= work_fraction <= 1:
        raise ValueError(f"A work fraction is between 0 and 1, not {work_fraction}.")
    if work_fraction == 0:
        return SlowDown(is_low_precision=False, batch_fraction=1.0, pause_s_per_busy_s=None)
    remaining = work_fraction
    share = abilities.low_precision_power_share
    is_low_precision = share is not None and 0 < share < 1 and remaining < LOW_PRECISION_BELOW
    if share is not None and is_low_precision:
        remaining = min(1.0, remaining / share)
    batch = 1.0
    if abilities.batch_fraction_min is not None:
        batch = max(abilities.batch_fraction_min, remaining)
        remaining = min(1.0, remaining / batch)
    return SlowDown(
        is_low_precision=is_low_precision,
        batch_fraction=batch,
        pause_s_per_busy_s=(1 - remaining) / remaining,
    )
