"""What every EventLog promises, whatever it is kept in."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from exo.cluster.log.base import EventLog
from exo.cluster.log.files import DiskFiles, Files
from exo.cluster.log.memory import MemoryLog
from exo.cluster.log.segments import SegmentLog
from exo.shared.errors import LogCorruptError, LogOrderError
from support.entries import entries, entry
from support.power_loss import PowerLossFiles, cut_content

SMALL_SEGMENT_BYTES = 600


class Case:
    """One implementation: how to open it, and how to take its power away."""

    def __init__(
        self,
        open_log: Callable[[], EventLog],
        lose_power: Callable[[EventLog], None],
        cut_off: Callable[[int], None] | None = None,
    ) -> None:
        self.open = open_log
        self.lose_power = lose_power
        self.cut_off = cut_off
        """Takes that many bytes from the end of what is kept; None: it is kept where nothing can be damaged."""


@pytest.fixture(params=["memory", "segments on disk", "segments over power loss"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "memory":
        log = MemoryLog()
        return Case(lambda: log, lambda _: log.lose_unsynced())
    if request.param == "segments on disk":
        # A real disk keeps what was written, synced or not: losing power is closing here.
        return Case(
            lambda: SegmentLog(tmp_path / "log", segment_bytes=SMALL_SEGMENT_BYTES),
            lambda log: log.close(),
            partial(_cut_off, DiskFiles(tmp_path / "log")),
        )
    files = PowerLossFiles()
    return Case(
        lambda: SegmentLog(tmp_path, files=files, segment_bytes=SMALL_SEGMENT_BYTES),
        lambda _: files.lose_power(),
        partial(_cut_off, files),
    )


def _cut_off(files: Files, count: int) -> None:
    cut_content(files, max(name for name in files.names() if name.endswith(".log")), count)


def test_a_new_log_is_empty(case: Case) -> None:
    log = case.open()
    assert (log.first_index, log.last_index) == (1, 0)
    assert list(log.read()) == []


def test_entries_come_back_in_order_from_any_index(case: Case) -> None:
    log = case.open()
    for first in range(1, 40, 3):
        log.append(entries(first, first + 2))
    log.sync()
    assert log.last_index == 39
    for after in (0, 1, 2, 3, 17, 38, 39, 100):
        assert list(log.read(after)) == entries(after + 1, 39)


def test_an_empty_append_changes_nothing(case: Case) -> None:
    log = case.open()
    log.append([])
    log.sync()
    assert log.last_index == 0


@pytest.mark.parametrize("wrong", [[entry(2)], [entry(5)], [entry(4), entry(6)], [entry(3)]])
def test_a_gap_or_a_repetition_is_refused_and_nothing_is_kept(case: Case, wrong: list) -> None:
    log = case.open()
    log.append(entries(1, 3))
    with pytest.raises(LogOrderError):
        log.append(wrong)
    log.append([entry(4)])
    log.sync()
    assert list(log.read()) == entries(1, 4)


def test_what_was_synced_survives(case: Case) -> None:
    log = case.open()
    log.append(entries(1, 9))
    log.sync()
    log.append(entries(10, 12))
    log.sync()
    case.lose_power(log)
    log = case.open()
    assert list(log.read()) == entries(1, 12)
    log.append(entries(13, 13))
    log.sync()
    case.lose_power(log)
    assert case.open().last_index == 13


def test_of_several_appends_the_first_few_survive(case: Case) -> None:
    log = case.open()
    log.append(entries(1, 2))
    log.sync()
    for first in range(3, 40, 3):
        log.append(entries(first, first + 2))
    case.lose_power(log)
    log = case.open()
    assert log.last_index in (2, *range(5, 42, 3))
    assert list(log.read()) == entries(1, log.last_index)


def test_what_was_not_synced_is_gone_or_whole(case: Case) -> None:
    log = case.open()
    log.append(entries(1, 2))
    log.sync()
    log.append(entries(3, 5))
    case.lose_power(log)
    log = case.open()
    assert list(log.read()) in (entries(1, 2), entries(1, 5))
    log.append([entry(log.last_index + 1)])
    log.sync()


@pytest.mark.parametrize("count", [1, 40])
def test_what_was_synced_and_is_gone_is_refused(case: Case, count: int) -> None:
    if case.cut_off is None:
        pytest.skip("kept in memory")
    log = case.open()
    for first in range(1, 30, 3):
        log.append(entries(first, first + 2))
        log.sync()
    case.lose_power(log)
    case.cut_off(count)
    with pytest.raises(LogCorruptError, match="acknowledged"):
        case.open()


def test_what_was_not_synced_may_be_gone(case: Case) -> None:
    if case.cut_off is None:
        pytest.skip("kept in memory")
    log = case.open()
    log.append(entries(1, 3))
    log.sync()
    log.append(entries(4, 6))
    log.close()
    case.cut_off(1)
    log = case.open()
    assert list(log.read()) == entries(1, 3)
    log.close()


def test_a_log_that_begins_anew_is_empty_for_good(case: Case) -> None:
    log = case.open()
    for first in range(1, 30, 3):
        log.append(entries(first, first + 2))
    log.sync()
    log.restart_at(0)
    assert log.last_index == 0
    assert list(log.read()) == []
    case.lose_power(log)
    log = case.open()
    assert log.last_index == 0
    log.append(entries(1, 2))
    log.sync()
    case.lose_power(log)
    assert list(case.open().read()) == entries(1, 2)


def test_a_reader_sees_what_was_there_when_it_began(case: Case) -> None:
    log = case.open()
    log.append(entries(1, 20))
    log.sync()
    reader = log.read(5)
    assert next(reader) == entry(6)
    log.append(entries(21, 40))
    log.sync()
    assert list(reader) == entries(7, 20)


# --- cutting off -------------------------------------------------------------------------------------------------


def filled(case: Case, last: int, step: int = 3) -> EventLog:
    """A log with synced entries 1 to `last`, in commits of `step` entries."""
    log = case.open()
    for first in range(1, last + 1, step):
        log.append(entries(first, min(last, first + step - 1)))
        log.sync()
    return log


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 17, 18, 19, 28, 29])
def test_what_is_cut_off_never_comes_back(case: Case, index: int) -> None:
    """At the border of a commit and within, in the last segment and over segments."""
    log = filled(case, 30)
    log.truncate_after(index)
    assert (log.first_index, log.last_index) == (1, index)
    assert list(log.read()) == entries(1, index)
    case.lose_power(log)
    log = case.open()
    assert list(log.read()) == entries(1, index)
    log.append([entry(index + 1, term=2)])
    log.sync()
    case.lose_power(log)
    log = case.open()
    assert list(log.read()) == [*entries(1, index), entry(index + 1, term=2)]


def test_other_entries_take_the_place_of_those_that_were_cut_off(case: Case) -> None:
    log = filled(case, 30)
    expected = entries(1, 30)
    for term, index in enumerate((22, 20, 25, 8, 9, 3, 0), start=2):
        log.truncate_after(index)
        group = [entry(number, term=term) for number in range(index + 1, index + 11)]
        log.append(group)
        log.sync()
        expected = [*expected[:index], *group]
        assert list(log.read()) == expected
    case.lose_power(log)
    assert list(case.open().read()) == expected


def test_cutting_off_nothing_changes_nothing(case: Case) -> None:
    log = filled(case, 9)
    log.truncate_after(9)
    log.truncate_after(100)
    assert list(log.read()) == entries(1, 9)


def test_unsynced_entries_may_be_cut_off(case: Case) -> None:
    log = filled(case, 5)
    log.append(entries(6, 12))
    log.truncate_after(8)
    assert list(log.read()) == entries(1, 8)
    log.append([entry(9, term=2)])
    log.sync()
    case.lose_power(log)
    assert list(case.open().read()) == [*entries(1, 8), entry(9, term=2)]


def test_what_was_cut_off_unsynced_stays_away(case: Case) -> None:
    log = filled(case, 5)
    log.append(entries(6, 12))
    log.truncate_after(8)
    case.lose_power(log)
    assert list(case.open().read()) in (entries(1, 5), entries(1, 8))


# --- compacting --------------------------------------------------------------------------------------------------


def test_what_is_compacted_is_forgotten_from_the_front(case: Case) -> None:
    log = filled(case, 60)
    log.compact(20)
    first = log.first_index
    assert 1 < first <= 21
    assert log.last_index == 60
    assert list(log.read()) == entries(first, 60)
    assert list(log.read(40)) == entries(41, 60)
    case.lose_power(log)
    log = case.open()
    assert log.first_index == first
    log.compact(45)
    assert first < log.first_index <= 46
    log.append(entries(61, 63))
    log.sync()
    case.lose_power(log)
    log = case.open()
    assert list(log.read()) == entries(log.first_index, 63)


def test_compacting_again_or_less_changes_nothing(case: Case) -> None:
    log = filled(case, 60)
    log.compact(30)
    first = log.first_index
    log.compact(30)
    log.compact(5)
    log.compact(-100)
    assert log.first_index == first
    assert list(log.read()) == entries(first, 60)


def test_a_compacted_log_may_be_cut_off_where_it_is_kept_and_not_before(case: Case) -> None:
    log = filled(case, 60)
    log.compact(30)
    first = log.first_index
    with pytest.raises(ValueError, match="compacted"):
        log.truncate_after(first - 2)
    assert list(log.read()) == entries(first, 60)
    log.truncate_after(first - 1)
    assert (log.first_index, log.last_index) == (first, first - 1)
    assert list(log.read()) == []
    case.lose_power(log)
    log = case.open()
    assert (log.first_index, log.last_index) == (first, first - 1)
    log.append([entry(first, term=2)])
    log.sync()
    case.lose_power(log)
    assert list(case.open().read()) == [entry(first, term=2)]


# --- restarting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 7, 30, 5000])
def test_a_restarted_log_goes_on_where_it_was_told(case: Case, index: int) -> None:
    log = filled(case, 30)
    log.restart_at(index)
    for _ in range(2):
        assert (log.first_index, log.last_index) == (index + 1, index)
        assert list(log.read()) == []
        with pytest.raises(LogOrderError):
            log.append([entry(index + 2)])
        case.lose_power(log)
        log = case.open()
    log.append(entries(index + 1, index + 4))
    log.sync()
    case.lose_power(log)
    log = case.open()
    assert log.first_index == index + 1
    assert list(log.read()) == entries(index + 1, index + 4)


def test_a_restarted_log_may_be_restarted_cut_off_and_compacted(case: Case) -> None:
    log = filled(case, 30)
    log.restart_at(100)
    for first in range(101, 160, 3):
        log.append(entries(first, first + 2))
        log.sync()
    log.compact(120)
    log.truncate_after(150)
    assert list(log.read()) == entries(log.first_index, 150)
    log.restart_at(40)
    assert log.last_index == 40
    case.lose_power(log)
    log = case.open()
    assert (log.first_index, log.last_index) == (41, 40)


def test_work_that_is_in_no_hurry_comes_to_an_end_and_changes_nothing(case: Case) -> None:
    log = filled(case, 60)
    for _ in range(100):
        if not log.tidy():
            break
    else:
        pytest.fail("there is always more")
    assert list(log.read()) == entries(1, 60)
    assert list(log.read(25)) == entries(26, 60)
    log.truncate_after(10)
    log.append(entries(11, 14))
    log.sync()
    case.lose_power(log)
    assert list(case.open().read()) == entries(1, 14)
