"""What the core is told (messages) and what it wants done (effects)."""

import msgspec

from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import Decision, LogEntry
from exo.shared.types.ids import ClusterId, NodeId


class _Message(msgspec.Struct, frozen=True, kw_only=True):
    pass


# --- messages: what happened -------------------------------------------------------------------------------------


class Lead(_Message, frozen=True, kw_only=True):
    """This node's log was replayed up to `index`; begin a new term with it, or with a new cluster if it is empty."""

    cluster_id: ClusterId
    namespace: str
    index: int
    term: int
    last_seq: dict[NodeId, int]
    connected: frozenset[NodeId]
    """Members that are connected as far as the log says."""
    recent: tuple[LogEntry, ...] = ()


class ProposalReceived(_Message, frozen=True, kw_only=True):
    """An origin wants decisions committed; `session` is None for this node's own."""

    session: int | None
    origin: NodeId
    term: int
    first_seq: int
    cause_id: str
    at: str
    events: tuple[ProposedEvent, ...]


class BecameDurable(_Message, frozen=True, kw_only=True):
    """Appended entries up to `index` survive a loss of power."""

    index: int


class FollowerArrived(_Message, frozen=True, kw_only=True):
    """A follower at (index, term) of this cluster, or with nothing usable: `index` is None."""

    session: int
    node_id: NodeId
    index: int | None
    term: int


class FollowerLost(_Message, frozen=True, kw_only=True):
    session: int
    reason: str


class Follow(_Message, frozen=True, kw_only=True):
    """A master was found; this node is at `index` of its cluster."""

    cluster_id: ClusterId
    term: int
    index: int


class EntriesReceived(_Message, frozen=True, kw_only=True):
    """The master says that these are committed."""

    term: int
    entries: tuple[LogEntry, ...]


class MasterLost(_Message, frozen=True, kw_only=True):
    pass


class Stop(_Message, frozen=True, kw_only=True):
    """Lead no longer: the log failed, or the cluster yields to another."""


class Tick(_Message, frozen=True, kw_only=True):
    """A fixed while has passed; never sent twice for a while that was slept through."""


Message = (
    Lead
    | ProposalReceived
    | BecameDurable
    | FollowerArrived
    | FollowerLost
    | Follow
    | EntriesReceived
    | MasterLost
    | Stop
    | Tick
)


# --- effects: what is to be done ---------------------------------------------------------------------------------


class Append(_Message, frozen=True, kw_only=True):
    """Write these to the log, make them durable, then say `BecameDurable`."""

    entries: tuple[LogEntry, ...]


class Committed(_Message, frozen=True, kw_only=True):
    """Fold these into the state; acknowledge those of this node."""

    entries: tuple[LogEntry, ...]


class Decide(_Message, frozen=True, kw_only=True):
    """Propose these as this node's own decision."""

    events: tuple[Decision, ...]
    cause_id: str


class CloseSession(_Message, frozen=True, kw_only=True):
    """End the connection to a follower."""

    session: int
    reason: str


class DropMaster(_Message, frozen=True, kw_only=True):
    """End the connection to the master: what it sent cannot be right."""

    reason: str


Effect = Append | Committed | Decide | CloseSession | DropMaster
