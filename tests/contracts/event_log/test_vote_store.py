"""What every VoteStore promises, whatever it is kept in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from exo.cluster.log.base import VoteStore
from exo.cluster.log.files import DiskFiles
from exo.cluster.log.memory import MemoryVoteStore
from exo.cluster.log.votes import FileVoteStore
from exo.cluster.raft.steps import HardState
from exo.shared.types.ids import NodeId
from support.power_loss import PowerLossFiles

Reopen = Callable[[], VoteStore]
"""Opens the store; from the second time on after a loss of power."""


@pytest.fixture(params=["memory", "file on disk", "file over power loss"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Reopen:
    if request.param == "memory":
        store = MemoryVoteStore()
        return lambda: store
    if request.param == "file on disk":
        return lambda: FileVoteStore(DiskFiles(tmp_path / "log"), "log")
    files = PowerLossFiles()

    def reopened() -> VoteStore:
        files.lose_power()
        return FileVoteStore(files, "log")

    return reopened


def test_a_new_store_knows_of_no_term(reopen: Reopen) -> None:
    store = reopen()
    assert store.load() == HardState()
    store.close()
    assert reopen().load() == HardState()


def test_what_was_saved_last_is_there(reopen: Reopen) -> None:
    for term in (1, 2, 3, 70_000, 2**40):
        for voted_for in (None, NodeId("a"), NodeId("b" * 64)):
            store = reopen()
            hard_state = HardState(term=term, voted_for=voted_for)
            store.save(hard_state)
            assert store.load() == hard_state
            store.close()
            store = reopen()
            assert store.load() == hard_state
            store.close()


def test_a_lower_term_can_be_saved(reopen: Reopen) -> None:
    """A node that leaves its cluster begins anew."""
    store = reopen()
    store.save(HardState(term=9, voted_for=NodeId("a")))
    store.save(HardState())
    store.close()
    store = reopen()
    assert store.load() == HardState()
    store.close()


def test_saving_the_same_again_changes_nothing(reopen: Reopen) -> None:
    store = reopen()
    store.save(HardState(term=4))
    store.save(HardState(term=4))
    store.close()
    store = reopen()
    assert store.load() == HardState(term=4)
    store.close()
