"""The newest committed entries: for followers and watchers that are a little behind."""

from collections.abc import Sequence

from exo.shared.types.events import LogEntry


class Recent:
    """Entries without a gap, up to the newest that is folded here.

    Args:
        entries_max: How many are kept at least; up to twice as many are.
    """

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: list[LogEntry] = []
        self._base_index = 0

    @property
    def last_index(self) -> int:
        return self._base_index + len(self._entries)

    @property
    def oldest_index(self) -> int:
        """Index of the oldest entry here; one behind the newest where there is none."""
        return self._base_index + 1

    def begin_at(self, index: int) -> None:
        """Forget all; what comes next is the entry behind `index`."""
        self._entries = []
        self._base_index = index

    def add(self, entries: Sequence[LogEntry]) -> None:
        self._entries.extend(entries)
        surplus = len(self._entries) - self._entries_max
        if surplus > self._entries_max:
            del self._entries[:surplus]
            self._base_index += surplus

    def after(self, index: int, entries_max: int | None = None) -> Sequence[LogEntry] | None:
        """Return the entries behind `index`, or None where they are not all here."""
        if not self._base_index <= index <= self.last_index:
            return None
        start = index - self._base_index
        return self._entries[start:] if entries_max is None else self._entries[start : start + entries_max]

    def holds(self, index: int, term: int) -> bool:
        """Say whether the entry at `index` is here and of this term."""
        position = index - self._base_index - 1
        return 0 <= position < len(self._entries) and self._entries[position].term == term
