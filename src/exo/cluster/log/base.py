"""The seams of what a node keeps on disk: decisions in order, the newest snapshot, and its vote."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.steps import HardState
from exo.shared.types.events import LogEntry


class EventLog(ABC):
    """Synchronous: callers that must not wait run `sync` in a thread."""

    @property
    def first_index(self) -> int:
        """Index of the oldest entry that is kept; one behind `last_index` where there is none."""
        raise NotImplementedError

    @property
    @abstractmethod
    def last_index(self) -> int:
        """Index of the last appended entry, or of the one at which the log was told to go on; 0 when new."""

    @abstractmethod
    def append(self, entries: Sequence[LogEntry]) -> None:
        """Add entries behind the last one. They are durable only after the next `sync`.

        Of entries appended together all survive a crash, or none. One append per sync: of several, a crash may
        keep the later one without the earlier, which looks like damage.

        Raises:
            LogOrderError: The first entry's index is not `last_index + 1`, or the indices have a gap.
            OSError: Writing failed (disk full, read-only); the log takes no more until it is opened again.
        """

    def truncate_after(self, index: int) -> None:
        """Forget the entries behind `index`, durably: another leader's take their place.

        Raises:
            OSError: As for `append`.
        """
        raise NotImplementedError

    @abstractmethod
    def sync(self) -> None:
        """Return once everything appended so far survives a loss of power."""

    @abstractmethod
    def read(self, after_index: int = 0) -> Iterator[LogEntry]:
        """Yield the entries behind `after_index` that are kept, in order."""

    def compact(self, until_index: int) -> None:
        """Entries up to `until_index` are in a durable snapshot: they may be forgotten, as far as that is cheap."""
        raise NotImplementedError

    def restart_at(self, index: int) -> None:
        """Forget everything, durably; the next entry is the one behind `index`. 0 begins a new log."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget everything, durably."""
        self.restart_at(0)

    @abstractmethod
    def close(self) -> None:
        """Release the files. Appended and not yet synced entries may be lost."""


class SnapshotStore(ABC):
    """Keeps the newest snapshot; synchronous."""

    @abstractmethod
    def load(self) -> Snapshot | None:
        """Return the newest whole snapshot.

        Raises:
            LogCorruptError: There is one, and it is damaged or of a newer release.
        """

    @abstractmethod
    def save(self, snapshot: Snapshot) -> None:
        """Replace it, durably; a crash in the middle leaves the one before.

        Raises:
            OSError: Writing failed.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget it, durably."""


class VoteStore(ABC):
    """Keeps the term and the vote; synchronous."""

    @abstractmethod
    def load(self) -> HardState:
        """Return what was saved last, or the state of a node that has never voted.

        Raises:
            LogCorruptError: It is damaged.
        """

    @abstractmethod
    def save(self, hard_state: HardState) -> None:
        """Replace it, durably; a crash in the middle leaves the one before.

        Raises:
            OSError: Writing failed.
        """
