"""The segment log on damaged, torn, full and newer disks."""

import errno
import logging
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from exo.cluster.log import format
from exo.cluster.log.checksum import crc32c
from exo.cluster.log.mark import MARK_NAME
from exo.cluster.log.segments import SegmentLog
from exo.shared.errors import ConfigurationError, LogCorruptError
from support.entries import entries, entry
from support.power_loss import FixedFile, PowerLossFiles

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


def reopened(files: PowerLossFiles) -> list:
    return list(SegmentLog(HERE, files=files).read())


def test_a_flipped_byte_before_good_frames_is_refused() -> None:
    files = written(entries(1, 3), entries(4, 6), entries(7, 9))
    name = files.names()[0]
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
    name = files.names()[0]
    damaged = bytearray(files.read(name))
    damaged[position % len(damaged)] ^= flip
    files.overwrite(name, bytes(damaged))
    with pytest.raises(LogCorruptError):
        reopened(files)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_any_flipped_byte_is_refused_or_costs_only_the_unsynced_frame(position: int, flip: int) -> None:
    files = written(entries(1, 3), entries(4, 6), entries(7, 9), synced_count=2)
    name = files.names()[0]
    damaged = bytearray(files.read(name))
    damaged[position % len(damaged)] ^= flip
    files.overwrite(name, bytes(damaged))
    try:
        assert reopened(files) == entries(1, 6)
    except LogCorruptError:
        pass


@given(st.integers(min_value=0))
def test_any_cut_keeps_every_whole_frame_or_is_refused(cut: int) -> None:
    files = written(entries(1, 3), entries(4, 6), entries(7, 9), synced_count=1)
    name = files.names()[0]
    whole = files.read(name)
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
    name = files.names()[0]
    files.overwrite(name, files.read(name)[:-5])
    assert reopened(files) == entries(1, 3)
    assert len(warnings) == 1 and "torn tail" in warnings[0] and "behind entry 3" in warnings[0]
    assert reopened(files) == entries(1, 3)
    assert len(warnings) == 1, "it is cut off once"


# --- the mark of what was acknowledged ---------------------------------------------------------------------------


@pytest.mark.parametrize("segment_bytes", [10, 10**6])
def test_an_acknowledged_end_that_is_gone_is_refused(segment_bytes: int) -> None:
    """A flipped bit in the last frame, a frame cut off, a whole segment missing."""

    def damage_bit(files: PowerLossFiles, last: str) -> None:
        data = bytearray(files.read(last))
        data[-3] ^= 1
        files.overwrite(last, bytes(data))

    def cut_off(files: PowerLossFiles, last: str) -> None:
        files.overwrite(last, files.read(last)[:-40])

    def remove(files: PowerLossFiles, last: str) -> None:
        files.remove(last)

    for damage in (damage_bit, cut_off, remove):
        files = written(entries(1, 3), entries(4, 6), segment_bytes=segment_bytes)
        damage(files, segments(files)[-1])
        with pytest.raises(LogCorruptError, match="entries up to 6 were acknowledged"):
            reopened(files)


def test_a_mark_with_one_bad_slot_still_holds() -> None:
    for slot in (0, 64):
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


@pytest.mark.parametrize("kept_bytes", range(0, 21, 4))
def test_power_may_go_between_the_entries_and_the_mark(
    kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = written(entries(1, 3), entries(4, 5))
    log = SegmentLog(HERE, files=files)
    log.append([entry(6)])
    with monkeypatch.context() as patch:
        patch.setattr(FixedFile, "is_sync_failing", True)
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
    name = files.names()[0]
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
    files.overwrite(middle, whole[:-1])
    with pytest.raises(LogCorruptError, match="damaged"):
        reopened(files)
    files.remove(middle)
    with pytest.raises(LogCorruptError, match="gap"):
        reopened(files)
    files.create(middle)
    files.overwrite(middle, whole)
    assert reopened(files) == entries(1, 9)
    files.remove(first)
    with pytest.raises(LogCorruptError, match="gap"):
        reopened(files)


def test_a_newer_format_is_refused_by_name() -> None:
    files = written(entries(1, 3))
    name = files.names()[0]
    header = struct.pack(">6sH", format.MAGIC, format.VERSION + 1)
    header += struct.pack(">I", crc32c(header))
    files.overwrite(name, header + files.read(name)[format.HEADER_BYTES :])
    with pytest.raises(LogCorruptError, match="newer release"):
        reopened(files)


def test_an_unknown_event_is_refused_by_name() -> None:
    files = written(entries(1, 3))
    name = files.names()[0]
    value = msgspec.to_builtins(entry(4))
    value["event"] = {"type": "ThingOfTheFuture", "colour": "blue"}
    payload = msgspec.msgpack.encode([value])
    checked = struct.pack(">IQI", len(payload), 4, 1)
    frame = format.MARKER + checked + struct.pack(">I", crc32c(checked + payload)) + payload
    files.overwrite(name, files.read(name) + frame)
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
    for action in (lambda: log.append(entries(4, 6)), log.sync, log.reset):
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


@pytest.mark.parametrize("are_names_kept", [False, True])
@pytest.mark.parametrize("stops_at", range(5))
def test_a_reset_that_is_interrupted_ends_whole_or_empty(stops_at: int, are_names_kept: bool) -> None:
    class Interrupted(Exception):
        pass

    class Files(PowerLossFiles):
        steps = -(10**6)

        def remove(self, name: str) -> None:
            self._step()
            super().remove(name)

        def sync_names(self) -> None:
            self._step()
            super().sync_names()

        def _step(self) -> None:
            self.steps += 1
            if self.steps > stops_at:
                raise Interrupted

    files = Files()
    log = SegmentLog(HERE, files=files, segment_bytes=10)
    for first in (1, 4, 7):
        log.append(entries(first, first + 2))
        log.sync()
    files.steps = 0
    with pytest.raises(Interrupted):
        log.reset()
    files.steps = -(10**6)
    files.lose_power(are_names_kept=are_names_kept)
    assert reopened(files) in ([], entries(1, 9))


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
