"""How a device heats, and how that is learnt: against naive integration, and a device whose constants are known."""

import random
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.reading import DeviceReading
from exo.gpu.thermal import calibration
from exo.gpu.thermal.calibration import AMBIENT_RANGE_C, DIE_SHARE_MAX, RATE_RANGE, Window
from exo.gpu.thermal.device_class import PRIORS, class_of
from exo.gpu.thermal.history import GAP_MAX_S, WINDOW_S, History
from exo.gpu.thermal.observing import observe
from exo.gpu.thermal.power import PowerLine, power_of
from exo.gpu.thermal.prediction import Predictions
from exo.gpu.thermal.rc_model import RCModel
from exo.gpu.thermal.record import ThermalRecord, new_record

PRIOR = PRIORS["desktop"]
TRUE = RCModel(heat_capacity_j_per_c=700, heat_loss_w_per_c=10, ambient_c=22, die_c_per_w=0.03)
"""Within what is known of the class, and unlike its middle in every constant."""

watts = st.floats(0, 700)
degrees = st.floats(0, 110)


def naive(model: RCModel, die_c: float, lagged_watts: float, power_watts: float, elapsed_s: float) -> float:
    """Integrate in steps of a hundredth of a second."""
    body_c, step_s = die_c - model.die_c_per_w * lagged_watts, 0.01
    for _ in range(round(elapsed_s / step_s)):
        loss_watts = model.heat_loss_w_per_c * (body_c - model.ambient_c)
        body_c += step_s * (power_watts - loss_watts) / model.heat_capacity_j_per_c
        lagged_watts += step_s * (power_watts - lagged_watts) / model.die_lag_s
    return body_c + model.die_c_per_w * lagged_watts


@settings(deadline=None, max_examples=100)
@given(degrees, watts, watts, st.floats(0, 30))
def test_the_formula_is_what_integration_gives(
    die_c: float, lagged_watts: float, power_watts: float, elapsed_s: float
) -> None:
    elapsed_s = round(elapsed_s, 2)
    found = TRUE.die_after_c(die_c, lagged_watts, power_watts, elapsed_s)
    assert found == pytest.approx(naive(TRUE, die_c, lagged_watts, power_watts, elapsed_s), abs=0.1)


@given(degrees, watts, watts, st.floats(0, 100), st.floats(0, 100))
def test_two_steps_are_one_of_both_lengths(
    die_c: float, lagged_watts: float, power_watts: float, first_s: float, second_s: float
) -> None:
    between_c = TRUE.die_after_c(die_c, lagged_watts, power_watts, first_s)
    between_watts = TRUE.lagged_after_watts(lagged_watts, power_watts, first_s)
    twice = TRUE.die_after_c(between_c, between_watts, power_watts, second_s)
    assert twice == pytest.approx(TRUE.die_after_c(die_c, lagged_watts, power_watts, first_s + second_s))


def test_steady_watts_keep_a_temperature_for_good() -> None:
    held = TRUE.steady_watts(78)
    assert TRUE.die_after_c(30, 0, held, 10_000) == pytest.approx(78)
    assert TRUE.rise_c_per_w(10_000) == pytest.approx(1 / TRUE.heat_loss_w_per_c + TRUE.die_c_per_w)


def worked(record: ThermalRecord, model: RCModel, *, minutes: float, seed: int = 1) -> ThermalRecord:
    """Have a device work with every half minute another load, read each two seconds in whole degrees."""
    randomness = random.Random(seed)
    body_c, lagged, step_s = model.ambient_c + 5, 0.0, 2.0
    share = 0.0
    for tick in range(int(minutes * 60 / step_s)):
        if tick % 15 == 0:
            share = randomness.choice([0.0, 0.3, 0.6, 1.0])
        power = 30 + share * 420
        body_c = model.body_after_c(body_c, power, step_s)
        lagged = model.lagged_after_watts(lagged, power, step_s)
        reading = DeviceReading(
            temperature_c=round(body_c + model.die_c_per_w * lagged + randomness.gauss(0, 0.3)),
            throttle_threshold_c=120.0,
            power_watts=round(power * randomness.gauss(1, 0.02)),
        )
        record = observe(record, tick * step_s, reading, share)
    return record


@pytest.mark.parametrize("seed", range(3))
def test_a_device_of_the_models_own_kind_is_learnt_while_it_works(seed: int) -> None:
    record = worked(new_record(PRIOR), TRUE, minutes=20, seed=seed)
    assert record.is_calibrated and record.calibration is not None
    found = record.calibration.model
    assert found.heat_loss_w_per_c == pytest.approx(TRUE.heat_loss_w_per_c, rel=0.2)
    assert found.ambient_c == pytest.approx(TRUE.ambient_c, abs=8)
    assert found.steady_watts(80) == pytest.approx(TRUE.steady_watts(80), rel=0.07)
    # What is learnt is nearer than what was assumed: how hot it gets, and how fast.
    for power in (200.0, 450.0):
        steady = [one.ambient_c + power * one.rise_c_per_w(1e6) for one in (found, TRUE, PRIOR.model)]
        assert abs(steady[0] - steady[1]) < 0.5 * abs(steady[2] - steady[1])


def test_predictions_are_told_with_the_error_they_really_have() -> None:
    record = worked(new_record(PRIOR), TRUE, minutes=15)
    told = record.predictions.far.rms_c
    assert told is not None and 0.2 < told < 1.5
    # A fan fails: what was right is not any more, and that is told before the new constants are learnt.
    hotter = RCModel(heat_capacity_j_per_c=700, heat_loss_w_per_c=4, ambient_c=22, die_c_per_w=0.03)
    randomness, body_c, lagged, worst = random.Random(2), record.die_c - 8, 250.0, 0.0
    for tick in range(100):
        at_s = 900.0 + 2 * tick
        body_c = hotter.body_after_c(body_c, 450, 2)
        lagged = hotter.lagged_after_watts(lagged, 450, 2)
        reading = DeviceReading(
            temperature_c=round(body_c + 0.03 * lagged + randomness.gauss(0, 0.3)), power_watts=450.0
        )
        record = observe(record, at_s, reading, 1.0)
        worst = max(worst, record.predictions.far.rms_c or 0.0)
    assert worst > 2 * told


def test_an_error_is_the_difference_between_what_was_predicted_and_what_came() -> None:
    flat = RCModel(heat_capacity_j_per_c=100, heat_loss_w_per_c=1, ambient_c=20)
    predictions = Predictions(near_s=10, far_s=20).with_new(0, 20, flat)
    for at_s in (5.0, 10.0, 15.0, 20.0):
        predictions = predictions.judged(at_s, 23.0, 0, 0, 5)
    assert (predictions.near.rms_c, predictions.far.rms_c) == (3.0, 3.0)
    assert predictions.near.count == predictions.far.count == 1 and predictions.pending == ()
    warm = Predictions(near_s=10, far_s=20).with_new(0, 20, flat).judged(10, 25.0, 50, 0, 10)
    expected_c = 20 + 50 * (1 - exp(-0.1))
    assert warm.near.rms_c == pytest.approx(25 - expected_c)


def quiet(seconds: float) -> Window:
    return Window(
        change_c=0.4,
        power_j=30 * seconds,
        temperature_c_s=-10 * seconds,
        elapsed_s=seconds,
        lagged_change_watts=1,
        lagged_spread_watts=5,
    )


def test_without_excitation_only_the_surroundings_are_learnt() -> None:
    known = calibration.start(PRIOR, 30)
    after = known
    for _ in range(500):
        after = calibration.learn(after, quiet(45), 3)
    assert after.excited_windows == 0
    alpha, rate, _, die = known.estimate
    assert (after.estimate[0], after.estimate[1], after.estimate[3]) == (alpha, rate, die)
    assert after.estimate[2] != known.estimate[2]
    # No wind-up: what is not learnt does not become less certain than it was in the beginning.
    assert all(after.covariance[one][one] <= known.spread[one] * (1 + 1e-9) for one in range(4))


windows = st.builds(
    Window,
    change_c=st.floats(-80, 80),
    power_j=st.floats(0, 40_000),
    temperature_c_s=st.floats(-3_000, 3_000),
    elapsed_s=st.floats(27, 60),
    lagged_change_watts=st.floats(-700, 700),
    lagged_spread_watts=st.floats(0, 700),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(windows, max_size=40))
def test_whatever_happens_the_constants_stay_physical(story: list[Window]) -> None:
    known = calibration.start(PRIOR, 25)
    for window in story:
        known = calibration.learn(known, window, 3)
        alpha, rate, offset, die = known.estimate
        assert RATE_RANGE[0] <= rate / known.start[1] <= RATE_RANGE[1]
        assert die <= DIE_SHARE_MAX * alpha / rate + 1e-9
        ambient_c = calibration.REFERENCE_C + offset / rate
        assert AMBIENT_RANGE_C[0] - 1e-6 <= ambient_c <= AMBIENT_RANGE_C[1] + 1e-6
        model = known.model
        assert model.heat_capacity_j_per_c > 0 and model.heat_loss_w_per_c > 0 and model.die_c_per_w > 0
        assert all(known.covariance[one][one] > -1e-9 for one in range(4))


def test_a_history_is_cut_into_windows_and_begins_anew_after_a_gap() -> None:
    history, cuts = History(), 0
    for tick in range(60):
        history = history.with_reading(2.0 * tick, 50.0, 100.0, 90.0)
        cut = history.cut()
        if cut is not None:
            history, window, _ = cut
            cuts += 1
            assert window.power_j == pytest.approx(100 * window.elapsed_s)
            assert window.temperature_c_s == pytest.approx(5 * window.elapsed_s)
            assert window.elapsed_s <= WINDOW_S + 2
    assert cuts > 20
    assert len(history.with_reading(118 + GAP_MAX_S + 1, 50.0, 100.0, 90.0).points) == 1


def test_power_is_measured_else_estimated_else_unknown_and_never_mixed_up() -> None:
    assert power_of(DeviceReading(power_watts=100.0)) == (100.0, "measured")
    half = DeviceReading(compute_utilization_percent=50.0, power_limit_watts=300.0)
    assert power_of(half) == (150.0, "estimated")
    assert power_of(DeviceReading(compute_utilization_percent=50.0)) == (None, "none")
    record = worked(new_record(PRIOR), TRUE, minutes=5)
    assert record.power_source == "measured" and record.line.count > 100
    told = DeviceReading(temperature_c=60.0, compute_utilization_percent=50.0, power_limit_watts=300.0)
    estimated = observe(record, 302, told)
    assert estimated.power_source == "estimated" and estimated.line.count == 1
    assert not estimated.is_calibrated


def test_the_price_of_work_is_what_it_takes_beyond_idling() -> None:
    line = PowerLine()
    for tick in range(60):
        share = 0.0 if tick < 20 else 0.5
        line, _ = line.with_reading(30 + 400 * share, share, 2)
    assert line.idle_watts == pytest.approx(30)
    assert line.watts_per_work == pytest.approx(400, rel=0.1)
    assert line.watts_at(1.0) == pytest.approx(430, rel=0.1)


def test_classes_are_guessed_from_what_is_known() -> None:
    assert class_of(full_watts=700, has_battery=False) == "datacenter"
    assert class_of(full_watts=450, has_battery=False) == "desktop"
    assert class_of(full_watts=None, has_battery=False) == "desktop"
    assert class_of(full_watts=60, has_battery=False) == "embedded"
    assert class_of(full_watts=None, has_battery=False, is_embedded=True) == "embedded"
    assert class_of(full_watts=80, has_battery=True) == "laptop"
    assert class_of(full_watts=9, has_battery=True) == "phone"


def test_a_larger_device_of_a_class_gets_as_hot_as_a_smaller_one() -> None:
    large = PRIOR.scaled_to(900)
    for prior in (PRIOR, large):
        assert prior.full_watts * prior.model.rise_c_per_w(30) == pytest.approx(
            PRIOR.full_watts * PRIOR.model.rise_c_per_w(30)
        )
    assert large.model.time_constant_s == pytest.approx(PRIOR.model.time_constant_s)
