"""The Coordinator on etcd: etcd keeps the log and says who leads; the master keeps what must not go through a log."""

import random
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup, TaskStatus
from loguru import logger

from exo.cluster.coordinator import CommandHandler, Coordinator, CountedKind, Leadership
from exo.cluster.etcd.address import EtcdAddress, parse_etcd_url
from exo.cluster.etcd.calls import Calls
from exo.cluster.etcd.client import EtcdClient
from exo.cluster.etcd.errors import EtcdError, EtcdRefusedError
from exo.cluster.etcd.following import Following
from exo.cluster.etcd.member import Member
from exo.cluster.etcd.options import EtcdOptions
from exo.cluster.etcd.reading import Reader
from exo.cluster.etcd.reception import Reception
from exo.cluster.etcd.records import Keys
from exo.cluster.etcd.store import EtcdStore
from exo.cluster.etcd.tenure import Tenure
from exo.cluster.membership import STOPPED
from exo.cluster.round_trips import RoundTrips
from exo.cluster.transport.base import Listener, Transport
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.types.commands import Command, Reply
from exo.shared.types.events import Decision, LogEntry, NodeDisconnected, Telemetry, TelemetryFrame
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.state import State


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def elapsed_s() -> float:
    """Return seconds that never go back and, where the system can tell, go on while the machine sleeps.

    A machine that slept through its lease must know that when it wakes.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class EtcdCoordinator(Coordinator):
    """Agreement through etcd, for sites that run it. Nodes find each other there: no discovery is needed.

    Wiring, in `node.py`, in the place of EmbeddedCoordinator::

        coordinator = open_etcd_coordinator(
            url, identity=identity, namespace=settings.namespace, transport=transport, listener=listener
        )
        await task_group.start(coordinator.run)

    Args:
        identity: What this node says of itself, with this start's `boot_id`. `cluster_address` is the
            listener's address.
        namespace: Nodes of one namespace are one cluster.
        address: Where etcd is.
        transport: How to reach the master.
        listener: Where others reach this node while it leads. Closed at the end of `run`.
        options: Times and bounds.
        clock: Seconds that never go back.
        wall_clock: ISO 8601, UTC; written into decisions for people to read.
        new_id: Random ids for events and for a new cluster.
        draw: Random numbers from 0 to 1: who stands for election first.
        is_checking_invariants: Check the state after every decision, and stop when it is impossible.

    Raises:
        ConfigurationError: A certificate, key or password file cannot be read.
    """

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        namespace: str,
        address: EtcdAddress,
        transport: Transport,
        listener: Listener,
        options: EtcdOptions = EtcdOptions(),
        clock: Callable[[], float] = elapsed_s,
        wall_clock: Callable[[], str] = _utc_now,
        new_id: Callable[[], str] = lambda: uuid4().hex,
        draw: Callable[[], float] = random.random,
        is_checking_invariants: bool = False,
    ) -> None:
        self._options = options
        self._transport = transport
        self._listener = listener
        self._client = EtcdClient(
            address,
            timeout_s=options.request_timeout_s,
            start_at=zlib.crc32(identity.node_id.encode()),
        )
        self._store = EtcdStore(self._client, Keys(address.prefix, namespace))
        self._member = Member(
            identity=identity,
            namespace=namespace,
            options=options,
            clock=clock,
            wall_clock=wall_clock,
            new_id=new_id,
            is_checking_invariants=is_checking_invariants,
        )
        self._reader = Reader(self._member, self._store)
        self._tenure = Tenure(self._member, self._store, self._reader, draw=draw)
        self._calls = Calls(self._member)
        self._reception = Reception(self._member, listener, execute=self._calls.execute)
        self._following = Following(self._member, transport)
        self._round_trips = RoundTrips(
            self._member.board, self._member.lane, self.node_id, clock, refresh_s=options.link_refresh_s
        )

    # --- Coordinator --------------------------------------------------------------------------------------------

    @property
    def counts(self) -> Mapping[CountedKind, Mapping[str, int]]:
        """See Coordinator."""
        return {"connections": self._transport.counts, "incidents": self._member.counts}

    @property
    def node_id(self) -> NodeId:
        return self._member.node_id

    @property
    def state(self) -> State:
        return self._member.state

    @property
    def leadership(self) -> Leadership:
        return self._member.leadership

    @property
    def trouble(self) -> str | None:
        """What is wrong between this node and etcd, or its master, in a sentence; None: nothing."""
        return self._member.trouble

    async def propose(self, events: Sequence[Decision], *, cause_id: str) -> int:
        """See Coordinator.

        Decisions that a master makes are valid only in the term in which they were proposed; NoMasterError says that
        another master leads by then. When this node learns of the commit from a snapshot, the index may be a later
        one. What is committed together has to fit into one transaction of etcd: one mebibyte.
        """
        if not events:
            return self.state.index
        ticket, future = self._member.submit(events, cause_id)
        try:
            with anyio.fail_after(self._options.proposal_timeout_s):
                return await future
        except TimeoutError as error:
            raise self._member.no_master(self._options.proposal_timeout_s) from error
        finally:
            self._member.proposals.withdraw(ticket)

    async def send(self, command: Command, *, timeout_s: float) -> Reply:
        return await self._calls.send(command, timeout_s=timeout_s)

    async def confirm(self, *, timeout_s: float) -> int:
        """See Coordinator. A majority of etcd's members says what the newest is."""
        try:
            with anyio.fail_after(timeout_s):
                await self._reader.catch_up()
        except TimeoutError as error:
            raise self._member.no_master(timeout_s) from error
        except EtcdError as error:
            raise NoMasterError(error.message) from error
        return self.state.index

    async def leave(self) -> None:
        """See Coordinator. A master hands its lease back, so that another leads at once."""
        member = self._member
        member.is_leaving = True
        if member.seat is None:
            return
        with anyio.move_on_after(2 * self._options.request_timeout_s):
            gone = NodeDisconnected(node_id=self.node_id, reason=STOPPED)
            await self.propose([gone], cause_id=f"leave-{member.boot_id}")
        member.step_down(STOPPED)
        with anyio.move_on_after(self._options.request_timeout_s):
            while member.master is not None and member.master.record.boot_id == member.boot_id:
                await member.board.changed.wait()

    def set_command_handler(self, handler: CommandHandler) -> None:
        self._calls.handler = handler
        self._member.board.announce()

    def publish(self, events: Sequence[Telemetry]) -> None:
        self._member.lane.publish(events)

    async def changes(self) -> AsyncIterator[State]:
        """See Coordinator. Also yields when another node leads, or none."""
        board = self._member.board
        while True:
            version = board.version
            yield board.state
            while board.version == version:
                await board.changed.wait()

    def feed(self, after_index: int | None = None) -> AsyncIterator[LogEntry | TelemetryFrame]:
        """See Coordinator. It begins when it is called, not at the first `anext`.

        Every node reaches back as far as etcd does: to some thousand entries behind the newest snapshot. A feed also
        ends when this node goes on from a snapshot: then the state is to be read again.
        """
        feeds, member = self._member.board.feeds, self._member
        if after_index is None:
            return feeds.open()
        if after_index >= self.state.index:
            return feeds.open()
        recent = member.recent.after(after_index)
        if recent is not None:
            return feeds.open(recent)
        before_index = member.recent.oldest_index
        rest = feeds.open(member.recent.after(before_index - 1) or ())
        return self._feed_from_etcd(after_index, before_index, rest)

    async def _feed_from_etcd(
        self, after_index: int, before_index: int, rest: AsyncIterator[LogEntry | TelemetryFrame]
    ) -> AsyncIterator[LogEntry | TelemetryFrame]:
        while after_index + 1 < before_index:
            try:
                tail = await self._store.read_after(after_index)
            except ExoError as error:
                logger.warning("a feed ends: {}", error.message)
                return
            if not tail.entries:
                break
            for entry in tail.entries:
                if entry.index < before_index:
                    yield entry
                after_index = entry.index
        async for item in rest:
            yield item

    # --- taking part --------------------------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Reports itself started when everything is folded and this node is a member.

        Raises:
            EtcdError: At the start only: etcd cannot be reached, or does not let this node in.
            NoMasterError: At the start only: no master took this node in.
            LogCorruptError: What is in etcd is damaged, or was written by a newer release.
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
            member = self._member
            member.step_down("the node is stopping")
            if member.link is not None:
                member.unfollow(member.link, "the node is stopping")
            member.proposals.close()
            member.board.feeds.end_all()
            with anyio.CancelScope(shield=True):
                await self._listener.close()
                await self._client.close()

    async def _start(self, tasks: TaskGroup) -> None:
        patience_s = self._options.start_patience_s
        until_s = self._member.clock() + patience_s
        await self._first_contact(until_s)
        self._calls.start(tasks)
        tasks.start_soon(self._reader.watch)
        tasks.start_soon(self._reader.pulse)
        tasks.start_soon(self._tenure.run)
        tasks.start_soon(self._reception.run)
        tasks.start_soon(self._following.run)
        tasks.start_soon(self._flush)
        tasks.start_soon(self._measure)
        with anyio.move_on_after(max(0.0, until_s - self._member.clock())):
            while not self._member.is_member:
                await self._member.board.changed.wait()
            logger.info("a member of the cluster {} at index {}", self.state.cluster_id, self.state.index)
            return
        raise self._member.no_master(patience_s)

    async def _first_contact(self, until_s: float) -> None:
        """Read what is there. What will not change by itself is told at once; the rest may still be starting too."""
        while True:
            try:
                await self._reader.catch_up()
                return
            except EtcdRefusedError:
                raise
            except EtcdError as error:
                if self._member.clock() >= until_s:
                    raise
                self._member.troubled("reading from etcd", error.message)
                await anyio.sleep(self._options.retry_max_s)

    async def _measure(self) -> None:
        while True:
            await anyio.sleep(self._options.measure_s)
            self._round_trips.check(self._member.connections)

    async def _flush(self) -> None:
        """Pass telemetry on: at once when it is rare, and never more often than the flush interval."""
        while True:
            while not self._member.has_telemetry:
                await self._member.lane.work.wait()
            self._member.flush_telemetry()
            await anyio.sleep(self._options.telemetry_flush_s)


def _first(group: BaseExceptionGroup[ExoError]) -> ExoError:
    """Return the error that explains the others: not that there is no master."""
    errors: list[ExoError] = []
    for error in group.exceptions:
        errors.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in errors if not isinstance(error, NoMasterError)), errors[0])


def open_etcd_coordinator(
    url: str,
    *,
    identity: NodeIdentity,
    namespace: str,
    transport: Transport,
    listener: Listener,
    numbers_behind: int = 0,
    is_checking_invariants: bool = False,
) -> EtcdCoordinator:
    """Return the coordinator for `--coordinator etcd://...`; see `parse_etcd_url`. It starts with `run`.

    Raises:
        ConfigurationError: The URL or a file that it names cannot be used.
    """
    address = parse_etcd_url(url)
    return EtcdCoordinator(
        identity=identity,
        namespace=namespace,
        address=address,
        transport=transport,
        listener=listener,
        options=EtcdOptions(lease_s=address.lease_s, numbers_behind=numbers_behind),
        is_checking_invariants=is_checking_invariants,
    )
