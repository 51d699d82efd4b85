"""The garbage collector is set once, and still collects."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from exo.shared.garbage import settle_garbage_collector


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    # Another test in this process may have settled it already.
    gc.set_threshold(700, 10, 10)
    yield gc.get_threshold()
    gc.unfreeze()
    gc.set_threshold(*before)


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_not_looked_through_again(thresholds: tuple[int, int, int]) -> None:
    settle_garbage_collector()
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold() > thresholds


def test_cycles_made_later_are_still_collected(thresholds: tuple[int, int, int]) -> None:
    settle_garbage_collector()
    seen = weakref.ref(Cycle())
    kept: list[object] = []
    for _ in range(2 * gc.get_threshold()[0]):
        kept.append([])  # As any container that stays: enough of them begin a collection.
        if seen() is None:
            return
    pytest.fail("a cycle was never collected")
