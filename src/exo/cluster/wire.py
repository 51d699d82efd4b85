"""What nodes say to each other: msgpack messages, one union for each direction of a conversation.

The dialing node says `Hello`; the other answers `Welcome` (it leads, and the dialer now follows it) or `NotNow`.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from exo.cluster.errors import UnsendableError
from exo.cluster.facts import ClusterFacts
from exo.cluster.transport.base import MESSAGE_BYTES_MAX
from exo.shared.refusals import clean_text
from exo.shared.types.commands import Command, Reply
from exo.shared.types.events import Decision, LogEntry, TelemetryFrame
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.state import NodeTelemetry, State

T = TypeVar("T")


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag=True):
    pass


class ProposedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A decision on its way into the log. The id is given by the origin, so that it stays when it is sent again."""

    event_id: EventId
    event: Decision


class Hello(_Message, frozen=True, kw_only=True):
    """First message of the dialer. To `look` is to exchange facts and hang up.

    To `join` is to follow a master; to `agree` is to exchange what voters say to each other (see raft/messages.py).
    """

    facts: ClusterFacts
    intent: Literal["join", "look", "agree"]
    last_index: int = 0
    last_term: int = 0
    """Position of the newest entry folded here: where the tail may begin."""


class Propose(_Message, frozen=True, kw_only=True):
    """Follower to master: decisions to be admitted together, if the origin's last ones are those of `after_seq`."""

    term: int
    first_seq: int
    after_seq: int
    cause_id: str
    at: str
    events: tuple[ProposedEvent, ...]


class Publish(_Message, frozen=True, kw_only=True):
    """Follower to master: telemetry."""

    frame: TelemetryFrame


class Call(_Message, frozen=True, kw_only=True):
    """Follower to master: carry this out and answer."""

    call_id: int
    command: Command


class Confirm(_Message, frozen=True, kw_only=True):
    """Follower to master: are you still the master? The answer's index is one to read at."""

    call_id: int


class Farewell(_Message, frozen=True, kw_only=True):
    """Follower to master: this node is about to stop; do not wait for it."""


class Agreed(_Message, frozen=True, kw_only=True):
    """To a dialer that wants to agree: speak."""

    facts: ClusterFacts


class Welcome(_Message, frozen=True, kw_only=True):
    """Master: you follow me in my term. A snapshot or the tail behind `Hello.last_index` comes next."""

    facts: ClusterFacts
    is_snapshot_next: bool
    is_agreeing: bool = False
    """The dialer gets entries as a voter, replica or learner does, not through this conversation."""
    last_seq: int
    """The last of the dialer's proposals that was admitted."""


NotNowCode = Literal[
    "look",
    "busy",
    "not_master",
    "junior",
    "other_namespace",
    "other_version",
    "same_node_id",
    "two_masters",
    "both_have_instances",
    "other_cluster",
    "not_member",
    "removed",
]


class NotNow(_Message, frozen=True, kw_only=True):
    """Anyone: you cannot follow me, and why. The facts may show a better way."""

    code: NotNowCode
    facts: ClusterFacts


class SnapshotPart(_Message, frozen=True, kw_only=True):
    """Master: a piece of an encoded State."""

    data: bytes
    is_last: bool


class Entries(_Message, frozen=True, kw_only=True):
    """Master: committed decisions, in order."""

    term: int
    entries: tuple[LogEntry, ...]


class LiveState(_Message, frozen=True, kw_only=True):
    """Master: all telemetry there is, for a follower that missed some."""

    live: dict[NodeId, NodeTelemetry]
    index: int = 0
    """Of the decided state that it belongs to: whoever is not there yet may not know these nodes."""


class TelemetryTick(_Message, frozen=True, kw_only=True):
    """Master: what was published since the tick before."""

    term: int
    tick: int
    frames: tuple[TelemetryFrame, ...]
    index: int = 0
    """Of the decided state that it was folded into: whoever is not there yet may not know these nodes."""


class Answer(_Message, frozen=True, kw_only=True):
    """Master: what became of a call. The caller's state contains it once it has reached `index`."""

    call_id: int
    index: int
    reply: Reply | None = None
    error: str | None = None


class KeepAuthority(_Message, frozen=True, kw_only=True):
    """Master to a voter: the key of the cluster's authority, for when you lead. Both in PEM form."""

    certificate_pem: str
    key_pem: str

    def __repr__(self) -> str:
        return f"KeepAuthority({self.certificate_pem!r}, ***)"


FromDialer = Hello | Propose | Publish | Call | Confirm | Farewell
FromListener = (
    Welcome | Agreed | NotNow | SnapshotPart | Entries | LiveState | TelemetryTick | Answer | KeepAuthority
)

_encoder = msgspec.msgpack.Encoder()
_from_dialer = msgspec.msgpack.Decoder(FromDialer)
_from_listener = msgspec.msgpack.Decoder(FromListener)
_state = msgspec.msgpack.Decoder(State)


def encode(message: FromDialer | FromListener) -> bytes:
    return _encoder.encode(message)


PROPOSAL_BYTES_MAX = MESSAGE_BYTES_MAX // 2
"""What is proposed together. Each decision of it has to fit into a message to the followers, with what the log adds."""
TELEMETRY_BYTES_MAX = 1024 * 1024
"""What one node publishes at a time."""


def encode_checked(
    message: FromDialer | FromListener, what: str, bytes_max: int = MESSAGE_BYTES_MAX
) -> bytes:
    """Encode something that holds what a caller passed in.

    Raises:
        UnsendableError: It is longer than `bytes_max`, or holds a number beyond 64 bits or text that is no UTF-8.
    """
    try:
        data = _encoder.encode(message)
    except (OverflowError, ValueError, TypeError) as error:
        raise UnsendableError(f"{what} cannot be sent to other nodes: {error}") from error
    if len(data) > bytes_max:
        raise UnsendableError(
            f"{what} is {len(data)} bytes long, {len(data) - bytes_max} more than can be sent at once"
        )
    return data


ENTRIES_BYTES = 1024 * 1024
"""Where a message with several entries ends."""


class _RawEntries(_Message, frozen=True, kw_only=True, tag="Entries"):
    term: int
    entries: tuple[msgspec.Raw, ...]


def encode_entries(term: int, entries: Sequence[LogEntry]) -> list[bytes]:
    """Return the messages that carry entries: none is much longer than ENTRIES_BYTES or than its only entry."""
    whole = encode(Entries(term=term, entries=tuple(entries)))
    if len(whole) <= ENTRIES_BYTES:
        return [whole]
    messages: list[bytes] = []
    part: list[msgspec.Raw] = []
    part_bytes = 0
    for entry in entries:
        data = _encoder.encode(entry)
        if part and part_bytes + len(data) > ENTRIES_BYTES:
            messages.append(_encoder.encode(_RawEntries(term=term, entries=tuple(part))))
            part, part_bytes = [], 0
        part.append(msgspec.Raw(data))
        part_bytes += len(data)
    messages.append(_encoder.encode(_RawEntries(term=term, entries=tuple(part))))
    return messages


def decode_message(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    """Decode what a peer sent; text that is no UTF-8 and nesting without end are its mistakes like all others.

    Raises:
        msgspec.DecodeError: It is no message that this release knows.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # The text may repeat what the peer sent, of any length.
        raise msgspec.DecodeError(clean_text(str(error))) from error


def decode_from_dialer(data: bytes) -> FromDialer:
    """Raises msgspec.DecodeError: it is no message that this release knows."""
    return decode_message(_from_dialer, data)


def decode_from_listener(data: bytes) -> FromListener:
    """Raises msgspec.DecodeError: it is no message that this release knows."""
    return decode_message(_from_listener, data)


SNAPSHOT_PART_BYTES = 256 * 1024


def encode_state(state: State) -> bytes:
    return _encoder.encode(state)


def encode_snapshot(state: State) -> list[bytes]:
    """Return the messages that carry a whole state."""
    data = _encoder.encode(state)
    starts = range(0, len(data), SNAPSHOT_PART_BYTES)
    return [
        encode(
            SnapshotPart(
                data=data[start : start + SNAPSHOT_PART_BYTES],
                is_last=start + SNAPSHOT_PART_BYTES >= len(data),
            )
        )
        for start in starts
    ]


def decode_snapshot(data: bytes) -> State:
    """Raises msgspec.DecodeError: it is no state that this release knows."""
    return decode_message(_state, data)
