"""The synchronous middle of a node: state, membership, proposals. The loops around it carry things in and out."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
from loguru import logger

from exo.cluster.attendance import NOT_BACK
from exo.cluster.board import Board
from exo.cluster.coordinator import Leadership
from exo.cluster.errors import UnsendableError
from exo.cluster.etcd.admission import commit_bytes
from exo.cluster.etcd.errors import LogGapError
from exo.cluster.etcd.link import Link
from exo.cluster.etcd.options import EtcdOptions
from exo.cluster.etcd.records import BATCH_BYTES_MAX
from exo.cluster.etcd.seat import Seat
from exo.cluster.etcd.store import Hold, MasterSeen
from exo.cluster.lane import Lane
from exo.cluster.proposals import Proposals
from exo.cluster.recent import Recent
from exo.cluster.session import Session
from exo.cluster.signal import Signal
from exo.cluster.transport.base import Connection
from exo.cluster.wire import ProposedEvent
from exo.shared.errors import NoMasterError
from exo.shared.types.events import ClusterFormed, Decision, LogEntry, NodeJoined, TermOpened
from exo.shared.types.ids import ClusterId, EventId, NodeId
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.state import State

INCARNATION = 1
"""etcd's history is never begun anew by force under the same cluster id."""
_TRIAL_ID = EventId("0" * 32)
COUNTED = ("master_faulty", "peer_lied", "peer_malformed", "peer_turned_away", "proposal_refused")
"""The keys of `Member.counts`, all there from the start; the same as a cluster's without etcd has."""


class Member:
    """Everything that changes without waiting. All methods return at once and are called from one event loop.

    A node that leads has a `seat`; one that follows a master has a `link` to it; one without a master has neither.
    """

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        namespace: str,
        options: EtcdOptions,
        clock: Callable[[], float],
        wall_clock: Callable[[], str],
        new_id: Callable[[], str],
        is_checking_invariants: bool,
    ) -> None:
        self.identity = identity
        """As of this boot, with the devices and models that changed since."""
        self.node_id = identity.node_id
        self.boot_id = identity.boot_id
        self.namespace = namespace
        self.options = options
        self.clock = clock
        self.board = Board(
            identity.node_id, feed_backlog=options.feed_backlog, is_checking_invariants=is_checking_invariants
        )
        self.lane = Lane(self.board, identity.node_id, identity.boot_id)
        self.recent = Recent(options.recent_entries)
        self.proposals = Proposals(
            wall_clock=wall_clock, new_id=new_id, numbers_behind=options.numbers_behind
        )
        self.uplink_work = Signal()
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        """What was refused, for /metrics."""
        self.seat: Seat | None = None
        self.link: Link | None = None
        self.master: MasterSeen | None = None
        """Who leads, as etcd says."""
        self.is_in_touch = False
        """etcd was reached lately: what is known of it is news."""
        self.is_leaving = False
        """This node is about to stop."""
        self.not_before_s = 0.0
        """Before that this node does not try to lead."""
        self._master_as_of = 0
        self._cluster_id: ClusterId | None = None
        self._join_ticket: int | None = None
        self._wall_clock = wall_clock
        self._new_id = new_id
        self._troubles: dict[str, str] = {}
        self._has_resigned = False
        """This node has given up the lead over a mass loss, and nobody else took it since."""

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self.board.state

    @property
    def cluster_id(self) -> ClusterId | None:
        """Of the cluster in etcd; None until a master has given it one."""
        return self._cluster_id

    @property
    def term(self) -> int:
        """The newest that this node knows of."""
        return max(self.state.term, self.master.record.term if self.master is not None else 0)

    @property
    def leadership(self) -> Leadership:
        """A master that has not renewed its lease in time is none, whether or not its loops have noticed."""
        master_node_id: NodeId | None = None
        if self.seat is not None:
            is_held = self.seat.term == self.state.term and self.clock() < self.seat.held_until_s
            master_node_id = self.node_id if is_held else None
        elif self.link is not None and self.link.term == self.state.term:
            master_node_id = self.state.master_node_id
        return Leadership(
            master_node_id=master_node_id,
            term=self.term,
            incarnation=INCARNATION,
            is_self=master_node_id == self.node_id,
        )

    @property
    def is_member(self) -> bool:
        """The state knows this boot of this node as a connected member."""
        node = self.state.nodes.get(self.node_id)
        return node is not None and node.is_connected and node.identity.boot_id == self.boot_id

    @property
    def connections(self) -> Sequence[tuple[NodeId, Connection]]:
        """To other nodes."""
        if self.seat is not None:
            return [(session.node_id, session.connection) for session in self.seat.sessions]
        master_node_id = self.leadership.master_node_id
        if self.link is None or master_node_id is None:
            return ()
        return [(master_node_id, self.link.connection)]

    @property
    def trouble(self) -> str | None:
        """What is wrong between this node and etcd, or its master, in a sentence; None: nothing."""
        return next(iter(self._troubles.values()), None)

    def troubled(self, what: str, message: str | None, *, level: str = "WARNING") -> None:
        """Remember what is wrong with one thing that this node does, and say it once; None: nothing any more."""
        if message == self._troubles.get(what):
            return
        if message is None:
            logger.info("{} is possible again", what)
            del self._troubles[what]
            return
        if message not in self._troubles.values():
            logger.log(level, "{}", message)
        self._troubles[what] = message

    def gave_up(self, *whats: str) -> None:
        """This node does not do these things any more; nothing can be wrong with them."""
        for what in whats:
            self._troubles.pop(what, None)

    def no_master(self, waited_s: float) -> NoMasterError:
        """Return the error for whoever waited for a master in vain."""
        reason = self.trouble or "start a node that can lead, or see `exo status`"
        return NoMasterError(f"no master could be reached for {waited_s:g} s: {reason}")

    async def reached(self, index: int) -> None:
        """Return once everything up to an index is folded here."""
        while self.state.index < index:
            await self.board.changed.wait()

    # --- what etcd says -----------------------------------------------------------------------------------------

    def master_seen(self, master: MasterSeen | None, revision: int) -> None:
        """The master's key was this, or was not there, at a revision of etcd."""
        if revision <= self._master_as_of:
            return
        self._master_as_of = revision
        before = self.master.create_revision if self.master is not None else None
        now = master.create_revision if master is not None else None
        if now == before:
            return
        self.master = master
        if master is not None and master.record.node_id != self.node_id:
            self._has_resigned = False
        reason = "etcd names no master any more" if master is None else "etcd names another master"
        if self.seat is not None and self.seat.hold.create_revision != now:
            self.step_down(reason)
        if self.link is not None and self.link.create_revision != now:
            self.unfollow(self.link, reason)
        self.board.announce()

    def in_touch(self) -> None:
        """The newest that etcd has was read just now."""
        if not self.is_in_touch:
            self.is_in_touch = True
            self.board.announce()

    def out_of_touch(self) -> None:
        """What others decide cannot be seen here: leave the master, which shall not count on this node."""
        if self.is_in_touch:
            self.is_in_touch = False
            if self.link is not None:
                self.unfollow(self.link, "it cannot reach etcd")
            self.board.announce()

    def fold(self, entries: Sequence[LogEntry]) -> None:
        """Entries are committed; those that are folded already are passed over.

        Raises:
            LogGapError: They do not follow the newest one.
        """
        news = [entry for entry in entries if entry.index > self.state.index]
        if not news:
            return
        if news[0].index != self.state.index + 1:
            raise LogGapError(
                f"entry {news[0].index} came where {self.state.index + 1} was expected; load the snapshot"
            )
        was_member = self.is_member
        self.board.fold(news)
        self.recent.add(news)
        for entry in news:
            if entry.origin == self.node_id:
                self.proposals.committed(self.state.cluster_id, entry.seq, entry.index, entry.event_id)
        self._moved_on(was_member=was_member)

    def go_on_from(self, state: State) -> None:
        """Take a snapshot's state; what is known of telemetry stays with the boots that it is about."""
        was_member = self.is_member
        live = {
            node_id: latest
            for node_id, latest in self.state.live.items()
            if node_id in state.nodes and state.nodes[node_id].identity.boot_id == latest.boot_id
        }
        self.recent.begin_at(state.index)
        self.board.replace(msgspec.structs.replace(state, live=live))
        self.proposals.committed(state.cluster_id, state.last_seq.get(self.node_id, 0), state.index)
        self._moved_on(was_member=was_member)

    def _moved_on(self, *, was_member: bool) -> None:
        self._cluster_id = self.state.cluster_id or self._cluster_id
        self.lane.released(self.state.index)
        node = self.state.nodes.get(self.node_id)
        if node is not None and node.identity.boot_id == self.boot_id:
            self.identity = node.identity
        if self.link is not None and not self.link.is_level and self.state.index >= self.link.level_index:
            self.link.is_level = True
            self.lane.tell_all(self.state.instances)
        elif self.is_member and not was_member:
            self.lane.tell_all(self.state.instances)
        self._ensure_member()
        self._dispatch()
        self.board.announce()

    # --- proposals ----------------------------------------------------------------------------------------------

    def submit(
        self, events: Sequence[Decision], cause_id: str, *, is_first: bool = False
    ) -> tuple[int, asyncio.Future[int]]:
        """Put decisions on their way; see Proposals.add.

        Raises:
            UnsendableError: They cannot be put into a message, or not into one commit.
        """
        submitted = self._add(events, cause_id, is_first=is_first)
        self._dispatch()
        return submitted

    def _add(
        self, events: Sequence[Decision], cause_id: str, *, is_first: bool = False
    ) -> tuple[int, asyncio.Future[int]]:
        self._check_size(events, cause_id)
        return self.proposals.add(events, cause_id, position=(self._cluster_id, self.term), is_first=is_first)

    def _check_size(self, events: Sequence[Decision], cause_id: str) -> None:
        trial = [ProposedEvent(event_id=_TRIAL_ID, event=event) for event in events]
        try:
            size_bytes = commit_bytes(trial, origin=self.node_id, cause_id=cause_id, at=self._wall_clock())
        except (OverflowError, ValueError, TypeError) as error:
            raise UnsendableError(f"what was proposed cannot be sent to other nodes: {error}") from error
        if size_bytes > BATCH_BYTES_MAX:
            raise UnsendableError(
                f"what was proposed is {size_bytes} bytes long, {size_bytes - BATCH_BYTES_MAX} more than fit into "
                "one commit at etcd"
            )

    def _dispatch(self) -> None:
        seat = self.seat
        if seat is None:
            if self.proposals.has_waiting:
                self.uplink_work.fire()
            return
        for numbered in self.proposals.take():
            refusal = seat.admit(numbered)
            assert refusal is None, refusal

    def _ensure_member(self) -> None:
        """Propose this node as a member wherever the state does not know it as one.

        Before everything else of this node: facts about a node that is not there are ignored, and its identity
        replaces what was said of an earlier boot.
        """
        is_live = self.seat is not None or (self.link is not None and self.link.is_level)
        may_join = not self.is_leaving and self.node_id not in self.state.access.removed
        if is_live and may_join and not self.is_member and not self.proposals.is_pending(self._join_ticket):
            self._join_ticket, _ = self._add(
                [NodeJoined(identity=self.identity)], f"boot-{self.boot_id}", is_first=True
            )

    # --- leading ------------------------------------------------------------------------------------------------

    def lead(self, hold: Hold, held_until_s: float) -> Seat:
        """This node has won an election, with everything folded that there is: open the term."""
        state = self.state
        self._cluster_id = state.cluster_id or ClusterId(self._new_id())
        self.seat = seat = Seat(
            self.node_id, self.board, self.lane, hold, held_until_s, is_sure=self._has_resigned
        )
        self.lane.drop_held()
        self.lane.ring.clear()
        # Whatever of this node was in doubt is decided: the term before can commit nothing more. The order in which
        # things enter the log: the opening of the term, this node as a member, what was proposed before.
        self.proposals.begin(self._cluster_id, hold.term, seat.last_seq(self.node_id))
        cause_id = f"term-{hold.term}"
        opening: list[Decision] = [TermOpened(master_node_id=self.node_id)]
        if state.index == 0:
            opening.insert(0, ClusterFormed(cluster_id=self._cluster_id, namespace=self.namespace))
        self._ensure_member()
        self.proposals.add(opening, cause_id, position=(self._cluster_id, hold.term), is_first=True)
        self._dispatch()
        self.board.announce()
        return seat

    def step_down(self, reason: str) -> None:
        """Nothing is admitted here any more; followers are hung up on."""
        seat, self.seat = self.seat, None
        if seat is None:
            return
        logger.info("no longer leading in term {}: {}", seat.term, reason)
        self.proposals.pause()
        seat.end(reason)
        self.board.announce()

    def follower_left(self, session: Session, reason: str, *, is_silent: bool) -> None:
        """As master: a follower's connection has ended; or it is silent, and its process may run for all we know."""
        if self.seat is not None and self.seat.follower_left(session):
            self._declare_lost([session.node_id], reason, is_silent=is_silent)

    def grace_is_over(self) -> None:
        """As master: the members had time enough to come back."""
        seat = self.seat
        if seat is not None:
            self._declare_lost(seat.missing(), NOT_BACK, is_silent=True)
            seat.is_sure = self._has_resigned = self.seat is not seat

    def _declare_lost(self, node_ids: Sequence[NodeId], reason: str, *, is_silent: bool) -> None:
        seat = self.seat
        if seat is None:
            return
        now_s = self.clock()
        window_s = self.options.loss_window_s
        lost = seat.judge_lost(node_ids, reason, now_s=now_s, window_s=window_s, is_silent=is_silent)
        if lost is None:
            self._has_resigned = True
            self.not_before_s = now_s + self.options.resign_pause_s
            self.step_down(
                "more than half of the members were lost at once: others shall try whether it is this node"
            )
        elif lost:
            self.submit(lost, f"term-{seat.term}", is_first=True)

    # --- following ----------------------------------------------------------------------------------------------

    def follow(self, link: Link, cluster_id: ClusterId, last_seq: int) -> None:
        """A master has taken this node in."""
        self._cluster_id = cluster_id
        self.link = link
        link.is_level = self.state.index >= link.level_index
        self.proposals.begin(cluster_id, link.term, last_seq)
        if link.is_level:
            self.lane.tell_all(self.state.instances)
            self._ensure_member()
        self._dispatch()
        self.uplink_work.fire()
        self.board.announce()

    def unfollow(self, link: Link, reason: str) -> None:
        """The master is lost; the state is kept."""
        if self.link is link:
            self.link = None
            self.proposals.pause()
            self.lane.drop_uplink()
            link.end(reason)
            self.board.announce()

    # --- telemetry ----------------------------------------------------------------------------------------------

    @property
    def has_telemetry(self) -> bool:
        """`flush_telemetry` would do something."""
        return self.lane.has_work(is_member=self.is_member)

    def flush_telemetry(self) -> None:
        if self.is_member:
            self.lane.flush_own(is_leading=self.seat is not None, is_following=self.link is not None)
        self.uplink_work.fire()
        if self.seat is not None:
            self.seat.close_tick()
