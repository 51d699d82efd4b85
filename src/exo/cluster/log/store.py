"""All that a node keeps of what was decided: its log, its newest snapshot and its vote, changed together."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from loguru import logger

from exo.cluster.log.base import EventLog, SnapshotStore, VoteStore
from exo.cluster.log.files import DiskFiles, Files, sync_directory
from exo.cluster.log.lock import DirectoryLock
from exo.cluster.log.memory import MemoryLog, MemorySnapshotStore, MemoryVoteStore
from exo.cluster.log.merging import merge
from exo.cluster.log.segments import SEGMENT_BYTES, SegmentLog
from exo.cluster.log.snapshots import FileSnapshotStore
from exo.cluster.log.votes import FileVoteStore
from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.steps import HardState, Write
from exo.shared.errors import LogCorruptError

MARGIN_ENTRIES = 10_000
"""How much of the log is kept in front of a snapshot, so that a slow follower need not be sent the whole state."""


class NodeStore:
    """Synchronous, for one thread at a time; `log.read` may run beside it.

    Args:
        log: The decisions.
        snapshots: The newest snapshot.
        votes: Term and vote.
    """

    def __init__(self, log: EventLog, snapshots: SnapshotStore, votes: VoteStore) -> None:
        self.log = log
        self.snapshots = snapshots
        self.votes = votes
        self._is_closed = False

    def apply_writes(self, writes: Sequence[Write]) -> None:
        """Carry out writes in their order, durably: all of their entries with one append and one sync.

        Raises:
            OSError: Writing failed; none of the writes may be called written. Open the store again.
        """
        if not writes:
            return
        write = merge(writes)
        if write.hard_state is not None:
            self.votes.save(write.hard_state)
        if write.snapshot is not None:
            self.snapshots.stage(write.snapshot)
            self._finish_staged()
        if write.truncate_after is not None:
            self.log.truncate_after(write.truncate_after)
        if write.entries:
            self.log.append(write.entries)
            self.log.sync()

    def save_local_snapshot(self, snapshot: Snapshot, *, margin_entries: int = MARGIN_ENTRIES) -> None:
        """Keep a snapshot of what is in the log, and forget the log in front of it, but for the last entries.

        Raises:
            ValueError: It is of entries that are not in the log yet.
            OSError: Writing failed. Open the store again.
        """
        if snapshot.index > self.log.last_index:
            raise ValueError(
                f"the log ends at {self.log.last_index}: a snapshot of {snapshot.index} cannot be kept"
            )
        self.snapshots.save(snapshot)
        self.log.compact(snapshot.index - margin_entries)

    def reset(self) -> None:
        """Forget everything, durably: this node is part of no cluster. A crash leaves all of it, or nothing.

        Raises:
            OSError: Writing failed. Open the store again.
        """
        self.snapshots.stage(None)
        self._finish_staged()

    def tidy(self) -> bool:
        """Do a piece of work that is in no hurry (compress a segment: some 50 ms); say whether there is more."""
        try:
            return self.log.tidy()
        except OSError as error:
            logger.warning("cannot compress the log, it stays as it is: {}", error.strerror or error)
            return False

    def recover(self) -> None:
        """Finish what a crash interrupted, and check that the parts belong together. Before anything is read.

        Raises:
            LogCorruptError: Log and snapshot do not belong together: something is missing.
            OSError: Writing failed.
        """
        if self.snapshots.is_staged:
            self._finish_staged()
        require_match(self.log, self.snapshots.load())

    def close(self) -> None:
        """Release the files. Harmless when that was done before."""
        if not self._is_closed:
            self._is_closed = True
            self.votes.close()
            self.log.close()

    def _finish_staged(self) -> None:
        snapshot = self.snapshots.load_staged()
        self.log.restart_at(0 if snapshot is None else snapshot.index)
        if snapshot is None:
            self.votes.save(HardState())
        self.snapshots.adopt()


def open_store(
    directory: Path, *, files: Files | None = None, segment_bytes: int = SEGMENT_BYTES
) -> NodeStore:
    """Open what is kept in a directory; created where it is missing, locked against other processes.

    Args:
        directory: Where the files lie.
        files: Stands in for the file system in tests; such a store takes no lock.
        segment_bytes: See SegmentLog.

    Raises:
        ConfigurationError: Another process uses the directory.
        LogCorruptError: Something that was acknowledged is damaged or missing, or was written by a newer release.
            See `set_aside`.
        OSError: The directory cannot be read or written.
    """
    where = str(directory)
    log = SegmentLog(directory, files=files, segment_bytes=segment_bytes)  # It takes the lock.
    votes: FileVoteStore | None = None
    try:
        directory_files = DiskFiles(directory) if files is None else files
        votes = FileVoteStore(directory_files, where)
        store = NodeStore(log, FileSnapshotStore(directory_files, where), votes)
        store.recover()
    except BaseException:
        if votes is not None:
            votes.close()
        log.close()
        raise
    return store


def memory_store() -> NodeStore:
    """Return an empty store that ends with its process."""
    return NodeStore(MemoryLog(), MemorySnapshotStore(), MemoryVoteStore())


def require_match(log: EventLog, snapshot: Snapshot | None) -> None:
    """Check that a log continues a snapshot.

    Raises:
        LogCorruptError: There is a gap between them, or the log is older, or they tell different histories.
    """
    remedy = "; restore the directory from a copy, or choose another one with EXO_HOME"
    index = 0 if snapshot is None else snapshot.index
    if log.first_index > index + 1:
        what = "there is no snapshot" if snapshot is None else f"the snapshot ends at entry {index}"
        raise LogCorruptError(f"the log has a gap: it begins at entry {log.first_index}, and {what}{remedy}")
    if log.last_index < index:
        raise LogCorruptError(
            f"the log is incomplete: it ends at entry {log.last_index}, and the snapshot was made of one that went on "
            f"to entry {index}{remedy}"
        )
    if snapshot is not None and log.first_index <= index:
        entry = next(iter(log.read(index - 1)))
        if entry.term != snapshot.term:
            raise LogCorruptError(
                f"log and snapshot are of different histories: entry {index} is of term {entry.term} in the log, and "
                f"of term {snapshot.term} in the snapshot{remedy}"
            )


def set_aside(directory: Path) -> Path:
    """Move a directory that cannot be opened out of the way, durably; return where it is now.

    Its content stays as it is. The node loses its vote with it and has to join as a new one.

    Raises:
        ConfigurationError: Another process uses the directory.
        OSError: It cannot be moved.
    """
    DirectoryLock(directory).release()
    for number in count(1):
        target = directory.with_name(f"{directory.name}.damaged-{number}")
        if not target.exists():
            directory.rename(target)
            sync_directory(directory.parent)
            return target
    raise AssertionError
