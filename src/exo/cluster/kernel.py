"""The synchronous middle of a node: its parts wired up. The async loops around it carry things in and out."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from exo.cluster.board import Board
from exo.cluster.boot import Boot
from exo.cluster.cores import Cores
from exo.cluster.disk_work import DiskWork
from exo.cluster.dispatch import Dispatch
from exo.cluster.electorate import Electorate
from exo.cluster.folding import Folding
from exo.cluster.hosting import Hosting
from exo.cluster.joining import Joining
from exo.cluster.lane import Lane
from exo.cluster.learning import Learning
from exo.cluster.options import CoordinatorOptions
from exo.cluster.peer_link import PeerLink
from exo.cluster.peer_links import PeerLinks
from exo.cluster.performing import Performer
from exo.cluster.proposals import Proposals
from exo.cluster.raft.messages import PeerMessage
from exo.cluster.raft.steps import (
    Campaign,
    ConfirmRead,
    ForceHistory,
    Input,
    PeerLost,
    Received,
    Tick,
    Written,
)
from exo.cluster.reads import Reads
from exo.cluster.recent import Recent
from exo.cluster.roll import Roll
from exo.cluster.signal import Signal
from exo.cluster.situation import Situation
from exo.cluster.terms import Terms
from exo.cluster.transport.base import Connection
from exo.cluster.uplink import Uplink
from exo.cluster.wire import KeepAuthority, Welcome
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.state import State
from exo.shared.types.voters import Voters

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
    """Everything that changes without waiting. All methods return at once and are called from one event loop.

    What happens to a node comes in here and in its parts (`hosting`, `learning`, `dispatch`, ...) and goes to the core;
    what the core wants goes back through `performing.py` to the part that it concerns.
    """

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
        self.options = options
        self._wall_clock = wall_clock
        self._new_id = new_id
        self._cores = Cores(identity.node_id, options.core, random)
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        """Elections, terms led, and what was refused, for /metrics."""
        self.prospects = Signal()
        """Fired when there may be somebody else to follow: one was noticed, or was elected."""
        self.keep_authority: Callable[[KeepAuthority], None] = lambda kept: None
        """Keeps the key of the cluster's authority that a master sent."""

        # What is known.
        self.board = board = Board(
            identity.node_id, feed_backlog=options.feed_backlog, is_checking_invariants=is_checking_invariants
        )
        self.situation = situation = Situation(identity, namespace, board, core=self._cores.blank(Voters()))
        self.recent = Recent(options.recent_entries)

        # What waits to go out: to the disk, to peers, to whoever asked, to the master, to the log.
        self.disk_work = DiskWork(situation, snapshot_entries=options.snapshot_entries)
        self.links = PeerLinks()
        self._reads = Reads()
        self.lane = Lane(board, identity.node_id, identity.boot_id)
        self.proposals = Proposals(
            wall_clock=wall_clock, new_id=new_id, numbers_behind=options.numbers_behind
        )
        self.uplink = Uplink(situation, board, self.lane, self.proposals)
        self.dispatch = Dispatch(situation, self.proposals, step=self.step, uplink_work=self.uplink.work)
        self._joining = Joining(situation, self.uplink, self.proposals, self.dispatch)

        # A master's side of its followers.
        roll = Roll(situation, self.proposals, self.dispatch, clock, grace_s=options.rejoin_grace_s)
        self.hosting = Hosting(
            situation,
            recent=self.recent,
            lane=self.lane,
            roll=roll,
            dispatch=self.dispatch,
            counts=self.counts,
            entries_per_message=options.entries_per_message,
        )
        self.electorate = Electorate(
            situation,
            roll=roll,
            sessions=self.hosting.sessions,
            links=self.links,
            proposals=self.proposals,
            dispatch=self.dispatch,
            step=self.step,
            clock=clock,
            options=options,
        )

        # What follows: from decisions, from a master's word, from elections, from anything that the core wants.
        folding = Folding(
            situation,
            board,
            self.recent,
            proposals=self.proposals,
            joining=self._joining,
            lane=self.lane,
            links=self.links,
            uplink=self.uplink,
            hosting=self.hosting,
            electorate=self.electorate,
        )
        self.learning = Learning(
            situation,
            board,
            uplink=self.uplink,
            folding=folding,
            joining=self._joining,
            lane=self.lane,
            proposals=self.proposals,
        )
        terms = Terms(
            situation,
            board,
            proposals=self.proposals,
            dispatch=self.dispatch,
            joining=self._joining,
            lane=self.lane,
            uplink=self.uplink,
            hosting=self.hosting,
            roll=roll,
            electorate=self.electorate,
            prospects=self.prospects,
            counts=self.counts,
            new_id=new_id,
        )
        self._performer = Performer(
            situation,
            board,
            disk_work=self.disk_work,
            links=self.links,
            reads=self._reads,
            dispatch=self.dispatch,
            folding=folding,
            terms=terms,
            hosting=self.hosting,
            counts=self.counts,
        )

    def step(self, *inputs: Input) -> None:
        """Tell the core, and carry out what it wants."""
        self._performer.step(*inputs)

    @property
    def may_yield(self) -> bool:
        """This node leads, and its cluster has nothing to lose."""
        situation = self.situation
        return situation.is_open and not situation.has_something_to_lose and not self.proposals.has_fenced()

    @property
    def connections(self) -> Sequence[tuple[NodeId, Connection]]:
        """To this node's master, or as master to those who follow it."""
        master_node_id = self.situation.master_node_id
        if self.uplink.master is not None and master_node_id is not None:
            return [(master_node_id, self.uplink.master)]
        return [(session.node_id, session.connection) for session in self.hosting.sessions.values()]

    # --- beginning and ending -----------------------------------------------------------------------------------

    def begin(self, boot: Boot, *, may_vote: bool) -> None:
        """Go on from what was on disk; a new node forms a cluster of its own."""
        core = self._cores.from_disk(boot, may_vote=may_vote)
        self.board.state = boot.state
        self.situation.begin(boot, core)
        self.recent.begin_at(boot.state.index)
        self.disk_work.snapshot_at(boot.state.index)
        if core.is_promotable and core.voters.voters == (self.situation.node_id,):
            self.step(Campaign())

    def forsake(self) -> None:
        """Be part of no cluster: nothing is admitted, acknowledged or written for the old one from now on.

        The log has to be reset before this node joins or forms another one.
        """
        self.hosting.close_all("its cluster is no more")
        self.links.drop_all("this node has left its cluster")
        self.proposals.pause()
        self.uplink.forget()
        self.disk_work.drop()
        self.disk_work.snapshot_at(0)
        self.dispatch.drop_received()
        self._reads.refuse_all("this node has left its cluster")
        self.situation.forsake(self._cores.blank(Voters(), may_vote=False))
        self._joining.forget()
        self.lane.drop_held()
        self.board.announce()

    def found(self) -> None:
        """Form a new cluster: this node's log is empty, and there is no other cluster to join."""
        self.board.replace(State())
        self.recent.begin_at(0)
        self.disk_work.snapshot_at(0)
        self.situation.core = self._cores.blank(Voters(voters=(self.situation.node_id,)))
        self.step(Campaign())

    def follow(self, connection: Connection, welcome: Welcome, snapshot: State | None) -> None:
        """A master takes this node in."""
        facts = welcome.facts
        self.situation.taken_in()
        if self.situation.cluster_id != facts.cluster_id:
            # With an empty log it may have forgotten a vote, or what it acknowledged: it does not vote before it has
            # seen that nobody counts on it.
            self.situation.core = self._cores.blank(Voters(), incarnation=facts.incarnation, may_vote=False)
        self.learning.begin(connection, welcome, snapshot)

    def stop(self, reason: str) -> None:
        """Take part no longer: the node ends, or its log has failed."""
        self.forsake()
        self.uplink.leave(reason)

    # --- disk, time and peers -----------------------------------------------------------------------------------

    def written(self, number: int) -> None:
        self.step(Written(number=number))

    def tick(self) -> None:
        self.step(Tick())
        if self.situation.core.leading is not None:
            self.electorate.tick()

    def link_up(self, link: PeerLink) -> None:
        if self.links.add(link):
            self.step(PeerLost(node_id=link.node_id, is_ended=False))

    def link_down(self, link: PeerLink, *, is_ended: bool) -> None:
        if self.links.remove(link):
            self.step(PeerLost(node_id=link.node_id, is_ended=is_ended))

    def peer_said(self, link: PeerLink, message: PeerMessage) -> None:
        if self.links.holds(link):
            self.step(Received(source=link.node_id, message=message))

    # --- operators and readers ----------------------------------------------------------------------------------

    def confirm(self) -> asyncio.Future[int]:
        """Ask whether this node still leads; the future holds an index to read at, or fails with NoMasterError."""
        number, future = self._reads.add()
        self.step(ConfirmRead(read_id=number))
        return future

    def force_history(self, forgotten: Sequence[NodeId]) -> None:
        """An operator gives voters up: lead alone from here on."""
        self.step(
            ForceHistory(
                forgotten=tuple(forgotten),
                event_id=self._new_id(),
                cause_id="operator",
                at=self._wall_clock(),
            )
        )

    # --- telemetry ----------------------------------------------------------------------------------------------

    @property
    def has_telemetry(self) -> bool:
        """`flush_telemetry` would do something."""
        return self.lane.has_work(is_member=self.situation.is_member)

    def flush_telemetry(self) -> None:
        core, state = self.situation.core, self.situation.state
        is_leading = core.leading is not None
        if self.situation.is_member:
            self.lane.flush_own(is_leading=is_leading, is_following=self.uplink.master is not None)
        self.uplink.work.fire()
        if is_leading and self.lane.ring.has_gathered:
            self.lane.ring.close_tick(core.term, state.index)
            self.hosting.wake_all()
