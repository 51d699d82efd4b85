"""A follower's connection to its master: the answers that come in, and everything that goes out."""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence

from loguru import logger

from exo.cluster.board import Board
from exo.cluster.lane import Lane
from exo.cluster.proposals import Proposals
from exo.cluster.signal import Signal
from exo.cluster.situation import Situation
from exo.cluster.transport.base import Connection
from exo.cluster.wire import Answer, Call, Confirm, Farewell, Propose, encode, encode_checked
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command
from exo.shared.types.ids import NodeId


class Uplink:
    """Empty while there is no master that took this node in."""

    def __init__(self, situation: Situation, board: Board, lane: Lane, proposals: Proposals) -> None:
        self.master: Connection | None = None
        self.work = Signal()
        self._situation = situation
        self._board = board
        self._lane = lane
        self._proposals = proposals
        self._catching_up_to: int | None = None
        """The index from which on a follower knows whether it is a member; None: it knows."""
        self._call_numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._outgoing: deque[bytes] = deque()

    @property
    def is_level(self) -> bool:
        """There is a master, and this node has everything that was decided when that one took it in."""
        return self.master is not None and self._catching_up_to is None

    # --- coming and going ---------------------------------------------------------------------------------------

    def open(self, connection: Connection, master_node_id: NodeId, *, term: int, index: int) -> None:
        """A master took this node in.

        Args:
            connection: To the master.
            master_node_id: Who that is.
            term: In which it leads.
            index: Up to where it had decided by then.
        """
        self.master = connection
        self._situation.master_node_id, self._situation.master_term = master_node_id, term
        self._catching_up_to = index

    def note_progress(self) -> bool:
        """The state moved on: say whether this node has just caught up with its master."""
        state = self._situation.state
        if self._catching_up_to is None or state.index < self._catching_up_to:
            return False
        self._catching_up_to = None
        self._lane.tell_all(state.instances)
        self.work.fire()
        return True

    def leave(self, reason: str) -> None:
        """Hang up, if there is a master."""
        if self.master is not None:
            self.master.close(reason)
            self.lost(self.master)

    def forget(self) -> None:
        """This node leaves its cluster; terms of another one count anew."""
        self.leave("this node leaves its cluster")
        self._situation.master_term = 0

    def lost(self, connection: Connection) -> None:
        """Keep the state, and wait for a master."""
        if self.master is not connection:
            return
        self.master = self._situation.master_node_id = None
        self._catching_up_to = None
        if self._situation.core.leading is None:
            self._proposals.pause()
        self._lane.drop_uplink()
        self._outgoing.clear()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(NoMasterError("the master was lost before it answered; try again"))
                future.exception()  # Seen: the caller may have given up.
        self._board.announce()

    # --- what comes in and goes out -----------------------------------------------------------------------------

    def answer_received(self, answer: Answer) -> None:
        future = self._calls.pop(answer.call_id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def take(self) -> Sequence[bytes]:
        """Return what to send to the master next."""
        if self._catching_up_to is not None:
            return ()  # What this node proposes first depends on whether it is a member.
        proposals = [
            encode(
                Propose(
                    term=self._situation.master_term,
                    first_seq=numbered.first_seq,
                    after_seq=numbered.after_seq,
                    cause_id=numbered.proposal.cause_id,
                    at=numbered.proposal.at,
                    events=numbered.proposal.events,
                )
            )
            for numbered in self._proposals.take()
        ]
        rest = list(self._outgoing)
        self._outgoing.clear()
        return [*proposals, *rest, *map(encode, self._lane.take_uplink())]

    def call(self, command: Command) -> asyncio.Future[Answer]:
        """Ask the master. The future fails with NoMasterError when it is lost first.

        Raises:
            UnsendableError: The command cannot be put into a message.
        """
        number = next(self._call_numbers)
        return self._ask(number, encode_checked(Call(call_id=number, command=command), "the command"))

    def confirm(self) -> asyncio.Future[Answer]:
        """Ask the master whether it still is. The future fails with NoMasterError when it is not."""
        number = next(self._call_numbers)
        return self._ask(number, encode(Confirm(call_id=number)))

    def say_farewell(self) -> None:
        if self.master is not None:
            logger.debug("telling the master that this node stops")
            self._outgoing.append(encode(Farewell()))
            self.work.fire()

    def _ask(self, number: int, data: bytes) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self._outgoing.append(data)
        self.work.fire()
        return future
