"""How long things may take and how much may pile up in the embedded coordinator."""

import msgspec

from exo.cluster.raft.options import CoreOptions


class CoordinatorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds and bounds; the defaults suit real nodes, tests choose smaller ones."""

    tick_s: float = 0.05
    """Of the agreement: see CoreOptions for what is counted in ticks."""
    core: CoreOptions = CoreOptions()
    manage_s: float = 0.25
    """How often a master looks who is there and who should vote."""
    vote_delay_s: float = 1.0
    """How long a newcomer has to stay before it is made a voter."""
    voter_patience_s: float = 60.0
    """How long a voter may be lost before another node gets its place."""
    stall_s: float = 2.0
    """How long a replica may hold up decisions before the master goes on without it."""
    leave_s: float = 3.0
    """How long a node that stops waits for the others to take its part over."""
    farewell_s: float = 0.5
    """How long a master whose cluster was dissolved waits until its members know."""
    homeless_s: float = 5.0
    """How long a node whose cluster is no more looks for the one to join before it forms its own."""
    measure_s: float = 0.5
    """How often the round trips of connections are looked at."""
    snapshot_entries: int = 10_000
    """After how many decisions a snapshot is written and the log behind it forgotten."""
    dial_timeout_s: float = 2.0
    answer_timeout_s: float = 5.0
    """How long the other side of a new connection may take to say the first thing."""
    redial_s: float = 0.1
    """First pause between two attempts to reach a master; doubles up to `redial_max_s`."""
    redial_max_s: float = 1.0
    settle_s: float = 1.0
    """How long a node that has just started without instances holds commands back, to find the others first."""
    numbers_behind: int = 0
    """The numbers of this start's proposals begin behind this: no earlier start of the node had used any of them."""
    rejoin_grace_s: float = 3.0
    """How long a master that has just started waits for its members before it marks them disconnected."""
    orphan_patience_s: float = 10.0
    """How long a follower without instances waits for its master before it joins another cluster it sees."""
    master_wait_s: float = 5.0
    """How long a command waits for a master to be there; one that a master has may take its whole time."""
    proposal_timeout_s: float = 60.0
    """How long `propose` waits for a master."""
    telemetry_flush_s: float = 0.025
    entries_per_message: int = 512
    recent_entries: int = 8192
    """Decisions kept in memory for followers and feeds that are a little behind."""
    feed_backlog: int = 8192
    """How far a consumer of `feed()` may fall behind before its feed ends."""
    link_refresh_s: float = 30.0
    sightings_max: int = 256
