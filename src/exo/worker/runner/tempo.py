"""How much of the time a stage works: rests between steps make up for the steps. Pure: the time is passed in.

What engines can do for less heat while they run: every one can rest between two steps, and those that say so
(`Stage.can_shorten_prefill`) can take a prompt in smaller pieces, so that the heat comes more evenly. None can change
its precision (the weights are in memory in one), and none takes several requests in one step that could be fewer.
"""

GRAIN_S = 0.02
"""Rests are put together to at least this much work: no system keeps a wait of a tenth of a millisecond."""
CREDIT_MAX_S = 0.05
"""Time in which there was nothing to do is no work saved up."""
DEBT_MAX_S = 2.0
"""One step that took long is not made up for in minutes."""
_NOTHING_S = 1e-6
"""Too short to wait for: with a clock of large numbers it would never be over."""
_HALF_BELOW = 0.5
_QUARTER_BELOW = 0.25


def prefill_share(fraction: float) -> float:
    """Return how much of the usual number of positions a step of a prompt is to have, at a share of full work."""
    if fraction >= _HALF_BELOW:
        return 1.0
    return 0.5 if fraction >= _QUARTER_BELOW else 0.25


class Tempo:
    """An account of work: time pays in, steps draw. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.fraction = 1.0
        """How much of the time to work."""
        self.busy_s = 0.0
        """Of all steps so far."""
        self._credit_s = 0.0
        self._at_s = 0.0
        self._is_resting = False

    @property
    def is_slowed(self) -> bool:
        """Whether steps may not follow on each other at once."""
        return self.fraction < 1

    def advise(self, fraction: float, now_s: float) -> None:
        """Take another share of the time: 1 is all of it, 0 a pause until another one is advised."""
        self._earn(now_s)
        self.fraction = min(1.0, max(0.0, fraction))
        if not self.is_slowed:
            self._credit_s = 0.0
            self._is_resting = False

    def worked(self, began_s: float, ended_s: float) -> None:
        """Take notice of a step."""
        self._earn(began_s)
        took_s = max(0.0, ended_s - began_s)
        self.busy_s += took_s
        self._credit_s = max(-DEBT_MAX_S, self._credit_s - (1 - self.fraction) * took_s)
        self._at_s = ended_s

    def rest_s(self, now_s: float) -> float | None:
        """Return how long to rest before the next step, 0 where it may begin; None: until something else is advised."""
        if self.fraction <= 0:
            return None
        self._earn(now_s)
        if self._credit_s < -GRAIN_S:
            self._is_resting = True
        elif self._credit_s >= -_NOTHING_S:
            self._is_resting = False
        return -self._credit_s / self.fraction if self._is_resting else 0.0

    def _earn(self, now_s: float) -> None:
        self._credit_s = min(CREDIT_MAX_S, self._credit_s + self.fraction * max(0.0, now_s - self._at_s))
        self._at_s = now_s
