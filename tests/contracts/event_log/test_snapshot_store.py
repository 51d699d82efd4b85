"""What every SnapshotStore promises, whatever it is kept in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from exo.cluster.log.base import SnapshotStore
from exo.cluster.log.files import DiskFiles
from exo.cluster.log.memory import MemorySnapshotStore
from exo.cluster.log.snapshots import FileSnapshotStore
from support.entries import snapshot
from support.power_loss import PowerLossFiles

Reopen = Callable[[], SnapshotStore]
"""Opens the store; from the second time on after a loss of power."""


@pytest.fixture(params=["memory", "files on disk", "files over power loss"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    if request.param == "memory":
        store = MemorySnapshotStore()
        return lambda: store
    if request.param == "files on disk":
        return lambda: FileSnapshotStore(DiskFiles(tmp_path / "log"), "log")
    files = PowerLossFiles()

    def reopened() -> SnapshotStore:
        files.lose_power()
        return FileSnapshotStore(files, "log")

    return reopened


def test_a_new_store_holds_nothing(reopen: Reopen) -> None:
    store = reopen()
    assert store.load() is None
    assert not store.is_staged
    assert store.load_staged() is None
    store.adopt()
    assert store.load() is None


def test_the_newest_snapshot_is_there(reopen: Reopen) -> None:
    store = reopen()
    for index in (3, 200, 1000):
        store.save(snapshot(index))
        assert store.load() == snapshot(index)
        assert reopen().load() == snapshot(index)
        store = reopen()


def test_the_newest_is_the_one_saved_last_not_the_one_with_the_highest_index(reopen: Reopen) -> None:
    store = reopen()
    store.save(snapshot(1000))
    store.save(snapshot(20, term=9))
    assert reopen().load() == snapshot(20, term=9)


def test_a_large_snapshot_comes_back(reopen: Reopen) -> None:
    large = snapshot(7, data=bytes(range(256)) * 20_000)
    reopen().save(large)
    assert reopen().load() == large


def test_what_is_staged_counts_once_it_is_adopted(reopen: Reopen) -> None:
    reopen().save(snapshot(10))
    reopen().stage(snapshot(500, term=3))
    store = reopen()
    assert store.is_staged
    assert store.load_staged() == snapshot(500, term=3)
    assert store.load() == snapshot(10)
    store.adopt()
    for _ in range(2):
        assert store.load() == snapshot(500, term=3)
        assert not store.is_staged
        store = reopen()


def test_that_there_is_to_be_none_can_be_staged(reopen: Reopen) -> None:
    reopen().save(snapshot(10))
    reopen().stage(None)
    store = reopen()
    assert store.is_staged
    assert store.load_staged() is None
    assert store.load() == snapshot(10)
    store.adopt()
    for _ in range(2):
        assert store.load() is None
        assert not store.is_staged
        store = reopen()
    store.save(snapshot(11))
    assert reopen().load() == snapshot(11)


def test_what_was_staged_is_void_after_a_save(reopen: Reopen) -> None:
    reopen().stage(snapshot(10))
    reopen().save(snapshot(20))
    store = reopen()
    assert not store.is_staged
    store.adopt()
    assert store.load() == snapshot(20)
