"""How long a chunk may be is measured: slow machines get short ones, noise does not count, fast ones lose no time."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.engines.calibration import (
    PREFILL_STEP_S,
    PREFILL_TOKENS_MAX,
    PREFILL_TOKENS_MIN,
    measure_prefill_tokens,
)


class Machine:
    """Takes some time for every step and for every position of it."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self._seconds = seconds
        self.now = 0.0
        self.runs: list[int] = []

    def run(self, tokens: int) -> None:
        self.runs.append(tokens)
        self.now += self._seconds(tokens)

    def measure(self) -> int:
        return measure_prefill_tokens(self.run, lambda: self.now)


@pytest.mark.parametrize(
    ("seconds_per_token", "expected"),
    [(0.0001, 512), (0.0019, 512), (0.003, 256), (0.01, 64), (0.03, 32), (0.23, 4), (5.0, 4)],
)
def test_a_chunk_takes_about_a_second(seconds_per_token: float, expected: int) -> None:
    assert Machine(lambda tokens: tokens * seconds_per_token).measure() == expected


@given(step=st.floats(0, 3), token=st.floats(1e-6, 20))
def test_it_is_a_power_of_two_that_is_not_too_long(step: float, token: float) -> None:
    machine = Machine(lambda tokens: step + tokens * token)
    tokens = machine.measure()
    assert tokens in {2**power for power in range(2, 10)}
    assert tokens == PREFILL_TOKENS_MIN or step + tokens * token <= 1.01 * PREFILL_STEP_S
    assert machine.now <= max(5 * PREFILL_STEP_S, 2 * (step + PREFILL_TOKENS_MIN * token))


def test_a_fast_machine_is_asked_once() -> None:
    machine = Machine(lambda tokens: 0.001)
    assert machine.measure() == PREFILL_TOKENS_MAX
    assert machine.runs == [PREFILL_TOKENS_MIN]


def test_one_hiccup_does_not_count() -> None:
    hiccups = iter([2.0])
    assert Machine(lambda tokens: next(hiccups, 0.0) + tokens * 0.001).measure() == PREFILL_TOKENS_MAX
