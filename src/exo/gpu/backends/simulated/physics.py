"""How a simulated device warms up, slows itself down and drains its battery. Pure; exact between changes of its load.

The temperature follows `C dT/dt = P - h (T - ambient)`, which is solved and not stepped: what comes out does not depend
on how often one looks.
"""

import math

import msgspec
from msgspec.structs import replace

from exo.gpu.backends.simulated.machine import LoadStep, SimulatedDevice

_IDLE = LoadStep(at_s=0, utilization_percent=0)
_ROUNDING_S = 1e-9
"""Sums of periods may miss a change of load by so much; a moment before it counts as after it."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A device at one moment; None where the file says nothing of it."""

    at_s: float = 0.0
    load: LoadStep = _IDLE
    temperature_c: float | None = None
    is_throttling: bool = False
    power_watts: float | None = None
    work_percent: float = 0.0
    """What of its full speed it gets done: the utilization, less what heat costs."""
    battery_percent: float | None = None


def begin(device: SimulatedDevice) -> Condition:
    """Return the device as it is when the play begins."""
    heat, power = device.heat, device.power
    warm_c = None
    if heat is not None and power is not None:
        idle_c = heat.ambient_c + power.idle_watts / heat.conductance_watts_per_c
        warm_c = heat.start_c if heat.start_c is not None else idle_c
    start = Condition(
        load=load_at(device, 0.0),
        temperature_c=warm_c,
        battery_percent=device.battery.start_percent if device.battery is not None else None,
    )
    return _settled(device, start)


def load_at(device: SimulatedDevice, at_s: float) -> LoadStep:
    """Return what the device's schedule has it carry."""
    within_s = at_s % device.load_period_s if device.load_period_s is not None else at_s
    begun = [step for step in device.load if step.at_s <= within_s]
    return begun[-1] if begun else _IDLE


def advance(
    device: SimulatedDevice, condition: Condition, to_s: float, override: LoadStep | None = None
) -> Condition:
    """Return the device as it is later.

    Args:
        device: What it is.
        condition: As it was.
        to_s: Seconds since the play began; not before the condition's.
        override: What it carries whatever its schedule says.
    """
    while True:
        load = override if override is not None else load_at(device, condition.at_s + _ROUNDING_S)
        condition = _settled(device, replace(condition, load=load))
        if condition.at_s >= to_s:
            return condition
        until_s = min(to_s, _next_change_s(device, condition.at_s) if override is None else to_s)
        condition = _through(device, condition, until_s)


def _next_change_s(device: SimulatedDevice, at_s: float) -> float:
    period_s = device.load_period_s
    now_s = at_s + _ROUNDING_S
    begin_s = now_s // period_s * period_s if period_s is not None else 0.0
    times = [begin_s + step.at_s for step in device.load]
    if period_s is not None:
        times.append(begin_s + period_s)
    return min((one for one in times if one > now_s), default=math.inf)


def _settled(device: SimulatedDevice, condition: Condition) -> Condition:
    """Return the condition with the power and the speed that its load and its heat allow."""
    power, heat = device.power, device.heat
    wanted_percent = condition.load.utilization_percent
    if power is None:
        return replace(condition, work_percent=wanted_percent)
    span_watts = power.limit_watts - power.idle_watts
    watts = power.idle_watts + span_watts * wanted_percent / 100
    is_throttling = False
    if heat is not None and condition.temperature_c is not None:
        # At the limit it takes as much power as keeps it there; a millikelvin is what rounding may cost.
        held_watts = heat.conductance_watts_per_c * (heat.throttle_c - heat.ambient_c)
        if condition.temperature_c >= heat.throttle_c - 1e-3 and watts > held_watts:
            is_throttling = True
            watts = max(power.idle_watts, held_watts)
    work_percent = 100 * (watts - power.idle_watts) / span_watts if span_watts else wanted_percent
    return replace(condition, power_watts=watts, is_throttling=is_throttling, work_percent=work_percent)


def _through(device: SimulatedDevice, condition: Condition, until_s: float) -> Condition:
    """Return the condition after a stretch of constant load; a stretch may end early, where the device gets too hot."""
    heat, watts = device.heat, condition.power_watts
    temperature_c = condition.temperature_c
    if heat is not None and watts is not None and temperature_c is not None:
        final_c = heat.ambient_c + watts / heat.conductance_watts_per_c
        time_constant_s = heat.capacity_joules_per_c / heat.conductance_watts_per_c
        if temperature_c < heat.throttle_c - 1e-3 and final_c > heat.throttle_c:
            ratio = (final_c - temperature_c) / (final_c - heat.throttle_c)
            hot_at_s = condition.at_s + time_constant_s * math.log(ratio)
            if hot_at_s <= until_s:
                return _at(device, condition, max(hot_at_s, condition.at_s), heat.throttle_c)
        decay = math.exp(-(until_s - condition.at_s) / time_constant_s)
        temperature_c = final_c + (temperature_c - final_c) * decay
    return _at(device, condition, until_s, temperature_c)


def _at(device: SimulatedDevice, condition: Condition, at_s: float, temperature_c: float | None) -> Condition:
    battery, percent = device.battery, condition.battery_percent
    if (
        battery is not None
        and percent is not None
        and not battery.is_plugged_in
        and condition.power_watts is not None
    ):
        used_watt_hours = condition.power_watts * (at_s - condition.at_s) / 3600
        percent = max(0.0, percent - 100 * used_watt_hours / battery.capacity_watt_hours)
    return replace(condition, at_s=at_s, temperature_c=temperature_c, battery_percent=percent)
