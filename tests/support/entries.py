"""Log entries and snapshots for tests of logs and of the cluster core."""

from exo.cluster.raft.messages import Snapshot
from exo.shared.types.events import Decision, LogEntry, NodeDisconnected
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.voters import Voters


def entry(
    index: int, *, term: int = 1, origin: str = "a", seq: int | None = None, event: Decision | None = None
) -> LogEntry:
    """An entry whose content tells its index."""
    return LogEntry(
        index=index,
        term=term,
        event_id=EventId(f"event-{index}"),
        cause_id="test",
        origin=NodeId(origin),
        seq=index if seq is None else seq,
        at="2026-01-01T00:00:00Z",
        event=event or NodeDisconnected(node_id=NodeId("n"), reason=f"reason {index}"),
    )


def entries(first: int, last: int) -> list[LogEntry]:
    """Entries `first` to `last`, both included."""
    return [entry(index) for index in range(first, last + 1)]


def snapshot(index: int, *, term: int = 1, data: bytes | None = None) -> Snapshot:
    """A snapshot whose content tells its index."""
    return Snapshot(
        index=index,
        term=term,
        incarnation=1,
        voters=Voters(voters=(NodeId("a"), NodeId("b"), NodeId("c"))),
        last_seq={NodeId("a"): index},
        data=b"state %d" % index if data is None else data,
    )
