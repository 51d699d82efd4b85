"""A log, a snapshot and a vote in memory: for tests, and for what must not outlive its process."""

from collections.abc import Iterator, Sequence

from exo.cluster.log.base import EventLog, SnapshotStore, VoteStore
from exo.cluster.log.order import require_cuttable, require_order
from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.steps import HardState
from exo.shared.types.events import LogEntry


class MemoryLog(EventLog):
    """Keeps entries in a list; `lose_unsynced` does to it what a loss of power does to a disk."""

    def __init__(self) -> None:
        self._start_index = 0
        self._entries: list[LogEntry] = []
        self._synced_index = 0

    @property
    def first_index(self) -> int:
        return self._start_index + 1

    @property
    def last_index(self) -> int:
        return self._start_index + len(self._entries)

    def append(self, entries: Sequence[LogEntry]) -> None:
        require_order(self.last_index, entries)
        self._entries.extend(entries)

    def truncate_after(self, index: int) -> None:
        require_cuttable(self._start_index, index)
        del self._entries[index - self._start_index :]
        self._synced_index = min(self._synced_index, index)

    def sync(self) -> None:
        self._synced_index = self.last_index

    def read(self, after_index: int = 0) -> Iterator[LogEntry]:
        return iter(self._entries[max(0, after_index - self._start_index) :])

    def compact(self, until_index: int) -> None:
        count = max(0, min(until_index, self._synced_index) - self._start_index)
        del self._entries[:count]
        self._start_index += count

    def restart_at(self, index: int) -> None:
        self._entries = []
        self._start_index = self._synced_index = index

    def close(self) -> None:
        return

    def lose_unsynced(self) -> None:
        """Forget what was appended since the last `sync`."""
        del self._entries[max(0, self._synced_index - self._start_index) :]


class MemorySnapshotStore(SnapshotStore):
    """Keeps the newest snapshot in a field."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._staged: Snapshot | None = None
        self._is_staged = False

    def load(self) -> Snapshot | None:
        return self._snapshot

    def save(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._is_staged = False

    def stage(self, snapshot: Snapshot | None) -> None:
        self._staged = snapshot
        self._is_staged = True

    @property
    def is_staged(self) -> bool:
        return self._is_staged

    def load_staged(self) -> Snapshot | None:
        return self._staged if self._is_staged else None

    def adopt(self) -> None:
        if self._is_staged:
            self._snapshot = self._staged
            self._is_staged = False


class MemoryVoteStore(VoteStore):
    """Keeps term and vote in a field."""

    def __init__(self) -> None:
        self._hard_state = HardState()

    def load(self) -> HardState:
        return self._hard_state

    def save(self, hard_state: HardState) -> None:
        self._hard_state = hard_state
