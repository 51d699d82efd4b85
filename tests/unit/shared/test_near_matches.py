"""Suggestions for a name that does not exist."""

from hypothesis import given
from hypothesis import strategies as st

from exo.shared.near_matches import near_matches, unknown_model_sentence


def test_case_does_not_count_and_the_nearest_is_first() -> None:
    known = ["Llama-3.2-1B", "llama-3.2-3b", "Qwen3-4B"]
    assert near_matches("LLAMA-3.2-3B-it", known) == ("llama-3.2-3b", "Llama-3.2-1B")
    assert near_matches("zzz", known) == ()


def test_names_that_differ_only_in_case_are_both_suggested() -> None:
    assert near_matches("toi", ["Toy", "toy"]) == ("Toy", "toy")


@given(name=st.text(max_size=8), known=st.lists(st.text(min_size=1, max_size=8)))
def test_only_known_names_are_suggested_each_once(name: str, known: list[str]) -> None:
    near = near_matches(name, known)
    assert len(near) == len(set(near)) <= 3
    assert set(near) <= set(known)
    if name in known and len({one for one in known if one.lower() == name.lower()}) == 1:
        assert near[0] == name


def test_the_sentence_has_a_next_step_whatever_is_known() -> None:
    doctor = " (where its directory is there and cannot be read, `exo doctor` on that node says why)"
    assert unknown_model_sentence("toi", ["toy"]) == f"there is no model 'toi'; did you mean toy?{doctor}"
    assert unknown_model_sentence("x", ["toy"]) == f"there is no model 'x'; there is toy{doctor}"
    assert "put a model's directory" in unknown_model_sentence("x", [])
    many = unknown_model_sentence("x", [f"toy-{number:02}" for number in range(12)])
    assert many.endswith(f"toy-09 and 2 more (`exo models`){doctor}")
