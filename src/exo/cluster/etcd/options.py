"""How long things may take and how much may pile up in the etcd coordinator."""

import msgspec


class EtcdOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds and bounds; the defaults suit real nodes, tests choose smaller ones."""

    lease_s: int = 3
    """How long a master that is gone without a word is waited for. etcd may insist on more."""
    lease_margin: float = 0.2
    """Which part of the lease before its end a master already stops leading: clocks differ, and work takes time."""
    request_timeout_s: float = 1.0
    """How long an endpoint may be silent before the next one is asked."""
    pulse_s: float = 2.0
    """How often a node asks etcd for the newest, whatever the watch says: to notice that either is lost."""
    touch_max_s: float = 4.0
    """A node that has not reached etcd for this long cannot see decisions: it leaves its master."""
    retry_s: float = 0.1
    """First pause after a failure; doubles up to `retry_max_s`."""
    retry_max_s: float = 1.0
    campaign_spread_s: float = 0.2
    """Nodes that could lead wait a random part of this, so that few of them try at once."""
    start_patience_s: float = 30.0
    """How long a start waits for etcd and a master."""
    dial_timeout_s: float = 2.0
    answer_timeout_s: float = 5.0
    """How long the other side of a new connection may take to say the first thing."""
    numbers_behind: int = 0
    """The numbers of this start's proposals begin behind this: no earlier start of the node had used any of them."""
    rejoin_grace_s: float = 3.0
    """How long a new master waits for its members before it marks them disconnected."""
    loss_window_s: float = 2.0
    """Members that fall silent within this while do so at once; more than half: the fault may be the master's."""
    resign_pause_s: float = 1.5
    """How long a master that resigned over such a loss leaves it to others to lead: whoever can, does at once."""
    master_wait_s: float = 5.0
    """How long a command waits for a master to be there; one that a master has may take its whole time."""
    proposal_timeout_s: float = 60.0
    """How long `propose` waits for a master."""
    telemetry_flush_s: float = 0.025
    measure_s: float = 0.5
    """How often the round trips of connections are looked at."""
    link_refresh_s: float = 30.0
    recent_entries: int = 8192
    """Decisions kept in memory, and in etcd behind a snapshot, for feeds and nodes that are a little behind."""
    feed_backlog: int = 8192
    """How far a consumer of `feed()` may fall behind before its feed ends."""
    snapshot_every: int = 10_000
    """Decisions from one snapshot to the next."""
