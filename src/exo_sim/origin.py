"""A node as somebody who proposes: its outbox, and the conversation with whoever leads. Messages may get lost here too."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from exo.cluster.outbox import Fence, Outbox, Proposal
from exo.cluster.raft.steps import Propose
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import Decision
from exo.shared.types.ids import ClusterId, EventId, NodeId

CLUSTER = ClusterId("simulated")
PATIENCE_TICKS = 20
"""After this long without news a proposal is in doubt, and the leader is asked what it admitted."""


class Ask(msgspec.Struct, frozen=True):
    """Origin to leader: what have you admitted of mine?"""

    session: int
    is_forgetful: bool
    boot: int


class Tell(msgspec.Struct, frozen=True):
    """Leader to origin: your proposals up to `last_seq`, in my term."""

    session: int
    term: int
    last_seq: int


class Offer(msgspec.Struct, frozen=True):
    """Origin to leader: admit this."""

    propose: Propose


class Hang(msgspec.Struct, frozen=True):
    """Leader to origin: ask again."""

    session: int


class Surroundings(Protocol):
    """What an origin needs of its node."""

    node_id: NodeId

    @property
    def incarnation(self) -> int: ...

    def ask(self, leader: NodeId, session: int) -> None: ...

    def offer(self, leader: NodeId, message: Propose) -> None: ...

    def propose_here(self, message: Propose) -> None: ...

    def last_seq_here(self) -> int: ...

    def acknowledge(self, event_ids: Sequence[EventId]) -> None: ...


class Origin:
    """Args:
    node: The node that it is part of.
    new_id: Ids of events.
    """

    def __init__(self, node: Surroundings, new_id: Callable[[], str]) -> None:
        self._node = node
        self._new_id = new_id
        self.outbox = Outbox()
        self._event_ids: dict[int, tuple[EventId, ...]] = {}
        self._ticket = 0
        self._session = 0
        self._leader: NodeId | None = None
        self._term = 0
        self._is_open = False
        self._quiet_ticks = 0
        self._is_refused = False
        self.void_count = 0

    @property
    def pending(self) -> int:
        """How many proposals are not acknowledged and not void."""
        return len(self._event_ids)

    def _fence(self) -> Fence:
        # Terms of different incarnations may be equal.
        return (CLUSTER, self._node.incarnation * 1_000_000 + self._term)

    def add(self, events: Sequence[Decision], *, is_fenced: bool = False, is_first: bool = False) -> None:
        """Have decisions committed together; fenced ones in the present term or never."""
        self._ticket += 1
        proposed = tuple(ProposedEvent(event_id=EventId(self._new_id()), event=event) for event in events)
        self._event_ids[self._ticket] = tuple(one.event_id for one in proposed)
        proposal = Proposal(
            ticket=self._ticket,
            events=proposed,
            cause_id=f"decided in {self._term}" if is_fenced else "fact",
            at="",
            fence=self._fence() if is_fenced else None,
        )
        self.outbox.add(proposal, is_first=is_first)

    def leader_changed(self, leader: NodeId | None, term: int) -> None:
        """Somebody else leads, or in another term, or nobody does."""
        self.outbox.pause()
        self._leader, self._term, self._is_open = leader, term, False
        self._is_refused = False
        self.ask()

    def restarted(self) -> None:
        """The process begins again; what it was about to say is in doubt."""
        self.outbox.pause()
        self._leader, self._is_open, self._is_refused = None, False, False

    def opens(self, events: Sequence[Decision]) -> None:
        """This node leads: say so before anything else."""
        self._begin(self._term, self._node.last_seq_here())
        self.add(events, is_fenced=True, is_first=True)
        self.pump()

    def pump(self) -> None:
        """Send what can be sent."""
        if not self._is_open or not self.outbox.has_waiting:
            return
        is_here = self._leader == self._node.node_id
        for one in self.outbox.take():
            message = Propose(
                session=None if is_here else self._session,
                origin=self._node.node_id,
                term=self._term,
                first_seq=one.first_seq,
                cause_id=one.proposal.cause_id,
                at=one.proposal.at,
                events=one.proposal.events,
            )
            if is_here:
                self._node.propose_here(message)
            elif self._leader is not None:
                self._node.offer(self._leader, message)

    def tick(self) -> None:
        self._quiet_ticks += 1
        if self._is_refused and self._leader == self._node.node_id:
            self._is_refused = False
            self._begin(self._term, self._node.last_seq_here())
            self.pump()
        elif self._quiet_ticks >= PATIENCE_TICKS and (self._event_ids or not self._is_open):
            self.ask()

    def refused_here(self) -> None:
        """This node's own core did not admit a proposal; it is offered again at the next tick."""
        self._is_refused = True

    def told(self, source: NodeId, message: Tell) -> None:
        if source == self._leader and message.session == self._session and message.term == self._term:
            self._begin(message.term, message.last_seq)
            self.pump()

    def hung_up(self, source: NodeId, message: Hang) -> None:
        if source == self._leader and message.session == self._session:
            self.ask()

    def committed(self, seq: int) -> None:
        """This node's proposals up to a number are folded here."""
        self._quiet_ticks = 0
        for ticket in self.outbox.committed(seq):
            self._node.acknowledge(self._event_ids.pop(ticket))

    def ask(self) -> None:
        """Ask whoever leads what it has admitted, and go on from there."""
        self._quiet_ticks = 0
        if self._leader is None:
            return
        if self._leader == self._node.node_id:
            self._is_refused = True
            return
        self.outbox.pause()
        self._is_open = False
        self._session += 1
        self._node.ask(self._leader, self._session)

    def _begin(self, term: int, last_seq: int) -> None:
        self._is_open = True
        self._quiet_ticks = 0
        for ticket in self.outbox.begin(CLUSTER, self._node.incarnation * 1_000_000 + term, last_seq):
            del self._event_ids[ticket]
            self.void_count += 1
