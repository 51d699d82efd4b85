"""The dialing side: a link to the master that etcd names, for as long as it is the master."""

import anyio
import msgspec
from loguru import logger

from exo.cluster.errors import ConnectionLostError, DialError
from exo.cluster.etcd.link import Link
from exo.cluster.etcd.member import Member
from exo.cluster.etcd.store import MasterSeen
from exo.cluster.etcd.wire import FromMaster, Hello, LivePart, NotNow, Welcome, decode_from_master, encode
from exo.cluster.transport.base import Connection, Transport
from exo.cluster.wire import Answer, TelemetryTick

TROUBLE = "following the master"


class Following:
    """Follows one master at a time."""

    def __init__(self, member: Member, transport: Transport) -> None:
        self._member = member
        self._transport = transport

    async def run(self) -> None:
        """Follow whoever leads, until cancelled."""
        options = self._member.options
        pause_s = options.retry_s
        while True:
            master = self._wanted()
            if master is None:
                self._member.gave_up(TROUBLE)
                pause_s = options.retry_s
                await self._member.board.changed.wait()
            else:
                was_following = await self._attempt(master)
                pause_s = options.retry_s if was_following else min(options.retry_max_s, 2 * pause_s)
                with anyio.move_on_after(pause_s):
                    while self._wanted() == master:
                        await self._member.board.changed.wait()

    def _wanted(self) -> MasterSeen | None:
        """Return the master to follow; a node that is cut off from etcd or leads itself follows none."""
        member = self._member
        if not member.is_in_touch or member.seat is not None or member.master is None:
            return None
        return None if member.master.record.node_id == member.node_id else member.master

    async def _attempt(self, master: MasterSeen) -> bool:
        """Say whether the master was followed."""
        record = master.record
        try:
            connection = await self._transport.dial(
                record.address, timeout_s=self._member.options.dial_timeout_s
            )
        except DialError as error:
            self._not_followed(master, error.message)
            return False
        reason, was_followed = "the node is stopping", False
        try:
            if connection.peer_node_id not in (None, record.node_id):
                self._member.counts["peer_lied"] += 1
                raise _NotNowError(f"its certificate says {connection.peer_node_id}")
            reason = await self._join(connection, master)
            was_followed = True
        except (_NotNowError, ConnectionLostError) as error:
            reason = error.message if isinstance(error, ConnectionLostError) else str(error)
        except TimeoutError:
            reason = "it gave no answer"
        except msgspec.DecodeError as error:
            self._member.counts["master_faulty"] += 1
            reason = f"it speaks another release of exo ({error})"
        finally:
            connection.close(reason)
        if not was_followed:
            self._not_followed(master, reason)
        return was_followed

    def _not_followed(self, master: MasterSeen, reason: str) -> None:
        if self._wanted() == master:
            who = f"etcd names {master.record.name} at {master.record.address} as the master"
            # Usual for a moment, while the lease of a master that is gone has not ended.
            self._member.troubled(TROUBLE, f"{who}, which does not take this node: {reason}", level="INFO")

    async def _join(self, connection: Connection, master: MasterSeen) -> str:
        """Return why following is over."""
        member = self._member
        with anyio.fail_after(member.options.answer_timeout_s):
            hello = Hello(namespace=member.namespace, node_id=member.node_id, term=master.record.term)
            await connection.send(encode(hello))
            answer = await _receive(connection)
        if isinstance(answer, NotNow):
            raise _NotNowError(answer.reason)
        if not isinstance(answer, Welcome) or self._wanted() != master:
            raise _NotNowError("another one is the master by now")
        member.troubled(TROUBLE, None)
        logger.info("following {} at {} in term {}", master.record.name, master.record.address, answer.term)
        link = Link(connection, master.create_revision, answer)
        reason = "the node is stopping"
        try:
            member.follow(link, answer.cluster_id, answer.last_seq)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, link)
                reason = await self._receive_all(link)
                tasks.cancel_scope.cancel()
        finally:
            member.unfollow(link, reason)
        return reason

    async def _receive_all(self, link: Link) -> str:
        while True:
            try:
                message = await _receive(link.connection)
            except ConnectionLostError as error:
                logger.info("the master is lost: {}", error.message)
                return error.message
            except msgspec.DecodeError as error:
                self._member.counts["master_faulty"] += 1
                logger.warning("leaving the master: it speaks another release of exo ({})", error)
                return f"this node speaks another release of exo ({error})"
            if self._member.link is not link:
                return "etcd names another master"
            match message:
                case TelemetryTick():
                    self._member.lane.tick_received(message)
                case LivePart():
                    live = link.live_received(message)
                    if live is not None:
                        self._member.lane.live_received(live)
                case Answer():
                    link.answer_received(message)
                case Welcome() | NotNow():
                    self._member.counts["master_faulty"] += 1
                    return "it greeted twice"

    async def _send(self, link: Link) -> None:
        member = self._member
        try:
            while True:
                messages = link.take_uplink(member.proposals, member.lane, member.state.index)
                for message in messages:
                    await link.connection.send(message)
                if not messages:
                    await member.uplink_work.wait()
        except ConnectionLostError:
            return  # The receiving side notices too, and says why.
        except ValueError as error:
            # What callers pass in was looked at before it was queued; should that have missed something, a
            # connection ends and not the node.
            logger.error("leaving the master: {}", error)
            link.connection.close(str(error))


class _NotNowError(Exception):
    """Raised when a node does not take this one as a follower; the text says why."""


async def _receive(connection: Connection) -> FromMaster:
    return decode_from_master(await connection.receive())
