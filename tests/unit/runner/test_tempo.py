"""How much a stage works: the share that was advised, whatever steps take, and at once when it changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.worker.runner.pace import PrefillPace
from exo.worker.runner.tempo import CREDIT_MAX_S, DEBT_MAX_S, GRAIN_S, Tempo, prefill_share


def work(tempo: Tempo, step_s: float, seconds: float, from_s: float = 0.0, late_s: float = 0.0) -> float:
    """Do steps for a time as the stage's loop does them; each rest ends a little late. Return the end."""
    now_s = from_s
    while now_s < from_s + seconds:
        rest_s = tempo.rest_s(now_s)
        if rest_s is None:
            return now_s
        if rest_s > 0:
            now_s += rest_s + late_s
            continue
        tempo.worked(now_s, now_s + step_s)
        now_s += step_s
    return now_s


def test_without_advice_there_is_no_rest() -> None:
    tempo = Tempo()
    end_s = work(tempo, 0.003, 10)
    assert tempo.busy_s == pytest.approx(end_s)
    assert not tempo.is_slowed


@settings(deadline=None, max_examples=100)
@given(st.floats(0.05, 0.99), st.floats(0.002, 1.0), st.floats(0, 0.004))
def test_the_share_of_the_time_is_the_one_that_was_advised(
    fraction: float, step_s: float, late_s: float
) -> None:
    tempo = Tempo()
    tempo.advise(fraction, 0.0)
    end_s = work(tempo, step_s, 200 * step_s / fraction + 20, late_s=late_s)
    slack_s = step_s + GRAIN_S + CREDIT_MAX_S + 1e-6
    assert abs(tempo.busy_s - fraction * end_s) <= slack_s


def test_a_pause_lasts_until_something_else_is_advised_and_owes_nothing_then() -> None:
    tempo = Tempo()
    now_s = work(tempo, 0.1, 5)
    tempo.advise(0.0, now_s)
    assert tempo.rest_s(now_s) is None and tempo.rest_s(now_s + 1000) is None
    tempo.advise(1.0, now_s + 1000)
    assert tempo.rest_s(now_s + 1000) == 0.0


def test_a_rest_becomes_longer_or_shorter_with_the_advice() -> None:
    tempo = Tempo()
    tempo.advise(0.5, 0.0)
    tempo.worked(1.0, 2.0)
    rest_s = tempo.rest_s(2.0)
    assert rest_s == pytest.approx(1.0, abs=2 * CREDIT_MAX_S)
    tempo.advise(0.25, 2.0)
    assert tempo.rest_s(2.0) == pytest.approx(2 * (rest_s or 0))
    tempo.advise(1.0, 2.1)
    assert tempo.rest_s(2.1) == 0.0


def test_idle_time_is_not_saved_up_and_one_long_step_is_not_made_up_for_in_minutes() -> None:
    tempo = Tempo()
    tempo.advise(0.5, 0.0)
    assert tempo.rest_s(3600.0) == 0.0
    tempo.worked(3600.0, 3601.0)
    assert tempo.rest_s(3601.0) == pytest.approx(1.0, abs=2 * CREDIT_MAX_S + 1e-6)
    tempo.advise(0.05, 3603.0)
    tempo.worked(3603.0, 3663.0)
    assert tempo.rest_s(3663.0) == pytest.approx(DEBT_MAX_S / 0.05)


def test_prompts_are_taken_in_smaller_pieces_while_a_device_is_held_back() -> None:
    assert [prefill_share(fraction) for fraction in (1.0, 0.5, 0.49, 0.25, 0.2, 0.0)] == [
        1.0, 1.0, 0.5, 0.5, 0.25, 0.25
    ]  # fmt: skip
    pace = PrefillPace(512)
    assert pace.shorten(0.25) and pace.tokens_max == 128
    assert not pace.shorten(0.25)
    pace.told(64)
    assert pace.tokens_max == 64
    pace.told(512)
    assert pace.shorten(1.0) and pace.tokens_max == 512
    tiny = PrefillPace(8)
    tiny.shorten(0.25)
    assert tiny.tokens_max == 4
