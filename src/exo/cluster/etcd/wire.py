"""What nodes say to each other where etcd keeps the log: calls, proposals and telemetry, but no entries.

A node dials the master that etcd names and says `Hello`; the master answers `Welcome` or `NotNow`. What follows are
messages of `exo.cluster.wire`, `Level` and `LivePart`.
"""

import msgspec

from exo.cluster.wire import Answer, Call, Propose, Publish, TelemetryTick, decode_message
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.state import NodeTelemetry

PROTOCOL_VERSION = 1


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t"):
    pass


class Hello(_Message, frozen=True, kw_only=True, tag="EtcdHello"):
    """First message of the dialer."""

    version: int = PROTOCOL_VERSION
    namespace: str
    node_id: NodeId
    term: int
    """Of the master that it looks for."""


class Level(_Message, frozen=True, kw_only=True, tag="EtcdLevel"):
    """Follower to master: what comes next was said by one that has folded everything up to here."""

    index: int


class Welcome(_Message, frozen=True, kw_only=True, tag="EtcdWelcome"):
    """Master: you follow me in my term."""

    term: int
    cluster_id: ClusterId
    index: int
    """How far the master has folded: up to there a follower does not know whether it is a member."""
    last_seq: int
    """The last of the dialer's proposals that was admitted."""


class NotNow(_Message, frozen=True, kw_only=True, tag="EtcdNotNow"):
    """Anyone: you cannot follow me, and why."""

    reason: str


class LivePart(_Message, frozen=True, kw_only=True, tag="EtcdLivePart"):
    """Master: a part of all telemetry there is, for a follower that missed some."""

    live: dict[NodeId, NodeTelemetry]
    index: int
    """Of the decided state that it belongs to."""
    is_last: bool


FromFollower = Hello | Level | Propose | Publish | Call
FromMaster = Welcome | NotNow | LivePart | TelemetryTick | Answer

_encoder = msgspec.msgpack.Encoder()
_from_follower = msgspec.msgpack.Decoder(FromFollower)
_from_master = msgspec.msgpack.Decoder(FromMaster)


def encode(message: FromFollower | FromMaster) -> bytes:
    return _encoder.encode(message)


def decode_from_follower(data: bytes) -> FromFollower:
    """Raises msgspec.DecodeError: it is no message that this release knows."""
    return decode_message(_from_follower, data)


def decode_from_master(data: bytes) -> FromMaster:
    """Raises msgspec.DecodeError: it is no message that this release knows."""
    return decode_message(_from_master, data)


NODES_PER_PART = 256


def encode_live(live: dict[NodeId, NodeTelemetry], index: int) -> list[bytes]:
    """Return the messages that carry all telemetry."""
    nodes = list(live)
    starts = range(0, max(1, len(nodes)), NODES_PER_PART)
    return [
        encode(
            LivePart(
                live={node_id: live[node_id] for node_id in nodes[start : start + NODES_PER_PART]},
                index=index,
                is_last=start + NODES_PER_PART >= len(nodes),
            )
        )
        for start in starts
    ]
