"""Times of a stage's decoding steps, gathered between two heartbeats: what predictions are calibrated by.

Filled by the main thread, emptied by the control thread: a deque's ends are safe to use from two threads.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median

import msgspec

STEPS_KEPT_MAX = 4096
"""Between two heartbeats; a stage that is faster than this loses the oldest."""
_OUTLIER_SCORE = 3.5
_NORMAL = 0.6745
"""The median absolute deviation of a normal distribution, in its standard deviations."""
_LEAST_DEVIATION = 0.03
"""Of the median: times that differ less than this are no outliers, however alike the others are."""


class StepWindow(msgspec.Struct, frozen=True, kw_only=True):
    """What the decoding steps since the last heartbeat took, each of one position of one sequence."""

    step_count: int
    step_s: float
    """The mean, without what stands out: from the inputs being there to the output being there."""
    position: float
    """Positions in the KV cache that a step read, on average."""
    round_count: int = 0
    """First stage: tokens that came while one request ran and nothing else was under way."""
    round_s: float | None = None
    """What such a token took, from the beginning of its step on this stage to its coming back."""
    hop_s: float | None = None
    """What a hop of their way took: the round less what all stages computed, over the hops. None: there are none."""


class StepLedger:
    """One stage's times. Closed while the stage is slowed down: then they say nothing of the device."""

    def __init__(self) -> None:
        self.is_open = True
        self._steps: deque[tuple[float, int]] = deque(maxlen=STEPS_KEPT_MAX)
        self._rounds: deque[tuple[float, float | None]] = deque(maxlen=STEPS_KEPT_MAX)

    def step_took(self, seconds: float, position: int) -> None:
        """Take notice of a decoding step at a position."""
        if self.is_open:
            self._steps.append((seconds, position))

    def round_took(self, seconds: float, hop_s: float | None = None) -> None:
        """Take notice of a token of the only request: how long it took, and a hop of its way, where there are any."""
        if self.is_open:
            self._rounds.append((seconds, hop_s))

    def take(self) -> StepWindow | None:
        """Return what there is and forget it; None: nothing."""
        steps = [self._steps.popleft() for _ in range(len(self._steps))]
        rounds = [self._rounds.popleft() for _ in range(len(self._rounds))]
        hops = [hop_s for _, hop_s in rounds if hop_s is not None]
        if not steps:
            return None
        return StepWindow(
            step_count=len(steps),
            step_s=usual_mean([seconds for seconds, _ in steps]),
            position=sum(position for _, position in steps) / len(steps),
            round_count=len(rounds),
            round_s=usual_mean([seconds for seconds, _ in rounds]) if rounds else None,
            hop_s=usual_mean(hops) if hops else None,
        )


def usual_mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return the mean of those that belong together: the first step of an answer, the last one, or a moment of
    something else may stand out. There has to be one value.

    Tokens/s follow from the mean, which is longer than the median where times have a tail. Modified z-scores from the
    median absolute deviation; B. Iglewicz and D. Hoaglin, "How to Detect and Handle Outliers", 1993.
    """
    middle = median(values)
    deviation = max(median(abs(value - middle) for value in values), _LEAST_DEVIATION * abs(middle))
    reach = _OUTLIER_SCORE * deviation / _NORMAL
    rows = [
        (value, weight)
        for value, weight in zip(values, weights or [1.0] * len(values), strict=True)
        if abs(value - middle) <= reach
    ]
    return sum(value * weight for value, weight in rows) / sum(weight for _, weight in rows)
