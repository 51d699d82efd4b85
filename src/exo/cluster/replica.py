"""The default Coordinator: every node carries it, one of them leads and keeps the log, the others follow."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from uuid import uuid4

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus
from loguru import logger

from exo.cluster.commanding import Commanding
from exo.cluster.coordinator import CommandHandler, Coordinator, Leadership
from exo.cluster.discovery.base import Discovery
from exo.cluster.errors import LogWriteError
from exo.cluster.facts import PeerSeen
from exo.cluster.following import Following
from exo.cluster.kernel import Kernel
from exo.cluster.leading import Reception, redirect_all
from exo.cluster.links import Links
from exo.cluster.log.base import EventLog
from exo.cluster.log.replay import replay
from exo.cluster.options import CoordinatorOptions
from exo.cluster.scouting import Scout
from exo.cluster.transport.base import Listener, Transport
from exo.cluster.writer import RunBlocking, Writer
from exo.shared.errors import ConfigurationError, ExoError, NoMasterError
from exo.shared.types.commands import Command, Reply
from exo.shared.types.events import Decision, LogEntry, Telemetry, TelemetryFrame
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.shared.types.state import State


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
            log=SegmentLog(home / "log"),
            transport=transport,
            listener=listener,
            discoveries=[MulticastDiscovery(lambda: (secret,), port=52416), StaticDiscovery(peers)],
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
        new_id: Random ids for events and for a new cluster.
        run_blocking: Runs a function that waits for the disk, by default in a thread.
        is_checking_invariants: Check the state after every decision, and stop when it is impossible.
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
        run_blocking: RunBlocking = anyio.to_thread.run_sync,
        is_checking_invariants: bool = False,
    ) -> None:
        self._namespace = namespace
        self._log = log
        self._listener = listener
        self._discoveries = tuple(discoveries)
        self._options = options
        self._run_blocking = run_blocking
        self._kernel = Kernel(
            identity=identity,
            namespace=namespace,
            options=options,
            wall_clock=wall_clock,
            new_id=new_id,
            is_checking_invariants=is_checking_invariants,
        )
        self._writer = Writer(self._kernel, log, run_blocking)
        self._links = Links(self._kernel, clock)
        self._scout = Scout(self._kernel, transport, clock)
        self._commanding = Commanding(
            self._kernel, clock, settle_s=options.settle_s if self._discoveries else 0.0
        )
        self._following = Following(
            self._kernel,
            self._scout,
            transport,
            clock=clock,
            is_busy=lambda: self._commanding.is_busy,
            give_up_leading=self._give_up_leading,
        )
        self._reception = Reception(
            self._kernel, listener, report=self._scout.report, execute=self._commanding.execute
        )

    # --- Coordinator --------------------------------------------------------------------------------------------

    @property
    def node_id(self) -> NodeId:
        return self._kernel.node_id

    @property
    def state(self) -> State:
        return self._kernel.state

    @property
    def leadership(self) -> Leadership:
        return self._kernel.leadership

    @property
    def peers_seen(self) -> tuple[PeerSeen, ...]:
        """Everybody who was noticed, and why they are or are not part of this cluster."""
        return self._scout.peers_seen

    async def propose(self, events: Sequence[Decision], *, cause_id: str) -> int:
        """See Coordinator.

        Decisions that a master makes (instances created, deleted or restarted, nodes disconnected) are valid only
        in the cluster and term in which they were proposed; NoMasterError says that another master leads by then.
        When this node learns of the commit from a snapshot, the index may be a later one. A proposal that was
        given up while it was already on its way may be committed all the same, once.
        """
        if not events:
            return self.state.index
        ticket, future = self._kernel.submit(events, cause_id)
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
        board, core = self._kernel.board, self._kernel.core
        if after_index is None:
            return board.feeds.open()
        recent = core.recent_after(after_index)
        if recent is not None:
            return board.feeds.open(recent)
        if core.role == "leader" and after_index < core.commit_index:
            return self._feed_from_log(after_index, core.commit_index, board.feeds.open())
        return board.feeds.open(core.recent_after(core.oldest_index - 1) or ())

    async def _feed_from_log(
        self, after_index: int, until_index: int, rest: AsyncIterator[LogEntry | TelemetryFrame]
    ) -> AsyncIterator[LogEntry | TelemetryFrame]:
        reader = self._log.read(after_index)
        while after_index < until_index:
            part = partial(_take, reader, min(1000, until_index - after_index))
            try:
                entries: list[LogEntry] = await self._run_blocking(part)
            except OSError:
                return  # The log was reset meanwhile: this node has joined another cluster.
            for entry in entries:
                after_index = entry.index
                yield entry
            if not entries:
                return
        async for item in rest:
            yield item

    # --- taking part --------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Reports itself started when the log is replayed and this node is a member.

        Raises:
            LogCorruptError: The log is damaged in the middle, or was written by a newer release.
            ConfigurationError: The log belongs to another namespace.
            LogWriteError: The log could not be written (disk full, ...): the node has to stop.
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
            self._kernel.stop_leading("the node is stopping")
            self._kernel.proposals.close()
            self._kernel.board.feeds.end_all()
            await self._listener.close()
            self._log.close()

    async def _start(self, tasks: TaskGroup) -> None:
        recovered = await self._run_blocking(replay, self._log, self._options.recent_entries)
        state: State = recovered.state
        if state.index and state.namespace != self._namespace:
            raise ConfigurationError(
                f"the data directory belongs to the namespace {state.namespace!r}, not {self._namespace!r}; "
                "start with that namespace, or choose another directory with EXO_HOME"
            )
        self._commanding.start(tasks)
        self._kernel.lead(state, recovered.recent)
        tasks.start_soon(self._writer.run)
        while not self._kernel.is_member:
            await self._kernel.board.changed.wait()
        logger.info(
            "leading the cluster {} in term {} at index {}",
            self.state.cluster_id,
            self.leadership.term,
            self.state.index,
        )
        tasks.start_soon(self._reception.run)
        tasks.start_soon(self._following.run)
        tasks.start_soon(self._scout.run)
        tasks.start_soon(self._flush)
        tasks.start_soon(self._tick)
        for discovery in self._discoveries:
            tasks.start_soon(discovery.run, self._kernel.facts, self._scout.report)
        if self._discoveries:
            tasks.start_soon(self._nudge)

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
            self._links.check()

    async def _nudge(self) -> None:
        """Let others know soon when this node's cluster, its master or its weight changes."""
        before = None
        while True:
            facts = self._kernel.facts()
            now = (facts.cluster_id, facts.master_node_id, facts.member_count, facts.instance_count > 0)
            if now != before:
                before = now
                for discovery in self._discoveries:
                    discovery.nudge()
            await self._kernel.board.changed.wait()

    async def _give_up_leading(self, address: HostPort) -> None:
        # First of all, and without a pause since the caller found nothing to lose: telling the followers takes a
        # while, and what was admitted meanwhile would be acknowledged and then forgotten with the log.
        sessions = self._kernel.step_down()
        await redirect_all(sessions, address)
        await self._writer.reset()


def _take(reader: Iterator[LogEntry], count: int) -> list[LogEntry]:
    return list(islice(reader, count))


def _first(group: BaseExceptionGroup[ExoError]) -> ExoError:
    """Return the error that says most: a failed log explains the others."""
    errors: list[ExoError] = []
    for error in group.exceptions:
        errors.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in errors if isinstance(error, LogWriteError)), errors[0])
