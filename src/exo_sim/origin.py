"""A node as somebody who proposes: its outbox, and the conversation with whoever leads. That may get lost too."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from exo.cluster.outbox import Fence, Numbered, Outbox, Proposal
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
        self._boot = 0
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

    def add(self, events: Sequence[Decision]) -> None:
        """Have facts committed together, whoever leads and however often they have to be offered."""
        self._submit(events, "fact", None)

    def decide(self, events: Sequence[Decision], *, is_first: bool = False) -> None:
        """As the leader: have decisions committed together in this term, or never."""
        self._submit(events, f"decided in {self._term}", self._position, is_first=is_first)
        self.pump()

    @property
    def _position(self) -> Fence:
        # Terms of different incarnations may be equal.
        return (CLUSTER, self._node.incarnation * 1_000_000 + self._term)

    def _submit(
        self, events: Sequence[Decision], cause_id: str, fence: Fence | None, *, is_first: bool = False
    ) -> None:
        self._ticket += 1
        proposed = self._proposed(events)
        self._event_ids[self._ticket] = tuple(one.event_id for one in proposed)
        proposal = Proposal(ticket=self._ticket, events=proposed, cause_id=cause_id, at="", fence=fence)
        self.outbox.add(proposal, is_first=is_first)

    def _proposed(self, events: Sequence[Decision]) -> tuple[ProposedEvent, ...]:
        return tuple(ProposedEvent(event_id=EventId(self._new_id()), event=event) for event in events)

    def _here(self, one: Numbered) -> Propose:
        return Propose(
            session=None,
            origin=self._node.node_id,
            term=self._term,
            first_seq=one.first_seq,
            after_seq=one.after_seq,
            cause_id=one.proposal.cause_id,
            at="",
            events=one.proposal.events,
        )

    def leader_changed(self, leader: NodeId | None, term: int) -> None:
        """Somebody else leads, or in another term, or nobody does."""
        self.outbox.pause()
        self._leader, self._term, self._is_open = leader, term, False
        self._is_refused = False
        self.ask()

    def restarted(self) -> None:
        """The process begins again. What it had not seen committed is forgotten, with those who waited for it."""
        self._boot += 1
        self.outbox = Outbox(numbers_behind=self._boot << 32)
        self._event_ids.clear()
        self._leader, self._is_open, self._is_refused = None, False, False

    def opens(self, events: Sequence[Decision]) -> None:
        """This node leads: say so before anything else."""
        self._submit(events, f"decided in {self._term}", self._position, is_first=True)
        self._begin(self._node.last_seq_here())
        self.pump()

    def pump(self) -> None:
        """Send what can be sent."""
        if not self._is_open or not self.outbox.has_waiting:
            return
        for one in self.outbox.take():
            message = self._here(one)
            if self._leader == self._node.node_id:
                self._node.propose_here(message)
            elif self._leader is not None:
                self._node.offer(self._leader, msgspec.structs.replace(message, session=self._session))

    def tick(self) -> None:
        self._quiet_ticks += 1
        if self._is_refused and self._leader == self._node.node_id:
            self._is_refused = False
            self._begin(self._node.last_seq_here())
            self.pump()
        elif self._quiet_ticks >= PATIENCE_TICKS and (self._event_ids or not self._is_open):
            self.ask()

    def refused_here(self, message: Propose) -> None:
        """This node's own core did not admit a proposal: a fact is offered again, a decision is void."""
        if message.first_seq:
            self._is_refused = True
            return
        last = message.events[-1].event_id
        for ticket in [one for one, event_ids in self._event_ids.items() if event_ids[-1] == last]:
            self._give_up(ticket)

    def told(self, source: NodeId, message: Tell) -> None:
        is_awaited = source == self._leader and message.session == self._session and not self._is_open
        # A second copy of the answer is out of date: more may have been admitted since.
        if is_awaited and message.term == self._term:
            self._begin(message.last_seq)
            self.pump()

    def hung_up(self, source: NodeId, message: Hang) -> None:
        if source == self._leader and message.session == self._session:
            self.ask()

    def committed(self, seq: int, event_id: EventId | None) -> None:
        """An event of this node is folded here, or a snapshot with all up to a number."""
        self._quiet_ticks = 0
        for ticket in self.outbox.committed(seq, event_id):
            event_ids = self._event_ids.pop(ticket, None)
            if event_ids is not None:
                self._node.acknowledge(event_ids)
        self.pump()  # What turned out not to have been admitted waits again.

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

    def _begin(self, last_seq: int) -> None:
        self._is_open = True
        self._quiet_ticks = 0
        cluster_id, term = CLUSTER, self._position[1]
        for ticket in self.outbox.begin(cluster_id, term, last_seq):
            self._give_up(ticket)

    def _give_up(self, ticket: int) -> None:
        """Whoever waits for it is told that it may be committed or not."""
        if self._event_ids.pop(ticket, None) is not None:
            self.void_count += 1
