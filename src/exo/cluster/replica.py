"""The default Coordinator: every node carries it, one of them leads and keeps the log, the others follow."""

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import anyio
import msgspec
from anyio.abc import TaskStatus

from exo.cluster.discovery.base import Discovery
from exo.cluster.log.base import EventLog
from exo.cluster.transport.base import Listener, Transport
from exo.shared.types.nodes import NodeIdentity


def utc_now() -> str:
    """Return the wall clock's time in ISO 8601, UTC, milliseconds: for people to read."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class CoordinatorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds and bounds; the defaults suit real nodes, tests choose smaller ones."""

    dial_timeout_s: float = 2.0
    redial_s: float = 0.2
    """First pause between two attempts to reach a lost master; doubles up to `redial_max_s`."""
    redial_max_s: float = 1.0
    settle_s: float = 1.0
    """How long a fresh, empty cluster of one holds commands back, so that it can find the others first."""
    rejoin_grace_s: float = 3.0
    """How long a master that has just started waits for its members before it marks them disconnected."""
    orphan_patience_s: float = 10.0
    """How long a follower without instances waits for its master before it joins another cluster it sees."""
    proposal_timeout_s: float = 60.0
    """How long `propose` waits for a master."""
    telemetry_flush_s: float = 0.025
    recent_entries: int = 8192
    """Decisions kept in memory for followers and feeds that are a little behind."""
    feed_backlog: int = 8192
    """How far a consumer of `feed()` may fall behind before its feed ends."""
    link_refresh_s: float = 30.0


class EmbeddedCoordinator:
    """Agreement without another service: the node starts at once as master of its own cluster, then joins others.

    Wiring, in `node.py`::

        secret = load_host_secret(secret_file())
        transport = TcpTransport(secret)
        listener = await transport.listen(HostPort("127.0.0.1", settings.cluster_port))
        identity = NodeIdentity(..., cluster_address=listener.address)
        coordinator = EmbeddedCoordinator(
            identity=identity,
            namespace=settings.namespace,
            log=SegmentLog(home / "log"),
            transport=transport,
            listener=listener,
            discoveries=[MulticastDiscovery(secret, port=settings.discovery_port), StaticDiscovery(peers)],
        )
        await task_group.start(coordinator.run)

    Args:
        identity: What this node says of itself, with this start's `boot_id`. `cluster_address` is the
            listener's address.
        namespace: Only nodes of one namespace find each other.
        log: Where decisions are kept while this node leads. Closed at the end of `run`.
        transport: How to reach others.
        listener: Where others reach this node. Closed at the end of `run`.
        discoveries: Ways to find others; none is fine.
        options: Times and bounds.
        clock: Monotonic seconds.
        wall_clock: ISO 8601, UTC; written into decisions for people to read.
        new_id: Random ids for events, proposals and a new cluster.
        run_blocking: Runs a function that waits for the disk, by default in a thread.
    """

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        namespace: str,
        log: EventLog,
        transport: Transport,
        listener: Listener,
        discoveries: Sequence[Discovery] = (),
        options: CoordinatorOptions = CoordinatorOptions(),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], str] = utc_now,
        new_id: Callable[[], str] = lambda: uuid4().hex,
        run_blocking: Callable[..., Awaitable[Any]] = anyio.to_thread.run_sync,
        is_checking_invariants: bool = False,
    ) -> None:
        self._identity = identity
        self._namespace = namespace
        self._log = log
        self._transport = transport
        self._listener = listener
        self._discoveries = tuple(discoveries)
        self._options = options
        self._clock = clock
        self._wall_clock = wall_clock
        self._new_id = new_id
        self._run_blocking = run_blocking
        self._is_checking_invariants = is_checking_invariants

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Reports itself started when the log is replayed and this node is a member.

        Raises:
            LogCorruptError: The log is damaged in the middle, or was written by a newer release.
            ConfigurationError: The log belongs to another namespace, or another process uses it.
            LogWriteError: The log could not be written (disk full, ...): the node has to stop.
        """
        raise NotImplementedError
