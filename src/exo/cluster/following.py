"""The dialing side: joining a cluster, following its master, and finding it again when it is lost."""

from collections.abc import Awaitable, Callable

import anyio
import msgspec
from loguru import logger

from exo.cluster.errors import ConnectionLostError, DialError
from exo.cluster.facts import ClusterFacts, Sighting, is_senior
from exo.cluster.kernel import Kernel
from exo.cluster.scouting import Scout
from exo.cluster.transport.base import Connection, Transport
from exo.cluster.wire import (
    Agreed,
    Answer,
    Entries,
    FromListener,
    Hello,
    KeepAuthority,
    LiveState,
    NotNow,
    SnapshotPart,
    TelemetryTick,
    Welcome,
    decode_from_listener,
    decode_snapshot,
    encode,
)
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State

SNAPSHOT_BYTES_MAX = 1024 * 1024 * 1024

GiveUp = Callable[[ClusterFacts], Awaitable[bool]]
"""Has this node's cluster dissolved into the one of these facts, and forgets the own log; False: it has something to
lose after all. Members learn of it and come along."""


class Following:
    """Looks for a master whenever there is reason to, and follows one at a time."""

    def __init__(
        self,
        kernel: Kernel,
        scout: Scout,
        transport: Transport,
        *,
        is_busy: Callable[[], bool],
        give_up: GiveUp,
    ) -> None:
        self._kernel = kernel
        self._situation = kernel.situation
        self._scout = scout
        self._transport = transport
        self._is_busy = is_busy
        self._give_up = give_up
        self._parts = bytearray()

    async def run(self) -> None:
        """Join and rejoin until cancelled."""
        while True:
            address = self._scout.pick()
            if address is not None:
                await self._attempt(address)
                continue
            with anyio.move_on_after(self._wait_s()):
                await self._scout.changed.wait()

    def _wait_s(self) -> float | None:
        return self._scout.next_due_s()

    async def _attempt(self, address: HostPort) -> None:
        was_following = False
        self._situation.is_joining = self._situation.standing == "leader"
        try:
            connection = await self._transport.dial(address, timeout_s=self._scout.timeout_s(address))
            reason = "the node is stopping"
            try:
                was_following, reason = await self._join(connection, address)
            finally:
                connection.close(reason)
        except DialError as error:
            self._scout.unusable(address, "dial", error)
        except ConnectionLostError as error:
            logger.debug("joining the node at {} failed: {}", address, error.message)
        except (TimeoutError, msgspec.DecodeError) as error:
            self._kernel.counts["master_faulty"] += isinstance(error, msgspec.DecodeError)
            logger.warning("joining the node at {} failed: {}", address, str(error) or "no answer")
        finally:
            self._situation.is_joining = False
            self._scout.attempted(address, succeeded=was_following)
            self._kernel.board.announce()

    async def _join(self, connection: Connection, address: HostPort) -> tuple[bool, str]:
        """Say whether a master was followed, and why that is over."""
        state, own = self._situation.state, self._situation.facts()
        with anyio.fail_after(self._kernel.options.answer_timeout_s):
            await connection.send(
                encode(Hello(facts=own, intent="join", last_index=state.index, last_term=state.term))
            )
            answer = await self._receive(connection)
            if isinstance(answer, NotNow):
                if answer.code == "removed":
                    self._scout.removed(address)
                    self._situation.told_of_removal(answer.facts)
                self._scout.report(Sighting(address=address, facts=answer.facts, via="greeting"))
                return False, "that was all"
            if not isinstance(answer, Welcome):
                return False, f"it began with {type(answer).__name__}"
            if connection.peer_node_id not in (None, answer.facts.node_id):
                self._kernel.counts["peer_lied"] += 1
                return (
                    False,
                    f"it calls itself {answer.facts.node_id}, and its certificate {connection.peer_node_id}",
                )
            is_known = answer.facts.cluster_id == own.cluster_id
            if is_known and answer.facts.incarnation == own.incarnation and answer.facts.term < own.term:
                return False, f"term {answer.facts.term} is over, this is term {own.term}"
        snapshot = await self._receive_snapshot(connection) if answer.is_snapshot_next else None
        own = self._situation.facts()
        if answer.facts.cluster_id != own.cluster_id or answer.facts.incarnation != own.incarnation:
            is_outlived = answer.facts.cluster_id == own.cluster_id
            if (
                self._situation.standing == "leader"
                and not is_outlived
                and (
                    not (self._kernel.may_yield and is_senior(answer.facts, self._situation.facts()))
                    or self._is_busy()
                )
            ):
                return False, "this cluster has something to lose by now"
            if not await self._give_up(answer.facts):
                return False, "this cluster has something to lose by now"
            logger.info("joining the cluster of {} at {}", answer.facts.name, address)
        elif self._situation.standing == "leader":
            return False, "this node leads by now"
        else:
            logger.info("following {} at {} in term {}", answer.facts.name, address, answer.facts.term)
        self._scout.master_found()
        try:
            self._kernel.follow(connection, answer, snapshot)
            return True, await self._follow(connection)
        finally:
            self._scout.master_lost()
            self._kernel.uplink.lost(connection)

    async def _follow(self, connection: Connection) -> str:
        reason = "the node is stopping"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._send, connection)
            reason = await self._receive_all(connection)
            tasks.cancel_scope.cancel()
        return reason

    async def _receive_all(self, connection: Connection) -> str:
        while True:
            try:
                message = await self._receive(connection)
            except ConnectionLostError as error:
                logger.info("the master is lost: {}", error.message)
                self._scout.master_silent(None if error.is_ended else self._situation.master_node_id)
                return error.message
            except msgspec.DecodeError as error:
                self._kernel.counts["master_faulty"] += 1
                logger.warning("leaving the master: it speaks another release of exo ({})", error)
                return f"this node speaks another release of exo ({error})"
            match message:
                case Entries():
                    fault = self._kernel.learning.entries_received(message)
                    if fault is not None:
                        self._kernel.counts["master_faulty"] += 1
                        logger.warning("leaving the master: {}", fault)
                        return fault
                case TelemetryTick():
                    self._kernel.lane.tick_received(message)
                case LiveState():
                    self._kernel.lane.live_received(message)
                case Answer():
                    self._kernel.uplink.answer_received(message)
                case KeepAuthority():
                    self._kernel.keep_authority(message)
                    self._kernel.board.announce()
                case SnapshotPart():
                    fault = self._skip_ahead(message)
                    if fault is not None:
                        self._kernel.counts["master_faulty"] += 1
                        logger.warning("leaving the master: {}", fault)
                        return fault
                case Welcome() | NotNow() | Agreed():
                    self._kernel.counts["master_faulty"] += 1
                    return "it greeted twice"

    def _skip_ahead(self, part: SnapshotPart) -> str | None:
        """Take a piece of a later state. Returns why the master cannot be followed any more, if so."""
        try:
            snapshot = self._add_part(part)
        except msgspec.DecodeError as error:
            return f"it sent a state that cannot be read ({error})"
        if snapshot is not None:
            self._kernel.learning.snapshot_received(snapshot)
        return None

    async def _receive_snapshot(self, connection: Connection) -> State:
        """Return the state that follows. However long a slow link takes over it, each part has to come in time."""
        self._parts.clear()
        while True:
            with anyio.fail_after(self._kernel.options.answer_timeout_s):
                part = await self._receive(connection)
            if not isinstance(part, SnapshotPart):
                raise msgspec.DecodeError(f"a {type(part).__name__} where a snapshot was announced")
            snapshot = self._add_part(part)
            if snapshot is not None:
                return snapshot

    def _add_part(self, part: SnapshotPart) -> State | None:
        self._parts += part.data
        if len(self._parts) > SNAPSHOT_BYTES_MAX:
            self._parts.clear()
            raise msgspec.DecodeError("a state longer than any can be")
        if not part.is_last:
            return None
        try:
            return decode_snapshot(bytes(self._parts))
        finally:
            self._parts.clear()

    async def _receive(self, connection: Connection) -> FromListener:
        return decode_from_listener(await connection.receive())

    async def _send(self, connection: Connection) -> None:
        try:
            while True:
                messages = self._kernel.uplink.take()
                for message in messages:
                    await connection.send(message)
                if not messages:
                    await self._kernel.uplink.work.wait()
        except ConnectionLostError:
            return  # The receiving side notices too, and says why.
        except ValueError as error:
            # What callers pass in was looked at before it was queued; should that have missed something, a
            # connection ends and not the node.
            logger.error("leaving the master: {}", error)
            connection.close(str(error))
