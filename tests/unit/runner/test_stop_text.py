"""Stop strings: the answer ends right before the first one, however the text is cut, and nothing of it leaks."""

from hypothesis import given
from hypothesis import strategies as st

from exo.worker.runner.stop_text import StopText

letters = st.text("ab#", max_size=30)
stops = st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3)


def plain(text: str, stop_strings: list[str]) -> str:
    """Return the answer by looking at the whole text at once."""
    return text[: min([place for stop in stop_strings if (place := text.find(stop)) >= 0], default=len(text))]


@given(text=letters, stop_strings=stops, sizes=st.lists(st.integers(1, 5), min_size=30, max_size=30))
def test_the_answer_is_that_of_the_whole_text(text: str, stop_strings: list[str], sizes: list[int]) -> None:
    stop = StopText(stop_strings)
    answer, position = "", 0
    is_stopped = False
    for size in sizes:
        if position >= len(text) or is_stopped:
            break
        piece, is_stopped = stop.push(text[position : position + size])
        position += size
        answer += piece
        seen = text[:position]
        assert plain(seen, stop_strings).startswith(answer)
    if not is_stopped:
        answer += stop.flush()
    # A stop string that a longer piece brings whole may begin before one that came earlier: only pieces count.
    assert answer == plain(text[:position], stop_strings)
    assert is_stopped == any(one in text[:position] for one in stop_strings)


@given(text=letters, stop_strings=stops)
def test_no_more_is_held_back_than_could_become_a_stop_string(text: str, stop_strings: list[str]) -> None:
    stop = StopText(stop_strings)
    answer, is_stopped = stop.push(text)
    held = stop.flush()
    if not is_stopped:
        assert answer + held == text
        assert held == "" or any(one.startswith(held) and one != held for one in stop_strings)


def test_without_stop_strings_all_goes_through_at_once() -> None:
    stop = StopText(["", ""])
    assert stop.push("anything") == ("anything", False)
    assert stop.flush() == ""
