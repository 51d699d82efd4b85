"""What a master has admitted and not committed yet, cut into commits of a bounded size. Pure."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from exo.cluster.etcd.records import BATCH_BYTES_MAX, encode_batch
from exo.cluster.raft.admission import Admission
from exo.cluster.raft.steps import Propose
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import LogEntry, NodeDisconnected, NodeJoined
from exo.shared.types.ids import NodeId

_LARGEST = 2**62


def commit_bytes(events: Sequence[ProposedEvent], *, origin: NodeId, cause_id: str, at: str) -> int:
    """Return how long a proposal's entries are at most, wherever they come to stand in the log.

    Raises:
        OverflowError, ValueError, TypeError: They cannot be encoded.
    """
    entries = tuple(
        LogEntry(
            index=_LARGEST,
            term=_LARGEST,
            event_id=proposed.event_id,
            cause_id=cause_id,
            origin=origin,
            seq=_LARGEST,
            at=at,
            event=proposed.event,
            more=_LARGEST,
        )
        for proposed in events
    )
    return len(encode_batch(entries))


class Intake:
    """One term's.

    Args:
        term: Of the master.
        index: Of the newest committed entry.
        last_seq: Per origin, the number of its last committed event.
        connected: Members that are connected as far as the log says.
    """

    def __init__(
        self, *, term: int, index: int, last_seq: Mapping[NodeId, int], connected: Iterable[NodeId]
    ) -> None:
        self.connected = set(connected)
        """Members that are connected once everything admitted is committed."""
        self._term = term
        self._last_index = index
        self._admission = Admission(last_seq)
        self._admission.begin(())
        self._waiting: deque[tuple[Sequence[LogEntry], int]] = deque()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def last_seq(self, origin: NodeId) -> int:
        """Return the number of the origin's last admitted event."""
        return self._admission.last_seq(origin)

    def admit(self, message: Propose) -> str | None:
        """Take a proposal in; return why not, or None. One that was admitted before counts as taken in."""
        if message.term != self._term:
            return f"it is for term {message.term}, this is term {self._term}"
        size_bytes = commit_bytes(
            message.events, origin=message.origin, cause_id=message.cause_id, at=message.at
        )
        if size_bytes > BATCH_BYTES_MAX:
            return f"decisions of {size_bytes} bytes; at most {BATCH_BYTES_MAX} fit into one commit"
        entries = self._admission.admit(message, index=self._last_index + 1)
        if isinstance(entries, str):
            return entries
        if entries:
            self._waiting.append((entries, size_bytes))
        self._last_index += len(entries)
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
