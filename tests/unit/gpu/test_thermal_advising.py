"""What is advised: never more for a hotter device, pauses with hysteresis, and care where nothing is known."""

import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.reading import DeviceReading
from exo.gpu.thermal.advice import ThermalAdvice
from exo.gpu.thermal.advising import advise, status_of
from exo.gpu.thermal.battery import battery_state
from exo.gpu.thermal.device_class import PRIORS, DeviceClass
from exo.gpu.thermal.observing import observe
from exo.gpu.thermal.policy import BatteryPolicy, ThermalPolicy
from exo.gpu.thermal.rc_model import RCModel
from exo.gpu.thermal.record import ThermalRecord, new_record
from exo.gpu.thermal.settings import ThermalSettings
from exo.shared.errors import ConfigurationError

PRIOR = PRIORS["desktop"]
LIMIT_C = 85.0
BARE = RCModel(heat_capacity_j_per_c=500, heat_loss_w_per_c=6, ambient_c=25, die_c_per_w=0.03)


class Heater:
    """A device that does what is advised, exactly, and tells what a test lets it tell."""

    def __init__(self, record: ThermalRecord | None = None, *, tells_power: bool = True) -> None:
        self.record = record or new_record(PRIOR)
        self.now_s = 0.0
        self.body_c = 30.0
        self.lagged = 0.0
        self.tells_power = tells_power
        self.advice: list[ThermalAdvice] = []
        self.hottest_c = 0.0

    @property
    def die_c(self) -> float:
        return self.body_c + BARE.die_c_per_w * self.lagged

    @property
    def share(self) -> float:
        return self.advice[-1].work_fraction if self.advice else 0.0

    def run(self, seconds: float, *, has_work: bool = True) -> ThermalAdvice:
        for _ in range(int(seconds / 2)):
            share = self.share * has_work
            power = 30 + 420 * share
            self.body_c = BARE.body_after_c(self.body_c, power, 2)
            self.lagged = BARE.lagged_after_watts(self.lagged, power, 2)
            self.hottest_c = max(self.hottest_c, self.die_c)
            reading = DeviceReading(
                temperature_c=float(round(self.die_c)),
                throttle_threshold_c=LIMIT_C,
                power_watts=power if self.tells_power else None,
            )
            self.tell(2, reading, share)
        return self.advice[-1]

    def tell(self, after_s: float, reading: DeviceReading, share: float | None = None) -> ThermalAdvice:
        self.now_s += after_s
        self.record = observe(self.record, self.now_s, reading, share)
        return self.ask()

    def ask(self, after_s: float = 0.0) -> ThermalAdvice:
        self.now_s += after_s
        self.record, advice = advise(self.record, self.now_s)
        self.advice.append(advice)
        return advice


@pytest.fixture(scope="module")
def known() -> Heater:
    """A device that has worked for ten minutes, and is calibrated."""
    heater = Heater()
    for has_work in (True, False) * 5:
        heater.run(60, has_work=has_work)
    heater.run(60)
    assert heater.record.is_calibrated
    return heater


def again(heater: Heater) -> Heater:
    """Return one in the same state: what is done to it changes nothing for other tests."""
    made = Heater(heater.record, tells_power=heater.tells_power)
    made.now_s, made.body_c, made.lagged = heater.now_s, heater.body_c, heater.lagged
    made.advice = heater.advice[-1:]
    return made


def test_a_device_that_would_get_too_hot_is_held_below_the_margin_and_told_so(known: Heater) -> None:
    heater = again(known)
    advice = heater.run(600)
    assert heater.hottest_c < LIMIT_C - 4
    assert (advice.state, advice.is_paused) == ("slowed", False)
    assert 0.5 < advice.work_fraction < 0.9
    assert advice.reason.startswith(f"Slowed to {advice.work_fraction:.0%} at ")
    assert advice.reason.endswith("80 C allowed (limit 85 C).")
    status = status_of(heater.record, heater.now_s)
    assert (status.state, status.limit_c, status.is_limit_assumed) == ("slowed", LIMIT_C, False)
    assert status.is_calibrated and status.power_source == "measured"
    # What it is told to be able to hold for good is what it can: the power that keeps it at the margin.
    held = (BARE.steady_watts(80) - 30) / 420
    assert status.sustained_fraction == pytest.approx(held, abs=0.05)
    assert status.predicted_temperature_c == pytest.approx(heater.die_c, abs=2)
    assert status.prediction_error_c is not None and status.prediction_error_c < 1.5


def test_slowing_down_begins_before_the_margin_is_reached(known: Heater) -> None:
    heater = again(known)
    heater.run(300, has_work=False)
    assert heater.die_c < 45
    while heater.share > 0.99:
        heater.run(2)
    assert heater.die_c < LIMIT_C - 5


def test_work_begins_carefully_and_that_is_not_called_slowed() -> None:
    heater = Heater()
    first = heater.run(2)
    assert first.state == "starting" and 0 < first.work_fraction < 1
    assert first.reason.startswith("Starts with ") and "(limit 85 C)" in first.reason
    # Without work nothing is proved, and nothing is raised; with work it soon is.
    assert heater.run(60, has_work=False).work_fraction == first.work_fraction
    assert heater.run(30).work_fraction > first.work_fraction + 0.2


def test_hot_devices_pause_and_go_on_well_below_the_margin() -> None:
    heater = Heater(tells_power=False)
    heater.tell(2, DeviceReading(temperature_c=60.0, throttle_threshold_c=LIMIT_C))
    seen: list[tuple[float, bool]] = []
    for temperature in [60.0] * 5 + [84.0] * 8 + [79.0, 77.0, 75.0, 73.0, 71.0] * 1 + [71.0] * 6 + [66.0] * 8:
        advice = heater.tell(2, DeviceReading(temperature_c=temperature, throttle_threshold_c=LIMIT_C))
        seen.append((heater.record.die_c, advice.is_paused))
    began = next(die_c for die_c, is_paused in seen if is_paused)
    ended = next(die_c for (_, was), (die_c, is_paused) in itertools.pairwise(seen) if was and not is_paused)
    policy = ThermalPolicy()
    assert LIMIT_C - policy.margin_c < began
    assert ended <= LIMIT_C - policy.margin_c - policy.hysteresis_c < 71
    # Once each: no flapping in between.
    changes = sum(before[1] != after[1] for before, after in itertools.pairwise(seen))
    assert changes == 2
    paused = next(advice for advice in heater.advice if advice.is_paused)
    assert paused.state == "paused" and paused.work_fraction == 0
    assert paused.reason.startswith("Paused at ") and "until it is at 70 C" in paused.reason


@settings(deadline=None, max_examples=150)
@given(
    seconds=st.integers(0, 240),
    has_work=st.booleans(),
    warmer_c=st.floats(0, 40),
    after_s=st.floats(0, 30),
    slope=st.floats(-2, 2),
)
def test_a_hotter_device_never_gets_more_work_and_equal_records_equal_advice(
    known: Heater, seconds: int, has_work: bool, warmer_c: float, after_s: float, slope: float
) -> None:
    heater = again(known)
    if seconds > 1:
        heater.run(seconds, has_work=has_work)
    now_s = heater.now_s + after_s
    cool = msgspec.structs.replace(heater.record, slope_c_per_s=slope)
    warm = msgspec.structs.replace(cool, die_c=cool.die_c + warmer_c)
    assert advise(cool, now_s) == advise(cool, now_s)
    assert advise(warm, now_s)[1].work_fraction <= advise(cool, now_s)[1].work_fraction


@settings(deadline=None, max_examples=150)
@given(
    die_c=st.floats(20, 100),
    warmer_c=st.floats(0, 40),
    before=st.one_of(st.none(), st.floats(0, 1)),
    room_c=st.one_of(st.none(), st.floats(-40, 60)),
    is_paused=st.booleans(),
    slope=st.floats(-2, 2),
)
def test_the_same_holds_without_a_model(
    die_c: float, warmer_c: float, before: float | None, room_c: float | None, is_paused: bool, slope: float
) -> None:
    cool = msgspec.structs.replace(
        new_record(PRIOR),
        read_s=100.0,
        seen_s=100.0,
        die_c=die_c,
        slope_c_per_s=slope,
        fraction=before,
        advised_s=None if before is None else 98.0,
        room_c=room_c,
        is_paused=is_paused and before is not None,
    )
    warm = msgspec.structs.replace(cool, die_c=die_c + warmer_c)
    less, more = advise(warm, 100.0)[1], advise(cool, 100.0)[1]
    assert 0 <= less.work_fraction <= more.work_fraction <= 1
    for advice in (less, more):
        assert advice.is_paused == (advice.work_fraction == 0) == (advice.state == "paused")


def test_a_device_without_a_temperature_works_as_it_can_and_says_so() -> None:
    heater = Heater()
    advice = heater.tell(2, DeviceReading(power_watts=100.0, compute_utilization_percent=90.0))
    assert (advice.work_fraction, advice.state) == (1.0, "unknown")
    assert "tells no temperature" in advice.reason
    status = status_of(heater.record, heater.now_s)
    assert (status.limit_c, status.sustained_fraction, status.predicted_temperature_c) == (None, None, None)


def test_a_device_that_does_not_tell_its_limit_gets_that_of_its_class() -> None:
    heater = Heater()
    advice = heater.tell(2, DeviceReading(temperature_c=76.0))
    assert advice.state == "slowed" and "limit 83 C of its class" in advice.reason
    status = status_of(heater.record, heater.now_s)
    assert (status.limit_c, status.is_limit_assumed) == (PRIOR.limit_c, True)


def test_while_no_temperature_comes_work_fades_then_stops_and_comes_back_gently(known: Heater) -> None:
    heater = again(known)
    heater.run(300, has_work=False)
    assert heater.share == 1.0
    silent = DeviceReading(power_watts=30.0, throttle_threshold_c=LIMIT_C)
    fractions = [heater.tell(2, silent).work_fraction for _ in range(40)]
    assert fractions[:3] == [1.0, 1.0, 1.0]
    assert fractions == sorted(fractions, reverse=True) and 0 < fractions[15] < 0.6
    assert fractions[-1] == 0
    assert heater.advice[-1].reason.startswith("Paused: no temperature could be read for ")
    assert heater.advice[-12].reason.startswith("Slowed to ") or heater.advice[-12].is_paused
    # The same without any reading at all.
    assert heater.ask(100).is_paused
    back = heater.run(4)
    assert 0 < back.work_fraction < 0.5 or heater.run(4).work_fraction < 0.5
    assert heater.run(60).work_fraction > 0.6


@pytest.mark.parametrize(
    "nonsense",
    [
        {"temperature_c": math.nan},
        {"temperature_c": math.inf},
        {"throttle_threshold_c": 5.0},
        {"throttle_threshold_c": 500.0},
        {"throttle_threshold_c": math.nan},
    ],
)
def test_nonsense_is_passed_over(known: Heater, nonsense: dict[str, float]) -> None:
    heater = again(known)
    before = heater.record
    said = msgspec.structs.replace(
        DeviceReading(temperature_c=heater.die_c, throttle_threshold_c=LIMIT_C, power_watts=200.0), **nonsense
    )
    advice = heater.tell(2, said)
    assert heater.record.limit_c == LIMIT_C
    assert math.isfinite(heater.record.die_c) and abs(heater.record.die_c - before.die_c) < 3
    assert 0 < advice.work_fraction <= 1


def test_a_reading_that_is_not_newer_changes_nothing(known: Heater) -> None:
    reading = DeviceReading(temperature_c=20.0, throttle_threshold_c=LIMIT_C)
    assert observe(known.record, known.now_s, reading) is known.record
    assert observe(known.record, known.now_s - 5, reading) is known.record


def test_a_device_that_throttles_itself_is_given_less_until_it_does_not() -> None:
    heater = Heater(tells_power=False)
    hot = DeviceReading(temperature_c=30.0, throttle_threshold_c=LIMIT_C, is_thermal_throttling=True)
    assert heater.tell(2, DeviceReading(temperature_c=30.0, throttle_threshold_c=LIMIT_C)).work_fraction > 0.6
    advice = [heater.tell(2, hot) for _ in range(10)][-1]
    assert advice.work_fraction < 0.2 and not advice.is_paused
    assert "the device itself throttles for heat" in advice.reason


BATTERY = BatteryPolicy()


def test_a_battery_slows_then_pauses_and_goes_back_only_well_above() -> None:
    charges = [31.0, 29.0, 31.0, 34.0, 36.0, 14.0, 16.0, 19.0, 21.0, 34.0, 36.0]
    states, state = [], "free"
    for percent in charges:
        state = battery_state(state, percent, False, BATTERY)
        states.append(state)
    assert states == [
        "free", "slow", "slow", "slow", "free", "paused", "paused", "paused", "slow", "slow", "free"
    ]  # fmt: skip
    assert battery_state("paused", 3.0, True, BATTERY) == "free"
    assert battery_state("free", None, None, BATTERY) == "free"
    assert battery_state("slow", None, False, BATTERY) == "slow"
    assert battery_state("free", 10.0, None, BATTERY) == "paused"


def test_a_low_battery_holds_back_even_what_tells_no_temperature() -> None:
    heater = Heater()
    slow = heater.tell(2, DeviceReading(battery_percent=20.0, is_plugged_in=False))
    assert (slow.work_fraction, slow.state) == (0.5, "slowed")
    assert slow.reason == "Slowed to 50%: on battery with 20 %; work slows down below 30 %."
    paused = heater.tell(2, DeviceReading(battery_percent=9.0, is_plugged_in=False))
    assert paused.is_paused and "on battery with 9 %" in paused.reason
    plugged = heater.tell(2, DeviceReading(battery_percent=9.0, is_plugged_in=True))
    assert not plugged.is_paused
    assert heater.tell(60, DeviceReading(battery_percent=10.0, is_plugged_in=True)).work_fraction == 1.0


def test_settings_have_defaults_and_refuse_what_makes_no_sense() -> None:
    usual = ThermalSettings.from_environment({}, 2.0)
    assert usual == ThermalSettings()
    chosen = ThermalSettings.from_environment(
        {
            "EXO_THERMAL_MARGIN": "8",
            "EXO_THERMAL_HYSTERESIS": "6.5",
            "EXO_BATTERY_SLOW_BELOW": "50",
            "EXO_BATTERY_PAUSE_BELOW": "0",
        },
        10.0,
    )
    assert (chosen.policy.margin_c, chosen.policy.hysteresis_c) == (8.0, 6.5)
    assert (chosen.battery.slow_below_percent, chosen.battery.pause_below_percent) == (50.0, 0.0)
    # Who reads devices seldom is not taken for one who cannot.
    assert (chosen.policy.stale_after_s, chosen.policy.blind_after_s) == (30.0, 100.0)
    for off in ("0", "off", "False", " no "):
        assert not ThermalSettings.from_environment({"EXO_THERMAL": off}, 2.0).is_enabled
    for text in ("much", "nan", "0", "99"):
        with pytest.raises(ConfigurationError, match=f"EXO_THERMAL_MARGIN is '{text}'; set it to a number"):
            ThermalSettings.from_environment({"EXO_THERMAL_MARGIN": text}, 2.0)


def maybe(low: float, high: float) -> st.SearchStrategy[float | None]:
    return st.one_of(st.none(), st.sampled_from([low, high]), st.floats(low, high))


readings = st.builds(
    DeviceReading,
    temperature_c=maybe(-40, 126),
    throttle_threshold_c=maybe(20, 150),
    power_watts=maybe(0, 10_000),
    power_limit_watts=maybe(0.001, 10_000),
    compute_utilization_percent=maybe(0, 100),
    battery_percent=maybe(0, 100),
    is_plugged_in=st.one_of(st.none(), st.booleans()),
    is_thermal_throttling=st.one_of(st.none(), st.booleans()),
)
"""Whatever `gpu.plausibility` lets through."""


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(PRIORS)),
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.001, 2.0, 11.0, 40.0, 1e5]), readings, maybe(0, 1)), max_size=60
    ),
)
def test_whatever_a_device_says_there_is_advice_that_can_be_followed(
    kind: DeviceClass, story: list[tuple[float, DeviceReading, float | None]]
) -> None:
    heater = Heater(new_record(PRIORS[kind]))
    for after_s, reading, share in story:
        advice = heater.tell(after_s, reading, share)
        assert 0 <= advice.work_fraction <= 1 and advice.reason
        status = status_of(heater.record, heater.now_s)
        assert status.work_fraction == advice.work_fraction
        assert all(
            value is None or math.isfinite(value)
            for value in (
                status.predicted_temperature_c,
                status.prediction_error_c,
                status.sustained_fraction,
            )
        )
