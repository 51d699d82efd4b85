"""An answer's end: the model's own, a stop string, or the limit; and what is sent last."""

import pytest

from exo.dataplane.frames import TokenChunk
from exo.shared.types.ids import RequestId
from exo.worker.runner.answer import Answer
from support.scripted_stage import END, LetterTokenizer


def chunks(
    text: str, *, max_tokens: int = 99, stop: tuple[str, ...] = (), ignore_end: bool = False
) -> list[TokenChunk]:
    answer = Answer(
        RequestId("r"), LetterTokenizer(), max_tokens=max_tokens, stop=stop, ignore_end=ignore_end
    )
    taken: list[TokenChunk] = []
    for letter in text:
        taken.append(answer.take(ord(letter)))
        if taken[-1].finish_reason is not None:
            break
    return taken


def pieces(taken: list[TokenChunk]) -> list[str]:
    return [chunk.text for chunk in taken]


def test_one_chunk_per_token_with_running_numbers() -> None:
    taken = chunks("abc")
    assert [(chunk.index, chunk.token_id, chunk.text) for chunk in taken] == [
        (0, 97, "a"),
        (1, 98, "b"),
        (2, 99, "c"),
    ]
    assert taken[-1].finish_reason is None


def test_the_models_end_is_no_text() -> None:
    taken = chunks("ab" + chr(END) + "c")
    assert pieces(taken) == ["a", "b", ""]
    assert taken[-1].finish_reason == "stop"
    assert taken[-1].token_id == END


def test_the_end_can_be_ignored() -> None:
    taken = chunks("a" + chr(END) + "b", ignore_end=True, max_tokens=3)
    assert pieces(taken) == ["a", "", "b"]
    assert [chunk.finish_reason for chunk in taken] == [None, None, "length"]


def test_the_limit() -> None:
    taken = chunks("abcdef", max_tokens=4)
    assert pieces(taken) == ["a", "b", "c", "d"]
    assert taken[-1].finish_reason == "length"


def test_a_stop_string_over_several_tokens_never_shows() -> None:
    taken = chunks("one, two, three", stop=(", t",))
    assert "".join(pieces(taken)) == "one"
    assert taken[-1].finish_reason == "stop"
    assert pieces(taken)[3:] == ["", "", ""]


def test_what_was_held_back_comes_with_the_last_token() -> None:
    taken = chunks("ab#", stop=("##",), max_tokens=3)
    assert pieces(taken) == ["a", "b", "#"]
    assert taken[-1].finish_reason == "length"
    taken = chunks("ab#" + chr(END), stop=("##",))
    assert pieces(taken) == ["a", "b", "", "#"]


@pytest.mark.parametrize("max_tokens", [2, 99])
def test_a_stop_string_at_the_limit_is_a_stop(max_tokens: int) -> None:
    assert chunks("ab", stop=("b",), max_tokens=max_tokens)[-1].finish_reason == "stop"
