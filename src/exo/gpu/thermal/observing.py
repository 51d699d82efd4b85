"""Takes a reading into a device's record: limit and battery, temperature, power, and what is learnt from them."""

from math import exp, isfinite

import msgspec

from exo.gpu.reading import DeviceReading
from exo.gpu.thermal import calibration
from exo.gpu.thermal.battery import battery_state
from exo.gpu.thermal.history import GAP_MAX_S, History
from exo.gpu.thermal.power import PowerLine, power_of
from exo.gpu.thermal.prediction import Predictions
from exo.gpu.thermal.record import ThermalRecord
from exo.shared.types.devices import PowerSource

FILTER_S = 2.5
"""Of the temperature: a sensor of whole degrees, read every second or two."""
SLOPE_S = 6.0
SCATTER_S = 40.0
USE_S = 4.0
LIMIT_RANGE_C = (40.0, 130.0)
"""What a device may call its limit; anything else is taken for nonsense."""
THROTTLED_FALL_S = 10.0
THROTTLED_RISE_PER_S = 0.01
THROTTLED_LEAST = 0.1


def observe(
    record: ThermalRecord, t_s: float, reading: DeviceReading, worked_share: float | None = None
) -> ThermalRecord:
    """Return the record after one more reading.

    Args:
        worked_share: Of the time since the last reading, 0 to 1, as the engine knows it. Without it the device's
            utilisation is taken, and without that what was advised. A reading that is not newer is passed over.
    """
    if record.seen_s is not None and t_s <= record.seen_s:
        return record
    record = _with_circumstances(record, t_s, reading)
    temperature_c = reading.temperature_c
    if temperature_c is None or not isfinite(temperature_c):
        return record
    if worked_share is None:
        used = reading.compute_utilization_percent
        worked_share = (record.fraction or 0.0) if used is None else used / 100
    worked_share = min(1.0, max(0.0, worked_share))
    power_watts, source = power_of(reading)
    if record.read_s is None:
        return _first(record, t_s, temperature_c, reading)
    elapsed_s = t_s - record.read_s
    weight = 1 - exp(-elapsed_s / USE_S)
    record = msgspec.structs.replace(
        record,
        worked_share=record.worked_share + weight * (worked_share - record.worked_share),
        advised_share=record.advised_share + weight * ((record.fraction or 0.0) - record.advised_share),
    )
    if source not in ("none", record.power_source):
        record = _with_source(record, source, temperature_c)
    if elapsed_s > GAP_MAX_S:
        return _after_gap(record, t_s, temperature_c, power_watts)
    mean_watts = None
    line = record.line
    if power_watts is not None:
        line, mean_watts = line.with_reading(power_watts, worked_share, elapsed_s)
    elif line.count:
        mean_watts = line.watts_at(worked_share)
    if power_watts is not None and record.line.count == 0:
        record = msgspec.structs.replace(record, lagged_watts=mean_watts)
    record = _with_temperature(record, temperature_c, mean_watts, elapsed_s)
    record = msgspec.structs.replace(
        record,
        line=line,
        power_s=t_s if power_watts is not None else record.power_s,
        read_s=t_s,
    )
    if mean_watts is None or record.calibration is None:
        return record
    return _with_learning(record, t_s, temperature_c, mean_watts, elapsed_s)


def _with_circumstances(record: ThermalRecord, t_s: float, reading: DeviceReading) -> ThermalRecord:
    """Take up what counts without a temperature as well: the limit, throttling, the battery."""
    elapsed_s = 0.0 if record.seen_s is None else t_s - record.seen_s
    limit_c = reading.throttle_threshold_c
    if limit_c is None or not LIMIT_RANGE_C[0] <= limit_c <= LIMIT_RANGE_C[1]:
        limit_c = record.told_limit_c
    cap = record.throttled_cap
    if reading.is_thermal_throttling:
        cap = max(THROTTLED_LEAST, cap * exp(-max(elapsed_s, 1.0) / THROTTLED_FALL_S))
    else:
        cap = min(1.0, cap + THROTTLED_RISE_PER_S * elapsed_s)
    return msgspec.structs.replace(
        record,
        seen_s=t_s,
        told_limit_c=limit_c,
        throttled_cap=cap,
        battery=battery_state(
            record.battery, reading.battery_percent, reading.is_plugged_in, record.battery_policy
        ),
        battery_percent=reading.battery_percent,
    )


def _first(record: ThermalRecord, t_s: float, temperature_c: float, reading: DeviceReading) -> ThermalRecord:
    prior = record.prior
    if reading.power_limit_watts is not None and reading.power_limit_watts > 0:
        prior = prior.scaled_to(reading.power_limit_watts)
    return msgspec.structs.replace(record, prior=prior, read_s=t_s, die_c=temperature_c)


def _with_source(record: ThermalRecord, source: PowerSource, temperature_c: float) -> ThermalRecord:
    """Begin to learn, or begin anew: watts that were measured and watts that were estimated are not the same."""
    return msgspec.structs.replace(
        record,
        power_source=source,
        line=PowerLine(),
        calibration=calibration.start(record.prior, temperature_c),
        history=History(),
        predictions=Predictions(near_s=record.predictions.near_s, far_s=record.predictions.far_s),
    )


def _after_gap(
    record: ThermalRecord, t_s: float, temperature_c: float, power_watts: float | None
) -> ThermalRecord:
    """Keep what was learnt, and begin anew with all that follows from one reading to the next."""
    line = record.line if power_watts is None else record.line.going_on_at(power_watts)
    return msgspec.structs.replace(
        record,
        read_s=t_s,
        die_c=temperature_c,
        slope_c_per_s=0.0,
        room_c=None,
        line=line,
        lagged_watts=line.recent_watts,
        power_s=record.power_s if power_watts is None else t_s,
        history=History(),
        predictions=record.predictions.without_pending(),
    )


def _with_temperature(
    record: ThermalRecord, temperature_c: float, mean_watts: float | None, elapsed_s: float
) -> ThermalRecord:
    """Filter the reading around what was to be expected, and see how far it is off and above the margin."""
    expected_c = record.die_c + record.slope_c_per_s * elapsed_s
    lagged_watts = record.lagged_watts
    if mean_watts is not None and record.calibration is not None:
        model = record.calibration.model
        lagged_watts = model.lagged_after_watts(record.lagged_watts, mean_watts, elapsed_s)
        if record.is_calibrated:
            expected_c = model.die_after_c(record.die_c, record.lagged_watts, mean_watts, elapsed_s)
    surprise_c = temperature_c - expected_c
    die_c = expected_c + (1 - exp(-elapsed_s / FILTER_S)) * surprise_c
    slope = (die_c - record.die_c) / elapsed_s
    scatter_weight = 1 - exp(-elapsed_s / SCATTER_S)
    policy = record.policy
    above_c = die_c - (record.limit_c - policy.margin_c) - policy.guard_free_c
    guard_c = record.guard_c * exp(-elapsed_s / policy.guard_fade_s)
    return msgspec.structs.replace(
        record,
        die_c=die_c,
        slope_c_per_s=record.slope_c_per_s + (1 - exp(-elapsed_s / SLOPE_S)) * (slope - record.slope_c_per_s),
        scatter_c2=record.scatter_c2 + scatter_weight * (surprise_c * surprise_c - record.scatter_c2),
        lagged_watts=lagged_watts,
        guard_c=max(guard_c, min(policy.guard_max_c, above_c)),
    )


def _with_learning(
    record: ThermalRecord, t_s: float, temperature_c: float, mean_watts: float, elapsed_s: float
) -> ThermalRecord:
    known = record.calibration
    assert known is not None
    predictions = record.predictions.judged(t_s, temperature_c, mean_watts, record.lagged_watts, elapsed_s)
    history = record.history.with_reading(t_s, temperature_c, mean_watts, record.lagged_watts)
    cut = history.cut()
    if cut is not None:
        history, window, since_s = cut
        known = calibration.learn(known, window, since_s)
    model = known.model
    body_c = model.body_of_c(record.die_c, record.lagged_watts)
    return msgspec.structs.replace(
        record,
        calibration=known,
        history=history,
        predictions=predictions.with_new(t_s, body_c, model),
    )
