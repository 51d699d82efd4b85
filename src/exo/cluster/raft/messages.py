"""What the nodes that agree say to each other. Each message carries the sender's incarnation and term."""

import msgspec

from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag=True):
    incarnation: int
    term: int


class VoteRequest(_Message, frozen=True, kw_only=True):
    """Candidate: my log ends at (last_index, last_term); vote for me in `term`.

    A trial (`is_trial`, Raft's PreVote) asks whether the vote would be given, and changes nothing.
    """

    is_trial: bool
    last_index: int
    last_term: int
    is_hand_over: bool = False
    """The leader itself asked the candidate to stand: loyalty to it is no reason to refuse."""


class VoteAnswer(_Message, frozen=True, kw_only=True):
    """Voter: granted for `term`, or refused by someone who is in `term`."""

    is_trial: bool
    is_granted: bool


class Append(_Message, frozen=True, kw_only=True):
    """Leader: put these behind (previous_index, previous_term), if that is what you have there."""

    previous_index: int
    previous_term: int
    entries: tuple[LogEntry, ...]
    commit_index: int


class AppendAnswer(_Message, frozen=True, kw_only=True):
    """Follower: my disk has everything up to `index`; or, refused, I differ at `index`."""

    is_accepted: bool
    index: int
    hint_index: int = 0
    """Refused: the newest place at which the logs may agree, and the term that I have there."""
    hint_term: int = 0
    is_level: bool = True
    """I have had all that was committed, and could vote. Releases before this was said always could."""


class Heartbeat(_Message, frozen=True, kw_only=True):
    """Leader: I am here; `commit_index` is no further than what you have acknowledged."""

    commit_index: int
    read_id: int = 0
    """Answer with the same number: whoever asked for a confirmed read waits for it."""


class HeartbeatAnswer(_Message, frozen=True, kw_only=True):
    read_id: int = 0
    is_level: bool = True
    """As in AppendAnswer."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state up to `index`, and what agreement has to know of it."""

    index: int
    term: int
    incarnation: int
    voters: Voters
    last_seq: dict[NodeId, int]
    data: bytes
    """The encoded state; opaque to the core."""


class InstallSnapshot(_Message, frozen=True, kw_only=True):
    """Leader: you lack too much; go on from here. Answered with AppendAnswer."""

    snapshot: Snapshot


class StandNow(_Message, frozen=True, kw_only=True):
    """Leader: you have everything; stand for election at once (Raft's TimeoutNow)."""


PeerMessage = (
    VoteRequest
    | VoteAnswer
    | Append
    | AppendAnswer
    | Heartbeat
    | HeartbeatAnswer
    | InstallSnapshot
    | StandNow
)
