"""A log in memory: for tests, and for what must not outlive its process."""

from collections.abc import Iterator, Sequence

from exo.cluster.log.base import EventLog
from exo.cluster.log.order import require_order
from exo.shared.types.events import LogEntry


class MemoryLog(EventLog):
    """Keeps entries in a list; `lose_unsynced` does to it what a loss of power does to a disk."""

    def __init__(self) -> None:
        self._entries: list[LogEntry] = []
        self._synced_count = 0

    @property
    def last_index(self) -> int:
        return self._entries[-1].index if self._entries else 0

    def append(self, entries: Sequence[LogEntry]) -> None:
        require_order(self.last_index, entries)
        self._entries.extend(entries)

    def sync(self) -> None:
        self._synced_count = len(self._entries)

    def read(self, after_index: int = 0) -> Iterator[LogEntry]:
        yield from self._entries[after_index : len(self._entries)]

    def reset(self) -> None:
        self._entries = []
        self._synced_count = 0

    def close(self) -> None:
        return

    def lose_unsynced(self) -> None:
        """Forget what was appended since the last `sync`."""
        del self._entries[self._synced_count :]
