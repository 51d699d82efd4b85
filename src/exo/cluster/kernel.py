"""The synchronous middle of a node: core, state and proposals. The async loops around it carry things in and out."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence

from loguru import logger

from exo.cluster.board import Board
from exo.cluster.coordinator import Leadership
from exo.cluster.core import FIRST_INCARNATION, Core
from exo.cluster.core_messages import (
    Append,
    BecameDurable,
    CloseSession,
    Committed,
    Decide,
    DropMaster,
    Effect,
    EntriesReceived,
    Follow,
    FollowerArrived,
    FollowerLost,
    Lead,
    MasterLost,
    ProposalReceived,
    Stop,
    Tick,
)
from exo.cluster.facts import ClusterFacts
from exo.cluster.lane import Lane
from exo.cluster.options import CoordinatorOptions
from exo.cluster.proposals import Proposals
from exo.cluster.session import Session
from exo.cluster.signal import Signal
from exo.cluster.transport.base import MESSAGE_BYTES_MAX, Connection
from exo.cluster.wire import (
    Answer,
    Call,
    Entries,
    LiveState,
    Propose,
    Welcome,
    encode,
    encode_checked,
    encode_entries,
    encode_snapshot,
)
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command
from exo.shared.types.events import Decision, LogEntry, NodeJoined
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.shared.types.state import State


class Kernel:
    """Everything that changes without waiting. All methods return at once and are called from one event loop."""

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        namespace: str,
        options: CoordinatorOptions,
        wall_clock: Callable[[], str],
        new_id: Callable[[], str],
        is_checking_invariants: bool,
    ) -> None:
        self.identity = identity
        """As of this boot, with the devices and models that changed since."""
        self.namespace = namespace
        self.options = options
        self.node_id = identity.node_id
        self.boot_id = identity.boot_id
        self.core = Core(
            identity.node_id,
            recent_max=options.recent_entries,
            grace_ticks=max(1, round(options.rejoin_grace_s / options.tick_s)),
        )
        self.board = Board(
            identity.node_id,
            feed_backlog=options.feed_backlog,
            is_checking_invariants=is_checking_invariants,
        )
        self.lane = Lane(self.board, identity.node_id, identity.boot_id)
        self.proposals = Proposals(wall_clock=wall_clock, new_id=new_id)
        self.log_work = Signal()
        self.uplink_work = Signal()
        self.unwritten: list[LogEntry] = []
        self.sessions: dict[int, Session] = {}
        self.is_joining = False
        """This node leads, and is asking another cluster to take it in."""
        self.redirected_to: HostPort | None = None
        self.master: Connection | None = None
        self._new_id = new_id
        self._join_ticket: int | None = None
        self._call_numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._uplink_calls: deque[bytes] = deque()
        self._catching_up_to: int | None = None
        """The index from which on a follower knows whether it is a member; None: it knows."""
        self._entries_encoded: dict[tuple[int, int, int], list[bytes]] = {}

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.board.state

    @property
    def leadership(self) -> Leadership:
        master: NodeId | None = None
        if self.core.role == "follower" or (self.core.role == "leader" and self.state.term == self.core.term):
            master = self.state.master_node_id
        return Leadership(
            master_node_id=master,
            term=self.core.term,
            incarnation=FIRST_INCARNATION,
            is_self=self.core.role == "leader" and master == self.node_id,
        )

    @property
    def is_member(self) -> bool:
        """The state knows this boot of this node as a connected member."""
        node = self.state.nodes.get(self.node_id)
        return node is not None and node.is_connected and node.identity.boot_id == self.boot_id

    @property
    def may_yield(self) -> bool:
        """This node leads, and its cluster has nothing to lose."""
        return self.core.role == "leader" and not self.state.instances and not self.proposals.has_fenced()

    def facts(self) -> ClusterFacts:
        master_node_id = self.leadership.master_node_id
        master = self.state.nodes.get(master_node_id) if master_node_id is not None else None
        master_address = master.identity.cluster_address if master is not None else None
        return ClusterFacts(
            exo_version=self.identity.exo_version,
            namespace=self.namespace,
            node_id=self.node_id,
            boot_id=self.boot_id,
            name=self.identity.name,
            cluster_address=self.identity.cluster_address,
            cluster_id=self.core.cluster_id,
            incarnation=FIRST_INCARNATION,
            term=self.core.term,
            index=self.state.index,
            master_node_id=master_node_id,
            master_address=(
                self.identity.cluster_address if master_node_id == self.node_id else master_address
            ),
            member_count=len(self.state.nodes),
            instance_count=len(self.state.instances),
        )

    # --- proposals and effects ----------------------------------------------------------------------------------

    def submit(
        self, events: Sequence[Decision], cause_id: str, *, is_first: bool = False
    ) -> tuple[int, asyncio.Future[int]]:
        """Put decisions on their way; see Proposals.add.

        Raises:
            UnsendableError: They cannot be put into a message.
        """
        submitted = self.proposals.add(
            events, cause_id, position=(self.core.cluster_id, self.core.term), is_first=is_first
        )
        self._dispatch()
        return submitted

    def _dispatch(self) -> None:
        if self.core.role == "leader":
            for numbered in self.proposals.take():
                proposal = numbered.proposal
                self.perform(
                    self.core.step(
                        ProposalReceived(
                            session=None,
                            origin=self.node_id,
                            term=self.core.term,
                            first_seq=numbered.first_seq,
                            cause_id=proposal.cause_id,
                            at=proposal.at,
                            events=proposal.events,
                        )
                    )
                )
        elif self.proposals.has_waiting:
            self.uplink_work.fire()

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out what the core wants, in its order."""
        for effect in effects:
            match effect:
                case Append(entries=entries):
                    self.unwritten.extend(entries)
                    self.log_work.fire()
                case Committed(entries=entries):
                    self._fold(entries)
                case Decide(events=events, cause_id=cause_id):
                    self.submit(events, cause_id, is_first=True)
                case CloseSession(session=number, reason=reason):
                    session = self.sessions.pop(number, None)
                    if session is not None:
                        session.connection.close(reason)
                case DropMaster(reason=reason):
                    logger.warning("leaving the master: {}", reason)
                    if self.master is not None:
                        self.master.close(reason)

    def _fold(self, entries: Sequence[LogEntry]) -> None:
        was_member = self.is_member
        self.board.fold(entries)
        for entry in entries:
            if entry.origin == self.node_id:
                self.proposals.committed(self.core.cluster_id, entry.seq, entry.index)
        node = self.state.nodes.get(self.node_id)
        if node is not None and node.identity.boot_id == self.boot_id:
            self.identity = node.identity
        if self._catching_up_to is not None and self.state.index >= self._catching_up_to:
            self._caught_up()
        elif self.is_member and not was_member:
            self.lane.tell_all(self.state.instances)
        self._ensure_member()
        for session in self.sessions.values():
            session.wake.fire()
        self.board.announce()

    def _ensure_member(self) -> None:
        """Propose this node as a member wherever the state does not know it as one.

        Before everything else of this node: facts about a node that is not there are ignored, and its identity
        replaces what was said of an earlier boot.
        """
        is_live = self.core.role == "leader" or (
            self.core.role == "follower" and self._catching_up_to is None
        )
        if is_live and not self.is_member and not self.proposals.is_pending(self._join_ticket):
            self._join_ticket, _ = self.submit(
                [NodeJoined(identity=self.identity)], f"boot-{self.boot_id}", is_first=True
            )

    # --- leading ------------------------------------------------------------------------------------------------

    def lead(self, state: State, recent: Sequence[LogEntry]) -> None:
        """The log was replayed: open a new term with it, or a new cluster if it is empty."""
        self.board.state = state
        effects = self.core.step(
            Lead(
                cluster_id=state.cluster_id or ClusterId(self._new_id()),
                namespace=self.namespace,
                index=state.index,
                term=state.term,
                last_seq=state.last_seq,
                connected=frozenset(key for key, node in state.nodes.items() if node.is_connected),
                recent=tuple(recent),
            )
        )
        assert self.core.cluster_id is not None
        self.lane.ring.clear()
        # The outbox is still closed, so this is the order in which they enter the log: the opening of the term,
        # this node as a member, and then what was proposed before this node led.
        self._ensure_member()
        self.perform(effects)
        self.proposals.begin(self.core.cluster_id, self.core.term, self.core.last_seq(self.node_id))
        self._dispatch()
        self.board.announce()

    def take_unwritten(self) -> list[LogEntry]:
        taken, self.unwritten = self.unwritten, []
        return taken

    def became_durable(self, index: int) -> None:
        self.perform(self.core.step(BecameDurable(index=index)))

    def tick(self) -> None:
        self.perform(self.core.step(Tick()))

    def step_down(self) -> Sequence[Session]:
        """Nothing is admitted or acknowledged here from now on.

        Returns the followers, which are still connected: they may be told where to go before they are hung up on.
        """
        self.perform(self.core.step(Stop()))
        self.proposals.pause()
        self.unwritten = []
        sessions, self.sessions = list(self.sessions.values()), {}
        self.board.announce()
        return sessions

    def stop_leading(self, reason: str) -> None:
        """Step down, and hang up on the followers."""
        for session in self.step_down():
            session.connection.close(reason)

    def follower_arrived(self, session: Session, index: int | None, term: int) -> Welcome:
        """Take a follower in that is at (index, term) of this cluster, or at None of any use."""
        self.perform(
            self.core.step(
                FollowerArrived(session=session.number, node_id=session.node_id, index=index, term=term)
            )
        )
        self.sessions[session.number] = session
        return Welcome(
            facts=self.facts(),
            is_snapshot_next=self.core.needs_snapshot(session.number),
            last_seq=self.core.last_seq(session.node_id),
        )

    def follower_lost(self, session: Session, reason: str) -> None:
        if self.sessions.get(session.number) is session:
            del self.sessions[session.number]
            self.perform(self.core.step(FollowerLost(session=session.number, reason=reason)))

    def proposal_received(self, session: Session, message: Propose) -> None:
        self.perform(
            self.core.step(
                ProposalReceived(
                    session=session.number,
                    origin=session.node_id,
                    term=message.term,
                    first_seq=message.first_seq,
                    cause_id=message.cause_id,
                    at=message.at,
                    events=message.events,
                )
            )
        )

    def outgoing(self, session: Session) -> Sequence[bytes]:
        """Return what to send to a follower next; empty when it has everything.

        Decisions first, so that telemetry and answers never arrive before what they are about.
        """
        if self.sessions.get(session.number) is not session:
            return ()
        entries = self.core.next_entries(session.number, self.options.entries_per_message)
        if entries is None:
            self.core.snapshot_sent(session.number)
            session.tick = self.lane.ring.tick
            session.needs_live = False
            return encode_snapshot(self.state)
        if entries:
            return self._encode_entries(entries)
        ticks = None if session.needs_live else self.lane.ring.since(session.tick)
        session.tick = self.lane.ring.tick
        session.needs_live = False
        if ticks is None:
            live = encode(LiveState(live=self.state.live))
            # Beyond what one message can carry, the whole state goes in pieces.
            ticks = [live] if len(live) <= MESSAGE_BYTES_MAX else encode_snapshot(self.state)
        return [*session.take_answers(), *ticks]

    def _encode_entries(self, entries: Sequence[LogEntry]) -> list[bytes]:
        """Followers that are level get the same bytes: encoded once."""
        key = (self.core.term, entries[0].index, entries[-1].index)
        encoded = self._entries_encoded.get(key)
        if encoded is None:
            encoded = encode_entries(self.core.term, entries)
            if len(self._entries_encoded) >= 8:
                del self._entries_encoded[next(iter(self._entries_encoded))]
            self._entries_encoded[key] = encoded
        return encoded

    # --- following ----------------------------------------------------------------------------------------------

    def follow(self, connection: Connection, welcome: Welcome, snapshot: State | None) -> None:
        """A master took this node in: go on from its snapshot, or from the present state with its tail."""
        facts = welcome.facts
        assert facts.cluster_id is not None
        self.master = connection
        self.redirected_to = None
        if snapshot is not None:
            self._go_on_from(snapshot, facts.cluster_id)
        self.perform(
            self.core.step(Follow(cluster_id=facts.cluster_id, term=facts.term, index=self.state.index))
        )
        self.proposals.begin(facts.cluster_id, facts.term, welcome.last_seq)
        self._catching_up_to = facts.index
        if self.state.index >= facts.index:
            self._caught_up()
        self._ensure_member()
        self.board.announce()

    def snapshot_received(self, snapshot: State) -> None:
        """The master skips ahead: this node had fallen too far behind."""
        assert self.core.cluster_id is not None
        self._go_on_from(snapshot, self.core.cluster_id)
        self.perform(
            self.core.step(Follow(cluster_id=self.core.cluster_id, term=self.core.term, index=snapshot.index))
        )
        self._fold(())

    def _go_on_from(self, snapshot: State, cluster_id: ClusterId) -> None:
        self.board.replace(snapshot)
        self.proposals.committed(cluster_id, snapshot.last_seq.get(self.node_id, 0), snapshot.index)

    def entries_received(self, message: Entries) -> None:
        self.perform(self.core.step(EntriesReceived(term=message.term, entries=message.entries)))

    def live_received(self, message: LiveState) -> None:
        self.board.replace_live(message.live)
        self.board.announce()

    def _caught_up(self) -> None:
        self._catching_up_to = None
        self.lane.tell_all(self.state.instances)
        self.uplink_work.fire()

    def master_lost(self) -> None:
        """Keep the state, and wait for a master."""
        self.perform(self.core.step(MasterLost()))
        self.master = None
        self.proposals.pause()
        self.lane.drop_uplink()
        self._uplink_calls.clear()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                future.set_exception(NoMasterError("the master was lost before it answered; try again"))
                future.exception()  # Seen: the caller may have given up.
        self.board.announce()

    def take_uplink(self) -> Sequence[bytes]:
        """Return what to send to the master next."""
        if self._catching_up_to is not None:
            return ()  # What this node proposes first depends on whether it is a member.
        proposals = [
            encode(
                Propose(
                    term=self.core.term,
                    first_seq=numbered.first_seq,
                    cause_id=numbered.proposal.cause_id,
                    at=numbered.proposal.at,
                    events=numbered.proposal.events,
                )
            )
            for numbered in self.proposals.take()
        ]
        calls = list(self._uplink_calls)
        self._uplink_calls.clear()
        return [*proposals, *calls, *map(encode, self.lane.take_uplink())]

    def call(self, command: Command) -> asyncio.Future[Answer]:
        """Ask the master. The future fails with NoMasterError when it is lost first.

        Raises:
            UnsendableError: The command cannot be put into a message.
        """
        number = next(self._call_numbers)
        data = encode_checked(Call(call_id=number, command=command), "the command")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        self._uplink_calls.append(data)
        self.uplink_work.fire()
        return future

    def answer_received(self, answer: Answer) -> None:
        future = self._calls.pop(answer.call_id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    # --- telemetry ----------------------------------------------------------------------------------------------

    @property
    def has_telemetry(self) -> bool:
        """`flush_telemetry` would do something."""
        return self.lane.has_work(is_member=self.is_member)

    def flush_telemetry(self) -> None:
        if self.is_member:
            self.lane.flush_own(
                is_leading=self.core.role == "leader", is_following=self.core.role == "follower"
            )
        self.uplink_work.fire()
        if self.core.role == "leader" and self.lane.ring.has_gathered:
            self.lane.ring.close_tick(self.core.term)
            for session in self.sessions.values():
                session.wake.fire()
