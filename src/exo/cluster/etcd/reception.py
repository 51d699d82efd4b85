"""The listening side: followers of this master are taken in and served; everybody else is told why not."""

import itertools
from collections.abc import Callable
from functools import partial

import anyio
import msgspec
from loguru import logger

from exo.cluster.believing import believed, proposal_fault
from exo.cluster.errors import ConnectionLostError
from exo.cluster.etcd.member import Member
from exo.cluster.etcd.records import BATCH_BYTES_MAX
from exo.cluster.etcd.seat import Seat
from exo.cluster.etcd.wire import (
    PROTOCOL_VERSION,
    Hello,
    Level,
    NotNow,
    Welcome,
    decode_from_follower,
    encode,
)
from exo.cluster.session import Session
from exo.cluster.transport.base import Connection, Listener
from exo.cluster.trust.certificates import is_node_id
from exo.cluster.wire import TELEMETRY_BYTES_MAX, Answer, Call, Propose, Publish
from exo.shared.refusals import clean_text
from exo.shared.types.commands import Command
from exo.shared.types.ids import NodeId

Execute = Callable[[Command, Callable[[Answer], None]], None]
"""Starts to carry a command out as the master, and calls back with the answer (of `call_id` 0)."""


def refusal(member: Member, hello: Hello, peer_node_id: NodeId | None) -> str | None:
    """Return why the dialer cannot follow this node now, or None when it can."""
    if hello.version != PROTOCOL_VERSION:
        return f"it speaks protocol {hello.version}, this node {PROTOCOL_VERSION}; install the same release on both"
    if hello.namespace != member.namespace:
        return f"this node belongs to the namespace {member.namespace!r}"
    if not is_node_id(hello.node_id):
        return "it has no id that a node can have"
    if hello.node_id == member.node_id:
        return "it has this node's id: a copied data directory; delete its file node_id"
    if hello.node_id in member.state.access.removed:
        return f"it was removed from the cluster ({member.state.access.removed[hello.node_id]})"
    if peer_node_id not in (None, hello.node_id):
        return f"it says it is {hello.node_id}, and its certificate says {peer_node_id}"
    if member.seat is None or member.seat.term != hello.term:
        return f"this node does not lead in term {hello.term}"
    return None


class Reception:
    """Accepts connections and serves each in a task of its own."""

    def __init__(self, member: Member, listener: Listener, *, execute: Execute) -> None:
        self._member = member
        self._listener = listener
        self._execute = execute
        self._session_numbers = itertools.count(1)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                connection = await self._listener.accept()
                tasks.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        reason = "the node is stopping"
        try:
            with anyio.fail_after(self._member.options.answer_timeout_s):
                hello = decode_from_follower(await connection.receive())
            reason = (
                await self._greet(connection, hello) if isinstance(hello, Hello) else "it did not say hello"
            )
        except TimeoutError:
            reason = "it said nothing"
        except ConnectionLostError as error:
            reason = error.message
        except msgspec.DecodeError:
            reason = "this node's cluster is kept in etcd: start the other with the same --coordinator"
            self._member.counts["peer_malformed"] += 1
            logger.debug("ending a connection from {}: {}", connection.peer_address, reason)
        finally:
            connection.close(reason)

    async def _greet(self, connection: Connection, hello: Hello) -> str:
        reason = refusal(self._member, hello, connection.peer_node_id)
        seat = self._member.seat
        cluster_id = self._member.cluster_id
        if reason is not None or seat is None or cluster_id is None:
            self._member.counts["peer_turned_away"] += 1
            await connection.send(encode(NotNow(reason=reason or "this node does not lead")))
            return "that was all"
        session = Session(next(self._session_numbers), hello.node_id, connection)
        welcome = Welcome(
            term=seat.term,
            cluster_id=cluster_id,
            index=self._member.state.index,
            last_seq=seat.last_seq(hello.node_id),
        )
        seat.follower_arrived(session)
        reason, is_silent = "the node is stopping", False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, seat, session, welcome)
                try:
                    reason = await self._receive(seat, session)
                except ConnectionLostError as error:
                    reason, is_silent = error.reason, not error.is_ended
                tasks.cancel_scope.cancel()
        finally:
            self._member.follower_left(session, clean_text(reason), is_silent=is_silent)
        return reason

    async def _receive(self, seat: Seat, session: Session) -> str:
        """Return why the connection has to end. Raises ConnectionLostError: it has."""
        while True:
            data = await session.connection.receive()
            try:
                message = decode_from_follower(data)
            except msgspec.DecodeError as error:
                self._member.counts["peer_malformed"] += 1
                return f"it speaks another release of exo ({error})"
            refused: str | None = None
            match message:
                case Propose() if len(data) > 2 * BATCH_BYTES_MAX:
                    refused = (
                        f"a proposal of {len(data)} bytes; at most {BATCH_BYTES_MAX} can be decided at once"
                    )
                case Publish() if len(data) > TELEMETRY_BYTES_MAX:
                    refused = (
                        f"telemetry of {len(data)} bytes; at most {TELEMETRY_BYTES_MAX} can be sent at once"
                    )
                case Propose():
                    # The origin connects again, learns what was admitted, and sends the rest from there.
                    refused = proposal_fault(self._member.state, session.node_id, message.events)
                    refused = refused or seat.proposal_received(session, message)
                case Publish(frame=frame):
                    if frame.node_id == session.node_id:
                        self._member.lane.frame_received(frame)
                case Call():
                    is_certified = session.connection.peer_node_id is not None
                    command = believed(message.command, session.node_id, is_certified=is_certified)
                    self._execute(command, partial(_answer, session, message.call_id))
                case Level(index=index):
                    refused = await self._level(index)
                case Hello():
                    refused = "it said hello twice"
            if refused is not None:
                self._member.counts["proposal_refused"] += 1
                return refused

    async def _level(self, index: int) -> str | None:
        """Wait until this node has folded as much as the follower has, which is a matter of moments."""
        with anyio.move_on_after(self._member.options.answer_timeout_s):
            await self._member.reached(index)
            return None
        return f"it has seen entry {index}, this node only {self._member.state.index}"

    async def _send(self, seat: Seat, session: Session, welcome: Welcome) -> None:
        try:
            await session.connection.send(encode(welcome))
            while True:
                messages = seat.outgoing(session)
                for message in messages:
                    await session.connection.send(message)
                if not messages:
                    await session.wake.wait()
        except ConnectionLostError:
            return  # The receiving side notices too, and says why.
        except ValueError as error:
            logger.error("hanging up on {}: {}", session.node_id, error)
            session.connection.close(str(error))


def _answer(session: Session, call_id: int, answer: Answer) -> None:
    session.answer(msgspec.structs.replace(answer, call_id=call_id))
