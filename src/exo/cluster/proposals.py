"""This node's proposals and those who wait for them."""

import asyncio
import itertools
from collections.abc import Callable, Sequence

from exo.cluster.believing import are_facts
from exo.cluster.outbox import Fence, Numbered, Outbox, Proposal
from exo.cluster.wire import PROPOSAL_BYTES_MAX, Propose, ProposedEvent, encode_checked
from exo.shared.errors import NoMasterError
from exo.shared.types.events import Decision
from exo.shared.types.ids import ClusterId, EventId


class Proposals:
    """The outbox with a future for each proposal."""

    def __init__(
        self, *, wall_clock: Callable[[], str], new_id: Callable[[], str], numbers_behind: int = 0
    ) -> None:
        self._wall_clock = wall_clock
        self._new_id = new_id
        self._numbers = itertools.count(1)
        self._outbox = Outbox(numbers_behind=numbers_behind)
        self._futures: dict[int, asyncio.Future[int]] = {}
        self._is_closed = False

    @property
    def has_waiting(self) -> bool:
        return self._outbox.has_waiting

    def has_fenced(self) -> bool:
        return self._outbox.has_fenced()

    def is_pending(self, ticket: int | None) -> bool:
        return ticket in self._futures

    def add(
        self, events: Sequence[Decision], cause_id: str, *, position: Fence, is_first: bool = False
    ) -> tuple[int, asyncio.Future[int]]:
        """Queue decisions. The future holds the index of the last, once all are folded in here.

        Args:
            events: To be committed together.
            cause_id: Id of what led to them.
            position: Present cluster and term: where a master's decision is valid.
            is_first: Before everything that was not sent yet.

        Raises:
            UnsendableError: They cannot be told to other nodes or written to the log. Nothing was queued.
        """
        ticket = next(self._numbers)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._is_closed:
            _fail(future, "the node is stopping")
            return ticket, future
        proposal = Proposal(
            ticket=ticket,
            events=tuple(ProposedEvent(event_id=EventId(self._new_id()), event=event) for event in events),
            cause_id=cause_id,
            at=self._wall_clock(),
            fence=None if are_facts(events) else position,
        )
        trial = Propose(
            term=0,
            first_seq=0,
            after_seq=0,
            cause_id=proposal.cause_id,
            at=proposal.at,
            events=proposal.events,
        )
        encode_checked(trial, "what was proposed", PROPOSAL_BYTES_MAX)
        self._futures[ticket] = future
        self._outbox.add(proposal, is_first=is_first)
        return ticket, future

    def withdraw(self, ticket: int) -> None:
        """Nobody waits any more; the proposal is forgotten if it was never sent."""
        self._futures.pop(ticket, None)
        self._outbox.withdraw(ticket)

    def begin(self, cluster_id: ClusterId, term: int, last_seq: int) -> None:
        """A master has admitted this node's proposals up to `last_seq`; see Outbox.begin."""
        for ticket in self._outbox.begin(cluster_id, term, last_seq):
            future = self._futures.pop(ticket, None)
            if future is not None:
                _fail(future, "another master leads now; look at the state and decide again")

    def close(self) -> None:
        """The node stops: whoever waits is told, and nothing is taken any more."""
        self._is_closed = True
        self._outbox.pause()
        futures, self._futures = self._futures, {}
        for future in futures.values():
            _fail(future, "the node stopped before this was known to be committed")

    def pause(self) -> None:
        self._outbox.pause()

    def take(self) -> Sequence[Numbered]:
        return self._outbox.take()

    def committed(
        self, cluster_id: ClusterId | None, seq: int, index: int, event_id: EventId | None = None
    ) -> None:
        """The cluster has committed this node's proposals up to `seq`, at the latest at `index`; see Outbox."""
        if self._outbox.cluster_id != cluster_id:
            return
        for ticket in self._outbox.committed(seq, event_id):
            future = self._futures.pop(ticket, None)
            if future is not None and not future.done():
                future.set_result(index)


def _fail(future: asyncio.Future[int], message: str) -> None:
    if not future.done():
        future.set_exception(NoMasterError(message))
        future.exception()  # Seen: for this node's own housekeeping nobody waits.
