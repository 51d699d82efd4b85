"""The segment log on damaged, torn, full and newer disks."""

import contextlib
import errno
import logging
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from exo.cluster.log import format
from exo.cluster.log.checksum import crc32c
from exo.cluster.log.errors import LogReplacedError
from exo.cluster.log.mark import MARK_NAME
from exo.cluster.log.packed import pack
from exo.cluster.log.segments import SegmentLog
from exo.cluster.log.slots import TwoSlots
from exo.shared.errors import ConfigurationError, LogCorruptError
from support.crashing import crashes
from support.entries import entries, entry
from support.power_loss import PowerLossFiles, PowerLost, cut_content

HERE = Path("somewhere")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the log said to people."""
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(str(message)), level=logging.WARNING)
    yield lines
    logger.remove(handle)


def written(*groups: list, segment_bytes: int = 10**6, synced_count: int | None = None) -> PowerLossFiles:
    """A disk with one frame per group, of which the first `synced_count` (or all) were synced."""
    files = PowerLossFiles()
    log = SegmentLog(HERE, files=files, segment_bytes=segment_bytes)
    for number, group in enumerate(groups):
        log.append(group)
        if synced_count is None or number < synced_count:
            log.sync()
    return files


def segments(files: PowerLossFiles) -> list[str]:
    return [name for name in files.names() if name.endswith(".log")]


def content(files: PowerLossFiles, name: str) -> bytes:
    """What was written to a file, without the zeros that were there before."""
    data = files.read(name)
    return data[: max((frame.end for frame in format.scan(data)), default=0)]


def reopened(files: PowerLossFiles) -> list:
    return list(SegmentLog(HERE, files=files).read())


def test_a_flipped_byte_before_good_frames_is_refused() -> None:
    files = written(entries(1, 3), entries(4, 6), entries(7, 9))
    name = segments(files)[0]
    good = files.read(name)
    frames = list(format.scan(good))
    for position in (0, 7, format.HEADER_BYTES, frames[0].payload_start + 5, frames[1].end - 1):
        damaged = bytearray(good)
        damaged[position] ^= 0x40
        files.overwrite(name, bytes(damaged))
        with pytest.raises(LogCorruptError, match="damaged"):
            reopened(files)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_any_flipped_byte_of_what_was_synced_is_refused(position: int, flip: int) -> None:
    files = written(entries(1, 3), entries(4, 6), entries(7, 9))
    name = segments(files)[0]
    damaged = bytearray(files.read(name))
    damaged[position % len(content(files, name))] ^= flip
    files.overwrite(name, bytes(damaged))
    with pytest.raises(LogCorruptError):
        reopened(files)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_any_flipped_byte_is_refused_or_costs_only_the_unsynced_frame(position: int, flip: int) -> None:
    files = written(entries(1, 3), entries(4, 6), entries(7, 9), synced_count=2)
    name = segments(files)[0]
    damaged = bytearray(files.read(name))
    damaged[position % len(content(files, name))] ^= flip
    files.overwrite(name, bytes(damaged))
    try:
        assert reopened(files) == entries(1, 6)
    except LogCorruptError:
        pass


@given(st.integers(min_value=0))
def test_any_cut_keeps_every_whole_frame_or_is_refused(cut: int) -> None:
    files = written(entries(1, 3), entries(4, 6), entries(7, 9), synced_count=1)
    name = segments(files)[0]
    whole = content(files, name)
    cut %= len(whole) + 1
    files.overwrite(name, whole[:cut])
    count = sum(frame.entry_count for frame in format.scan(whole) if frame.end <= cut)
    if count < 3:
        with pytest.raises(LogCorruptError, match="entries up to 3 were acknowledged"):
            reopened(files)
        assert files.read(name) == whole[:cut], "nothing is cut off what may still be mended"
        return
    log = SegmentLog(HERE, files=files)
    assert list(log.read()) == entries(1, count)
    log.append([entry(count + 1)])
    log.sync()
    assert reopened(files) == entries(1, count + 1)


def test_a_torn_tail_is_cut_off_with_a_warning(warnings: list[str]) -> None:
    files = written(entries(1, 3), entries(4, 6), synced_count=1)
    name = segments(files)[0]
    cut_content(files, name, 5)
    assert reopened(files) == entries(1, 3)
    assert len(warnings) == 1 and "torn tail" in warnings[0] and "behind entry 3" in warnings[0]
    assert reopened(files) == entries(1, 3)
    assert len(warnings) == 1, "it is cut off once"


# --- the mark of what was acknowledged ---------------------------------------------------------------------------


@pytest.mark.parametrize("segment_bytes", [10, 10**6])
def test_an_acknowledged_end_that_is_gone_is_refused(segment_bytes: int) -> None:
    """A flipped bit in the last frame, a frame cut off, a whole segment missing."""

    def damage_bit(files: PowerLossFiles, last: str) -> None:
        data = bytearray(content(files, last))
        data[-3] ^= 1
        files.overwrite(last, bytes(data))

    def cut_off(files: PowerLossFiles, last: str) -> None:
        cut_content(files, last, 40)

    def remove(files: PowerLossFiles, last: str) -> None:
        files.remove(last)

    for damage in (damage_bit, cut_off, remove):
        files = written(entries(1, 3), entries(4, 6), segment_bytes=segment_bytes)
        damage(files, segments(files)[-1])
        with pytest.raises(LogCorruptError, match="entries up to 6 were acknowledged"):
            reopened(files)


def test_a_mark_with_one_bad_slot_still_holds() -> None:
    for slot in (0, 4096):
        files = written(entries(1, 3), entries(4, 6))
        mark = bytearray(files.read(MARK_NAME))
        mark[slot] ^= 1
        files.overwrite(MARK_NAME, bytes(mark))
        assert reopened(files) == entries(1, 6)


def test_a_mark_that_cannot_be_read_is_refused_and_one_that_is_gone_is_made_anew(warnings: list[str]) -> None:
    files = written(entries(1, 3))
    files.overwrite(MARK_NAME, b"x" * len(files.read(MARK_NAME)))
    with pytest.raises(LogCorruptError, match="delete that file"):
        reopened(files)
    files.remove(MARK_NAME)
    assert reopened(files) == entries(1, 3)
    assert len(warnings) == 1 and "trusting what is there" in warnings[0]
    files.remove(segments(files)[0])
    with pytest.raises(LogCorruptError, match="up to 3 were acknowledged"):
        reopened(files)


@pytest.mark.parametrize("kept_bytes", range(0, 41, 4))
def test_power_may_go_between_the_entries_and_the_mark(kept_bytes: int) -> None:
    files = written(entries(1, 3), entries(4, 5))
    log = SegmentLog(HERE, files=files)
    log.append([entry(6)])
    files.names_that_fail_to_sync.add(MARK_NAME)
    with pytest.raises(OSError):
        log.sync()
    files.lose_power(kept_bytes=kept_bytes)
    assert reopened(files) == entries(1, 6)


def test_what_was_found_at_the_start_is_synced_before_it_is_acted_on() -> None:
    """The process died between writing and syncing; the next one serves these entries, and then the power goes."""
    files = written(entries(1, 3), entries(4, 6), synced_count=1)
    assert reopened(files) == entries(1, 6)
    files.lose_power()
    assert reopened(files) == entries(1, 6)


def test_zeros_at_the_end_are_a_torn_tail() -> None:
    files = written(entries(1, 3))
    name = segments(files)[0]
    files.overwrite(name, files.read(name) + bytes(4096))
    assert reopened(files) == entries(1, 3)


def test_a_torn_new_segment_is_dropped() -> None:
    files = written(entries(1, 3), entries(4, 6), segment_bytes=10, synced_count=1)
    last = segments(files)[-1]
    for size in (0, 3, format.HEADER_BYTES):
        files.overwrite(last, files.read(last)[:size])
        log = SegmentLog(HERE, files=files, segment_bytes=10)
        assert list(log.read()) == entries(1, 3)
        log.append(entries(4, 6))
        assert list(log.read()) == entries(1, 6)
        last = segments(files)[-1]


def test_a_torn_segment_in_the_middle_and_a_missing_one_are_refused() -> None:
    files = written(entries(1, 3), entries(4, 6), entries(7, 9), segment_bytes=10)
    first, middle, _ = segments(files)
    whole = files.read(middle)
    cut_content(files, middle, 1)
    with pytest.raises(LogCorruptError, match="damaged"):
        reopened(files)
    files.remove(middle)
    with pytest.raises(LogCorruptError, match="gap"):
        reopened(files)
    files.overwrite(middle, whole)
    assert reopened(files) == entries(1, 9)
    files.remove(first)
    with pytest.raises(LogCorruptError, match="gap"):
        reopened(files)


def test_a_newer_format_is_refused_by_name() -> None:
    files = written(entries(1, 3))
    name = segments(files)[0]
    header = struct.pack(">6sH", format.MAGIC, format.VERSION + 1)
    header += struct.pack(">I", crc32c(header))
    files.overwrite(name, header + files.read(name)[format.HEADER_BYTES :])
    with pytest.raises(LogCorruptError, match="newer release"):
        reopened(files)


def test_an_unknown_event_is_refused_by_name() -> None:
    files = written(entries(1, 3))
    name = segments(files)[0]
    value = msgspec.to_builtins(entry(4))
    value["event"] = {"type": "ThingOfTheFuture", "colour": "blue"}
    payload = msgspec.msgpack.encode([value])
    checked = struct.pack(">IQI", len(payload), 4, 1)
    frame = format.MARKER + checked + struct.pack(">I", crc32c(checked + payload)) + payload
    files.overwrite(name, content(files, name) + frame)
    with pytest.raises(LogCorruptError, match="newer release"):
        reopened(files)


def test_a_full_disk_keeps_what_was_acknowledged_and_takes_no_more() -> None:
    files = PowerLossFiles()
    log = SegmentLog(HERE, files=files)
    log.append(entries(1, 3))
    log.sync()
    files.room_bytes = 40
    with pytest.raises(OSError) as full:
        log.append(entries(4, 6))
    assert full.value.errno == errno.ENOSPC
    files.room_bytes = None
    for action in (lambda: log.append(entries(4, 6)), log.sync, lambda: log.restart_at(0)):
        with pytest.raises(OSError) as later:
            action()
        assert later.value.errno == errno.ENOSPC, "room again or not: what the disk holds is not known"
    assert reopened(files) == entries(1, 3)


def test_a_full_disk_at_a_new_segment_keeps_what_was_acknowledged() -> None:
    files = PowerLossFiles()
    log = SegmentLog(HERE, files=files, segment_bytes=10)
    log.append(entries(1, 3))
    log.sync()
    files.room_bytes = 5
    with pytest.raises(OSError):
        log.append(entries(4, 6))
    files.lose_power(kept_bytes=3, are_names_kept=True)
    assert reopened(files) == entries(1, 3)


def test_after_a_failed_sync_nothing_is_promised_again() -> None:
    files = PowerLossFiles()
    log = SegmentLog(HERE, files=files)
    log.append(entries(1, 3))
    log.sync()
    log.append(entries(4, 4))
    files.is_sync_failing = True
    with pytest.raises(OSError):
        log.sync()
    files.is_sync_failing = False
    with pytest.raises(OSError):
        log.sync()
    files.lose_power()
    assert reopened(files) == entries(1, 3)


@given(
    st.lists(st.integers(min_value=1, max_value=5), min_size=1, max_size=12),
    st.integers(min_value=0, max_value=700),
    st.booleans(),
    st.booleans(),
)
def test_power_may_go_at_any_time(
    group_sizes: list[int], kept_bytes: int, are_names_kept: bool, is_last_synced: bool
) -> None:
    files = PowerLossFiles()
    log = SegmentLog(HERE, files=files, segment_bytes=500)
    acknowledged = 0
    for number, size in enumerate(group_sizes):
        log.append(entries(log.last_index + 1, log.last_index + size))
        if is_last_synced or number + 1 < len(group_sizes):
            log.sync()
            acknowledged = log.last_index
    written_index = log.last_index
    files.lose_power(kept_bytes=kept_bytes, are_names_kept=are_names_kept)
    found = reopened(files)
    assert found == entries(1, len(found))
    assert len(found) in (acknowledged, written_index)


# --- crashes in the middle of a step -----------------------------------------------------------------------------


def filled(files: PowerLossFiles, last: int = 30, segment_bytes: int = 10) -> SegmentLog:
    """Entries in synced commits of three, each in a segment of its own unless told otherwise."""
    log = SegmentLog(HERE, files=files, segment_bytes=segment_bytes)
    for first in range(1, last + 1, 3):
        log.append(entries(first, first + 2))
        log.sync()
    return log


@pytest.mark.parametrize(
    ("index", "segment_bytes", "is_packed"),
    [
        (0, 10, False),
        (7, 10, False),
        (12, 900, False),
        (28, 10**6, False),
        (0, 10, True),
        (7, 10, True),
        (12, 900, True),
    ],
)
def test_a_cut_that_is_interrupted_leaves_all_or_nothing(
    index: int, segment_bytes: int, is_packed: bool
) -> None:
    new = [entry(number, term=2) for number in range(index + 1, index + 10)]

    def prepare(files: PowerLossFiles) -> Callable[[], None]:
        log = filled(files, segment_bytes=segment_bytes)
        while is_packed and log.tidy():
            pass

        def action() -> None:
            log.truncate_after(index)
            log.append(new[:4])
            log.append(new[4:])
            log.sync()

        return action

    for files, is_done in crashes(prepare, seeds=2):
        found = reopened(files)
        outcomes = [[*entries(1, index), *new]]
        if not is_done:
            outcomes += [entries(1, 30), entries(1, index), [*entries(1, index), *new[:4]]]
        assert found in outcomes


def test_segments_that_were_cut_off_do_not_come_back_behind_new_ones() -> None:
    """New entries end where an old segment begins, and the power goes before its removal is durable."""
    for seed in range(20):
        files = PowerLossFiles()
        log = filled(files, 12)
        log.truncate_after(4)
        log.append([entry(5, term=2), entry(6, term=2)])
        log.append([entry(7, term=2)])  # In a new file: the one before is synced at that.
        files.lose_power(random=Random(seed))
        found = reopened(files)
        assert found[:4] == entries(1, 4)
        assert all(old.term == 2 for old in found[4:])


@pytest.mark.parametrize("index", [3, 5, 6])
def test_segments_that_were_cut_off_do_not_come_back_at_all(index: int) -> None:
    for seed in range(20):
        files = PowerLossFiles()
        log = filled(files, 12)
        log.truncate_after(index)
        log.sync()
        files.lose_power(random=Random(seed))
        assert reopened(files) == entries(1, index)


def test_a_second_cut_does_not_bring_back_what_the_first_one_cut_off() -> None:
    """The first cut made a new file, whose name is not durable when the second one is noted."""
    for seed in range(20):
        files = PowerLossFiles()
        log = SegmentLog(HERE, files=files, segment_bytes=300)
        log.append(entries(1, 2))
        log.sync()
        log.truncate_after(1)
        log.append([entry(2, term=2)])
        log.append([entry(3, term=2)])
        log.truncate_after(2)
        files.lose_power(random=Random(seed))
        assert reopened(files) in (entries(1, 1), [entry(1), entry(2, term=2)])


@pytest.mark.parametrize("index", [2, 3, 6])
def test_old_segments_do_not_come_back_behind_a_restarted_log(index: int) -> None:
    """An old segment begins where the new log does, or where its first commit ends."""
    for seed in range(20):
        files = PowerLossFiles()
        log = filled(files, 12)
        log.restart_at(index)
        log.sync()
        files.lose_power(random=Random(seed))
        log = SegmentLog(HERE, files=files)
        assert (log.first_index, log.last_index) == (index + 1, index)


def test_what_a_killed_process_left_is_durable_once_it_was_found() -> None:
    """It was killed before the restart it had noted was durable; the next one acts on it, and then the power goes."""
    for steps in range(8):
        files = PowerLossFiles()
        log = SegmentLog(HERE, files=files)
        files.steps_left = 0
        with pytest.raises(PowerLost):
            log.restart_at(7)
        files.stop_process()
        files.steps_left = steps  # The first to open it finishes what was noted, and is killed, too.
        with contextlib.suppress(PowerLost):
            SegmentLog(HERE, files=files)
        files.stop_process()
        assert SegmentLog(HERE, files=files).last_index == 7
        files.lose_power()
        assert SegmentLog(HERE, files=files).last_index == 7


@pytest.mark.parametrize("index", [6, 17, 30])
def test_a_compaction_that_is_interrupted_is_whole_or_undone(index: int) -> None:
    def prepare(files: PowerLossFiles) -> Callable[[], None]:
        log = filled(files)
        log.tidy()
        return lambda: log.compact(index)

    kept = index // 3 * 3 + 1 if index < 30 else 28
    for files, is_done in crashes(prepare):
        assert reopened(files) in ([entries(kept, 30)] if is_done else [entries(1, 30), entries(kept, 30)])


@pytest.mark.parametrize("index", [0, 9, 30, 77])
def test_a_restart_that_is_interrupted_leaves_all_or_nothing(index: int) -> None:
    def prepare(files: PowerLossFiles) -> Callable[[], None]:
        log = filled(files)

        def action() -> None:
            log.restart_at(index)
            log.append([entry(index + 1, term=2)])
            log.sync()

        return action

    for files, is_done in crashes(prepare):
        log = SegmentLog(HERE, files=files, segment_bytes=10)
        found = (log.first_index, list(log.read()))
        outcomes = [(index + 1, [entry(index + 1, term=2)])]
        if not is_done:
            outcomes += [(index + 1, []), (1, entries(1, 30))]
        assert found in outcomes


def test_compressing_that_is_interrupted_changes_nothing() -> None:
    def prepare(files: PowerLossFiles) -> Callable[[], bool]:
        return filled(files, 12).tidy

    for files, _ in crashes(prepare):
        assert reopened(files) == entries(1, 12)
        assert reopened(files) == entries(1, 12), "and again, after it was tidied up"


def test_an_opening_that_is_interrupted_loses_nothing() -> None:
    """In the middle of finishing what a crash had interrupted."""
    for first_crash in range(1, 8):

        def prepare(files: PowerLossFiles, first_crash: int = first_crash) -> Callable[[], object]:
            log = filled(files, 15)
            files.steps_left = first_crash
            with contextlib.suppress(PowerLost):
                log.truncate_after(8)
            files.lose_power(random=Random(first_crash))
            return lambda: SegmentLog(HERE, files=files, segment_bytes=10)

        for files, _ in crashes(prepare, seeds=3):
            assert reopened(files) in (entries(1, 8), entries(1, 15))


# --- compressed segments -----------------------------------------------------------------------------------------


def test_finished_segments_are_compressed_one_at_a_time() -> None:
    files = PowerLossFiles()
    log = filled(files, 12)
    assert [log.tidy() for _ in range(4)] == [True, True, False, False]
    names = [f"{first:020}" for first in (1, 4, 7, 10)]
    assert [name for name in files.names() if name != MARK_NAME] == [
        *(f"{name}.log.zst" for name in names[:3]),
        f"{names[3]}.log",
    ]
    assert list(log.read(4)) == entries(5, 12)
    assert reopened(files) == entries(1, 12)


def test_a_large_segment_becomes_much_smaller() -> None:
    files = PowerLossFiles()
    log = SegmentLog(HERE, files=files, segment_bytes=100_000)
    while len(segments(files)) < 2:
        log.append(entries(log.last_index + 1, log.last_index + 50))
        log.sync()
    raw_bytes = len(content(files, segments(files)[0]))
    assert not log.tidy()
    packed = next(name for name in files.names() if name.endswith(".zst"))
    assert len(files.read(packed)) < raw_bytes / 3
    assert reopened(files) == entries(1, log.last_index)


def test_without_room_for_the_copy_the_log_goes_on() -> None:
    files = PowerLossFiles()
    log = filled(files, 12)
    files.room_bytes = 30
    with pytest.raises(OSError):
        log.tidy()
    files.room_bytes = None
    assert not [name for name in files.names() if name.endswith(".new")]
    log.append([entry(13)])
    log.sync()
    assert log.tidy()
    assert reopened(files) == entries(1, 13)


def test_a_reader_goes_on_while_segments_are_compressed_and_more_is_written() -> None:
    log = filled(PowerLossFiles(), 30)
    reader = log.read(1)
    found = [next(reader)]
    for _ in range(7):
        assert log.tidy()
        found += [next(reader), next(reader)]
        log.append([entry(log.last_index + 1)])
        log.sync()
    assert [*found, *reader] == entries(2, 30)


@pytest.mark.parametrize(
    "change",
    [lambda log: log.truncate_after(20), lambda log: log.compact(25), lambda log: log.restart_at(40)],
)
def test_a_reader_is_told_when_what_it_reads_is_gone(change: Callable[[SegmentLog], None]) -> None:
    log = filled(PowerLossFiles(), 30)
    reader = log.read(1)
    next(reader)
    change(log)
    with pytest.raises(LogReplacedError):
        list(reader)


# --- logs of other releases --------------------------------------------------------------------------------------


def old_directory(*, index: int, is_marked: bool = True, is_to_be_reset: bool = False) -> PowerLossFiles:
    """What the release left behind that knew only format 1: two segments, and how far they were acknowledged."""

    def old_segment(first: int, last: int) -> bytes:
        header = struct.pack(">6sH", format.MAGIC, 1)
        frames = b"".join(format.encode_frame(entries(start, start + 2)) for start in range(first, last, 3))
        return header + struct.pack(">I", crc32c(header)) + frames

    files = PowerLossFiles()
    files.overwrite(f"{1:020}.log", old_segment(1, 6))
    files.overwrite(f"{7:020}.log", old_segment(7, 9))
    if is_marked:
        slots = bytearray(128)
        for number in (4, 5):
            checked = struct.pack(">QQ", number, index - 5 + number)
            struct.pack_into(">16sI", slots, 64 * (number % 2), checked, crc32c(checked))
        files.overwrite("synced", bytes(slots))
    if is_to_be_reset:
        files.overwrite("reset", b"")
    return files


def test_a_log_of_the_release_before_opens_and_goes_on_in_a_new_segment(warnings: list[str]) -> None:
    files = old_directory(index=9)
    old = files.read(f"{7:020}.log")
    log = SegmentLog(HERE, files=files)
    assert list(log.read()) == entries(1, 9)
    assert "synced" not in files.names()
    log.append(entries(10, 11))
    log.sync()
    assert files.read(f"{7:020}.log") == old, "its release would not know what follows"
    while log.tidy():
        pass
    log.compact(7)
    assert reopened(files) == entries(7, 11)
    assert not warnings


def test_what_the_release_before_acknowledged_and_is_gone_is_refused() -> None:
    files = old_directory(index=10)
    with pytest.raises(LogCorruptError, match="ends at entry 9, and entries up to 10"):
        reopened(files)
    assert "synced" in files.names()


def test_a_damaged_mark_of_the_release_before_is_refused() -> None:
    files = old_directory(index=9)
    files.overwrite("synced", b"x" * 128)
    with pytest.raises(LogCorruptError, match=r"synced.* cannot be read"):
        reopened(files)


def test_a_log_of_the_release_before_without_a_mark_is_trusted(warnings: list[str]) -> None:
    assert reopened(old_directory(index=9, is_marked=False)) == entries(1, 9)
    assert len(warnings) == 1 and "trusting what is there" in warnings[0]


def test_a_reset_that_the_release_before_had_begun_is_finished() -> None:
    files = old_directory(index=9, is_to_be_reset=True)
    log = SegmentLog(HERE, files=files)
    assert log.last_index == 0
    log.append(entries(1, 2))
    log.sync()
    assert reopened(files) == entries(1, 2)


def test_moving_to_this_release_may_be_interrupted() -> None:
    for files, _ in crashes(_opening_of_old):
        assert reopened(files) == entries(1, 9)


def _opening_of_old(files: PowerLossFiles) -> Callable[[], object]:
    old = old_directory(index=9)
    for name in old.names():
        files.overwrite(name, old.read(name))
    files.sync_names()
    return lambda: SegmentLog(HERE, files=files)


def test_a_mark_of_a_newer_release_is_refused_by_name() -> None:
    files = filled_files()
    slots = TwoSlots(files, MARK_NAME, kind=b"MARK", version=2, where="x", damage="")
    slots.write(b"something of the future")
    with pytest.raises(LogCorruptError, match=f"{MARK_NAME}.* newer release"):
        reopened(files)


def test_a_compressed_segment_of_a_newer_release_is_refused_by_name() -> None:
    files = filled_files()
    name = f"{1:020}.log.zst"
    files.overwrite(name, pack(b"EXOLOGZ1", 2, b"something of the future"))
    files.remove(f"{1:020}.log")
    with pytest.raises(LogCorruptError, match=f"{name}.* newer release"):
        reopened(files)


def filled_files() -> PowerLossFiles:
    files = PowerLossFiles()
    filled(files, 9)
    return files


# --- one process at a time ---------------------------------------------------------------------------------------


def test_two_logs_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    log = SegmentLog(tmp_path / "log")
    with pytest.raises(ConfigurationError, match="EXO_HOME"):
        SegmentLog(tmp_path / "log")
    log.close()
    SegmentLog(tmp_path / "log").close()


def test_two_processes_exclude_each_other(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from exo.cluster.log.segments import SegmentLog\n"
        "log = SegmentLog(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match=rf"process {holder.pid}"):
            SegmentLog(tmp_path / "log")
    finally:
        holder.kill()
        holder.communicate()
    SegmentLog(tmp_path / "log").close()
