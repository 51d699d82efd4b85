"""The default Coordinator: every node carries it, one of them leads and keeps the log, the others follow."""

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from exo.cluster.asking import Asking
from exo.cluster.believing import are_facts
from exo.cluster.boot import Boot, begin_store
from exo.cluster.commanding import Commanding
from exo.cluster.coordinator import CommandHandler, Coordinator, CountedKind, Leadership
from exo.cluster.discovery.base import Discovery
from exo.cluster.errors import LogWriteError
from exo.cluster.facts import PeerSeen, Removal
from exo.cluster.feeding import Feeding
from exo.cluster.following import Following
from exo.cluster.kernel import Kernel
from exo.cluster.leading import Reception
from exo.cluster.log.store import NodeStore
from exo.cluster.mesh import Mesh
from exo.cluster.moving import Moving
from exo.cluster.options import CoordinatorOptions
from exo.cluster.round_trips import RoundTrips
from exo.cluster.rounds import Rounds
from exo.cluster.scouting import Scout
from exo.cluster.transport.base import Listener, Transport
from exo.cluster.wire import KeepAuthority
from exo.cluster.writer import RunBlocking, Writer
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.types.commands import Command, Reply
from exo.shared.types.events import Decision, LogEntry, Telemetry, TelemetryFrame
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.state import State
from exo.shared.types.voters import Voters


def utc_now() -> str:
    """Return the wall clock's time in ISO 8601, UTC, milliseconds: for people to read."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class EmbeddedCoordinator(Coordinator):
    """Agreement without another service: the node starts at once as master of its own cluster, then joins others.

    Wiring, in `node.py`::

        secret = load_host_secret(secret_file())
        transport = TcpTransport(secret)
        listener = await transport.listen(HostPort("127.0.0.1", settings.cluster_port))
        identity = NodeIdentity(..., cluster_address=listener.address)
        coordinator = EmbeddedCoordinator(
            identity=identity,
            namespace=settings.namespace,
            store=open_store(home / "log"),
            transport=transport,
            listener=listener,
            discoveries=[MulticastDiscovery(lambda: (secret,), port=52416), StaticDiscovery(peers)],
        )
        await task_group.start(coordinator.run)

    Args:
        identity: What this node says of itself, with this start's `boot_id`. `cluster_address` is the
            listener's address.
        namespace: Only nodes of one namespace find each other.
        store: Where this node keeps the decisions, its vote and snapshots. Closed at the end of `run`.
        transport: How to reach others.
        listener: Where others reach this node. Closed at the end of `run`.
        discoveries: Ways to find others; none is fine.
        options: Times and bounds.
        clock: Monotonic seconds.
        wall_clock: ISO 8601, UTC; written into decisions for people to read.
        new_id: Random ids for events and for a new cluster.
        random_number: From 0 to 1; keeps nodes from standing for election at the same moment.
        is_voteless: The node has lost its log: it joins its cluster again, and votes when it was let in anew.
        vote_regained: Called when that has happened.
        run_blocking: Runs a function that waits for the disk, by default in a thread.
        is_checking_invariants: Check the state after every decision, and stop when it is impossible.
    """

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        namespace: str,
        store: NodeStore,
        transport: Transport,
        listener: Listener,
        discoveries: Sequence[Discovery] = (),
        options: CoordinatorOptions = CoordinatorOptions(),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], str] = utc_now,
        new_id: Callable[[], str] = lambda: uuid4().hex,
        random_number: Callable[[], float] = random.random,
        is_voteless: bool = False,
        vote_regained: Callable[[], None] = lambda: None,
        run_blocking: RunBlocking = anyio.to_thread.run_sync,
        is_checking_invariants: bool = False,
    ) -> None:
        self._namespace = namespace
        self._store = store
        self._listener = listener
        self._transport = transport
        self._discoveries = tuple(discoveries)
        self._run_blocking = run_blocking
        self._is_voteless = is_voteless
        self._kernel = Kernel(
            identity=identity,
            namespace=namespace,
            options=options,
            clock=clock,
            wall_clock=wall_clock,
            new_id=new_id,
            random=random_number,
            is_checking_invariants=is_checking_invariants,
        )
        situation, board = self._kernel.situation, self._kernel.board
        self._asking = Asking(self._kernel, self.propose)
        self._feeding = Feeding(situation, board, self._kernel.recent, store, run_blocking)
        self._commanding = Commanding(
            self._kernel, clock, settle_s=options.settle_s if self._discoveries else 0.0
        )
        self._writer = Writer(self._kernel, store, run_blocking)
        self._moving = Moving(
            self._kernel,
            self._writer,
            clock,
            is_voteless=is_voteless,
            vote_regained=vote_regained,
            run_blocking=run_blocking,
        )
        self._scout = Scout(situation, options, transport, clock, self._kernel.prospects)
        self._mesh = Mesh(
            self._kernel,
            transport,
            clock=clock,
            report=self._scout.report,
            noticed_at=self._scout.noticed_at,
        )
        self._following = Following(
            self._kernel,
            self._scout,
            transport,
            is_busy=lambda: self._commanding.is_busy,
            give_up=self._moving.give_up,
        )
        self._reception = Reception(
            self._kernel,
            listener,
            report=self._scout.report,
            execute=self._commanding.execute,
            carry=self._mesh.carry,
        )
        round_trips = RoundTrips(
            board, self._kernel.lane, self.node_id, clock, refresh_s=options.link_refresh_s
        )
        self._rounds = Rounds(self._kernel, round_trips, self._discoveries)

    # --- Coordinator --------------------------------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        return self._kernel.situation.node_id

    @property
    def state(self) -> State:
        return self._kernel.situation.state

    @property
    def leadership(self) -> Leadership:
        return self._kernel.situation.leadership

    @property
    def peers_seen(self) -> tuple[PeerSeen, ...]:
        """Everybody who was noticed, and why they are or are not part of this cluster."""
        return self._scout.peers_seen

    @property
    def counts(self) -> Mapping[CountedKind, Mapping[str, int]]:
        """See Coordinator."""
        heard = Counter[str]()
        for discovery in self._discoveries:
            heard.update(discovery.counts)
        return {"connections": self._transport.counts, "beacons": heard, "incidents": self._kernel.counts}

    @property
    def removed_from(self) -> Removal | None:
        """Which cluster has put this node out, until one takes it in again."""
        return self._kernel.situation.removed_from

    async def propose(self, events: Sequence[Decision], *, cause_id: str) -> int:
        """See Coordinator.

        Facts that a node tells of itself (`believing.FACTS`) wait for a master. Decisions that a master makes are
        valid only in the cluster and term that it leads: proposed by another node, or undecided when another one
        leads, they end in NoMasterError.
        When this node learns of the commit from a snapshot, the index may be a later one. A proposal that was
        given up while it was already on its way may be committed all the same, once.
        """
        if not events:
            return self.state.index
        if not are_facts(events) and self._kernel.situation.core.leading is None:
            raise NoMasterError(
                "this node does not lead; look at the state and decide again on the one that does"
            )
        ticket, future = self._kernel.dispatch.submit(events, cause_id)
        timeout_s = self._kernel.options.proposal_timeout_s
        try:
            with anyio.fail_after(timeout_s):
                return await future
        except TimeoutError as error:
            raise NoMasterError(
                f"no master could be reached for {timeout_s:g} s; "
                "start the node that was the master, or see `exo status`"
            ) from error
        finally:
            self._kernel.proposals.withdraw(ticket)

    async def send(self, command: Command, *, timeout_s: float) -> Reply:
        return await self._commanding.send(command, timeout_s=timeout_s)

    def set_command_handler(self, handler: CommandHandler) -> None:
        self._commanding.handler = handler
        self._kernel.board.announce()

    def publish(self, events: Sequence[Telemetry]) -> None:
        self._kernel.lane.publish(events)

    async def changes(self) -> AsyncIterator[State]:
        """See Coordinator. Also yields when another node leads, or none."""
        board = self._kernel.board
        while True:
            version = board.version
            yield board.state
            while board.version == version:
                await board.changed.wait()

    def feed(self, after_index: int | None = None) -> AsyncIterator[LogEntry | TelemetryFrame]:
        """See Coordinator. It begins when it is called, not at the first `anext`.

        The master reaches back to the first decision. A follower keeps the recent ones only: where they do not
        reach back to `after_index`, the feed begins with the oldest that is there, so look at the first index.
        A feed also ends when this node goes on from a snapshot: then the state is to be read again.
        """
        return self._feeding.open(after_index)

    async def confirm(self, *, timeout_s: float) -> int:
        return await self._asking.confirm(timeout_s=timeout_s)

    async def forget(self, node_ids: Sequence[NodeId]) -> int:
        """See Coordinator. What only the forgotten voters had is lost."""
        return await self._asking.forget(node_ids)

    async def leave(self) -> None:
        """Hand over what this node does for the others, as far as that is possible in a moment; it stops soon."""
        await self._asking.leave()

    def share_authority(self, authority: KeepAuthority | None, keep: Callable[[KeepAuthority], None]) -> None:
        """Pass the key of the cluster's authority on to whoever may lead next, while this node leads.

        Args:
            authority: The key, where this node has it.
            keep: Called with the key that a master passes on to this node.
        """
        self._kernel.keep_authority = keep
        self._kernel.hosting.share_authority(authority)

    # --- taking part --------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled.

        Reports itself started when what is on disk is read back and, if nobody else has to agree to that, this node
        is a member of its cluster.

        Raises:
            LogCorruptError: What is on disk is damaged, or was written by a newer release.
            ConfigurationError: The log belongs to another namespace.
            LogWriteError: The disk could not be written (full, ...): the node has to stop.
        """
        try:
            async with anyio.create_task_group() as tasks:
                await self._start(tasks)
                task_status.started()
        except BaseExceptionGroup as group:
            causes = group.subgroup(ExoError)
            if causes is None:
                raise
            raise _first(causes) from group
        finally:
            self._kernel.stop("the node is stopping")
            self._kernel.proposals.close()
            self._kernel.board.feeds.end_all()
            try:
                await self._listener.close()
            finally:
                self._store.close()

    async def _start(self, tasks: TaskGroup) -> None:
        boot: Boot = await self._run_blocking(begin_store, self._store, self.node_id, self._namespace)
        self._commanding.start(tasks)
        self._kernel.begin(boot, may_vote=not self._is_voteless)
        tasks.start_soon(self._writer.run)
        tasks.start_soon(self._reception.run)
        situation = self._kernel.situation
        core = situation.core
        # A node with half of a log may read there that it votes alone: it does not, and has to find the others first.
        if core.is_promotable and core.voters == Voters(voters=(self.node_id,)):
            while not situation.is_member:
                await self._kernel.board.changed.wait()
        tasks.start_soon(self._following.run)
        tasks.start_soon(self._mesh.run)
        tasks.start_soon(self._scout.run)
        tasks.start_soon(self._moving.run)
        for discovery in self._discoveries:
            tasks.start_soon(discovery.run, situation.facts, self._scout.report)
        self._rounds.start(tasks)


def _first(group: BaseExceptionGroup[ExoError]) -> ExoError:
    """Return the error that says most: a failed log explains the others."""
    errors: list[ExoError] = []
    for error in group.exceptions:
        errors.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in errors if isinstance(error, LogWriteError)), errors[0])
