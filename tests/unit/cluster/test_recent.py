"""The newest entries in memory: never a gap, never fewer than promised, never many more."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.recent import Recent
from exo.shared.types.events import LogEntry
from support.entries import entries, entry


class NaiveRecent:
    """Keeps everything since it began: the simple twin."""

    def __init__(self) -> None:
        self.base_index = 0
        self.entries: list[LogEntry] = []

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    def after(self, index: int) -> Sequence[LogEntry]:
        return [one for one in self.entries if one.index > index]


@st.composite
def lives(draw: st.DrawFn) -> tuple[Recent, NaiveRecent]:
    """What becomes of it when entries are added in batches of any size, and it begins anew now and then."""
    entries_max = draw(st.integers(1, 12))
    recent, naive = Recent(entries_max), NaiveRecent()
    for _ in range(draw(st.integers(0, 12))):
        if draw(st.integers(0, 9)) == 0:
            index = draw(st.integers(0, 1000))
            recent.begin_at(index)
            naive.base_index, naive.entries = index, []
        terms = draw(st.lists(st.integers(1, 3), max_size=20))
        batch = [entry(naive.last_index + 1 + place, term=term) for place, term in enumerate(terms)]
        recent.add(batch)
        naive.entries += batch
        assert recent.last_index - recent.oldest_index + 1 <= 2 * entries_max
        kept = min(entries_max, len(naive.entries))
        assert recent.last_index - recent.oldest_index + 1 >= kept
    return recent, naive


@given(lives(), st.integers(-2, 40), st.none() | st.integers(0, 30))
def test_it_has_what_followed_or_says_that_it_has_not(
    life: tuple[Recent, NaiveRecent], back: int, entries_max: int | None
) -> None:
    recent, naive = life
    index = naive.last_index - back
    found = recent.after(index, entries_max)
    if recent.oldest_index - 1 <= index <= naive.last_index:
        assert found is not None
        assert list(found) == list(naive.after(index)[:entries_max])
    else:
        assert found is None


@given(lives(), st.integers(-2, 40), st.integers(0, 4))
def test_it_knows_the_terms_of_what_it_has(life: tuple[Recent, NaiveRecent], back: int, term: int) -> None:
    recent, naive = life
    index = naive.last_index - back
    is_there = any(one.index == index and one.term == term for one in naive.entries)
    assert recent.holds(index, term) == (is_there and index >= recent.oldest_index)


@given(lives())
def test_both_ends_are_where_they_are_said_to_be(life: tuple[Recent, NaiveRecent]) -> None:
    recent, naive = life
    assert recent.last_index == naive.last_index
    whole = recent.after(recent.oldest_index - 1)
    assert whole is not None
    assert [one.index for one in whole] == list(range(recent.oldest_index, recent.last_index + 1))


def test_an_empty_one_stands_where_it_began() -> None:
    recent = Recent(4)
    recent.begin_at(70)
    assert (recent.oldest_index, recent.last_index) == (71, 70)
    assert recent.after(70) == []
    assert recent.after(69) is None
    assert recent.after(71) is None, "what is asked for has not happened yet"
    assert not recent.holds(70, 1), "it was folded in, and its term is not known here"


def test_what_begins_anew_forgets_the_other_history() -> None:
    recent = Recent(4)
    recent.add(entries(1, 6))
    recent.begin_at(3)
    assert recent.after(2) is None
    recent.add([entry(4, term=9)])
    assert recent.holds(4, 9)
    assert not recent.holds(4, 1)
    assert not recent.holds(5, 1)


@pytest.mark.parametrize("count", [1, 4, 8, 9, 100])
def test_one_long_batch_is_cut_to_what_is_kept(count: int) -> None:
    recent = Recent(4)
    recent.add(entries(1, count))
    assert recent.oldest_index == (1 if count <= 8 else count - 3)
    assert recent.last_index == count
