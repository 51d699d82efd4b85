"""A follower's side of its master: what it hears from it, and what it has to tell it."""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loguru import logger

from exo.cluster.signal import Signal
from exo.cluster.transport.base import Connection
from exo.cluster.wire import (
    Answer,
    Call,
    Confirm,
    Entries,
    Farewell,
    LiveState,
    Propose,
    Welcome,
    encode,
    encode_checked,
)
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State

if TYPE_CHECKING:
    from exo.cluster.kernel import Kernel


class Uplink:
    """Empty while there is no master that took this node in."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel
        self.master: Connection | None = None
        self.master_node_id: NodeId | None = None
        self.term = 0
        """Of the newest master that this node follows or followed."""
        self.work = Signal()
        self._catching_up_to: int | None = None
        """The index from which on a follower knows whether it is a member; None: it knows."""
        self._call_numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._outgoing: deque[bytes] = deque()

    @property
    def is_catching_up(self) -> bool:
        return self._catching_up_to is not None

    # --- coming and going ---------------------------------------------------------------------------------------

    def begin(self, connection: Connection, welcome: Welcome, snapshot: State | None) -> None:
        """A master took this node in: go on from its snapshot, or from the present state with its tail."""
        kernel, facts = self._kernel, welcome.facts
        assert facts.cluster_id is not None
        self.master, self.master_node_id = connection, facts.node_id
        self.term = facts.term
        kernel.taken_in(facts)
        if snapshot is not None and (
            kernel.cluster_id != facts.cluster_id or snapshot.index > kernel.state.index
        ):
            kernel.go_on_from(snapshot)
        elif kernel.cluster_id != facts.cluster_id:
            # What the core is about to learn must not be folded into another history.
            kernel.go_on_from(State())
        kernel.cluster_id = facts.cluster_id
        kernel.proposals.begin(facts.cluster_id, facts.term, welcome.last_seq)
        self._catching_up_to = facts.index
        self.note_progress()
        kernel.ensure_member()
        kernel.board.announce()

    def note_progress(self) -> bool:
        """The state moved on: say whether this node has just caught up with its master."""
        kernel = self._kernel
        if self._catching_up_to is None or kernel.state.index < self._catching_up_to:
            return False
        self._catching_up_to = None
        kernel.lane.tell_all(kernel.state.instances)
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
        self.term = 0

    def lost(self, connection: Connection) -> None:
        """Keep the state, and wait for a master."""
        if self.master is not connection:
            return
        kernel = self._kernel
        self.master = self.master_node_id = None
        self._catching_up_to = None
        if kernel.core.leading is None:
            kernel.proposals.pause()
        kernel.lane.drop_uplink()
        self._outgoing.clear()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(NoMasterError("the master was lost before it answered; try again"))
                future.exception()  # Seen: the caller may have given up.
        kernel.board.announce()

    # --- what the master says -----------------------------------------------------------------------------------

    def snapshot_received(self, snapshot: State) -> None:
        """The master skips ahead: this node had fallen too far behind."""
        if snapshot.index > self._kernel.state.index:
            self._kernel.go_on_from(snapshot)
            self._kernel.lane.drop_held()
        self._kernel.fold(())

    def entries_received(self, message: Entries) -> str | None:
        """Fold entries in. Returns why the master cannot be followed any more, if so."""
        kernel = self._kernel
        if message.term != self.term:
            return f"it speaks for term {message.term}, this is term {self.term}"
        expected = None
        for entry in message.entries:
            if entry.index > kernel.state.index + 1 and expected is None:
                return f"it sent entry {entry.index} where {kernel.state.index + 1} was expected"
            if expected is not None and entry.index != expected:
                return f"it sent entry {entry.index} where {expected} was expected"
            expected = entry.index + 1
        kernel.fold(message.entries)
        return None

    def live_received(self, message: LiveState) -> None:
        self._kernel.lane.live_received(message)

    def answer_received(self, answer: Answer) -> None:
        future = self._calls.pop(answer.call_id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    # --- what this node says ------------------------------------------------------------------------------------

    def take(self) -> Sequence[bytes]:
        """Return what to send to the master next."""
        if self.is_catching_up:
            return ()  # What this node proposes first depends on whether it is a member.
        kernel = self._kernel
        proposals = [
            encode(
                Propose(
                    term=self.term,
                    first_seq=numbered.first_seq,
                    cause_id=numbered.proposal.cause_id,
                    at=numbered.proposal.at,
                    events=numbered.proposal.events,
                )
            )
            for numbered in kernel.proposals.take()
        ]
        rest = list(self._outgoing)
        self._outgoing.clear()
        return [*proposals, *rest, *map(encode, kernel.lane.take_uplink())]

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
