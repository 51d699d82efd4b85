"""The part of the log that is in memory: everything not yet committed, and the newest of what is. Pure."""

from collections.abc import Sequence

from exo.cluster.raft.quorum import VotersAt, voters_of
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters


class LogWindow:
    """Entries behind (base_index, base_term), and who has to agree as of each of them.

    Args:
        base_index: Index of the last entry that is not here; a snapshot holds what it led to.
        base_term: Its term.
        voters: Who has to agree as of the base.
        entries: What follows the base.
    """

    def __init__(self, base_index: int, base_term: int, voters: Voters, entries: Sequence[LogEntry]) -> None:
        self._base_index = base_index
        self._base_term = base_term
        self._entries: list[LogEntry] = []
        self._voters: list[VotersAt] = [VotersAt(base_index, voters)]
        self.append(entries)

    @property
    def base_index(self) -> int:
        return self._base_index

    @property
    def last_index(self) -> int:
        return self._base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self._base_term

    @property
    def voters(self) -> VotersAt:
        """Who has to agree now: the newest change counts, committed or not."""
        return self._voters[-1]

    @property
    def voters_before(self) -> Voters:
        """Who had to agree before the newest change, as far as that is known here."""
        return self._voters[-2].voters if len(self._voters) > 1 else self._voters[-1].voters

    def member_since(self, node_id: NodeId) -> int:
        """Return the index of the change since which a node has counted, or did before the newest change.

        As far back as is known here; one behind the last entry for a node that has not counted.
        """
        since: int | None = None
        for at in reversed(self._voters):
            if node_id in at.voters.members:
                since = at.index
            elif since is not None:
                break
        return self.last_index + 1 if since is None else since

    def voters_since(self, index: int) -> list[Voters]:
        """Return who has to agree as of `index` and of every change behind it."""
        found = [at.voters for at in self._voters if at.index > index]
        as_of = [at.voters for at in self._voters if at.index <= index]
        return [*as_of[-1:], *found]

    def term_at(self, index: int) -> int | None:
        """Return the term of an entry, or None where it is not here."""
        if index == self._base_index:
            return self._base_term
        if self._base_index < index <= self.last_index:
            return self._entries[index - self._base_index - 1].term
        return None

    def is_behind(self, last_index: int, last_term: int) -> bool:
        """Say whether a log that ends there is newer than this one, or equal."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def between(self, after_index: int, until_index: int) -> Sequence[LogEntry]:
        """Return the entries behind one index, up to and including another; both are here."""
        return self._entries[max(0, after_index - self._base_index) : until_index - self._base_index]

    def end_of_proposal(self, index: int) -> int:
        """Return the index of the last entry of the proposal that the entry at `index` belongs to."""
        position = index - self._base_index - 1
        return index + self._entries[position].more if position >= 0 else index

    def append(self, entries: Sequence[LogEntry]) -> None:
        self._entries.extend(entries)
        for entry in entries:
            voters = voters_of(entry.event)
            if voters is not None:
                self._voters.append(VotersAt(entry.index, voters))

    def truncate_after(self, index: int) -> None:
        del self._entries[index - self._base_index :]
        while len(self._voters) > 1 and self._voters[-1].index > index:
            self._voters.pop()

    def trim(self, until_index: int) -> None:
        """Forget entries up to `until_index`, which is here."""
        term = self.term_at(until_index)
        if term is None or until_index <= self._base_index:
            return
        del self._entries[: until_index - self._base_index]
        self._base_index, self._base_term = until_index, term
        newer = [at for at in self._voters if at.index > until_index]
        as_of = [at for at in self._voters if at.index <= until_index]
        self._voters = [*as_of[-2:], *newer]

    def agreement_hint(self, index: int, term: int) -> tuple[int, int]:
        """Return the newest (index, term) here, at or before `index`, whose term is at most `term`.

        Two logs can agree at most there, so a whole term of differing entries is skipped at a time (etcd's raft).
        """
        index = min(index, self.last_index)
        while index > self._base_index and (self.term_at(index) or 0) > term:
            index -= 1
        return index, self.term_at(index) or 0

    def first_conflict(self, entries: Sequence[LogEntry]) -> int | None:
        """Return the index of the first entry that is not here with the same term, or None: all are here."""
        for entry in entries:
            if self.term_at(entry.index) != entry.term:
                return entry.index
        return None
