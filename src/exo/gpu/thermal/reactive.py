"""Without a model: work follows the temperature alone, its level and its slope.

A proportional and integral controller in velocity form, whose integral cannot wind up (Astrom & Hagglund, "PID
Controllers", 1995, 3.5). It is used until a device is calibrated, and for good where it does not tell its power.
"""

LEAD_S = 4.0
"""How far the slope is followed ahead."""
WHOLE_WORK_C = 60.0
"""Degrees that move the work from nothing to all: more than the hottest die stands above its body, so that the
answer to a change is smaller than the change."""
INTEGRAL_S = 12.0
START_ROOM_C = 10.0


def first_fraction(temperature_c: float, limit_c: float) -> float:
    """Return where to begin: all of the work only where a jump of the whole die could not reach the limit."""
    return min(1.0, max(0.0, (limit_c - START_ROOM_C - temperature_c) / WHOLE_WORK_C))


def room_c(target_c: float, temperature_c: float, slope_c_per_s: float) -> float:
    """Return how far the temperature will be below the target."""
    return target_c - temperature_c - LEAD_S * slope_c_per_s


def next_fraction(before: float, room_before_c: float | None, now_c: float, elapsed_s: float) -> float:
    """Return the work fraction after the one before; `room_before_c` and `now_c` are of `room_c`."""
    change_c = 0.0 if room_before_c is None else now_c - room_before_c
    moved = before + (change_c + now_c * elapsed_s / INTEGRAL_S) / WHOLE_WORK_C
    return min(1.0, max(0.0, moved))
