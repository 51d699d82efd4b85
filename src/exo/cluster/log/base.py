"""The seam of the durable log: decisions in order, kept across a crash of the process or the machine."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from exo.shared.types.events import LogEntry


class EventLog(ABC):
    """Synchronous: callers that must not wait run `sync` in a thread."""

    @property
    @abstractmethod
    def last_index(self) -> int:
        """Index of the last appended entry; 0 when empty."""

    @abstractmethod
    def append(self, entries: Sequence[LogEntry]) -> None:
        """Add entries behind the last one. They are durable only after the next `sync`.

        Of entries appended together all survive a crash, or none. One append per sync: of several, a crash may
        keep the later one without the earlier, which looks like damage.

        Raises:
            LogOrderError: The first entry's index is not `last_index + 1`, or the indices have a gap.
            OSError: Writing failed (disk full, read-only); the log takes no more until it is opened again.
        """

    @abstractmethod
    def sync(self) -> None:
        """Return once everything appended so far survives a loss of power."""

    @abstractmethod
    def read(self, after_index: int = 0) -> Iterator[LogEntry]:
        """Yield the entries behind `after_index`, in order."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything, durably."""

    @abstractmethod
    def close(self) -> None:
        """Release the files. Appended and not yet synced entries may be lost."""
