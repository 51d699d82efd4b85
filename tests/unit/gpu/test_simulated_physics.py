"""The heat of simulated devices, against a naive stepping of the same equation."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.gpu.backends.simulated.machine import Battery, Heat, LoadStep, Power, SimulatedDevice
from exo.gpu.backends.simulated.physics import Condition, advance, begin, load_at

POWER = Power(idle_watts=20, limit_watts=450)
HEAT = Heat(capacity_joules_per_c=550, conductance_watts_per_c=5, ambient_c=26, throttle_c=90)
DEVICE = SimulatedDevice(
    name="GPU", vendor="nvidia", memory_kind="vram", memory_total_bytes=1000, power=POWER, heat=HEAT
)


def busy(*steps: tuple[float, float], period_s: float | None = None) -> SimulatedDevice:
    load = tuple(LoadStep(at_s=at_s, utilization_percent=percent) for at_s, percent in steps)
    return replace(DEVICE, load=load, load_period_s=period_s)


def stepped(device: SimulatedDevice, to_s: float, step_s: float = 0.005) -> float:
    """Step the equation: warm it with what it wants, or what keeps it at its limit."""
    heat, power = device.heat, device.power
    assert heat is not None and power is not None
    temperature_c = heat.ambient_c + power.idle_watts / heat.conductance_watts_per_c
    for number in range(round(to_s / step_s)):
        percent = load_at(device, (number + 0.5) * step_s).utilization_percent
        watts = power.idle_watts + (power.limit_watts - power.idle_watts) * percent / 100
        if temperature_c >= heat.throttle_c:
            watts = min(watts, heat.conductance_watts_per_c * (heat.throttle_c - heat.ambient_c))
        loss_watts = heat.conductance_watts_per_c * (temperature_c - heat.ambient_c)
        temperature_c += (watts - loss_watts) / heat.capacity_joules_per_c * step_s
    return temperature_c


def temperature(condition: Condition) -> float:
    assert condition.temperature_c is not None
    return condition.temperature_c


@pytest.mark.parametrize("to_s", [1.0, 40.0, 90.0, 130.0, 200.0])
def test_the_solution_is_what_stepping_leads_to(to_s: float) -> None:
    device = busy((0, 0), (10, 100), (100, 20), (150, 100))
    got = temperature(advance(device, begin(device), to_s))
    assert got == pytest.approx(stepped(device, to_s), abs=0.05)


@given(st.integers(0, 2**32), st.floats(1, 400))
def test_it_does_not_depend_on_how_often_one_looks(seed: int, to_s: float) -> None:
    device = busy((0, 30), (7, 100), (31, 0), period_s=41.3)
    looks = random.Random(seed)
    condition = begin(device)
    while condition.at_s < to_s:
        condition = advance(device, condition, min(to_s, condition.at_s + looks.uniform(0.1, 30)))
    once = advance(device, begin(device), to_s)
    assert temperature(condition) == pytest.approx(temperature(once), abs=1e-3)
    assert condition.load == once.load


def test_a_device_that_gets_too_hot_holds_its_limit_and_gets_less_done() -> None:
    device = busy((0, 100))
    hot = advance(device, begin(device), 3600)
    assert temperature(hot) == pytest.approx(90) and hot.is_throttling
    assert hot.power_watts == pytest.approx(5 * (90 - 26))
    assert hot.work_percent == pytest.approx(100 * (320 - 20) / 430)
    cool = advance(busy((0, 100), (3600, 10)), hot, 3601)
    assert not cool.is_throttling and cool.work_percent == pytest.approx(10)


def test_one_that_starts_too_hot_cools_to_its_limit() -> None:
    device = replace(busy((0, 100)), heat=replace(HEAT, start_c=120))
    start = begin(device)
    assert start.is_throttling and temperature(start) == 120
    assert temperature(advance(device, start, 3600)) == pytest.approx(90, abs=0.01)


@given(st.lists(st.tuples(st.floats(0.1, 50), st.floats(0, 100)), min_size=1, max_size=6), st.floats(0, 500))
def test_it_stays_between_the_air_and_the_limit(steps: list[tuple[float, float]], to_s: float) -> None:
    at_s, rising = 0.0, [(0.0, 0.0)]
    for length_s, percent in steps:
        at_s += length_s
        rising.append((at_s, percent))
    device = busy(*rising)
    assert HEAT.ambient_c <= temperature(advance(device, begin(device), to_s)) <= HEAT.throttle_c + 1e-3


def test_periods_whose_sum_is_not_exact_repeat_for_ever() -> None:
    device = busy((0, 0), (0.05, 100), period_s=0.1)
    condition = begin(device)
    for _ in range(50):
        condition = advance(device, condition, condition.at_s + 10.07)
    # Half of the time it is fully busy.
    mean_c = HEAT.ambient_c + (20 + 0.5 * 430) / HEAT.conductance_watts_per_c
    assert temperature(condition) == pytest.approx(mean_c, abs=0.5)


def test_what_is_set_by_hand_counts_and_the_schedule_goes_on_after_it() -> None:
    device = busy((0, 0), (100, 50))
    forced = LoadStep(at_s=0, utilization_percent=100)
    condition = advance(device, begin(device), 90, forced)
    assert condition.load == forced and temperature(condition) > 60
    assert advance(device, condition, 101).load.utilization_percent == 50


def test_a_battery_drains_by_what_is_drawn_until_it_is_empty_or_plugged_in() -> None:
    battery = Battery(capacity_watt_hours=45, start_percent=50)
    device = replace(busy((0, 0), (3600, 100)), heat=None, battery=battery)
    after_one_hour = advance(device, begin(device), 3600)
    assert after_one_hour.battery_percent == pytest.approx(50 - 100 * 20 / 45)
    assert advance(device, begin(device), 7200).battery_percent == 0
    plugged = replace(device, battery=replace(battery, is_plugged_in=True))
    assert advance(plugged, begin(plugged), 7200).battery_percent == 50


def test_what_the_file_does_not_say_is_unknown() -> None:
    device = replace(busy((0, 40)), heat=None, power=None)
    condition = advance(device, begin(device), 100)
    assert condition.temperature_c is None and condition.power_watts is None
    assert condition.battery_percent is None and condition.work_percent == 40
