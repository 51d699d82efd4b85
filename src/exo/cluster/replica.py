"""The default Coordinator: every node carries it, one of them leads and keeps the log, the others follow."""

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from uuid import uuid4

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus
from loguru import logger

from exo.cluster.believing import are_facts
from exo.cluster.boot import Boot, read_store
from exo.cluster.commanding import Commanding
from exo.cluster.coordinator import CommandHandler, Coordinator, CountedKind, Leadership
from exo.cluster.discovery.base import Discovery
from exo.cluster.errors import LogWriteError
from exo.cluster.facts import ClusterFacts, PeerSeen, Removal
from exo.cluster.following import Following
from exo.cluster.kernel import Kernel
from exo.cluster.leading import Reception
from exo.cluster.log.store import NodeStore
from exo.cluster.membership import STOPPED
from exo.cluster.mesh import Mesh
from exo.cluster.options import CoordinatorOptions
from exo.cluster.round_trips import RoundTrips
from exo.cluster.scouting import Scout
from exo.cluster.transport.base import Listener, Transport
from exo.cluster.wire import KeepAuthority
from exo.cluster.writer import RunBlocking, Writer
from exo.shared.errors import ConfigurationError, ExoError, NoMasterError
from exo.shared.types.commands import Command, Reply
from exo.shared.types.events import (
    ClusterDissolved,
    Decision,
    LogEntry,
    NodeDisconnected,
    Telemetry,
    TelemetryFrame,
)
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
        self._options = options
        self._run_blocking = run_blocking
        self._clock = clock
        self._is_voteless = is_voteless
        self._vote_regained = vote_regained
        self._is_yielding = False
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
        self._writer = Writer(self._kernel, store, run_blocking)
        self._round_trips = RoundTrips(
            self._kernel.board, self._kernel.lane, self.node_id, clock, refresh_s=options.link_refresh_s
        )
        self._scout = Scout(self._kernel.situation, options, transport, clock, self._kernel.prospects)
        self._mesh = Mesh(
            self._kernel,
            transport,
            clock=clock,
            report=self._scout.report,
            noticed_at=self._scout.noticed_at,
        )
        self._commanding = Commanding(
            self._kernel, clock, settle_s=options.settle_s if self._discoveries else 0.0
        )
        self._following = Following(
            self._kernel,
            self._scout,
            transport,
            clock=clock,
            is_busy=lambda: self._commanding.is_busy,
            give_up=self._give_up,
        )
        self._reception = Reception(
            self._kernel,
            listener,
            report=self._scout.report,
            execute=self._commanding.execute,
            carry=self._mesh.carry,
        )

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
        try:
            with anyio.fail_after(self._options.proposal_timeout_s):
                return await future
        except TimeoutError as error:
            raise NoMasterError(
                f"no master could be reached for {self._options.proposal_timeout_s:g} s; "
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
        kernel = self._kernel
        recent, rest = kernel.recent, kernel.board.feeds.open()
        if after_index is None:
            return rest
        entries = recent.after(after_index)
        if entries is not None:
            return _chain(entries, rest)
        oldest_index = recent.oldest_index
        entries = recent.after(oldest_index - 1) or ()
        if kernel.situation.is_agreeing and after_index < oldest_index:
            return self._feed_from_log(after_index, oldest_index - 1, _chain(entries, rest))
        return _chain(entries, rest)

    async def _feed_from_log(
        self, after_index: int, until_index: int, rest: AsyncIterator[LogEntry | TelemetryFrame]
    ) -> AsyncIterator[LogEntry | TelemetryFrame]:
        reader = self._store.log.read(after_index)
        while after_index < until_index:
            part = partial(_take, reader, min(1000, until_index - after_index))
            try:
                entries: list[LogEntry] = await self._run_blocking(part)
            except OSError:
                return  # The log was reset or compacted meanwhile.
            for entry in entries:
                after_index = entry.index
                yield entry
            if not entries:
                return
        async for item in rest:
            yield item

    async def confirm(self, *, timeout_s: float) -> int:
        kernel = self._kernel
        try:
            with anyio.fail_after(timeout_s):
                if kernel.situation.standing == "leader":
                    index = await kernel.confirm()
                elif kernel.uplink.master is not None:
                    answer = await kernel.uplink.confirm()
                    if answer.error is not None:
                        raise NoMasterError(answer.error)
                    index = answer.index
                else:
                    raise NoMasterError("no master can be reached; try again, or see `exo status`")
                while kernel.situation.state.index < index:
                    await kernel.board.changed.wait()
        except TimeoutError as error:
            raise NoMasterError(
                f"no majority confirmed within {timeout_s:g} s that there is a master; see `exo status`"
            ) from error
        return index

    async def forget(self, node_ids: Sequence[NodeId]) -> int:
        """See Coordinator. What only the forgotten voters had is lost."""
        kernel = self._kernel
        if kernel.situation.leadership.master_node_id is not None:
            raise ConfigurationError(
                "there is a master, so nobody has to be forgotten by force; use `exo node remove NODE`"
            )
        if not kernel.situation.is_agreeing:
            raise ConfigurationError(
                "this node keeps no copy of the log; run this on one of "
                f"{', '.join(sorted(kernel.situation.voters.members)) or 'the voters'}"
            )
        unknown = set(node_ids) - kernel.situation.voters.members - {kernel.situation.node_id}
        others = kernel.situation.voters.members - {kernel.situation.node_id}
        if unknown or not set(node_ids).issuperset(others):
            raise ConfigurationError(
                f"name every voter that is gone, and nobody else: {', '.join(sorted(others))}"
            )
        kernel.force_history(node_ids)
        with anyio.move_on_after(self._options.answer_timeout_s):
            while not kernel.situation.is_open:
                await kernel.board.changed.wait()
        if not kernel.situation.is_open:
            raise NoMasterError("the history could not be begun anew; see the log of this node")
        return kernel.situation.state.index

    async def leave(self) -> None:
        """Hand over what this node does for the others, as far as that is possible in a moment; it stops soon."""
        kernel = self._kernel
        kernel.situation.is_leaving = True
        has_others = any(
            key != kernel.situation.node_id and node.is_connected for key, node in self.state.nodes.items()
        )
        if not has_others or not kernel.situation.is_member:
            return
        with anyio.move_on_after(self._options.leave_s):
            if kernel.situation.standing == "leader":
                await self.propose(
                    [NodeDisconnected(node_id=kernel.situation.node_id, reason=STOPPED)],
                    cause_id=f"leave-{kernel.situation.boot_id}",
                )
            else:
                kernel.uplink.say_farewell()
            while kernel.situation.is_agreeing or kernel.situation.standing == "leader":
                await kernel.board.changed.wait()

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
        boot = await self._read()
        self._commanding.start(tasks)
        self._kernel.begin(boot, may_vote=not self._is_voteless)
        tasks.start_soon(self._writer.run)
        tasks.start_soon(self._reception.run)
        core = self._kernel.situation.core
        # A node with half of a log may read there that it votes alone: it does not, and has to find the others first.
        if core.is_promotable and core.voters == Voters(voters=(self.node_id,)):
            while not self._kernel.situation.is_member:
                await self._kernel.board.changed.wait()
        tasks.start_soon(self._following.run)
        tasks.start_soon(self._mesh.run)
        tasks.start_soon(self._scout.run)
        tasks.start_soon(self._watch)
        tasks.start_soon(self._flush)
        tasks.start_soon(self._tick)
        tasks.start_soon(self._measure)
        for discovery in self._discoveries:
            tasks.start_soon(discovery.run, self._kernel.situation.facts, self._scout.report)
        if self._discoveries:
            tasks.start_soon(self._nudge)

    async def _read(self) -> Boot:
        boot: Boot = await self._run_blocking(read_store, self._store, self.node_id)
        guess = boot.guess
        if guess.index and guess.namespace != self._namespace:
            raise ConfigurationError(
                f"the data directory belongs to the namespace {guess.namespace!r}, not {self._namespace!r}; "
                "start with that namespace, or choose another directory with EXO_HOME"
            )
        if guess.dissolved_into is not None and boot.point.voters.voters == (self.node_id,):
            # It was about to join another cluster: it starts as a new node, and finds that one.
            await self._run_blocking(self._store.reset)
            boot = await self._run_blocking(read_store, self._store, self.node_id)
        return boot

    async def _flush(self) -> None:
        """Pass telemetry on: at once when it is rare, and never more often than the flush interval."""
        while True:
            while not self._kernel.has_telemetry:
                await self._kernel.lane.work.wait()
            self._kernel.flush_telemetry()
            await anyio.sleep(self._options.telemetry_flush_s)

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(self._options.tick_s)
            self._kernel.tick()

    async def _measure(self) -> None:
        while True:
            await anyio.sleep(self._options.measure_s)
            self._round_trips.check(self._kernel.connections)

    async def _nudge(self) -> None:
        """Let others know soon when this node's cluster, its master or its weight changes."""
        before = None
        while True:
            facts = self._kernel.situation.facts()
            now = (facts.cluster_id, facts.master_node_id, facts.member_count, facts.instance_count > 0)
            if now != before:
                before = now
                for discovery in self._discoveries:
                    discovery.nudge()
            await self._kernel.board.changed.wait()

    async def _give_up(self, into: ClusterFacts) -> bool:
        """Be part of no cluster any more, to join another one. Everybody who was part of this one comes along."""
        kernel = self._kernel
        self._is_yielding = True
        try:
            if kernel.situation.standing == "leader" and not await self._dissolve(into):
                return False
            # Without a pause since the caller found nothing to lose, or behind the last entry of this cluster's log.
            kernel.forsake()
            await self._writer.reset()
            return True
        finally:
            self._is_yielding = False

    async def _dissolve(self, into: ClusterFacts) -> bool:
        kernel = self._kernel
        if kernel.situation.core.voters.members == frozenset((self.node_id,)) and not kernel.hosting.sessions:
            return True
        assert into.cluster_id is not None and into.master_address is not None
        farewell = ClusterDissolved(into_cluster_id=into.cluster_id, address=into.master_address)
        ticket, future = kernel.dispatch.submit([farewell], f"yield-{kernel.situation.boot_id}")
        try:
            with anyio.fail_after(self._options.answer_timeout_s):
                await future
        except (TimeoutError, NoMasterError):
            return False
        finally:
            kernel.proposals.withdraw(ticket)
        with anyio.move_on_after(self._options.farewell_s):
            while not kernel.hosting.have_all(kernel.situation.state.index):  # noqa: ASYNC110 (an answer announces nothing)
                await anyio.sleep(self._options.tick_s / 5)
        return True

    async def _watch(self) -> None:
        """Leave a cluster that is no more, and form a new one when there is none to join."""
        kernel, board = self._kernel, self._kernel.board
        homeless_since_s: float | None = None
        while True:
            if kernel.situation.farewell is not None and not self._is_yielding:
                was_removed = kernel.situation.farewell == "removed"
                kernel.forsake()
                await self._writer.reset()
                if was_removed:
                    await self._begin_anew()
                    continue
            if kernel.situation.core.may_vote and self._is_voteless:
                self._is_voteless = False
                await self._run_blocking(self._vote_regained)
            wait_s: float | None = None
            is_homeless = kernel.situation.is_spare or (
                kernel.situation.cluster_id is None and not kernel.situation.core.voters.voters
            )
            if is_homeless and not self._is_yielding and not self._is_voteless:
                now_s = self._clock()
                homeless_since_s = now_s if homeless_since_s is None else homeless_since_s
                wait_s = homeless_since_s + self._options.homeless_s - now_s
                if wait_s <= 0.001:
                    if kernel.situation.is_spare:
                        kernel.forsake()
                        await self._writer.reset()
                        continue
                    logger.info("no cluster took this node in: it forms one of its own")
                    kernel.found()
                    continue
            else:
                homeless_since_s = None
            with anyio.move_on_after(wait_s):
                await board.changed.wait()

    async def _begin_anew(self) -> None:
        """Form a cluster after this node was removed: nobody counts on it, and there is nobody to wait for."""
        kernel = self._kernel
        if self._is_voteless:
            self._is_voteless = False
            await self._run_blocking(self._vote_regained)
        if (
            kernel.situation.cluster_id is None
            and not kernel.situation.core.voters.voters
            and kernel.situation.standing == "orphan"
        ):
            kernel.found()


async def _chain(
    entries: Sequence[LogEntry], rest: AsyncIterator[LogEntry | TelemetryFrame]
) -> AsyncIterator[LogEntry | TelemetryFrame]:
    for entry in entries:
        yield entry
    async for item in rest:
        yield item


def _take(reader: Iterator[LogEntry], count: int) -> list[LogEntry]:
    return list(islice(reader, count))


def _first(group: BaseExceptionGroup[ExoError]) -> ExoError:
    """Return the error that says most: a failed log explains the others."""
    errors: list[ExoError] = []
    for error in group.exceptions:
        errors.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in errors if isinstance(error, LogWriteError)), errors[0])
