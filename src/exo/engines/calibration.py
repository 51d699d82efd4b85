"""How many positions of a prompt a stage can run in about a second: measured when it is loaded.

Measured once and then kept, so that equal prompts are cut into equal chunks: in 16-bit types the rounding, and with
it now and then a token, depends on how a prompt is cut.
"""

from collections.abc import Callable

PREFILL_TOKENS_MIN = 4
PREFILL_TOKENS_MAX = 512
PREFILL_STEP_S = 1.0
"""What a step of a prompt may take: other requests wait for it."""
_AGAIN_BELOW_S = 5.0
"""A measurement shorter than this is repeated before it is believed: something else may have been busy."""


def measure_prefill_tokens(run: Callable[[int], None], clock: Callable[[], float]) -> int:
    """Return a power of two between `PREFILL_TOKENS_MIN` and `PREFILL_TOKENS_MAX`.

    Runs 4 positions, then twice as many, until they take long enough to reckon with: milliseconds on a fast
    machine, a second or two on a slow one, and more only where even 4 positions take longer.

    Args:
        run: Runs so many positions of a new sequence, and returns when they are computed.
        clock: Seconds.
    """

    def seconds(tokens: int) -> float:
        began_at = clock()
        run(tokens)
        return clock() - began_at

    tokens = PREFILL_TOKENS_MIN
    while tokens < PREFILL_TOKENS_MAX:
        took_s = seconds(tokens)
        if PREFILL_STEP_S / 2 < took_s < _AGAIN_BELOW_S:
            took_s = min(took_s, seconds(tokens))
        if took_s * PREFILL_TOKENS_MAX <= PREFILL_STEP_S * tokens:
            return PREFILL_TOKENS_MAX
        if took_s > PREFILL_STEP_S / 2:
            while tokens > PREFILL_TOKENS_MIN and took_s > PREFILL_STEP_S:
                tokens //= 2
                took_s /= 2
            return tokens
        tokens *= 2
    return PREFILL_TOKENS_MAX
