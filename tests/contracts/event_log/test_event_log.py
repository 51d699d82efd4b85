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
from support.power_loss import PowerLossFiles

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
    last = max(name for name in files.names() if name.endswith(".log"))
    files.truncate(last, len(files.read(last)) - count)


def test_a_new_log_is_empty(case: Case) -> None:
    log = case.open()
    assert log.last_index == 0
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


def test_a_reset_log_is_empty_for_good_and_begins_again(case: Case) -> None:
    log = case.open()
    for first in range(1, 30, 3):
        log.append(entries(first, first + 2))
    log.sync()
    log.reset()
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
