"""What a node finds in its data directory: a damaged log costs it the vote before the log is set aside."""

import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from exo import node_store
from exo.cluster.boot import read_store
from exo.cluster.last_seen import LastSeen, write_last_seen
from exo.cluster.log import format
from exo.cluster.log.checksum import crc32c
from exo.cluster.log.files import DiskFiles
from exo.cluster.log.mark import MARK_NAME
from exo.cluster.log.packed import pack
from exo.cluster.log.slots import TwoSlots
from exo.cluster.log.store import open_store
from exo.cluster.raft.steps import HardState
from exo.node_store import VOTELESS_FILE, open_node_store, regain_vote
from exo.shared.errors import LogCorruptError, LogNewerError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.entries import entries, entry

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


# --- a log of a newer release ----------------------------------------------------------------------------------------


def newer_segments(folder: Path) -> None:
    header = struct.pack(">6sH", format.MAGIC, format.VERSION + 1)
    segment = next(folder.glob("*.log"))
    kept = segment.read_bytes()[format.HEADER_BYTES :]
    segment.write_bytes(header + struct.pack(">I", crc32c(header)) + kept)


def newer_events(folder: Path) -> None:
    value = msgspec.to_builtins(entry(4))
    value["event"] = {"type": "ThingOfTheFuture", "colour": "blue"}
    payload = msgspec.msgpack.encode([value])
    checked = struct.pack(">IQI", len(payload), 4, 1)
    frame = format.MARKER + checked + struct.pack(">I", crc32c(checked + payload)) + payload
    segment = next(folder.glob("*.log"))
    data = segment.read_bytes()
    *_, last = format.scan(data)
    segment.write_bytes(data[: last.end] + frame)


def newer_compressed_segments(folder: Path) -> None:
    segment = next(folder.glob("*.log"))
    segment.with_suffix(".log.zst").write_bytes(pack(b"EXOLOGZ1", 2, segment.read_bytes()))
    segment.unlink()


def newer_votes(folder: Path) -> None:
    slots = TwoSlots(DiskFiles(folder), "vote", kind=b"VOTE", version=2, where="x", damage="")
    slots.write(b"something of the future")
    slots.close()


def content(folder: Path) -> dict[str, bytes]:
    """All but up to where it was synced, which every opening notes."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name != MARK_NAME and path.suffix != ".lock"
    }


def start(home: Path) -> None:
    """As a node does: what it has is opened, then read."""
    store = open_node_store(home, A).store
    try:
        read_store(store, A)
    finally:
        store.close()


@pytest.mark.parametrize("newer", [newer_segments, newer_events, newer_compressed_segments, newer_votes])
def test_a_log_of_a_newer_release_stays_where_it_is_and_costs_no_vote(
    tmp_path: Path, newer: Callable[[Path], None]
) -> None:
    """Where all nodes are put back a release at once, each would otherwise take the others for those with a copy."""
    write_last_seen(tmp_path, LastSeen(members={A: HostPort("127.0.0.1", 1), B: HostPort("127.0.0.1", 2)}))
    store = open_store(tmp_path / "log")
    store.log.append(entries(1, 3))
    store.log.sync()
    store.votes.save(VOTED)
    store.close()
    newer(tmp_path / "log")
    before = content(tmp_path / "log")
    with pytest.raises(LogNewerError, match=r"newer release of exo.* start that release"):
        start(tmp_path)
    assert not (tmp_path / VOTELESS_FILE).exists()
    assert not list(tmp_path.glob("log.damaged-*"))
    assert content(tmp_path / "log") == before
