"""How much of a prompt goes through the stages at a time: as much as the slowest of them can take."""

from exo.engines.calibration import PREFILL_TOKENS_MIN

SLOW_STEP_S = 10.0
"""A step this long means that the machine is no longer what it was when the stage was loaded."""


class PrefillPace:
    """One stage's own limit and what the stages before it said.

    Args:
        tokens_max: What this stage can take, as measured when it was loaded.
    """

    def __init__(self, tokens_max: int) -> None:
        self._own = tokens_max
        self._told: int | None = None
        self._share = 1.0

    @property
    def tokens_max(self) -> int:
        """Positions per step of a prompt."""
        own = max(PREFILL_TOKENS_MIN, int(self._own * self._share))
        return own if self._told is None else min(own, self._told)

    def shorten(self, share: float) -> bool:
        """Take smaller pieces for a while, to heat more evenly; say whether `tokens_max` has changed by it.

        Meanwhile equal prompts may be cut into other chunks than before.
        """
        before = self.tokens_max
        self._share = share
        return self.tokens_max != before

    @property
    def is_told(self) -> bool:
        """Whether the stage before has said what the stages up to it can take."""
        return self._told is not None

    def told(self, tokens_max: int) -> None:
        """Take the word of the stage before."""
        self._told = max(PREFILL_TOKENS_MIN, tokens_max)

    def step_took(self, positions: int, seconds: float) -> bool:
        """Take notice of a step; say whether `tokens_max` has become smaller by it."""
        before = self.tokens_max
        if seconds > SLOW_STEP_S and positions > PREFILL_TOKENS_MIN:
            # Smaller for good: one that grew again would cut equal prompts into different chunks.
            self._own = min(self._own, max(PREFILL_TOKENS_MIN, positions // 2))
        return self.tokens_max < before
