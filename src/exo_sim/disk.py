"""A disk that loses power: what was synced stays, what is under way may be there in part, the rest is gone."""

from collections import deque
from collections.abc import Callable
from random import Random

from exo.cluster.raft.messages import Snapshot
from exo.cluster.raft.steps import HardState, Write
from exo.shared.types.events import HistoryForced, LogEntry
from exo_sim.timeline import Timeline


class LogCopy:
    """Entries behind a base, as one of the two views of a disk: synced, or written."""

    def __init__(self, base_index: int, base_term: int) -> None:
        self.base_index = base_index
        self.base_term = base_term
        self.entries: list[LogEntry] = []

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    def term_at(self, index: int) -> int | None:
        """Return the term of an entry, or None where it is not here."""
        if self.base_index < index <= self.last_index:
            return self.entries[index - self.base_index - 1].term
        return self.base_term if index == self.base_index else None

    def begin_at(self, index: int, term: int) -> None:
        """Forget everything; the next entry is the one behind `index`."""
        self.base_index, self.base_term, self.entries = index, term, []

    def drop_until(self, index: int) -> None:
        """Forget the entries up to `index`, which is here."""
        term = self.term_at(index)
        assert term is not None
        del self.entries[: index - self.base_index]
        self.base_index, self.base_term = index, term

    def truncate_after(self, index: int) -> None:
        assert index >= self.base_index
        del self.entries[index - self.base_index :]

    def append(self, entries: tuple[LogEntry, ...]) -> None:
        assert not entries or entries[0].index == self.last_index + 1
        self.entries.extend(entries)


FAST_US = (300, 2_000)
"""How long a sync takes on a healthy disk, at least and at most."""

Part = HardState | Snapshot | int | tuple[LogEntry, ...]
"""What reaches the disk whole or not at all; an integer is the index behind which the log is cut."""


def parts_of(write: Write) -> list[Part]:
    """Return the pieces of a write in the order in which they are carried out."""
    parts: list[Part] = []
    if write.hard_state is not None:
        parts.append(write.hard_state)
    if write.snapshot is not None:
        parts.append(write.snapshot)
    if write.truncate_after is not None:
        parts.append(write.truncate_after)
    if write.entries:
        parts.append(write.entries)
    return parts


class Disk:
    """One node's disk. Writes are carried out in order; those that wait together are synced together.

    Args:
        timeline: Virtual time.
        random: How long a sync takes, and where a crash tears.
        written: Called with the number of the last write of a sync.
        failed: Called when there is no room.
    """

    def __init__(
        self,
        timeline: Timeline,
        random: Random,
        *,
        written: Callable[[int], None],
        failed: Callable[[], None],
    ) -> None:
        self._timeline = timeline
        self._random = random
        self._tell_written = written
        self._tell_failed = failed
        self.hard_state = HardState()
        self.incarnation = 1
        """Kept beside the vote: it outlives the log."""
        self.snapshot: Snapshot | None = None
        """The newest one; the log's base is at or behind it."""
        self.synced = LogCopy(0, 0)
        self.written = LogCopy(0, 0)
        """With what waits to be synced."""
        self.sync_us: tuple[int, int] = FAST_US
        self.is_full = False
        self.is_forgetful = False
        """Its log was damaged: what this node acknowledged may be gone, so that it must not vote.

        Until everything is there again that anybody may count on.
        """
        self.is_voteless = False
        """The mark beside the log that says so. It goes with the first state that does not count on this node."""
        self._queue: deque[Write] = deque()
        self._under_way: list[Write] = []
        self._generation = 0
        self.sync_count = 0

    def submit(self, write: Write) -> None:
        """Begin to write; `written` is told once it would survive a loss of power."""
        for part in parts_of(write):
            _carry_out(self.written, part)
        self._queue.append(write)
        if not self._under_way:
            self._begin()

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a state of this node's own, whose index is synced here, and drop the log up to it."""
        self.snapshot = snapshot
        self.incarnation = max(self.incarnation, snapshot.incarnation)
        self.synced.drop_until(snapshot.index)
        self.written.drop_until(snapshot.index)

    def lose_power(self) -> int:
        """Keep what was synced, and a random part of what was under way. Returns how many parts were lost."""
        parts = [part for write in self._under_way for part in parts_of(write)]
        kept = self._random.randint(0, len(parts))
        for part in parts[:kept]:
            self._keep(part)
        self._generation += 1
        lost = len(parts) - kept + sum(len(parts_of(write)) for write in self._queue)
        self._queue.clear()
        self._under_way = []
        self.written = LogCopy(self.synced.base_index, self.synced.base_term)
        self.written.append(tuple(self.synced.entries))
        return lost

    @property
    def is_empty(self) -> bool:
        return self.snapshot is None and not self.synced.entries

    @property
    def is_impaired(self) -> bool:
        """It lost its log, and does not vote again yet."""
        return self.is_forgetful or self.is_voteless

    def rot(self) -> None:
        """The log becomes unreadable, and is set aside with the snapshot and the vote."""
        self.wipe()
        self.is_forgetful = self.is_voteless = True

    def wipe(self) -> None:
        """Forget the log, the snapshot and the vote, durably."""
        self.hard_state = HardState()
        self.snapshot = None
        self.synced.begin_at(0, 0)
        self.written.begin_at(0, 0)

    def _begin(self) -> None:
        self._under_way = list(self._queue)
        self._queue.clear()
        low, high = self.sync_us
        self._timeline.after(self._random.randint(low, high), self._end, self._generation)

    def _end(self, generation: int) -> None:
        if generation != self._generation:
            return
        if self.is_full:
            self._tell_failed()
            return
        self.sync_count += 1
        done, self._under_way = self._under_way, []
        for write in done:
            for part in parts_of(write):
                self._keep(part)
        if self._queue:
            self._begin()
        self._tell_written(done[-1].number)

    def _keep(self, part: Part) -> None:
        self.incarnation = max(self.incarnation, _incarnation_of(part))
        if isinstance(part, HardState):
            self.hard_state = part
            self.is_forgetful = self.is_forgetful and not part.is_level
            return
        if isinstance(part, Snapshot):
            self.snapshot = part
        _carry_out(self.synced, part)


def _incarnation_of(part: Part) -> int:
    """Return the newest incarnation that a piece speaks of; 1 where it speaks of none."""
    if isinstance(part, Snapshot):
        return part.incarnation
    if isinstance(part, tuple):
        forced = [entry.event.incarnation for entry in part if isinstance(entry.event, HistoryForced)]
        return max(forced, default=1)
    return 1


def _carry_out(log: LogCopy, part: Part) -> None:
    if isinstance(part, Snapshot):
        log.begin_at(part.index, part.term)
    elif isinstance(part, int):
        log.truncate_after(part)
    elif isinstance(part, tuple):
        log.append(part)
