"""From a record to an advice: the most work that stays below the margin, taken down at once, brought back gently."""

from math import exp, floor

import msgspec

from exo.gpu.thermal.advice import ThermalAdvice
from exo.gpu.thermal.controller import most_work, sustained_fraction
from exo.gpu.thermal.reactive import first_fraction, next_fraction, room_c
from exo.gpu.thermal.record import ThermalRecord
from exo.shared.types.devices import ThermalState, ThermalStatus

UNUSED_BELOW = 0.4
"""Share of the advised work that is really done: with less than this, cool readings prove nothing."""
USED_FROM = 0.8
USE_FLOOR = 0.02
FULL = 0.995


def advise(record: ThermalRecord, now_s: float) -> tuple[ThermalRecord, ThermalAdvice]:
    """Return what to do until the next advice, and the record that remembers it.

    The advice is never above that of one more degree in the same record, and the same record gets the same advice.
    """
    elapsed_s = 0.0 if record.advised_s is None else max(0.0, now_s - record.advised_s)
    caps = _caps(record, now_s)
    if record.read_s is None:
        fraction = min(1.0, *(cap for cap, _ in caps))
        advised = _advised(record, fraction, now_s)
        return advised, _advice(advised, caps)
    record = _with_pause(record)
    wanted, room = _wanted(record, elapsed_s)
    if wanted < record.policy.least_fraction and not record.is_paused:
        # Too little to be worth while: stop where it is hot, else do the least there is.
        if record.die_c > record.limit_c - record.policy.margin_c:
            record = msgspec.structs.replace(record, is_paused=True)
        else:
            wanted = record.policy.least_fraction
    fraction = 0.0 if record.is_paused else wanted
    if record.fraction is not None:
        fraction = min(fraction, record.fraction + _raise_per_s(record) * elapsed_s)
    fraction = min(fraction, *(cap for cap, _ in caps))
    advised = _advised(msgspec.structs.replace(record, room_c=room), fraction, now_s)
    return advised, _advice(advised, caps)


def status_of(record: ThermalRecord, now_s: float, advice: ThermalAdvice | None = None) -> ThermalStatus:
    """Return what the last advice and the readings say of the device.

    Args:
        advice: What `advise` gave with this record a moment ago; None: it is put into words as it is now.
    """
    advice = _advice(record, _caps(record, now_s)) if advice is None else advice
    outlook = record.outlook
    has_temperature = record.read_s is not None
    predicted_c = error_c = sustained = None
    if outlook is not None:
        predicted_c = round(outlook.predicted_c(record.fraction or 0.0, record.policy.shown_s), 1)
        sustained = round(sustained_fraction(outlook, record.target_c), 2)
        error_c = record.predictions.far.rms_c
    return ThermalStatus(
        state=advice.state,
        reason=advice.reason,
        work_fraction=advice.work_fraction,
        limit_c=record.limit_c if has_temperature else None,
        is_limit_assumed=has_temperature and record.told_limit_c is None,
        predicted_temperature_c=predicted_c,
        prediction_error_c=None if error_c is None else round(error_c, 2),
        sustained_fraction=sustained,
        is_calibrated=outlook is not None,
        power_source=record.power_source,
    )


def _with_pause(record: ThermalRecord) -> ThermalRecord:
    """Stop close to the limit; go on only well below the margin."""
    policy = record.policy
    if record.is_paused:
        is_paused = record.die_c > record.limit_c - policy.margin_c - policy.hysteresis_c
    else:
        is_paused = record.die_c >= record.limit_c - policy.pause_margin_c
    return msgspec.structs.replace(record, is_paused=is_paused)


def _wanted(record: ThermalRecord, elapsed_s: float) -> tuple[float, float]:
    """Return the work fraction that the temperature allows, and the room it was found with."""
    target_c = record.target_c
    room = room_c(target_c, record.die_c, record.slope_c_per_s)
    outlook = record.outlook
    if outlook is not None:
        return most_work(outlook, target_c, record.policy), room
    if record.fraction is None:
        return first_fraction(record.die_c, record.limit_c), room
    return next_fraction(record.fraction, record.room_c, room, elapsed_s), room


def _raise_per_s(record: ThermalRecord) -> float:
    policy = record.policy
    error_c = record.predictions.near.rms_c
    if record.is_calibrated and error_c is not None and error_c < policy.trusted_error_c:
        return policy.trusted_raise_per_s
    used = (record.worked_share + USE_FLOOR) / (record.advised_share + USE_FLOOR)
    return policy.raise_per_s * min(1.0, max(0.0, (used - UNUSED_BELOW) / (USED_FROM - UNUSED_BELOW)))


def _caps(record: ThermalRecord, now_s: float) -> list[tuple[float, str]]:
    """Return what else holds work down, each with its reason; the first is no cap at all."""
    caps = [(1.0, "")]
    if record.throttled_cap < 1:
        caps.append((record.throttled_cap, "the device itself throttles for heat, or did a moment ago"))
    percent = "an unknown charge" if record.battery_percent is None else f"{record.battery_percent:.0f} %"
    if record.battery == "paused":
        below = record.battery_policy.pause_below_percent
        caps.append((0.0, f"on battery with {percent}; work pauses below {below:.0f} %"))
    elif record.battery == "slow":
        below = record.battery_policy.slow_below_percent
        caps.append(
            (
                record.battery_policy.slow_fraction,
                f"on battery with {percent}; work slows down below {below:.0f} %",
            )
        )
    if record.read_s is not None:
        policy, age_s = record.policy, now_s - record.read_s
        if age_s > policy.blind_after_s:
            caps.append((0.0, f"no temperature could be read for {age_s:.0f} s"))
        elif age_s > policy.stale_after_s:
            since_s = age_s - policy.stale_after_s
            if record.advised_s is not None:
                since_s = min(since_s, max(0.0, now_s - record.advised_s))
            before = record.fraction
            if before is None:
                before = first_fraction(record.die_c, record.limit_c)
            caps.append((before * exp(-since_s / policy.fade_s), f"no temperature for {age_s:.0f} s"))
    return caps


def _advised(record: ThermalRecord, fraction: float, now_s: float) -> ThermalRecord:
    return msgspec.structs.replace(record, fraction=fraction, advised_s=now_s)


def _advice(record: ThermalRecord, caps: list[tuple[float, str]]) -> ThermalAdvice:
    """Put the record's last decision into words."""
    fraction = floor((record.fraction or 0.0) * 100 + 1e-9) / 100
    if fraction < record.policy.least_fraction:
        fraction = 0.0
    cap, why = min(caps)
    is_capped = cap < 1 and (record.fraction or 0.0) >= cap - 1e-9
    outlook = record.outlook
    peak_c = None if outlook is None else outlook.peak_c(fraction, record.policy)
    state: ThermalState
    if fraction == 0:
        state = "paused"
    elif record.read_s is None:
        state = "unknown" if fraction >= FULL else "slowed"
    else:
        policy = record.policy
        is_warm = record.die_c > record.limit_c - policy.margin_c - policy.hysteresis_c
        if fraction >= FULL:
            state = "warm" if is_warm else "cool"
        else:
            state = "starting" if outlook is None and not is_warm and not is_capped else "slowed"
    reason = _capped_reason(state, fraction, why) if is_capped else _reason(record, state, fraction, peak_c)
    return ThermalAdvice(
        work_fraction=fraction,
        is_paused=fraction == 0,
        state=state,
        reason=reason,
        predicted_peak_c=peak_c,
    )


def _capped_reason(state: ThermalState, fraction: float, why: str) -> str:
    return f"Paused: {why}." if state == "paused" else f"Slowed to {fraction:.0%}: {why}."


def _reason(record: ThermalRecord, state: ThermalState, fraction: float, peak_c: float | None) -> str:
    if record.read_s is None:
        return "The device tells no temperature: its own protection is relied on."
    policy = record.policy
    limit = f"limit {record.limit_c:.0f} C{' of its class' if record.told_limit_c is None else ''}"
    if state == "paused":
        back_c = record.limit_c - policy.margin_c - policy.hysteresis_c
        return f"Paused at {record.die_c:.0f} C until it is at {back_c:.0f} C ({limit})."
    ahead = (
        "not calibrated yet"
        if peak_c is None
        else f"{peak_c:.0f} C predicted within {policy.horizon_s:.0f} s"
    )
    if state == "starting":
        return f"Starts with {fraction:.0%} at {record.die_c:.0f} C, and does more as its heat is known ({limit})."
    if state == "slowed":
        return f"Slowed to {fraction:.0%} at {record.die_c:.0f} C: {ahead}, {record.target_c:.0f} C allowed ({limit})."
    return f"Full work at {record.die_c:.0f} C: {ahead} ({limit})."
