"""Everything that was committed in one incarnation, as somebody who sees everything has noted it."""

from collections.abc import Sequence
from itertools import islice

from exo.shared.types.events import ClusterFormed, HistoryForced, LogEntry, VotersChanged
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters


class History:
    """Everything committed in one incarnation, in order."""

    def __init__(self, first_entries: Sequence[LogEntry], voters: Voters) -> None:
        self.entries: list[LogEntry] = []
        self.voters_at: list[Voters] = []
        """Who had to agree when the entry became committed, for each entry."""
        self.terms_at: list[int] = []
        """The term of the leader that committed the entry."""
        self.event_ids: set[EventId] = set()
        self.last_seq: dict[NodeId, int] = {}
        self.states: dict[int, State] = {}
        for entry in first_entries:
            self.add(entry, voters, entry.term)

    @property
    def last_index(self) -> int:
        return len(self.entries)

    @property
    def voters(self) -> Voters:
        """Of the newest committed entry that names any."""
        for entry in reversed(self.entries):
            if isinstance(entry.event, ClusterFormed | VotersChanged | HistoryForced):
                return entry.event.voters
        return Voters()

    def add(self, entry: LogEntry, voters: Voters, term: int) -> None:
        self.entries.append(entry)
        self.terms_at.append(term)
        self.voters_at.append(voters)
        self.event_ids.add(entry.event_id)
        self.last_seq[entry.origin] = entry.seq

    def up_to(self, index: int) -> "History":
        """Return the beginning of it, as a history of its own."""
        beginning = History((), Voters())
        noted = zip(self.entries, self.voters_at, self.terms_at, strict=True)
        for entry, voters, term in islice(noted, index):
            beginning.add(entry, voters, term)
        beginning.states = {at: state for at, state in self.states.items() if at <= index}
        return beginning
