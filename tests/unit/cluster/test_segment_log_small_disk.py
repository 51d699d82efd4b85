"""The log on a real disk that really fills up, and on one that cannot be written."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.cluster.log.segments import SegmentLog
from exo.cluster.log.store import open_store
from exo.cluster.raft.steps import HardState, Write
from exo.shared.errors import LogCorruptError
from exo.shared.types.events import LogEntry, NodeDisconnected
from exo.shared.types.ids import NodeId
from support.entries import entries, entry, snapshot

pytestmark = pytest.mark.privileged

SIZE_BYTES = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one mebibyte."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", path],
        check=False,
        capture_output=True,
        text=True,
    )
    if mount.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mount.stderr.strip()}")
    yield path
    # A test that failed may have left files open.
    subprocess.run(["umount", "--lazy", path], check=True)


def long_entry(index: int, size_bytes: int) -> LogEntry:
    return entry(index, event=NodeDisconnected(node_id=NodeId("n"), reason="x" * size_bytes))


@pytest.mark.parametrize("entry_bytes", [100, 5000, 300_000])
def test_a_disk_that_fills_up_keeps_everything_acknowledged(disk: Path, entry_bytes: int) -> None:
    """In the zeros ahead of the entries, and in the middle of a commit that is larger than those."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(20_000))  # Less than what a log fills ahead.
    log = SegmentLog(disk / "log", segment_bytes=200_000)
    acknowledged: list[LogEntry] = []
    with pytest.raises(OSError) as failure:
        while True:
            one = long_entry(log.last_index + 1, entry_bytes)
            log.append([one])
            log.sync()
            acknowledged.append(one)
    assert failure.value.errno == errno.ENOSPC
    assert len(acknowledged) >= 2
    with pytest.raises(OSError, match="failed before"):
        log.append([long_entry(log.last_index + 1, 10)])
    log.close()
    log = SegmentLog(disk / "log", segment_bytes=200_000)  # It needs no room to be opened.
    found = list(log.read())
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) - len(acknowledged) in (0, 1)
    ballast.unlink()
    log.append([long_entry(log.last_index + 1, 10)])
    log.sync()
    log.close()
    log = SegmentLog(disk / "log", segment_bytes=200_000)
    assert log.last_index == len(found) + 1
    log.close()


def test_a_full_disk_lets_the_log_be_cut_off_and_compacted(disk: Path) -> None:
    log = SegmentLog(disk / "log", segment_bytes=2000)
    log.append(entries(1, 20))
    log.sync()
    log.append(entries(21, 40))
    log.sync()
    ballast = (disk / "ballast").open("wb", buffering=0)
    with pytest.raises(OSError):
        while True:
            ballast.write(bytes(4096))
    ballast.close()
    log.truncate_after(40)
    log.compact(20)
    assert log.first_index == 21
    log.truncate_after(20)
    log.close()
    log = SegmentLog(disk / "log")
    assert (log.first_index, log.last_index) == (21, 20)
    log.close()


def test_without_room_a_vote_is_kept_and_a_snapshot_leaves_the_one_before(disk: Path) -> None:
    store = open_store(disk / "log", segment_bytes=2000)
    for first in range(1, 40, 10):
        store.apply_writes([Write(number=first, entries=tuple(entries(first, first + 9)))])
    store.save_local_snapshot(snapshot(10))
    (disk / "ballast").write_bytes(bytes(SIZE_BYTES - sum(f.stat().st_blocks * 512 for f in disk.rglob("*"))))
    store.votes.save(HardState(term=7, voted_for=NodeId("b")))
    large = snapshot(30, data=os.urandom(200_000))
    with pytest.raises(OSError) as failure:
        store.save_local_snapshot(large)
    assert failure.value.errno == errno.ENOSPC
    assert not store.tidy(), "no room for a compressed copy: said in the log, and left"
    store.close()
    (disk / "ballast").unlink()
    store = open_store(disk / "log")
    assert store.votes.load() == HardState(term=7, voted_for=NodeId("b"))
    assert store.snapshots.load() == snapshot(10)
    assert list(store.log.read()) == entries(1, 40)
    store.save_local_snapshot(large)
    assert store.snapshots.load() == large
    store.close()


def test_a_disk_that_cannot_be_written_is_refused_in_words(disk: Path) -> None:
    store = open_store(disk / "log")
    store.apply_writes([Write(number=1, entries=tuple(entries(1, 3)))])
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for directory in (disk / "log", disk / "new"):
        with pytest.raises(OSError, match="Read-only file system") as failure:
            open_store(directory)
        assert failure.value.errno == errno.EROFS
        assert str(directory) in str(failure.value)
        assert not isinstance(failure.value, LogCorruptError)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    store = open_store(disk / "log")
    assert list(store.log.read()) == entries(1, 3)
    store.close()
