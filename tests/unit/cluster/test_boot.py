"""What a node begins with, for every disk that it may find: empty, a log, a snapshot and a tail, an older release's."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.boot import Boot, read_store
from exo.cluster.log.store import NodeStore, memory_store
from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.options import SnapshotPoint
from exo.cluster.raft.steps import HardState
from exo.cluster.snapshotting import decode_state
from exo.cluster.wire import encode_state
from exo.shared.apply import apply_entries
from exo.shared.errors import LogCorruptError, LogOrderError
from exo.shared.types.events import (
    ClusterFormed,
    Decision,
    HistoryForced,
    LogEntry,
    NodeJoined,
    TermOpened,
    VotersChanged,
)
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from support.entries import entry
from support.raft_lab import voters
from support.states import identity

ME = NodeId("a")


def log_of(*events: Decision, after: int = 0, term: int = 1) -> list[LogEntry]:
    return [entry(index, term=term, event=event) for index, event in enumerate(events, start=after + 1)]


def snapshot_of(state: State) -> Snapshot:
    return Snapshot(
        index=state.index,
        term=state.term,
        incarnation=state.incarnation,
        voters=state.voters,
        last_seq=state.last_seq,
        data=encode_state(state),
    )


def disk(
    entries: list[LogEntry], *, snapshot_at: int | None = None, hard_state: HardState | None = None
) -> NodeStore:
    """A store with this log; the part up to `snapshot_at` is in a snapshot, and in the log no more."""
    store = memory_store()
    if hard_state is not None:
        store.votes.save(hard_state)
    if snapshot_at is not None:
        store.snapshots.save(snapshot_of(apply_entries(State(), entries[:snapshot_at])))
        store.log.restart_at(snapshot_at)
    store.log.append(entries[snapshot_at or 0 :])
    return store


def formed(before: Voters = Voters(voters=(ME,))) -> list[Decision]:
    return [
        ClusterFormed(cluster_id=ClusterId("c"), namespace="test", voters=before),
        TermOpened(master_node_id=ME),
        NodeJoined(identity=identity("a")),
    ]


# --- which voters it begins with -------------------------------------------------------------------------------------


def test_a_new_node_is_the_voter_of_a_cluster_of_its_own() -> None:
    boot = read_store(memory_store(), ME)
    assert boot == Boot(
        hard_state=HardState(),
        incarnation=1,
        point=SnapshotPoint(voters=voters("a")),
        entries=(),
        state=State(),
        guess=State(),
    )
    assert boot.voters == (voters("a"),)
    assert boot.is_of_use_to(ME)
    assert not boot.is_of_use_to(NodeId("b"))


def test_one_that_has_voted_and_has_no_log_yet_is_no_voter_of_anything() -> None:
    """It follows a master that has not sent it anything: to form a cluster of its own would be a second one."""
    boot = read_store(disk([], hard_state=HardState(term=3, voted_for=NodeId("b"))), ME)
    assert boot.point.voters == Voters()
    assert boot.hard_state == HardState(term=3, voted_for=NodeId("b"))
    assert not boot.is_of_use_to(ME)


def test_a_log_names_its_voters_itself() -> None:
    boot = read_store(disk(log_of(*formed(voters("abc")))), ME)
    assert boot.point == SnapshotPoint()
    assert boot.voters == (Voters(), voters("abc"))
    assert boot.state == State()
    assert boot.guess.voters == voters("abc")


def test_a_log_of_the_release_before_voters_were_logged_makes_its_owner_the_voter() -> None:
    boot = read_store(disk(log_of(*formed(Voters())), hard_state=HardState(term=1)), ME)
    assert boot.point.voters == voters("a")
    assert boot.is_of_use_to(ME)


def test_so_does_a_snapshot_of_that_release() -> None:
    """Its tail may be empty. It had a single log, and no votes."""
    whole = log_of(*formed(Voters()), NodeJoined(identity=identity("b")))
    for snapshot_at in (3, 4):
        boot = read_store(disk(whole, snapshot_at=snapshot_at), ME)
        assert boot.point.voters == voters("a"), snapshot_at
        assert boot.guess.index == 4


def test_a_snapshot_says_who_votes_where_no_voters_were_ever_logged() -> None:
    """A log of that release, gone on with by this one, which stopped right behind a snapshot."""
    state = apply_entries(State(), log_of(*formed(Voters())))
    store = disk([], hard_state=HardState(term=4, voted_for=ME))
    store.snapshots.save(msgspec.structs.replace(snapshot_of(state), voters=voters("a")))
    store.log.restart_at(state.index)
    assert read_store(store, ME).point.voters == voters("a")
    assert read_store(store, ME).is_of_use_to(ME), "else it would take its log for a spare copy, and drop it"


def test_a_copy_that_counts_for_nobody_is_of_no_use() -> None:
    changed = log_of(*formed(voters("b")), VotersChanged(voters=voters("bc"), reason=""))
    boot = read_store(disk(changed), ME)
    assert not boot.is_of_use_to(ME)
    assert boot.is_of_use_to(NodeId("c"))


def test_whoever_counted_once_in_what_may_be_uncommitted_is_of_use() -> None:
    """The change that took its vote may be undone."""
    changed = log_of(*formed(voters("ab")), VotersChanged(voters=voters("b"), reason=""))
    assert read_store(disk(changed), ME).is_of_use_to(ME)
    replica = log_of(*formed(voters("b", "a")), VotersChanged(voters=voters("b"), reason=""))
    assert read_store(disk(replica), ME).is_of_use_to(ME)


# --- state and guess -------------------------------------------------------------------------------------------------

steps = st.lists(
    st.sampled_from("abcd").map(lambda name: NodeJoined(identity=identity(name)))
    | st.sampled_from(["a", "ab", "abc", "abcd"]).map(
        lambda names: VotersChanged(voters=voters(names), reason="")
    )
    | st.integers(2, 5).map(
        lambda number: HistoryForced(incarnation=number, forgotten=(NodeId("b"),), voters=voters("a"))
    )
    | st.just(TermOpened(master_node_id=ME)),
    max_size=12,
)


@given(steps, st.data())
def test_the_state_is_what_is_known_to_be_committed_and_the_guess_is_all(
    events: list[Decision], data: st.DataObject
) -> None:
    whole = log_of(*formed(), *events)
    at = data.draw(st.integers(0, len(whole)))
    boot = read_store(disk(whole, snapshot_at=at or None), ME)
    assert boot.state == apply_entries(State(), whole[:at])
    assert boot.guess == apply_entries(State(), whole)
    assert boot.entries == tuple(whole[at:])
    assert boot.point.index == boot.state.index == at
    assert boot.point.term == boot.state.term
    assert boot.point.last_seq == boot.state.last_seq
    assert boot.incarnation == boot.state.incarnation, "what is behind the snapshot may be undone"
    named = [one.event.voters for one in whole[at:] if isinstance(one.event, VotersChanged | HistoryForced)]
    assert boot.voters[-len(named) :] == tuple(named) if named else boot.voters


@given(steps, st.data())
def test_what_the_log_still_has_in_front_of_the_snapshot_changes_nothing(
    events: list[Decision], data: st.DataObject
) -> None:
    whole = log_of(*formed(), *events)
    at = data.draw(st.integers(1, len(whole)))
    short, long = disk(whole, snapshot_at=at), disk(whole)
    long.snapshots.save(snapshot_of(apply_entries(State(), whole[:at])))
    assert read_store(long, ME) == read_store(short, ME)


def test_reading_changes_nothing() -> None:
    store = disk(log_of(*formed()), snapshot_at=2, hard_state=HardState(term=1, voted_for=ME))
    assert read_store(store, ME) == read_store(store, ME)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_log_that_does_not_follow_its_snapshot_is_refused() -> None:
    store = disk(log_of(*formed(), *[TermOpened(master_node_id=ME)] * 3), snapshot_at=5)
    store.snapshots.save(snapshot_of(apply_entries(State(), log_of(*formed()))))
    with pytest.raises(LogOrderError):
        read_store(store, ME)


def test_a_snapshot_of_a_newer_release_is_refused_with_what_to_do() -> None:
    newer = msgspec.msgpack.encode({"index": "seven"})
    store = memory_store()
    store.snapshots.save(msgspec.structs.replace(snapshot_of(State(index=7)), data=newer))
    with pytest.raises(LogCorruptError, match=r"at entry 7 was written by a newer release.*EXO_HOME"):
        read_store(store, ME)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_state_or_are_refused(data: bytes) -> None:
    snapshot = msgspec.structs.replace(snapshot_of(State(index=3)), data=data)
    try:
        assert isinstance(decode_state(snapshot), State)
    except LogCorruptError as error:
        assert "entry 3" in error.message


@given(st.data())
def test_a_state_with_a_few_bytes_changed_is_another_one_or_is_refused(data: st.DataObject) -> None:
    garbled = bytearray(encode_state(apply_entries(State(), log_of(*formed()))))
    for _ in range(data.draw(st.integers(1, 4))):
        garbled[data.draw(st.integers(0, len(garbled) - 1))] = data.draw(st.integers(0, 255))
    snapshot = msgspec.structs.replace(snapshot_of(State(index=3)), data=bytes(garbled))
    try:
        assert isinstance(decode_state(snapshot), State)
    except LogCorruptError:
        pass
