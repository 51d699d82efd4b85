"""The origin's side of exactly-once: proposals in order, numbered when they are sent, sent again when in doubt. Pure.

The master admits an origin's proposal only when its first number is the last admitted one plus 1. Numbers are given
as late as possible, so that a proposal that was never sent can be withdrawn without leaving a hole.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from exo.cluster.wire import ProposedEvent
from exo.shared.types.ids import ClusterId

Fence = tuple[ClusterId | None, int]
"""The cluster and term in which a proposal was made, where it is void in any other."""


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions to be committed together."""

    ticket: int
    events: tuple[ProposedEvent, ...]
    cause_id: str
    at: str
    fence: Fence | None = None


class Numbered(msgspec.Struct, frozen=True):
    """A proposal with the numbers it was sent under."""

    first_seq: int
    proposal: Proposal

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.proposal.events) - 1


class Outbox:
    """Holds every proposal until it is seen committed. Closed until `begin` says where the numbers stand."""

    def __init__(self) -> None:
        self._waiting: deque[Proposal] = deque()
        self._sent: deque[Numbered] = deque()
        self._cluster_id: ClusterId | None = None
        self._next_seq: int | None = None

    @property
    def cluster_id(self) -> ClusterId | None:
        """The cluster that the numbers belong to."""
        return self._cluster_id

    @property
    def has_waiting(self) -> bool:
        """Something can be sent now."""
        return bool(self._waiting) and self._next_seq is not None

    def has_fenced(self) -> bool:
        """Some decision is under way that only the present term may commit."""
        held: Iterable[Proposal] = (*self._waiting, *(one.proposal for one in self._sent))
        return any(proposal.fence is not None for proposal in held)

    def add(self, proposal: Proposal, *, is_first: bool = False) -> None:
        """Queue a proposal behind the others, or before all that were not sent yet."""
        if is_first:
            self._waiting.appendleft(proposal)
        else:
            self._waiting.append(proposal)

    def begin(self, cluster_id: ClusterId, term: int, last_seq: int) -> list[int]:
        """A master was found that has admitted this origin's proposals up to `last_seq`.

        What it admitted is awaited, the rest is sent again. Returns the tickets of proposals that are void
        because they were made for another cluster or term.
        """
        in_doubt = self._sent
        self._sent = deque()
        again: list[Proposal] = []
        for one in in_doubt:
            if cluster_id == self._cluster_id and one.last_seq <= last_seq:
                self._sent.append(one)
            else:
                again.append(one.proposal)
        wanted = [*again, *self._waiting]
        void = [proposal for proposal in wanted if proposal.fence not in (None, (cluster_id, term))]
        self._waiting = deque(proposal for proposal in wanted if proposal.fence in (None, (cluster_id, term)))
        self._cluster_id = cluster_id
        self._next_seq = last_seq + 1
        return [proposal.ticket for proposal in void]

    def pause(self) -> None:
        """The master is lost; nothing is sent until the next `begin`."""
        self._next_seq = None

    def take(self) -> Sequence[Numbered]:
        """Return what is to be sent now, numbered."""
        if self._next_seq is None:
            return ()
        taken: list[Numbered] = []
        while self._waiting:
            one = Numbered(self._next_seq, self._waiting.popleft())
            self._next_seq = one.last_seq + 1
            taken.append(one)
        self._sent.extend(taken)
        return taken

    def committed(self, seq: int) -> list[int]:
        """This origin's proposals up to number `seq` are committed. Returns the tickets of those that end here."""
        tickets: list[int] = []
        while self._sent and self._sent[0].last_seq <= seq:
            tickets.append(self._sent.popleft().proposal.ticket)
        return tickets

    def withdraw(self, ticket: int) -> bool:
        """Forget a proposal if it was never sent. One that was sent is in doubt and has to be seen through."""
        kept = deque(proposal for proposal in self._waiting if proposal.ticket != ticket)
        was_waiting = len(kept) < len(self._waiting)
        self._waiting = kept
        return was_waiting
