"""Times in ticks and bounds of the agreement, and where a log begins."""

import msgspec

from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters


class CoreOptions(msgspec.Struct, frozen=True, kw_only=True):
    """With ticks of 50 ms: a heartbeat every 0.1 s, an election after 0.5 to 1 s of silence."""

    election_ticks: tuple[int, int] = (10, 20)
    """The shortest and longest silence of a leader before a node stands for election."""
    heartbeat_ticks: int = 2
    recent_max: int = 8192
    """Committed entries that are kept in memory for nodes that are a little behind."""
    entries_per_message: int = 512
    inflight_max: int = 64
    """Messages with entries on their way to one follower."""
    snapshot_patience_ticks: int = 200
    """How long a follower may take to have a snapshot before it is asked again where it is."""


class SnapshotPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a log begins."""

    index: int = 0
    term: int = 0
    voters: Voters = Voters()
    last_seq: dict[NodeId, int] = {}
