"""Rates from counters that only grow."""

from collections.abc import Callable


class Growth:
    """How fast a counter grows between two readings.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._before: tuple[float, int] | None = None

    def per_s(self, value: int | None) -> float | None:
        """Return the mean since the last reading; None the first time, without a value, and after it began anew."""
        before, at_s = self._before, self._clock()
        self._before = None if value is None else (at_s, value)
        if before is None or value is None or value < before[1] or at_s <= before[0]:
            return None
        return (value - before[1]) / (at_s - before[0])
