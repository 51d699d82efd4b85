"""The synchronous middle of a node: core, state and proposals. The async loops around it carry things in and out."""

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from loguru import logger

from exo.cluster.board import Board
from exo.cluster.boot import Boot, decode_state
from exo.cluster.coordinator import Leadership
from exo.cluster.facts import ClusterFacts, Removal
from exo.cluster.hosting import Hosting
from exo.cluster.lane import Lane
from exo.cluster.options import CoordinatorOptions
from exo.cluster.peer_link import PeerLink
from exo.cluster.peer_wire import encode_peer_message
from exo.cluster.proposals import Proposals
from exo.cluster.raft.core import Core
from exo.cluster.raft.messages import Append, InstallSnapshot, PeerMessage, Snapshot
from exo.cluster.raft.options import SnapshotPoint
from exo.cluster.raft.steps import (
    Campaign,
    Commit,
    ConfirmRead,
    Distrust,
    Effect,
    ForceHistory,
    HardState,
    Input,
    Outlived,
    PeerLost,
    Propose,
    ReadConfirmed,
    ReadRefused,
    Received,
    Refuse,
    Restore,
    RoleChanged,
    Send,
    SendSnapshot,
    Tick,
    Write,
    Written,
)
from exo.cluster.recent import Recent
from exo.cluster.signal import Signal
from exo.cluster.transport.base import Connection
from exo.cluster.uplink import Uplink
from exo.cluster.wire import KeepAuthority, encode_state
from exo.shared.errors import NoMasterError
from exo.shared.types.access import Access
from exo.shared.types.events import (
    ClusterDissolved,
    ClusterFormed,
    Decision,
    LogEntry,
    NodeJoined,
    NodeRemoved,
    TermOpened,
)
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.shared.types.state import State
from exo.shared.types.voters import Voters

Standing = Literal["leader", "follower", "orphan"]
"""An orphan has no master that it can reach: it may be about to elect one."""

Farewell = Literal["dissolved", "outlived", "removed"]
"""Why this node's cluster, or its part in it, is over."""

COUNTED = (
    "candidacy",
    "master_faulty",
    "peer_distrusted",
    "peer_lied",
    "peer_malformed",
    "peer_turned_away",
    "proposal_refused",
    "role_changed",
    "snapshot_sent",
    "term_led",
)
"""The keys of `Kernel.counts`, all there from the start."""


class Kernel:
    """Everything that changes without waiting. All methods return at once and are called from one event loop."""

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        namespace: str,
        options: CoordinatorOptions,
        clock: Callable[[], float],
        wall_clock: Callable[[], str],
        new_id: Callable[[], str],
        random: Callable[[], float],
        is_checking_invariants: bool,
    ) -> None:
        self.identity = identity
        """As of this boot, with the devices and models that changed since."""
        self.namespace = namespace
        self.options = options
        self.clock = clock
        self.wall_clock = wall_clock
        self.new_id = new_id
        self.node_id = identity.node_id
        self.boot_id = identity.boot_id
        self.cluster_id: ClusterId | None = None
        self.board = Board(
            identity.node_id, feed_backlog=options.feed_backlog, is_checking_invariants=is_checking_invariants
        )
        self.recent = Recent(options.recent_entries)
        self.lane = Lane(self.board, identity.node_id, identity.boot_id)
        self.proposals = Proposals(wall_clock=wall_clock, new_id=new_id)
        self.log_work = Signal()
        self.prospects = Signal()
        """Fired when there may be somebody else to follow: one was noticed, or was elected."""
        self.links: dict[NodeId, PeerLink] = {}
        self._guess: State | None = None
        """As if all of the log on disk were committed; until a master says what is."""
        self._may_be_spare = False
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        """Elections, terms led, and what was refused, for /metrics."""
        self.is_joining = False
        """This node leads, and is asking another cluster to take it in."""
        self.is_leaving = False
        """This node is about to stop."""
        self.farewell: Farewell | None = None
        """The cluster that this node was part of is no more, or not for it."""
        self.removed_from: Removal | None = None
        """The cluster that has put this node out, until another one, or the same, takes it in."""
        self.redirected_to: HostPort | None = None
        self.authority: KeepAuthority | None = None
        """The key of the cluster's authority, if this node has it; voters get it from the master."""
        self.keep_authority: Callable[[KeepAuthority], None] = lambda kept: None
        """Keeps the key that a master sent."""
        self._random = random
        self._writes: list[Write] = []
        self._effects: deque[Effect] = deque()
        self._is_performing = False
        self._is_dispatching = False
        self._received: list[Propose] = []
        self._join_ticket: int | None = None
        self._reads: dict[int, asyncio.Future[int]] = {}
        self._read_numbers = itertools.count(1)
        self._encoded: tuple[Append | None, list[bytes]] = (None, [])
        self._snapshot_index = 0
        self.core = self._blank_core(Voters())
        self.hosting = Hosting(self)
        self.uplink = Uplink(self)

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.board.state

    @property
    def standing(self) -> Standing:
        if self.core.leading is not None:
            return "leader"
        return "follower" if self.uplink.master is not None else "orphan"

    @property
    def term(self) -> int:
        return max(self.core.term, self.uplink.term)

    @property
    def is_open(self) -> bool:
        """This node leads, and its term is opened: it knows everything that was ever committed."""
        return (
            self.core.leading is not None
            and self.core.is_term_committed
            and self.state.term == self.core.term
        )

    @property
    def voters(self) -> Voters:
        """Who has to agree, by the newest that this node knows: it may have learned as an observer that it does not."""
        return self.core.voters if self.core.log.last_index >= self.state.index else self.state.voters

    @property
    def is_agreeing(self) -> bool:
        """This node's disk counts for the others, as far as it knows."""
        return self.node_id in self.voters.members

    @property
    def leadership(self) -> Leadership:
        master: NodeId | None = None
        if self.core.leading is not None:
            master = self.node_id if self.is_open else None
        elif self.uplink.master is not None:
            master = self.uplink.master_node_id
        return Leadership(
            master_node_id=master,
            term=self.term,
            incarnation=max(self.core.incarnation, self.state.incarnation),
            is_self=self.core.leading is not None and master == self.node_id,
        )

    @property
    def last_known(self) -> State:
        """The state, or what was on disk when this node started until it hears what of that is committed."""
        return self.state if self._guess is None else self._guess

    @property
    def is_spare(self) -> bool:
        """This node has a copy of a log in which it does not count, and has not found its master since it started.

        It may have come to count since: the change may not have reached it before it stopped.
        """
        return self._may_be_spare and self.standing == "orphan" and not self.is_agreeing

    @property
    def is_member(self) -> bool:
        """The state knows this boot of this node as a connected member."""
        node = self.state.nodes.get(self.node_id)
        return node is not None and node.is_connected and node.identity.boot_id == self.boot_id

    @property
    def may_yield(self) -> bool:
        """This node leads, and its cluster has nothing to lose."""
        return self.is_open and not self.has_something_to_lose and not self.proposals.has_fenced()

    @property
    def _is_established(self) -> bool:
        return _is_decided(self.state.access)

    @property
    def has_something_to_lose(self) -> bool:
        """As far as this node knows, its cluster has instances, or it was decided who belongs to it."""
        return bool(self.last_known.instances) or _is_decided(self.last_known.access)

    def facts(self) -> ClusterFacts:
        master_node_id = self.leadership.master_node_id
        return ClusterFacts(
            exo_version=self.identity.exo_version,
            namespace=self.namespace,
            node_id=self.node_id,
            boot_id=self.boot_id,
            name=self.identity.name,
            cluster_address=self.identity.cluster_address,
            cluster_id=self.cluster_id,
            incarnation=max(self.core.incarnation, self.state.incarnation),
            term=self.term,
            index=self.state.index,
            master_node_id=master_node_id,
            master_address=None if master_node_id is None else self.address_of(master_node_id),
            member_count=len(self.state.nodes),
            instance_count=len(self.state.instances),
            is_established=self._is_established,
            is_voteless=not self.core.may_vote,
        )

    def address_of(self, node_id: NodeId) -> HostPort | None:
        if node_id == self.node_id:
            return self.identity.cluster_address
        node = self.state.nodes.get(node_id) or self.last_known.nodes.get(node_id)
        return None if node is None else node.identity.cluster_address

    @property
    def connections(self) -> Sequence[tuple[NodeId, Connection]]:
        """To this node's master, or as master to those who follow it."""
        uplink = self.uplink
        if uplink.master is not None and uplink.master_node_id is not None:
            return [(uplink.master_node_id, uplink.master)]
        return [(session.node_id, session.connection) for session in self.hosting.sessions.values()]

    def peers_to_link(self) -> dict[NodeId, HostPort]:
        """Return whom this node should be linked to, to agree with them, and where they are."""
        wanted: set[NodeId] = set()
        if self.core.leading is not None:
            wanted.update(self.core.leading.peers)
        elif self.is_agreeing:
            wanted.update(self.voters.members)
        wanted.discard(self.node_id)
        found = {node_id: self.address_of(node_id) for node_id in wanted}
        return {node_id: address for node_id, address in found.items() if address is not None}

    # --- beginning and ending -----------------------------------------------------------------------------------

    def begin(self, boot: Boot, *, may_vote: bool) -> None:
        """Go on from what was on disk; a new node forms a cluster of its own."""
        self.core = Core(
            self.node_id,
            hard_state=boot.hard_state,
            incarnation=boot.incarnation,
            snapshot=boot.point if may_vote else msgspec.structs.replace(boot.point, voters=Voters()),
            entries=boot.entries,
            options=self.options.core,
            random=self._random,
            may_vote=may_vote,
        )
        self.board.state = boot.state
        self.recent.begin_at(boot.state.index)
        self._snapshot_index = boot.state.index
        self.cluster_id = boot.guess.cluster_id
        self._guess = boot.guess if boot.guess.index > boot.state.index else None
        self._may_be_spare = boot.guess.index > 0 and not boot.is_of_use_to(self.node_id)
        if self.core.is_promotable and self.core.voters.voters == (self.node_id,):
            self.step(Campaign())

    def forsake(self) -> None:
        """Be part of no cluster: nothing is admitted, acknowledged or written for the old one from now on.

        The log has to be reset before this node joins or forms another one.
        """
        self.hosting.close_all("its cluster is no more")
        for link in list(self.links.values()):
            link.close("this node has left its cluster")
        self.links.clear()
        self.proposals.pause()
        self.uplink.forget()
        self._writes.clear()
        self._received.clear()
        self._fail_reads("this node has left its cluster")
        self.core = self._blank_core(Voters(), may_vote=False)
        self._snapshot_index = 0
        self.cluster_id = None
        self._guess = None
        self._may_be_spare = False
        self.farewell = None
        self._join_ticket = None
        self.lane.drop_held()
        self.board.announce()

    def found(self) -> None:
        """Form a new cluster: this node's log is empty, and there is no other cluster to join."""
        self.board.replace(State())
        self.recent.begin_at(0)
        self._snapshot_index = 0
        self.core = self._blank_core(Voters(voters=(self.node_id,)))
        self.step(Campaign())

    def taken_in(self, facts: ClusterFacts) -> None:
        """A master takes this node in."""
        self.redirected_to = None
        self.removed_from = None
        self._may_be_spare = False
        if self.cluster_id != facts.cluster_id:
            # With an empty log it may have forgotten a vote, or what it acknowledged: it does not vote before it has
            # seen that nobody counts on it.
            self.core = self._blank_core(Voters(), incarnation=facts.incarnation, may_vote=False)

    def _blank_core(self, voters: Voters, *, incarnation: int = 1, may_vote: bool = True) -> Core:
        return Core(
            self.node_id,
            hard_state=HardState(),
            incarnation=incarnation,
            may_vote=may_vote,
            snapshot=SnapshotPoint(voters=voters),
            entries=(),
            options=self.options.core,
            random=self._random,
        )

    # --- proposals ----------------------------------------------------------------------------------------------

    def submit(
        self, events: Sequence[Decision], cause_id: str, *, is_first: bool = False
    ) -> tuple[int, asyncio.Future[int]]:
        """Put decisions on their way; see Proposals.add.

        Raises:
            UnsendableError: They cannot be put into a message.
        """
        submitted = self.proposals.add(
            events, cause_id, position=(self.cluster_id, self.term), is_first=is_first
        )
        self._dispatch_soon()
        return submitted

    def proposal_received(self, proposal: Propose) -> None:
        """As master: a follower proposes."""
        self._received.append(proposal)
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        """What is proposed in one turn of the event loop is written and sent together."""
        if not self._is_dispatching:
            self._is_dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_dispatching = False
        received, self._received = self._received, []
        if self.core.leading is not None:
            self.step(*self._take_own(), *received)
        elif self.proposals.has_waiting:
            self.uplink.work.fire()

    def _take_own(self) -> list[Propose]:
        if not self.core.is_admitting:
            return []
        return [
            Propose(
                session=None,
                origin=self.node_id,
                term=self.core.term,
                first_seq=numbered.first_seq,
                cause_id=numbered.proposal.cause_id,
                at=numbered.proposal.at,
                events=numbered.proposal.events,
            )
            for numbered in self.proposals.take()
        ]

    def ensure_member(self) -> None:
        """Propose this node as a member wherever the state does not know it as one.

        Before everything else of this node: facts about a node that is not there are ignored, and its identity
        replaces what was said of an earlier boot.
        """
        if self.is_leaving or self.farewell or self.is_member or self.proposals.is_pending(self._join_ticket):
            return
        if self.core.leading is not None or (
            self.uplink.master is not None and not self.uplink.is_catching_up
        ):
            self._join_ticket, _ = self.submit(
                [NodeJoined(identity=self.identity)], f"boot-{self.boot_id}", is_first=True
            )

    # --- the core's effects -------------------------------------------------------------------------------------

    def step(self, *inputs: Input) -> None:
        """Tell the core, and carry out what it wants, in its order."""
        if not inputs:
            return
        self._effects.extend(self.core.step(*inputs))
        if self._is_performing:
            return  # What follows from an effect waits until the effects before it are carried out.
        self._is_performing = True
        try:
            while self._effects:
                self._perform(self._effects.popleft())
        finally:
            self._is_performing = False

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Write():
                self._writes.append(effect)
                self.log_work.fire()
            case Send(to=to, message=message):
                self._send(to, message)
            case SendSnapshot(to=to):
                self._send(to, self._install_snapshot())
            case Commit(entries=entries):
                self.fold(entries)
            case Restore(snapshot=snapshot):
                self._restore(snapshot)
            case RoleChanged():
                self._role_changed(effect)
            case ReadConfirmed(read_id=read_id, index=index):
                future = self._reads.pop(read_id, None)
                if future is not None and not future.done():
                    future.set_result(index)
            case ReadRefused(read_id=read_id):
                future = self._reads.pop(read_id, None)
                if future is not None:
                    _fail(future, "this node leads no longer; try again")
            case Refuse(session=session, reason=reason):
                self.counts["proposal_refused"] += 1
                if session is not None:
                    self.hosting.close(session, reason)
                else:
                    # Its number is void; the numbers begin anew where the log ends.
                    logger.debug("an own proposal was refused: {}", reason)
                    self._begin_proposals()
            case Distrust(node_id=node_id, reason=reason):
                self.counts["peer_distrusted"] += 1
                logger.warning("ending the connection to {}: {}", node_id, reason)
                link = self.links.get(node_id)
                if link is not None:
                    link.close(reason)
            case Outlived():
                if self.farewell is None:
                    logger.warning("an operator has begun this cluster's history anew without this node")
                    self.farewell = "outlived"
                    self.board.announce()

    def _send(self, to: NodeId, message: PeerMessage) -> None:
        link = self.links.get(to)
        if link is None:
            return
        if isinstance(message, Append) and message.entries:
            # Followers that are level get the same message: encoded once.
            before, encoded = self._encoded
            if before is None or before != message:
                encoded = encode_peer_message(message)
                self._encoded = (message, encoded)
            link.send(encoded)
        else:
            link.send(encode_peer_message(message))

    def _install_snapshot(self) -> InstallSnapshot:
        self.counts["snapshot_sent"] += 1
        return InstallSnapshot(
            incarnation=self.core.incarnation, term=self.core.term, snapshot=self.make_snapshot()
        )

    def make_snapshot(self) -> Snapshot:
        """Return the decided state as of now."""
        state = self.state.decided()
        return Snapshot(
            index=state.index,
            term=state.term,
            incarnation=state.incarnation,
            voters=state.voters if state.voters.voters else self.core.voters,
            last_seq=state.last_seq,
            data=encode_state(state),
        )

    def _restore(self, snapshot: Snapshot) -> None:
        self._snapshot_index = snapshot.index
        if snapshot.index > self.state.index or self.cluster_id is None:
            state = decode_state(snapshot)
            self.go_on_from(msgspec.structs.replace(state, live=self.state.live))
        self.fold(())

    def go_on_from(self, state: State) -> None:
        """The state is another one; what lies between is not known here."""
        self.board.replace(state)
        self.recent.begin_at(state.index)
        self._guess = None
        if state.cluster_id is not None:
            self.cluster_id = state.cluster_id
            self.proposals.committed(state.cluster_id, state.last_seq.get(self.node_id, 0), state.index)
        self._note_voters()

    def fold(self, entries: Sequence[LogEntry]) -> None:
        """Fold committed entries in. Some may be here already: a node may learn of them in two ways."""
        fresh = [entry for entry in entries if entry.index > self.state.index]
        was_member, was_open = self.is_member, self.state.term == self.core.term
        if fresh:
            self.board.fold(fresh)
            self.recent.add(fresh)
            self._guess = None
            self.cluster_id = self.state.cluster_id
        for entry in fresh:
            if isinstance(entry.event, ClusterDissolved):
                self.redirected_to = entry.event.address
            elif isinstance(entry.event, NodeRemoved) and entry.event.node_id == self.node_id:
                self._removed(entry.event.reason)
            elif isinstance(entry.event, NodeRemoved):
                self.hosting.removed(entry.event.node_id)
            if entry.origin == self.node_id:
                self.proposals.committed(self.cluster_id, entry.seq, entry.index, entry.event_id)
        node = self.state.nodes.get(self.node_id)
        if node is not None and node.identity.boot_id == self.boot_id:
            self.identity = node.identity
        self.lane.released(self.state.index)
        if not self.uplink.note_progress() and self.is_member and not was_member:
            self.lane.tell_all(self.state.instances)
        if self.is_open and not was_open:
            self.hosting.opened()
        self._note_voters()
        if self.state.dissolved_into is not None and self.farewell is None:
            self.farewell = "dissolved"
        self.ensure_member()
        self.hosting.wake_all()
        if fresh and self.is_leaving:
            self.hosting.manage()
        self.board.announce()

    def _removed(self, reason: str) -> None:
        assert self.cluster_id is not None
        logger.warning(
            "this node was removed from its cluster: {}; to join it again: exo token create on one of its nodes, "
            "then here: exo join TOKEN",
            reason,
        )
        self.farewell = "removed"
        self.removed_from = Removal(
            cluster_id=self.cluster_id, authority_pem=self.last_known.access.authority_pem, reason=reason
        )

    def told_of_removal(self, facts: ClusterFacts) -> None:
        """A master says that this node is no member: it counts if it is this cluster's, and knows no less."""
        if facts.cluster_id != self.cluster_id or not facts.is_master or self.core.leading is not None:
            return
        own = self.facts()
        is_new = facts.incarnation > own.incarnation or (
            facts.incarnation == own.incarnation and facts.term >= own.term and facts.index >= own.index
        )
        if is_new and self.farewell is None:
            self._removed("while it was away")
            self.board.announce()

    def _note_voters(self) -> None:
        voters = self.state.voters
        if not self.core.may_vote and voters.voters and self.node_id not in voters.members:
            # Nobody counts on what it has forgotten, and it may be made a voter.
            self.core.may_vote = True
            logger.debug("this node may vote once it has caught up")
            for link in list(self.links.values()):
                link.close("it may vote now")

    def _role_changed(self, change: RoleChanged) -> None:
        self.counts["role_changed"] += 1
        if change.role == "leader":
            self._lead()
        else:
            if change.role == "candidate":
                self.counts["candidacy"] += 1
            if self.hosting.is_hosting:
                self.hosting.close_all("it leads no longer")
                self.proposals.pause()
            if change.leader is not None and change.leader != self.uplink.master_node_id:
                self.uplink.leave("another node leads now")
        self.prospects.fire()
        self.board.announce()

    def _lead(self) -> None:
        self.counts["term_led"] += 1
        self.uplink.leave("this node leads now")
        self.proposals.pause()
        is_new = self.core.log.last_index == 0
        if self.cluster_id is None:
            self.cluster_id = ClusterId(self.new_id())
        self.hosting.begin()
        self.lane.ring.clear()
        # What is submitted first comes last of these: the opening of the term goes before everything, even before what
        # was sent to an earlier master and is in doubt, and then this node as a member.
        self._begin_proposals()
        self.ensure_member()
        opening: tuple[Decision, ...] = (TermOpened(master_node_id=self.node_id),)
        if is_new:
            formed = ClusterFormed(
                cluster_id=self.cluster_id, namespace=self.namespace, voters=self.core.voters
            )
            opening = (formed, *opening)
        self.submit(opening, f"term-{self.core.term}", is_first=True)
        self._dispatch()

    def _begin_proposals(self) -> None:
        assert self.cluster_id is not None
        self.proposals.begin(self.cluster_id, self.core.term, self.core.admission.last_seq(self.node_id))
        self._dispatch_soon()

    # --- disk and time ------------------------------------------------------------------------------------------

    def take_writes(self) -> list[Write]:
        taken, self._writes = self._writes, []
        return taken

    def written(self, number: int) -> None:
        self.step(Written(number=number))

    def take_snapshot(self) -> Snapshot | None:
        """Return a snapshot to keep, when enough was decided since the last one."""
        is_due = self.state.index - self._snapshot_index >= self.options.snapshot_entries
        if not is_due or not self.is_agreeing or self.core.commit_index < self.state.index:
            return None
        if self.core.durable_index < self.state.index:
            return None  # The log on disk has to reach as far as the snapshot.
        self._snapshot_index = self.state.index
        return self.make_snapshot()

    def tick(self) -> None:
        self.step(Tick())
        if self.core.leading is not None:
            self.hosting.tick()

    def stop(self, reason: str) -> None:
        """Take part no longer: the node ends, or its log has failed."""
        self.forsake()
        self.uplink.leave(reason)

    # --- peers that agree ---------------------------------------------------------------------------------------

    def link_up(self, link: PeerLink) -> None:
        before = self.links.get(link.node_id)
        self.links[link.node_id] = link
        if before is not None:
            before.close("the same node has connected again")
            self.step(PeerLost(node_id=link.node_id, is_ended=False))

    def link_down(self, link: PeerLink, *, is_ended: bool) -> None:
        if self.links.get(link.node_id) is link:
            del self.links[link.node_id]
            self.step(PeerLost(node_id=link.node_id, is_ended=is_ended))

    def peer_said(self, link: PeerLink, message: PeerMessage) -> None:
        if self.links.get(link.node_id) is link:
            self.step(Received(source=link.node_id, message=message))

    # --- operators and readers ----------------------------------------------------------------------------------

    def confirm(self) -> asyncio.Future[int]:
        """Ask whether this node still leads; the future holds an index to read at, or fails with NoMasterError."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        number = next(self._read_numbers)
        self._reads[number] = future
        self.step(ConfirmRead(read_id=number))
        return future

    def _fail_reads(self, reason: str) -> None:
        reads, self._reads = self._reads, {}
        for future in reads.values():
            _fail(future, reason)

    def force_history(self, forgotten: Sequence[NodeId]) -> None:
        """An operator gives voters up: lead alone from here on."""
        self.step(
            ForceHistory(
                forgotten=tuple(forgotten),
                event_id=self.new_id(),
                cause_id="operator",
                at=self.wall_clock(),
            )
        )

    # --- telemetry ----------------------------------------------------------------------------------------------

    @property
    def has_telemetry(self) -> bool:
        """`flush_telemetry` would do something."""
        return self.lane.has_work(is_member=self.is_member)

    def flush_telemetry(self) -> None:
        is_leading = self.core.leading is not None
        if self.is_member:
            self.lane.flush_own(is_leading=is_leading, is_following=self.uplink.master is not None)
        self.uplink.work.fire()
        if is_leading and self.lane.ring.has_gathered:
            self.lane.ring.close_tick(self.core.term, self.state.index)
            self.hosting.wake_all()


def _is_decided(access: Access) -> bool:
    """Somebody has decided who may come in. One who put a node out does not want to be part of that node's cluster."""
    return access.authority_pem is not None or bool(access.keys or access.removed)


def _fail(future: asyncio.Future[int], message: str) -> None:
    if not future.done():
        future.set_exception(NoMasterError(message))
        future.exception()  # Seen: the caller may have given up.
