"""The seams of what a node keeps on disk: decisions in order, the newest snapshot, and its vote."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.steps import HardState
from exo.shared.types.events import LogEntry


class EventLog(ABC):
    """Synchronous: callers that must not wait run `sync` in a thread."""

    @property
    @abstractmethod
    def first_index(self) -> int:
        """Index of the oldest entry that is kept; one behind `last_index` where there is none."""

    @property
    @abstractmethod
    def last_index(self) -> int:
        """Index of the last appended entry, or of the one at which the log was told to go on; 0 when new."""

    @abstractmethod
    def append(self, entries: Sequence[LogEntry]) -> None:
        """Add entries behind the last one. They are durable only after the next `sync`.

        Of entries appended together all survive a crash, or none; of several appends the first few.

        Raises:
            LogOrderError: The first entry's index is not `last_index + 1`, or the indices have a gap.
            OSError: Writing failed (disk full, read-only); the log takes no more until it is opened again.
        """

    @abstractmethod
    def truncate_after(self, index: int) -> None:
        """Forget the entries behind `index`, durably: another leader's take their place.

        A crash in the middle leaves the log as it was, or cut. Entries before `index` are no more durable than
        they were.

        Raises:
            ValueError: What has to go is compacted already: `index` is before `first_index - 1`.
            OSError: As for `append`.
        """

    @abstractmethod
    def sync(self) -> None:
        """Return once everything appended so far survives a loss of power."""

    @abstractmethod
    def read(self, after_index: int = 0) -> Iterator[LogEntry]:
        """Return the entries behind `after_index` that are kept at the time of the call, in order.

        Raises, while they are taken:
            LogCorruptError: They are damaged, or a newer release wrote them.
            LogReplacedError: They have been compacted or cut off since the call.
        """

    @abstractmethod
    def compact(self, until_index: int) -> None:
        """Entries up to `until_index` are in a durable snapshot: they may be forgotten, as far as that is cheap.

        Raises:
            OSError: As for `append`.
        """

    @abstractmethod
    def restart_at(self, index: int) -> None:
        """Forget everything, durably; the next entry is the one behind `index`. 0 begins a new log.

        A crash in the middle leaves the log as it was, or empty.

        Raises:
            OSError: As for `append`.
        """

    def tidy(self) -> bool:
        """Do a piece of work that saves room and is in no hurry; say whether there is more. For idle moments.

        Raises:
            OSError: It failed; the log is as it was, and goes on.
        """
        return False

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
        """Replace it, durably; a crash in the middle leaves the one before. The log goes on as it is.

        Raises:
            OSError: Writing failed; the one before is there.
        """

    @abstractmethod
    def stage(self, snapshot: Snapshot | None) -> None:
        """Keep what is to replace the snapshot (None: that there is none) beside it, durably, until `adopt`.

        Snapshot and log change together so: stage, restart the log, adopt. After a crash `is_staged` says that the
        last two have to be done again.

        Raises:
            OSError: Writing failed.
        """

    @property
    @abstractmethod
    def is_staged(self) -> bool:
        """Something is staged."""

    @abstractmethod
    def load_staged(self) -> Snapshot | None:
        """Return what is staged; None: nothing, or that there is to be no snapshot.

        Raises:
            LogCorruptError: It is damaged, or of a newer release.
        """

    @abstractmethod
    def adopt(self) -> None:
        """Make what is staged the snapshot, durably. Without anything staged nothing happens.

        Raises:
            OSError: Writing failed.
        """


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

    def close(self) -> None:
        """Release the file."""
        return
