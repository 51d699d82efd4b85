"""The origin's side of exactly-once: proposals in order, numbered when they are sent, sent again when in doubt. Pure.

A proposal says which number was the origin's last before it, and the master admits it only behind that one. Numbers are
given as late as possible, so that a proposal that was never sent can be withdrawn. Once given, a number stays bound to
its proposal, whatever became of those before it, and no start of a node uses a number of an earlier start: either may
be in the log of a master that is cut off and leads again later.

What a master decides itself, void in any other term, goes without a number: it must not take one that is bound to a
fact which this node offered to an earlier master.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import TermOpened
from exo.shared.types.ids import ClusterId, EventId

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
    """A proposal with the numbers it was sent under; `first_seq` is 0 for a master's own decision."""

    first_seq: int
    proposal: Proposal
    after_seq: int = 0
    """The number before it, in what the present master has admitted and was sent."""

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.proposal.events) - 1


class Outbox:
    """Holds every proposal until it is seen committed. Closed until `begin` says where the numbers stand.

    Args:
        numbers_behind: The first number is higher than this.
    """

    def __init__(self, *, numbers_behind: int = 0) -> None:
        self._highest = numbers_behind
        """The highest number that was given, by this start of the node or, as far as is known, an earlier one."""
        self._waiting: deque[Proposal] = deque()
        self._front: deque[Proposal] = deque()
        """To be sent before what is waiting, among it what was sent under numbers that turned out to be void."""
        self._again: deque[Numbered] = deque()
        """Sent to an earlier master that may not have admitted it: to be sent again, under the same numbers."""
        self._sent: deque[Numbered] = deque()
        self._decided: dict[EventId, int] = {}
        """Tickets of what this node decided as the master of the present term, by the last event."""
        self._cluster_id: ClusterId | None = None
        self._last_seq: int | None = None
        """The number behind which the master admits the next proposal; None while there is no master."""

    @property
    def cluster_id(self) -> ClusterId | None:
        """The cluster that the numbers belong to."""
        return self._cluster_id

    @property
    def has_waiting(self) -> bool:
        """Something can be sent now."""
        return bool(self._again or self._front or self._waiting) and self._last_seq is not None

    def has_fenced(self) -> bool:
        """Some decision is under way that only the present term may commit."""
        unsent = (*self._front, *self._waiting)
        return bool(self._decided) or any(proposal.fence is not None for proposal in unsent)

    def add(self, proposal: Proposal, *, is_first: bool = False) -> None:
        """Queue a proposal behind the others, or before all that were never sent."""
        if is_first:
            self._front.appendleft(proposal)
        else:
            self._waiting.append(proposal)

    def begin(self, cluster_id: ClusterId, term: int, last_seq: int) -> list[int]:
        """A master was found that has admitted this origin's proposals up to `last_seq`.

        What it admitted is awaited, the rest is sent again. Returns the tickets of proposals that are void because
        they were decided in another cluster or term; whether an earlier master's decision is committed is unknown.
        """
        in_doubt = [*self._sent, *self._again]
        self._sent.clear()
        self._again.clear()
        self._last_seq = last_seq
        self._highest = max(self._highest, last_seq)
        if cluster_id == self._cluster_id:
            for one in in_doubt:
                (self._sent if one.last_seq <= last_seq else self._again).append(one)
        else:
            self._front.extendleft(one.proposal for one in reversed(in_doubt))
        void = list(self._decided.values())
        self._decided.clear()
        position: Fence = (cluster_id, term)
        valid = (None, position)
        void += [one.ticket for one in (*self._front, *self._waiting) if one.fence not in valid]
        self._front = deque(one for one in self._front if one.fence in valid)
        self._waiting = deque(one for one in self._waiting if one.fence in valid)
        self._cluster_id = cluster_id
        return void

    def pause(self) -> None:
        """The master is lost; nothing is sent until the next `begin`."""
        self._last_seq = None

    def take(self) -> Sequence[Numbered]:
        """Return what is to be sent now, numbered."""
        if self._last_seq is None:
            return ()
        taken: list[Numbered] = []
        opening: list[Numbered] = []
        while self._again:
            again = self._again.popleft()
            taken.append(Numbered(again.first_seq, again.proposal, self._last_seq))
            self._last_seq = again.last_seq
        while self._front or self._waiting:
            proposal = (self._front or self._waiting).popleft()
            if proposal.fence is None:
                taken.append(Numbered(self._highest + 1, proposal, self._last_seq))
                self._last_seq = self._highest = taken[-1].last_seq
                continue
            self._decided[proposal.events[-1].event_id] = proposal.ticket
            # A term is opened before anything else is admitted in it, even what is sent again.
            is_opening = any(isinstance(one.event, TermOpened) for one in proposal.events)
            (opening if is_opening else taken).append(Numbered(0, proposal))
        self._sent.extend(one for one in taken if one.first_seq)
        return [*opening, *taken]

    def committed(self, seq: int, event_id: EventId | None = None) -> list[int]:
        """This origin's proposals up to number `seq` are committed. Returns the tickets of those that end here.

        Args:
            seq: Of the event, or the highest in a snapshot.
            event_id: Of the event; None where only the number is known. What was sent under this number or a lower
                one, and was not seen, is not in this history: it is sent again, under another number.
        """
        tickets: list[int] = []
        decided = self._decided.pop(event_id, None) if event_id is not None else None
        if decided is not None:
            return [decided]
        while self._sent and self._sent[0].last_seq <= seq:
            one = self._sent.popleft()
            if event_id in (None, one.proposal.events[-1].event_id):
                tickets.append(one.proposal.ticket)
            else:
                self._front.append(one.proposal)
        return tickets

    def withdraw(self, ticket: int) -> bool:
        """Forget a proposal if it was never sent. One that was sent is in doubt and has to be seen through."""
        for unsent in (self._front, self._waiting):
            found = next((one for one in unsent if one.ticket == ticket), None)
            if found is not None:
                unsent.remove(found)
                return True
        return False
