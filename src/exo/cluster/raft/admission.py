"""Exactly once: a leader admits an origin's proposal only behind the one that the origin sent before it. Pure.

Numbers only grow, and may leave some out: a proposal that may be in the log of an earlier leader keeps its number,
whatever became of those before it.
"""

from collections.abc import Mapping, Sequence

from exo.cluster.raft.steps import Propose
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId


class Admission:
    """Numbers of the last proposals, as committed and, on a leader, as admitted to its log.

    Args:
        last_seq: Per origin, as of where the log begins.
    """

    def __init__(self, last_seq: Mapping[NodeId, int]) -> None:
        self._committed = dict(last_seq)
        self._admitted: dict[NodeId, int] = {}

    def begin(self, uncommitted: Sequence[LogEntry]) -> None:
        """A term begins with these entries in the log that are not known to be committed."""
        self._admitted = dict(self._committed)
        for entry in uncommitted:
            self.admitted(entry)

    def end(self) -> None:
        """This node leads no longer: what it admitted and nobody agreed on may be gone."""
        self._admitted = {}

    def admitted(self, entry: LogEntry) -> None:
        self._admitted[entry.origin] = entry.seq

    def committed(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            self._committed[entry.origin] = entry.seq

    def last_seq(self, origin: NodeId) -> int:
        """Return the number of the origin's last admitted event."""
        return max(self._admitted.get(origin, 0), self._committed.get(origin, 0))

    def admit(self, message: Propose, *, index: int) -> Sequence[LogEntry] | str:
        """Return the entries for a proposal's events, none if they were admitted before, or why they cannot be.

        Args:
            message: The proposal, for the present term.
            index: Of the next entry.
        """
        before = self.last_seq(message.origin)
        last = message.first_seq + len(message.events) - 1
        if message.first_seq == 0:
            if message.session is not None:
                return "only the leader's own decisions go without a number"
        elif last <= before:
            return ()  # Admitted before; it shows in the stream.
        elif message.after_seq != before or message.first_seq <= before:
            return f"proposal {message.first_seq} behind {message.after_seq}, and the last one is {before}"
        entries = tuple(
            LogEntry(
                index=index + position,
                term=message.term,
                event_id=proposed.event_id,
                cause_id=message.cause_id,
                origin=message.origin,
                seq=message.first_seq + position if message.first_seq else before,
                at=message.at,
                event=proposed.event,
                more=len(message.events) - 1 - position,
            )
            for position, proposed in enumerate(message.events)
        )
        for entry in entries:
            self.admitted(entry)
        return entries
