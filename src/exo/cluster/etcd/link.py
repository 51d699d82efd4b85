"""A follower's link to its master: what it sends there, and the calls that wait for an answer."""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence

from exo.cluster.etcd.wire import Level, LivePart, Welcome, encode
from exo.cluster.lane import Lane
from exo.cluster.proposals import Proposals
from exo.cluster.transport.base import Connection
from exo.cluster.wire import Answer, Call, LiveState, Propose, encode_checked
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command
from exo.shared.types.ids import NodeId
from exo.shared.types.state import NodeTelemetry


class Link:
    """Synchronous, like Member, whose `link` it is.

    Args:
        connection: To the master.
        create_revision: Of the master's key at etcd: tells one term of one master from all others.
        welcome: What the master said.
    """

    def __init__(self, connection: Connection, create_revision: int, welcome: Welcome) -> None:
        self.connection = connection
        self.create_revision = create_revision
        self.term = welcome.term
        self.level_index = welcome.index
        """From there on this node knows whether it is a member; until then it sends nothing."""
        self.is_level = False
        self._told_index = 0
        self._call_numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._waiting_calls: deque[bytes] = deque()
        self._live: dict[NodeId, NodeTelemetry] = {}

    def call(self, command: Command) -> asyncio.Future[Answer]:
        """Ask the master. The future fails with NoMasterError when it is lost first.

        Raises:
            UnsendableError: The command cannot be put into a message.
        """
        number = next(self._call_numbers)
        data = encode_checked(Call(call_id=number, command=command), "the command")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self._waiting_calls.append(data)
        return future

    def answer_received(self, answer: Answer) -> None:
        future = self._calls.pop(answer.call_id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def live_received(self, part: LivePart) -> LiveState | None:
        """Return all telemetry once its last part is here."""
        self._live.update(part.live)
        if not part.is_last:
            return None
        live, self._live = self._live, {}
        return LiveState(live=live, index=part.index)

    def take_uplink(self, proposals: Proposals, lane: Lane, index: int) -> Sequence[bytes]:
        """Return what to send to the master next; `index` is how far this node has folded."""
        if not self.is_level:
            return ()  # What this node proposes first depends on whether it is a member.
        messages = [
            encode(
                Propose(
                    term=self.term,
                    first_seq=numbered.first_seq,
                    after_seq=numbered.after_seq,
                    cause_id=numbered.proposal.cause_id,
                    at=numbered.proposal.at,
                    events=numbered.proposal.events,
                )
            )
            for numbered in proposals.take()
        ]
        others = [*self._waiting_calls, *map(encode, lane.take_uplink())]
        self._waiting_calls.clear()
        if others and index > self._told_index:
            # The master may see a commit a moment later than its followers do.
            messages.append(encode(Level(index=index)))
            self._told_index = index
        return [*messages, *others]

    def end(self, reason: str) -> None:
        """Hang up; whoever waits for an answer is told."""
        self.connection.close(reason)
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(NoMasterError("the master was lost before it answered; try again"))
                future.exception()  # Seen: the caller may have given up.
