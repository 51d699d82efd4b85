"""A master's side of those who follow it: what each is sent, who is there, and who should vote."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from loguru import logger

from exo.cluster.attendance import SUSPECT_S, Attendance
from exo.cluster.believing import proposal_fault
from exo.cluster.membership import STOPPED, Presence, choose_voters
from exo.cluster.raft.steps import Follow, Propose
from exo.cluster.session import Session
from exo.cluster.transport.base import MESSAGE_BYTES_MAX
from exo.cluster.wire import Answer, LiveState, Welcome, encode, encode_entries, encode_snapshot
from exo.cluster.wire import Propose as ProposeMessage
from exo.shared.refusals import clean_text
from exo.shared.types.events import LogEntry, NodeDisconnected, VotersChanged
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters

if TYPE_CHECKING:
    from exo.cluster.kernel import Kernel

CROWD = 64
CROWD_PAUSE_S = 25e-6
"""For each observer: sending takes a third of that or so, and the lag of 1,000 stays below 50 ms."""
PARTING_S = 0.5
"""How long a node that was removed stays connected, to hear of it."""
LEVEL_ENTRIES = 256
"""A node whose disk is no further behind than this has the log, for the purpose of voting."""


class Hosting:
    """Empty while this node does not lead."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel
        self.sessions: dict[int, Session] = {}
        self._attendance: Attendance | None = None
        self._arrived_s: dict[NodeId, float] = {}
        self._leaving: set[str] = set()
        """Boots that are about to stop: one that agreed connects once more, to hear that it no longer does."""
        self._began_s = 0.0
        self._looked_s = 0.0
        self._committed = (0, 0.0)
        """The commit index and since when it has been that."""
        self._ticket: int | None = None
        self._is_waking = False
        self._evictions: dict[NodeId, int] = {}
        self._encoded: dict[tuple[int, int, int], list[bytes]] = {}

    @property
    def is_hosting(self) -> bool:
        return bool(self.sessions) or self._attendance is not None

    # --- terms --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """This node leads from now on."""
        self._attendance = None
        self._began_s = self._looked_s = self._kernel.clock()
        self._committed = (self._kernel.core.commit_index, self._began_s)
        self._ticket = None

    def opened(self) -> None:
        """The term is opened: from here on the state says who should be there."""
        nodes = self._kernel.state.nodes
        connected = [key for key, node in nodes.items() if node.is_connected and key != self._kernel.node_id]
        logger.info(
            "leading the cluster {} in term {} at index {}",
            self._kernel.cluster_id,
            self._kernel.core.term,
            self._kernel.state.index,
        )
        self._attendance = Attendance(
            self._kernel.clock(),
            expected=connected,
            present={session.node_id for session in self.sessions.values()},
            grace_s=self._kernel.options.rejoin_grace_s,
        )

    def close_all(self, reason: str) -> None:
        self._attendance = None
        self._arrived_s.clear()
        self._leaving.clear()
        sessions, self.sessions = list(self.sessions.values()), {}
        for session in sessions:
            session.connection.close(reason)

    def close(self, number: int, reason: str) -> None:
        session = self.sessions.get(number)
        if session is not None:
            session.connection.close(reason)

    def have_all(self, index: int) -> bool:
        """Say whether everybody who is connected was sent everything up to `index`, and knows that it counts."""
        core = self._kernel.core
        progress = core.leading.progress if core.leading is not None else {}
        return all(
            (session.next_index or 0) > index
            if session.gets_entries
            else session.node_id in progress and progress[session.node_id].match_index >= index
            for session in self.sessions.values()
        )

    def wake_all(self) -> None:
        """There is news for everybody. A crowd is told at intervals, of all that came up meanwhile at once."""
        if self._is_waking or not self.sessions:
            return
        self._is_waking = True
        loop = asyncio.get_running_loop()
        if len(self.sessions) <= CROWD:
            loop.call_soon(self._wake)
        else:
            loop.call_later(CROWD_PAUSE_S * len(self.sessions), self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        for session in self.sessions.values():
            session.wake.fire()

    # --- followers ----------------------------------------------------------------------------------------------

    def arrived(self, session: Session, index: int | None, term: int) -> Welcome:
        """Take a follower in that is at (index, term) of this cluster, or at None of any use."""
        kernel = self._kernel
        for number, other in list(self.sessions.items()):
            if other.node_id == session.node_id:
                del self.sessions[number]
                other.connection.close("the same node has connected again")
        leading = kernel.core.leading
        assert leading is not None
        session.gets_entries = session.node_id not in leading.progress
        if index and kernel.recent.holds(index, term):
            session.next_index = index + 1
        session.is_leaving = session.boot_id in self._leaving
        self.sessions[session.number] = session
        self._arrived_s.setdefault(session.node_id, kernel.clock())
        if self._attendance is not None:
            self._attendance.arrived(session.node_id)
        return Welcome(
            facts=kernel.facts(),
            is_snapshot_next=session.gets_entries and session.next_index is None,
            is_agreeing=not session.gets_entries,
            last_seq=kernel.core.admission.last_seq(session.node_id),
        )

    def removed(self, node_id: NodeId) -> None:
        """A node is no member any more: it hears of that, and then no more."""
        loop = asyncio.get_running_loop()
        for session in self.sessions.values():
            if session.node_id == node_id:
                session.is_removed = True
                loop.call_later(PARTING_S, session.connection.close, "this node was removed from the cluster")

    def lost(self, session: Session, reason: str) -> None:
        if self.sessions.get(session.number) is not session:
            return
        del self.sessions[session.number]
        self._arrived_s.pop(session.node_id, None)
        kernel = self._kernel
        if self._attendance is not None and session.node_id in kernel.state.nodes:
            count = sum(node.is_connected for node in kernel.state.nodes.values())
            self._attendance.lost(
                session.node_id,
                kernel.clock(),
                STOPPED if session.is_leaving else clean_text(reason),
                member_count=count,
                suspect_count=sum(one.connection.silent_s >= SUSPECT_S for one in self.sessions.values()),
            )
            self._evict()

    def proposal_received(self, session: Session, message: ProposeMessage) -> None:
        if self.sessions.get(session.number) is not session or session.is_removed:
            return
        fault = proposal_fault(self._kernel.state, session.node_id, message.events)
        if fault is not None:
            self._kernel.counts["peer_lied"] += 1
            logger.warning("ending the connection to {}: {}", session.node_id, fault)
            session.connection.close(fault)
            return
        self._kernel.proposal_received(
            Propose(
                session=session.number,
                origin=session.node_id,
                term=message.term,
                first_seq=message.first_seq,
                cause_id=message.cause_id,
                at=message.at,
                events=message.events,
            )
        )

    def farewell_received(self, session: Session) -> None:
        session.is_leaving = True
        self._leaving.add(session.boot_id)
        self.manage()

    def answer(self, session: Session, call_id: int, answer: Answer) -> None:
        session.answer(msgspec.structs.replace(answer, call_id=call_id))

    def outgoing(self, session: Session) -> Sequence[bytes]:
        """Return what to send to a follower next; empty when it has everything.

        Decisions first, so that telemetry and answers never arrive before what they are about.
        """
        if self.sessions.get(session.number) is not session:
            return ()
        kernel = self._kernel
        if session.gets_entries:
            index = session.next_index
            entries = None
            if index is not None:
                entries = kernel.recent.after(index - 1, kernel.options.entries_per_message)
            if entries is None:
                session.next_index = kernel.state.index + 1
                session.tick = kernel.lane.ring.tick
                session.needs_live = False
                return encode_snapshot(kernel.state)
            if entries:
                session.next_index = entries[-1].index + 1
                return self._encode(entries)
        ring = kernel.lane.ring
        ticks = None if session.needs_live else ring.since(session.tick)
        session.tick, session.needs_live = ring.tick, False
        if ticks is None:
            live = encode(LiveState(live=kernel.state.live, index=kernel.state.index))
            # Beyond what one message can carry, the whole state goes in pieces.
            ticks = [live] if len(live) <= MESSAGE_BYTES_MAX else encode_snapshot(kernel.state)
        return [*self._authority_for(session), *session.take_answers(), *ticks]

    def _authority_for(self, session: Session) -> Sequence[bytes]:
        """Whoever may lead next has to be able to sign certificates then. The key of an earlier cluster stays here."""
        kernel = self._kernel
        is_heir = session.node_id in kernel.core.voters.members
        if session.has_authority or not is_heir or kernel.authority is None:
            return ()
        if kernel.authority.certificate_pem != kernel.state.access.authority_pem:
            return ()
        session.has_authority = True
        return (encode(kernel.authority),)

    def _encode(self, entries: Sequence[LogEntry]) -> list[bytes]:
        """Followers that are level get the same bytes: encoded once."""
        key = (self._kernel.core.term, entries[0].index, entries[-1].index)
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = encode_entries(self._kernel.core.term, entries)
            if len(self._encoded) >= 8:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[key] = encoded
        return encoded

    # --- who is there, and who should vote ----------------------------------------------------------------------

    def tick(self) -> None:
        now_s = self._kernel.clock()
        if now_s - self._looked_s >= self._kernel.options.manage_s:
            self._looked_s = now_s
            self.manage()

    def manage(self) -> None:
        """Look who is there, and take the next step towards the voters that should be."""
        kernel = self._kernel
        leading = kernel.core.leading
        if leading is None or leading.is_dissolving:
            return
        now_s = kernel.clock()
        if (
            kernel.core.commit_index != self._committed[0]
            or kernel.core.commit_index == kernel.core.log.last_index
        ):
            self._committed = (kernel.core.commit_index, now_s)
        if not kernel.is_open:
            self._go_on_alone(now_s)
            return
        self._evict()
        presence = self._presence(now_s)
        choice = choose_voters(kernel.node_id, kernel.state.nodes, kernel.core.voters, presence)
        self._follow(choice.learners)
        if choice.voters is not None:
            self._change_voters(choice.voters, choice.reason)

    def _follow(self, learners: frozenset[NodeId]) -> None:
        kernel = self._kernel
        leading = kernel.core.leading
        assert leading is not None
        for node_id in learners - leading.learners:
            kernel.step(Follow(node_id=node_id, is_wanted=True))
        for node_id in leading.learners - learners:
            kernel.step(Follow(node_id=node_id, is_wanted=False))
        self._note_agreeing()

    def _note_agreeing(self) -> None:
        """Entries reach a node in one way: as one that agrees, or as one that observes."""
        leading = self._kernel.core.leading
        for session in list(self.sessions.values()):
            gets_entries = leading is None or session.node_id not in leading.progress
            if gets_entries and not session.gets_entries:
                session.connection.close("it observes from now on; connect again")
            session.gets_entries = gets_entries

    def _change_voters(self, voters: Voters, reason: str) -> None:
        kernel = self._kernel
        if kernel.core.voters_fault(voters) is not None or kernel.proposals.is_pending(self._ticket):
            return
        logger.info("voters: {}{} ({})", ", ".join(voters.voters), _and(voters.replicas), reason)
        self._ticket, _ = kernel.submit(
            [VotersChanged(voters=voters, reason=reason)], f"term-{kernel.core.term}", is_first=True
        )

    def _go_on_alone(self, now_s: float) -> None:
        """A designated node whose replica is not there to open the term with goes on without it."""
        kernel = self._kernel
        voters = kernel.core.voters
        is_waiting = now_s - self._began_s < kernel.options.rejoin_grace_s
        if is_waiting or not voters.replicas or voters.voters != (kernel.node_id,):
            return
        self._change_voters(Voters(voters=voters.voters), f"{voters.replicas[0]} is not there")

    def _presence(self, now_s: float) -> Presence:
        kernel = self._kernel
        options = kernel.options
        core, leading = kernel.core, kernel.core.leading
        assert leading is not None
        connected = {session.node_id for session in self.sessions.values()}
        stable = {
            node_id
            for node_id in connected
            if node_id in core.voters.members
            or now_s - self._arrived_s.get(node_id, now_s) >= options.vote_delay_s
        }
        is_stalled = now_s - self._committed[1] >= options.stall_s
        level = {
            node_id
            for node_id, progress in leading.progress.items()
            if node_id in kernel.links
            and progress.mode == "stream"
            and core.log.last_index - progress.match_index <= LEVEL_ENTRIES
            and not (is_stalled and progress.match_index <= core.commit_index < core.log.last_index)
        }
        leaving = {session.node_id for session in self.sessions.values() if session.is_leaving}
        if kernel.is_leaving:
            leaving.add(kernel.node_id)
        attendance = self._attendance
        return Presence(
            present=frozenset((*stable, kernel.node_id)),
            missed=frozenset(
                node_id
                for node_id in core.voters.voters
                if attendance is not None and attendance.is_missed(node_id, now_s, options.voter_patience_s)
            ),
            level=frozenset((*level, kernel.node_id)),
            leaving=frozenset(leaving),
            voteless=frozenset(node_id for node_id, link in kernel.links.items() if link.is_voteless),
        )

    def _evict(self) -> None:
        if self._attendance is None or not self._kernel.is_open:
            return
        nodes = self._kernel.state.nodes
        connected = [node_id for node_id, node in nodes.items() if node.is_connected]
        for gone in self._attendance.due(self._kernel.clock(), connected):
            if not self._kernel.proposals.is_pending(self._evictions.get(gone.node_id)):
                self._evictions[gone.node_id], _ = self._kernel.submit(
                    [NodeDisconnected(node_id=gone.node_id, reason=gone.reason)],
                    f"lost-{nodes[gone.node_id].identity.boot_id}",
                )


def _and(replicas: Sequence[NodeId]) -> str:
    return f", in sync: {', '.join(replicas)}" if replicas else ""
