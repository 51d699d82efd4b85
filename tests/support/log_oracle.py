"""A naive twin of a log: it keeps everything in lists, and knows what may be there after a crash.

Say `begin` before a step and `done` after it. After a crash in the middle of a step the log may be what it was before,
or what the step makes of it; of what was not acknowledged any number of the first entries may be there.
"""

import msgspec

from exo.cluster.log.base import EventLog
from exo.shared.types.events import LogEntry


class Twin(msgspec.Struct, frozen=True):
    """A log as somebody would describe it who had never heard of files."""

    base_index: int = 0
    """It was restarted here."""
    entries: tuple[LogEntry, ...] = ()
    """All since then, compacted or not."""
    acknowledged_index: int = 0
    compacted_index: int = 0
    """The furthest that compaction was asked for."""
    ends: frozenset[int] = frozenset()
    """Where an append ended: it survives as a whole, or not at all."""

    @property
    def last_index(self) -> int:
        return self.base_index + len(self.entries)

    def between(self, first: int, last: int) -> list[LogEntry]:
        return list(self.entries[first - 1 - self.base_index : last - self.base_index])

    def appended(self, entries: list[LogEntry]) -> "Twin":
        ends = self.ends | {self.last_index + len(entries)}
        return msgspec.structs.replace(self, entries=(*self.entries, *entries), ends=ends)

    def synced(self) -> "Twin":
        return msgspec.structs.replace(self, acknowledged_index=self.last_index)

    def truncated(self, index: int) -> "Twin":
        return msgspec.structs.replace(
            self,
            entries=self.entries[: max(0, index - self.base_index)],
            acknowledged_index=min(self.acknowledged_index, index),
            ends=frozenset(end for end in self.ends if end < index) | {index},
        )

    def compacted(self, index: int) -> "Twin":
        return msgspec.structs.replace(self, compacted_index=max(self.compacted_index, index))

    def restarted(self, index: int) -> "Twin":
        return Twin(index, (), index, index)

    def why_not(self, first: int, last: int, entries: list[LogEntry]) -> str | None:
        """Say why this log cannot have become that one in a crash; None: it can."""
        least = max(self.acknowledged_index, self.base_index)
        if not least <= last <= self.last_index or last not in self.ends | {least}:
            return f"ends at {last}; acknowledged {least}, written {self.last_index}, in groups to {sorted(self.ends)}"
        if not self.base_index + 1 <= first <= max(self.base_index, self.compacted_index) + 1:
            return f"begins at {first}; restarted at {self.base_index}, compacted {self.compacted_index}"
        if entries != self.between(first, last):
            return "holds other entries"
        return None


class LogOracle:
    """Follows a log through its steps and crashes."""

    def __init__(self) -> None:
        self.now = Twin()
        self._next: Twin | None = None

    def begin(self, result: Twin) -> None:
        self._next = result

    def done(self) -> None:
        assert self._next is not None
        self.now, self._next = self._next, None

    @property
    def is_busy(self) -> bool:
        """A step has begun and is not done."""
        return self._next is not None

    def check(self, log: EventLog) -> None:
        """A log that runs: it is exactly what it should be, but that compacting may leave more."""
        first, last, found = log.first_index, log.last_index, list(log.read())
        assert last == self.now.last_index
        self._require((self.now,), first, last, found)

    def recovered(self, log: EventLog) -> None:
        """A log that was opened again: check it, and take what it holds for acknowledged."""
        first, last, found = log.first_index, log.last_index, list(log.read())
        candidates = (self.now,) if self._next is None else (self.now, self._next)
        twin = self._require(candidates, first, last, found)
        self.now, self._next = twin.truncated(last).synced(), None

    def _require(self, twins: tuple[Twin, ...], first: int, last: int, found: list[LogEntry]) -> Twin:
        reasons = [twin.why_not(first, last, found) for twin in twins]
        fitting = [twin for twin, reason in zip(twins, reasons, strict=True) if reason is None]
        assert fitting, f"the log ({first} to {last}) is none that a crash could leave: {reasons}"
        # Where both fit the newer one asks for less from here on: compacted further, the same entries.
        return fitting[-1]
