"""What NVIDIA's bits say of why a clock is held back. Pure; source: nvmlClocksEventReasons of nvml.h."""

from exo.gpu.reading import ThrottleReason

_BITS: tuple[tuple[int, ThrottleReason | None], ...] = (
    (0x001, None),  # Idle: nothing holds it back.
    (0x002, "software"),  # Clocks that somebody asked for.
    (0x004, "power"),
    (0x008, "hardware"),
    (0x010, "other"),  # Waits for the slowest of a group.
    (0x020, "thermal"),
    (0x040, "thermal"),
    (0x080, "power_brake"),
    (0x100, "software"),  # Clocks of the display.
    (0x200, "power"),  # The board's limit.
    (0x400, "other"),  # Voltage.
)
_KNOWN = sum(bit for bit, _ in _BITS)


def throttle_reasons(bits: int) -> tuple[ThrottleReason, ...]:
    """Return each reason once, worst bits last as the driver orders them; a bit that is not known is `other`."""
    found: list[ThrottleReason] = [reason for bit, reason in _BITS if bits & bit and reason is not None]
    if bits & ~_KNOWN:
        found.append("other")
    return tuple(dict.fromkeys(found))
