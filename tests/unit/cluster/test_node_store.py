"""Log, snapshot and vote together: several writes at once, crashes in the middle, parts that do not match."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.log.mark import MARK_NAME
from exo.cluster.log.merging import merge
from exo.cluster.log.segments import SegmentLog
from exo.cluster.log.snapshots import FileSnapshotStore
from exo.cluster.log.store import NodeStore, memory_store, open_store, set_aside
from exo.cluster.log.votes import VOTE_NAME
from exo.cluster.raft.steps import HardState, Write
from exo.shared.errors import ConfigurationError, LogCorruptError
from exo.shared.types.ids import NodeId
from support.crashing import crashes
from support.entries import entries, entry, snapshot
from support.power_loss import PowerLossFiles

HERE = Path("somewhere")


def opened(files: PowerLossFiles, segment_bytes: int = 600) -> NodeStore:
    return open_store(HERE, files=files, segment_bytes=segment_bytes)


def put(store: NodeStore, first: int, last: int) -> None:
    """Entries in commits of three."""
    for start in range(first, last + 1, 3):
        store.apply_writes([Write(number=start, entries=tuple(entries(start, min(last, start + 2))))])


def content(store: NodeStore) -> tuple:
    snapshot_now = store.snapshots.load()
    behind = 0 if snapshot_now is None else snapshot_now.index
    return store.votes.load(), snapshot_now, store.log.last_index, list(store.log.read(behind))


# --- several writes as one ---------------------------------------------------------------------------------------


def one_by_one(store: NodeStore, write: Write) -> None:
    """What a write says, word by word: the naive twin of apply_writes."""
    if write.hard_state is not None:
        store.votes.save(write.hard_state)
    if write.snapshot is not None:
        store.snapshots.save(write.snapshot)
        store.log.restart_at(write.snapshot.index)
    if write.truncate_after is not None:
        store.log.truncate_after(write.truncate_after)
    for one in write.entries:
        store.log.append([one])
        store.log.sync()


@st.composite
def write_lists(draw: st.DrawFn) -> list[Write]:
    writes: list[Write] = []
    first, last, term = 10, 20, 1
    for number in range(draw(st.integers(1, 6))):
        term += draw(st.integers(0, 1))
        hard_state = HardState(term=term) if draw(st.booleans()) else None
        taken = None
        if draw(st.integers(0, 3)) == 0:
            first = last = draw(st.integers(15, 30))
            taken = snapshot(last, term=term)
        truncate_after = None
        if draw(st.booleans()):
            truncate_after = draw(st.integers(first, last + 2))
            last = min(last, truncate_after)
        group = tuple(entry(last + 1 + n, term=term) for n in range(draw(st.integers(0, 4))))
        last += len(group)
        writes.append(
            Write(
                number=number,
                hard_state=hard_state,
                snapshot=taken,
                truncate_after=truncate_after,
                entries=group,
            )
        )
    return writes


@given(write_lists(), st.lists(st.integers(1, 3)))
def test_writes_together_lead_where_they_lead_one_by_one(writes: list[Write], cuts: list[int]) -> None:
    naive, together = memory_store(), opened(PowerLossFiles())
    for store in (naive, together):
        store.log.restart_at(10)
        store.snapshots.save(snapshot(10))
        store.log.append(entries(11, 20))
        store.log.sync()
    for write in writes:
        one_by_one(naive, write)
    rest = writes
    for count in [*cuts, len(writes)]:
        together.apply_writes(rest[:count])
        rest = rest[count:]
    assert content(together) == content(naive)


def test_what_a_snapshot_replaces_is_not_written_at_all() -> None:
    merged = merge(
        [
            Write(number=1, truncate_after=3, entries=tuple(entries(4, 9))),
            Write(number=2, snapshot=snapshot(50), entries=(entry(51),)),
        ]
    )
    assert merged == Write(number=2, snapshot=snapshot(50), entries=(entry(51),))


def test_what_was_not_written_yet_is_not_cut_off_on_disk() -> None:
    merged = merge(
        [
            Write(number=1, entries=tuple(entries(4, 9))),
            Write(number=2, truncate_after=6, entries=(entry(7),)),
        ]
    )
    assert merged == Write(number=2, entries=tuple(entries(4, 7)))


def test_one_sync_serves_the_entries_of_many_writes() -> None:
    files = PowerLossFiles()
    store = opened(files, segment_bytes=10**6)
    put(store, 1, 3)
    before, names_before = files.sync_count, files.name_sync_count
    store.apply_writes([Write(number=n, entries=(entry(3 + n),)) for n in range(1, 65)])
    assert (files.sync_count - before, files.name_sync_count - names_before) == (2, 0), "entries, mark"
    before = files.sync_count
    store.apply_writes([Write(number=65, truncate_after=50, entries=(entry(51, term=2),))])
    assert files.sync_count - before == 4, (
        "what is to be done, the file with the smaller commit, entries, mark"
    )
    store.apply_writes([])
    assert files.sync_count - before == 4


def test_no_entry_is_there_whose_term_is_forgotten() -> None:
    writes = [
        Write(number=1, entries=tuple(entries(4, 5))),
        Write(number=2, hard_state=HardState(term=7, voted_for=NodeId("b")), entries=(entry(6, term=7),)),
    ]

    def prepare(files: PowerLossFiles):
        store = opened(files)
        put(store, 1, 3)
        return lambda: store.apply_writes(writes)

    for files, is_done in crashes(prepare):
        store = opened(files)
        hard_state = store.votes.load()
        last_term = list(store.log.read())[-1].term
        assert hard_state in (HardState(), HardState(term=7, voted_for=NodeId("b")))
        assert last_term == 1 or hard_state.term == 7
        assert not is_done or store.log.last_index == 6


# --- crashes -----------------------------------------------------------------------------------------------------


def test_a_snapshot_from_the_leader_replaces_all_or_nothing() -> None:
    def prepare(files: PowerLossFiles):
        store = opened(files)
        put(store, 1, 30)
        store.save_local_snapshot(snapshot(12), margin_entries=3)
        write = Write(number=1, snapshot=snapshot(500, term=4), entries=tuple(entries(501, 503)))
        return lambda: store.apply_writes([write])

    old = (HardState(), snapshot(12), 30, entries(13, 30))
    ends = set()
    for files, is_done in crashes(prepare):
        found = content(opened(files))
        new = (HardState(), snapshot(500, term=4), found[2], entries(501, found[2]))
        assert found == new or (found == old and not is_done)
        assert found[2] in (30, 500, 503)
        assert not is_done or found[2] == 503
        ends.add(found[2])
    assert ends == {30, 500, 503}, "each was seen"


def test_a_snapshot_of_ones_own_costs_nothing_that_is_behind_it() -> None:
    def prepare(files: PowerLossFiles):
        store = opened(files)
        put(store, 1, 60)
        store.save_local_snapshot(snapshot(20), margin_entries=5)
        return lambda: store.save_local_snapshot(snapshot(50), margin_entries=5)

    for files, is_done in crashes(prepare):
        store = opened(files)
        assert store.snapshots.load() in ([snapshot(50)] if is_done else [snapshot(20), snapshot(50)])
        assert store.log.first_index <= 46
        assert list(store.log.read()) == entries(store.log.first_index, 60)
        assert not is_done or store.log.first_index > 16


def test_a_reset_forgets_all_or_nothing() -> None:
    vote = HardState(term=3, voted_for=NodeId("b"))

    def prepare(files: PowerLossFiles):
        store = opened(files)
        put(store, 1, 60)
        store.votes.save(vote)
        store.save_local_snapshot(snapshot(50), margin_entries=5)
        return store.reset

    for files, is_done in crashes(prepare):
        store = opened(files)
        found = content(store)
        if not is_done and found[1] is not None:
            assert found == (vote, snapshot(50), 60, entries(51, 60))
            continue
        assert found == (HardState(), None, 0, [])
        assert store.log.first_index == 1
        put(store, 1, 4)
        assert list(opened(files).log.read()) == entries(1, 4)


def test_a_vote_is_the_old_one_or_the_new_one() -> None:
    old, new = HardState(term=3, voted_for=NodeId("b")), HardState(term=4, voted_for=NodeId("c"))

    def prepare(files: PowerLossFiles):
        store = opened(files)
        store.votes.save(old)
        return lambda: store.votes.save(new)

    for files, is_done in crashes(prepare):
        assert opened(files).votes.load() in ([new] if is_done else [old, new])


def test_a_full_disk_at_a_snapshot_leaves_the_one_before() -> None:
    files = PowerLossFiles()
    store = opened(files)
    put(store, 1, 30)
    store.save_local_snapshot(snapshot(10))
    files.room_bytes = 30
    with pytest.raises(OSError):
        store.save_local_snapshot(snapshot(20))
    assert store.snapshots.load() == snapshot(10)
    files.room_bytes = None
    store.save_local_snapshot(snapshot(20))
    assert store.snapshots.load() == snapshot(20)


def test_after_a_vote_that_could_not_be_written_nothing_is_taken_for_known() -> None:
    files = PowerLossFiles()
    store = opened(files)
    store.votes.save(HardState(term=1))
    files.names_that_fail_to_sync.add(VOTE_NAME)
    with pytest.raises(OSError):
        store.votes.save(HardState(term=2))
    files.names_that_fail_to_sync.clear()
    store.votes.save(HardState(term=1))
    files.lose_power()
    assert opened(files).votes.load() == HardState(term=1)


# --- parts that do not match -------------------------------------------------------------------------------------


def test_entries_before_the_snapshot_are_fine() -> None:
    files = PowerLossFiles()
    store = opened(files)
    put(store, 1, 30)
    store.snapshots.save(snapshot(20))
    assert content(opened(files)) == (HardState(), snapshot(20), 30, entries(21, 30))
    store.snapshots.save(snapshot(30))
    assert content(opened(files)) == (HardState(), snapshot(30), 30, [])


def test_a_log_that_is_older_than_the_snapshot_is_refused() -> None:
    files = PowerLossFiles()
    store = opened(files)
    put(store, 1, 30)
    store.snapshots.save(snapshot(31))
    with pytest.raises(LogCorruptError, match=r"ends at entry 30, and the snapshot .* to entry 31"):
        opened(files)


def test_a_log_that_begins_behind_the_snapshot_is_refused() -> None:
    files = PowerLossFiles()
    store = opened(files)
    put(store, 1, 60)
    store.save_local_snapshot(snapshot(50), margin_entries=0)
    first = store.log.first_index
    store.snapshots.save(snapshot(first - 2))
    with pytest.raises(LogCorruptError, match=f"begins at entry {first}, and the snapshot ends at {'entry'}"):
        opened(files)
    store.snapshots.save(snapshot(first - 1))
    opened(files).close()
    for name in files.names():
        if name.endswith(".snapshot"):
            files.remove(name)
    with pytest.raises(LogCorruptError, match="there is no snapshot"):
        opened(files)


def test_a_snapshot_of_another_history_is_refused() -> None:
    files = PowerLossFiles()
    store = opened(files)
    put(store, 1, 30)
    store.snapshots.save(snapshot(20, term=2))
    with pytest.raises(LogCorruptError, match="different histories: entry 20 is of term 1"):
        opened(files)


def test_a_snapshot_of_what_is_not_in_the_log_is_refused() -> None:
    store = memory_store()
    put(store, 1, 3)
    with pytest.raises(ValueError, match="ends at 3"):
        store.save_local_snapshot(snapshot(4))


def test_a_log_of_the_release_before_opens_with_an_empty_vote() -> None:
    files = PowerLossFiles()
    log = SegmentLog(HERE, files=files)
    log.append(entries(1, 5))
    log.sync()
    assert content(opened(files)) == (HardState(), None, 5, entries(1, 5))


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 4096])
def test_a_vote_with_one_bad_slot_is_not_forgotten_and_is_mended(slot: int) -> None:
    files = PowerLossFiles()
    store = opened(files)
    for term in range(1, 4):
        store.votes.save(HardState(term=term, voted_for=NodeId("b")))
    for _ in range(2):
        data = bytearray(files.read(VOTE_NAME))
        data[slot + 20] ^= 4
        files.overwrite(VOTE_NAME, bytes(data))
        assert opened(files).votes.load() == HardState(term=3, voted_for=NodeId("b"))
        slot = 4096 - slot  # Now the other one: what was found bad was written again.


@pytest.mark.parametrize("name", [VOTE_NAME, MARK_NAME])
def test_a_file_of_which_both_slots_are_bad_is_refused(name: str) -> None:
    files = PowerLossFiles()
    store = opened(files)
    put(store, 1, 9)
    store.votes.save(HardState(term=1))
    data = bytearray(files.read(name))
    data[22] ^= 1
    data[4096 + 22] ^= 1
    files.overwrite(name, bytes(data))
    with pytest.raises(LogCorruptError, match=f"file {name}.* cannot be read"):
        opened(files)


def test_any_damage_to_a_snapshot_is_refused() -> None:
    files = PowerLossFiles()
    store = FileSnapshotStore(files, "log")
    store.save(snapshot(10))
    (name,) = files.names()
    good = files.read(name)
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        files.overwrite(name, bytes(damaged))
        with pytest.raises(LogCorruptError, match="damaged"):
            store.load()
    for size in range(len(good)):
        files.overwrite(name, good[:size])
        with pytest.raises(LogCorruptError, match="damaged"):
            store.load()
    files.overwrite(name, good)
    assert store.load() == snapshot(10)


def test_a_damaged_directory_is_set_aside_and_the_node_begins_anew(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    for number in (1, 2):
        store = open_store(directory)
        put(store, 1, 9)
        store.close()
        (segment,) = directory.glob("*.log")
        data = segment.read_bytes().rstrip(b"\0")
        segment.write_bytes(data[:-5])
        for _ in range(2):  # A failed opening leaves no lock behind.
            with pytest.raises(LogCorruptError):
                open_store(directory)
        target = set_aside(directory)
        assert target == tmp_path / f"log.damaged-{number}"
        assert (target / segment.name).read_bytes() == data[:-5]
        assert not directory.exists()
    store = open_store(directory)
    assert content(store) == (HardState(), None, 0, [])
    with pytest.raises(ConfigurationError):
        set_aside(directory)
    store.close()
