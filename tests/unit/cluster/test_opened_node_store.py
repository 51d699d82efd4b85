"""What a node finds in its data directory: a damaged log costs it the vote before the log is set aside."""

from pathlib import Path

import pytest

from exo import node_store
from exo.cluster.last_seen import LastSeen, write_last_seen
from exo.cluster.log.store import open_store
from exo.cluster.raft.steps import HardState
from exo.node_store import VOTELESS_FILE, open_node_store, regain_vote
from exo.shared.errors import LogCorruptError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.entries import entries

A, B = NodeId("a"), NodeId("b")
VOTED = HardState(term=7, voted_for=B)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A data directory whose log has a bad frame with good ones behind it."""
    store = open_store(tmp_path / "log")
    for first in range(1, 10, 3):
        store.log.append(entries(first, first + 2))
        store.log.sync()
    store.votes.save(VOTED)
    store.close()
    segment = next((tmp_path / "log").glob("*.log"))
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)
    return tmp_path


def test_without_another_node_a_damaged_log_is_left_as_it_is(damaged: Path) -> None:
    with pytest.raises(LogCorruptError):
        open_node_store(damaged, A)
    assert not (damaged / VOTELESS_FILE).exists()


def test_the_vote_is_lost_durably_before_the_log_is_set_aside(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_last_seen(damaged, LastSeen(members={A: HostPort("127.0.0.1", 1), B: HostPort("127.0.0.1", 2)}))
    happened: list[str] = []
    really_set_aside, really_sync = node_store.set_aside, node_store.sync_directory

    def sync(folder: Path) -> None:
        if folder == damaged:
            happened.append(f"synced, noted: {(damaged / VOTELESS_FILE).exists()}")
        really_sync(folder)

    def set_aside(folder: Path) -> Path:
        happened.append("set aside")
        return really_set_aside(folder)

    monkeypatch.setattr(node_store, "sync_directory", sync)
    monkeypatch.setattr(node_store, "set_aside", set_aside)
    opened = open_node_store(damaged, A)
    assert opened.is_voteless and opened.store.log.last_index == 0
    assert happened == ["synced, noted: True", "set aside"]
    opened.store.close()
    again = open_node_store(damaged, A)
    assert again.is_voteless
    again.store.close()
    regain_vote(damaged)
    whole = open_node_store(damaged, A)
    assert not whole.is_voteless
    whole.store.close()


def test_the_term_is_remembered_though_the_log_is_lost(damaged: Path) -> None:
    write_last_seen(damaged, LastSeen(members={A: HostPort("127.0.0.1", 1), B: HostPort("127.0.0.1", 2)}))
    for _ in range(2):  # The second time as after a crash between setting the log aside and remembering.
        opened = open_node_store(damaged, A)
        assert opened.is_voteless and opened.store.log.last_index == 0
        assert opened.store.votes.load() == VOTED
        opened.store.votes.save(HardState())
        opened.store.close()


def test_a_vote_that_cannot_be_read_any_more_keeps_no_node_from_starting(damaged: Path) -> None:
    write_last_seen(damaged, LastSeen(members={A: HostPort("127.0.0.1", 1), B: HostPort("127.0.0.1", 2)}))
    (damaged / "log" / "vote").write_bytes(b"x" * 200)
    opened = open_node_store(damaged, A)
    assert opened.is_voteless and opened.store.votes.load() == HardState()
    opened.store.close()
