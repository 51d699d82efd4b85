"""A master's admission of proposals: each origin's in order and once, given their places in the log. Pure."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from exo.cluster.etcd.records import BATCH_BYTES_MAX, encode_batch
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import LogEntry, NodeDisconnected, NodeJoined
from exo.shared.types.ids import NodeId


def entries_of(
    events: Sequence[ProposedEvent],
    *,
    index: int,
    term: int,
    origin: NodeId,
    first_seq: int,
    cause_id: str,
    at: str,
) -> tuple[LogEntry, ...]:
    """Return a proposal's entries; `index` is that of the first."""
    return tuple(
        LogEntry(
            index=index + position,
            term=term,
            event_id=proposed.event_id,
            cause_id=cause_id,
            origin=origin,
            seq=first_seq + position,
            at=at,
            event=proposed.event,
        )
        for position, proposed in enumerate(events)
    )


class Admission:
    """One term's: what is admitted and waits to be committed.

    Args:
        term: Of the master.
        index: Of the newest committed entry.
        last_seq: Per origin, the number of its last committed event.
        connected: Members that are connected as far as the log says.
    """

    def __init__(
        self, *, term: int, index: int, last_seq: Mapping[NodeId, int], connected: Iterable[NodeId]
    ) -> None:
        self.term = term
        self.connected = set(connected)
        """Members that are connected once everything admitted is committed."""
        self._last_index = index
        self._last_seq = dict(last_seq)
        self._waiting: deque[tuple[tuple[LogEntry, ...], int]] = deque()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def last_seq(self, origin: NodeId) -> int:
        """Return the number of the origin's last admitted event."""
        return self._last_seq.get(origin, 0)

    def admit(
        self,
        origin: NodeId,
        *,
        term: int,
        first_seq: int,
        cause_id: str,
        at: str,
        events: Sequence[ProposedEvent],
    ) -> str | None:
        """Take a proposal in; return why not, or None. One that was admitted before counts as taken in."""
        if term != self.term:
            return f"it is for term {term}, this is term {self.term}"
        expected = self.last_seq(origin) + 1
        last = first_seq + len(events) - 1
        if last < expected:
            return None
        if first_seq != expected:
            return f"proposal {first_seq} where {expected} was expected"
        entries = entries_of(
            events,
            index=self._last_index + 1,
            term=term,
            origin=origin,
            first_seq=first_seq,
            cause_id=cause_id,
            at=at,
        )
        size_bytes = len(encode_batch(entries))
        if size_bytes > BATCH_BYTES_MAX:
            return f"decisions of {size_bytes} bytes; at most {BATCH_BYTES_MAX} fit into one commit"
        self._waiting.append((entries, size_bytes))
        self._last_index += len(entries)
        self._last_seq[origin] = last
        for entry in entries:
            if isinstance(entry.event, NodeJoined):
                self.connected.add(entry.event.identity.node_id)
            elif isinstance(entry.event, NodeDisconnected):
                self.connected.discard(entry.event.node_id)
        return None

    def take(self) -> tuple[LogEntry, ...]:
        """Return what is to be committed next, together: whole proposals, as many as fit into one commit."""
        taken: list[LogEntry] = []
        size_bytes = 0
        while self._waiting and (not taken or size_bytes + self._waiting[0][1] <= BATCH_BYTES_MAX):
            entries, part_bytes = self._waiting.popleft()
            taken += entries
            size_bytes += part_bytes
        return tuple(taken)
