"""The listening side: whoever dials this node is told the facts, or taken in as a follower and served."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import msgspec
from loguru import logger

from exo.cluster.believing import believed
from exo.cluster.errors import ConnectionLostError
from exo.cluster.facts import PROTOCOL_VERSION, ClusterFacts, Sighting, is_senior
from exo.cluster.kernel import Kernel
from exo.cluster.session import Session
from exo.cluster.situation import Situation
from exo.cluster.transport.base import Connection, Listener
from exo.cluster.trust.certificates import is_node_id
from exo.cluster.wire import (
    PROPOSAL_BYTES_MAX,
    TELEMETRY_BYTES_MAX,
    Agreed,
    Answer,
    Call,
    Confirm,
    Farewell,
    Hello,
    NotNow,
    NotNowCode,
    Propose,
    Publish,
    Welcome,
    decode_from_dialer,
    encode,
)
from exo.shared.types.commands import Command

_NUMBERS_BYTES_MAX = 64
"""By how much the term and the number lengthen a proposal that was measured without them."""

Execute = Callable[[Command, Callable[[Answer], None]], None]
"""Starts to carry a command out as the master, and calls back with the answer (of `call_id` 0). It goes on when the
caller goes away meanwhile: it may be half done."""

Carry = Callable[[Connection, ClusterFacts], Awaitable[str]]
"""Exchanges what voters say until the connection ends; returns why it did."""


def refusal(situation: Situation, own: ClusterFacts, hello: Hello) -> NotNowCode | None:
    """Return why the dialer cannot follow this node now, or None when it can."""
    theirs = hello.facts
    if theirs.version != PROTOCOL_VERSION:
        return "other_version"
    if theirs.namespace != own.namespace:
        return "other_namespace"
    if theirs.node_id == own.node_id:
        return "same_node_id"
    if hello.intent == "look":
        return "look"
    if hello.intent == "agree":
        if theirs.cluster_id != own.cluster_id or own.cluster_id is None:
            return "other_cluster"
        is_known = theirs.node_id in situation.state.nodes or theirs.node_id in situation.core.voters.members
        # A node that has just come knows nobody yet, and believes whoever knows it.
        return None if is_known or not situation.state.nodes else "not_member"
    if not own.is_master:
        return "not_master"
    if theirs.node_id in situation.state.access.removed:
        return "removed"
    if situation.is_joining:
        # Two clusters that take each other in at the same time would both be gone.
        return "busy"
    if theirs.cluster_id == own.cluster_id:
        # Whoever led an earlier term or incarnation is welcome as a follower.
        is_rival = theirs.is_master and (theirs.incarnation, theirs.term) == (own.incarnation, own.term)
        return "two_masters" if is_rival else None
    if theirs.is_master and theirs.has_something_to_lose and own.has_something_to_lose:
        return "both_have_instances"
    if theirs.is_master and not is_senior(own, theirs):
        return "junior"
    return None


class Reception:
    """Accepts connections and serves each in a task of its own."""

    def __init__(
        self,
        kernel: Kernel,
        listener: Listener,
        *,
        report: Callable[[Sighting], None],
        execute: Execute,
        carry: Carry,
    ) -> None:
        self._kernel = kernel
        self._situation = kernel.situation
        self._listener = listener
        self._report = report
        self._execute = execute
        self._carry = carry
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
            with anyio.fail_after(self._kernel.options.answer_timeout_s):
                hello = decode_from_dialer(await connection.receive())
            if not isinstance(hello, Hello):
                reason = "it did not say hello"
                self._kernel.counts["peer_malformed"] += 1
                return
            if not is_node_id(hello.facts.node_id):
                reason = "it has no id that a node can have"
                self._kernel.counts["peer_malformed"] += 1
                return
            if connection.peer_node_id not in (None, hello.facts.node_id):
                self._kernel.counts["peer_lied"] += 1
                reason = (
                    f"it calls itself {hello.facts.node_id}, and its certificate {connection.peer_node_id}"
                )
                logger.warning("ending a connection: {}", reason)
                return
            reason = await self._greet(connection, hello)
        except TimeoutError:
            reason = "it said nothing"
        except ConnectionLostError as error:
            reason = error.message
        except msgspec.DecodeError as error:
            reason = f"it speaks another release of exo ({error})"
            self._kernel.counts["peer_malformed"] += 1
            logger.warning("ending a connection: {}", reason)
        finally:
            connection.close(reason)

    async def _greet(self, connection: Connection, hello: Hello) -> str:
        own = self._situation.facts()
        code = refusal(self._situation, own, hello)
        if code is not None:
            self._kernel.counts["peer_turned_away"] += 1
            await connection.send(encode(NotNow(code=code, facts=own)))
        if hello.facts.node_id != own.node_id:
            self._report(Sighting(address=hello.facts.cluster_address, facts=hello.facts, via="greeting"))
        if code is not None:
            return "that was all"
        if hello.intent == "agree":
            await connection.send(encode(Agreed(facts=own)))
            return await self._carry(connection, hello.facts)
        is_known = (hello.facts.cluster_id, hello.facts.incarnation) == (own.cluster_id, own.incarnation)
        session = Session(next(self._session_numbers), hello.facts.node_id, connection, hello.facts.boot_id)
        welcome = self._kernel.hosting.arrived(
            session, hello.last_index if is_known else None, hello.last_term
        )
        return await self._host(session, welcome)

    async def _host(self, session: Session, welcome: Welcome) -> str:
        reason = "the node is stopping"
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, session, welcome)
                reason = await self._receive(session)
                tasks.cancel_scope.cancel()
        finally:
            self._kernel.hosting.lost(session, reason)
        return reason

    async def _receive(self, session: Session) -> str:
        while True:
            try:
                data = await session.connection.receive()
                message = decode_from_dialer(data)
            except ConnectionLostError as error:
                return error.reason
            except msgspec.DecodeError as error:
                return self._malformed(f"it speaks another release of exo ({error})")
            if session.is_removed:
                continue
            match message:
                case Propose() if len(data) > PROPOSAL_BYTES_MAX + _NUMBERS_BYTES_MAX:
                    return self._malformed(
                        f"a proposal of {len(data)} bytes; at most {PROPOSAL_BYTES_MAX} can be sent at once"
                    )
                case Publish() if len(data) > TELEMETRY_BYTES_MAX:
                    return self._malformed(
                        f"telemetry of {len(data)} bytes; at most {TELEMETRY_BYTES_MAX} can be sent at once"
                    )
                case Propose():
                    self._kernel.hosting.proposal_received(session, message)
                case Publish(frame=frame):
                    if frame.node_id == session.node_id:
                        self._kernel.lane.frame_received(frame)
                case Call():
                    command = believed(
                        message.command,
                        session.node_id,
                        is_certified=session.connection.peer_node_id is not None,
                    )
                    self._execute(command, partial(_answer, session, message.call_id))
                case Confirm(call_id=call_id):
                    self._kernel.confirm().add_done_callback(partial(self._confirmed, session, call_id))
                case Farewell():
                    self._kernel.hosting.farewell_received(session)
                    self._kernel.electorate.manage()
                case Hello():
                    return self._malformed("it said hello twice")

    def _malformed(self, reason: str) -> str:
        self._kernel.counts["peer_malformed"] += 1
        return reason

    def _confirmed(self, session: Session, call_id: int, read: asyncio.Future[int]) -> None:
        error = None if read.cancelled() else read.exception()
        if read.cancelled() or error is not None:
            answer = Answer(call_id=call_id, index=0, error=str(error or "cancelled"))
        else:
            answer = Answer(call_id=call_id, index=read.result())
        session.answer(answer)

    async def _send(self, session: Session, welcome: Welcome) -> None:
        try:
            await session.connection.send(encode(welcome))
            while True:
                messages = self._kernel.hosting.outgoing(session)
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
