"""What the core is told (inputs) and what it wants done (effects, to be carried out in their order)."""

from typing import Literal

import msgspec

from exo.cluster.raft.messages import PeerMessage, Snapshot
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId

Role = Literal["follower", "candidate", "leader"]


class HardState(msgspec.Struct, frozen=True, kw_only=True):
    """What a node must not forget in a crash, beside its log: its term, and whom it voted for in it."""

    term: int = 0
    voted_for: NodeId | None = None
    is_level: bool = True
    """False from when a node begins with nothing in a cluster that exists, until its disk has all that was committed.

    Before that it gives no vote and does not stand: in half of a log it may read that it is a voter, or the only one.
    """


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    pass


# --- inputs ------------------------------------------------------------------------------------------------------


class Tick(_Step, frozen=True, kw_only=True):
    """A fixed while has passed; never sent twice for a while that was slept through."""


class Received(_Step, frozen=True, kw_only=True):
    """A peer that has proved who it is said this."""

    source: NodeId
    message: PeerMessage


class Propose(_Step, frozen=True, kw_only=True):
    """An origin wants decisions committed together; `session` is None for this node's own."""

    session: int | None
    origin: NodeId
    term: int
    first_seq: int
    """0 for what the leader itself decides, in its own term or never: it needs no number, and must not take one that
    may be bound to what this node, as a follower, offered another leader."""
    after_seq: int = 0
    """The number of the origin's last proposal before this one: it is admitted only behind that."""
    cause_id: str
    at: str
    events: tuple[ProposedEvent, ...]


class Written(_Step, frozen=True, kw_only=True):
    """The Write of this number, and all before it, survive a loss of power."""

    number: int


class PeerLost(_Step, frozen=True, kw_only=True):
    """No connection to a peer any more. What was sent and not answered may be lost."""

    node_id: NodeId
    is_ended: bool
    """Its process is known to be gone (the connection was reset or closed), not merely silent."""


class HandOver(_Step, frozen=True, kw_only=True):
    """Let another voter lead; None: whoever is best."""

    to: NodeId | None = None


class ConfirmRead(_Step, frozen=True, kw_only=True):
    """Is this node still the leader? Ids grow. Answered by ReadConfirmed or ReadRefused."""

    read_id: int


class Follow(_Step, frozen=True, kw_only=True):
    """Send entries to a node that is no voter yet, and hear how far it is (a learner); or stop doing so."""

    node_id: NodeId
    is_wanted: bool


class Campaign(_Step, frozen=True, kw_only=True):
    """Stand for election without waiting; a node that is the only voter need not wait for anyone."""


class ForceHistory(_Step, frozen=True, kw_only=True):
    """An operator gives up `forgotten` voters: this node leads alone, in the next incarnation."""

    forgotten: tuple[NodeId, ...]
    event_id: str
    cause_id: str
    at: str


Input = (
    Tick | Received | Propose | Written | PeerLost | HandOver | ConfirmRead | Follow | Campaign | ForceHistory
)


# --- effects -----------------------------------------------------------------------------------------------------


class Write(_Step, frozen=True, kw_only=True):
    """Put this on disk, in this order, then say `Written(number)`. Writes are carried out in the order given."""

    number: int
    hard_state: HardState | None = None
    snapshot: Snapshot | None = None
    """Replaces the whole log: the next entry is the one behind it."""
    truncate_after: int | None = None
    entries: tuple[LogEntry, ...] = ()


class Send(_Step, frozen=True, kw_only=True):
    """Tell a peer; it may be lost."""

    to: NodeId
    message: PeerMessage


class SendSnapshot(_Step, frozen=True, kw_only=True):
    """Send a peer an InstallSnapshot of the state as it is now: everything up to the commit index."""

    to: NodeId


class Commit(_Step, frozen=True, kw_only=True):
    """Fold these into the state; acknowledge those of this node."""

    entries: tuple[LogEntry, ...]


class Restore(_Step, frozen=True, kw_only=True):
    """Go on from this state instead of the present one."""

    snapshot: Snapshot


class RoleChanged(_Step, frozen=True, kw_only=True):
    """Who leads has changed. A new leader proposes TermOpened before anything else."""

    role: Role
    term: int
    leader: NodeId | None


class ReadConfirmed(_Step, frozen=True, kw_only=True):
    """This node led when the read was asked for; a state at `index` is at least as new as that."""

    read_id: int
    index: int


class ReadRefused(_Step, frozen=True, kw_only=True):
    read_id: int


class Refuse(_Step, frozen=True, kw_only=True):
    """A proposal was not admitted; its origin connects again and learns what was."""

    session: int | None
    reason: str


class Distrust(_Step, frozen=True, kw_only=True):
    """What a peer said cannot be: end the connection to it, and count that."""

    node_id: NodeId
    reason: str


class Outlived(_Step, frozen=True, kw_only=True):
    """The history was begun anew without this node: its log no longer counts."""

    incarnation: int


Effect = (
    Write
    | Send
    | SendSnapshot
    | Commit
    | Restore
    | RoleChanged
    | ReadConfirmed
    | ReadRefused
    | Refuse
    | Distrust
    | Outlived
)
