"""A master's side of those who follow it: who is connected, and what each is sent."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from loguru import logger

from exo.cluster.believing import proposal_fault
from exo.cluster.dispatch import Dispatch
from exo.cluster.lane import Lane
from exo.cluster.membership import STOPPED
from exo.cluster.raft.steps import Propose
from exo.cluster.recent import Recent
from exo.cluster.roll import Roll
from exo.cluster.session import Session
from exo.cluster.situation import Situation
from exo.cluster.transport.base import MESSAGE_BYTES_MAX
from exo.cluster.wire import KeepAuthority, LiveState, Welcome, encode, encode_entries, encode_snapshot
from exo.cluster.wire import Propose as ProposeMessage
from exo.shared.refusals import clean_text
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId

CROWD = 64
CROWD_PAUSE_S = 25e-6
"""For each observer: sending takes a third of that or so, and the lag of 1,000 stays below 50 ms."""
PARTING_S = 0.5
"""How long a node that was removed stays connected, to hear of it."""


class Hosting:
    """Empty while this node does not lead.

    Args:
        situation: This node.
        recent: The newest committed entries.
        lane: Telemetry.
        roll: Told who comes and goes.
        dispatch: Takes what followers propose.
        counts: For /metrics; here what members said that no member says.
        entries_per_message: How many entries are sent to an observer at once.
    """

    def __init__(
        self,
        situation: Situation,
        *,
        recent: Recent,
        lane: Lane,
        roll: Roll,
        dispatch: Dispatch,
        counts: Counter[str],
        entries_per_message: int,
    ) -> None:
        self.sessions: dict[int, Session] = {}
        self._situation = situation
        self._recent = recent
        self._lane = lane
        self._roll = roll
        self._dispatch = dispatch
        self._counts = counts
        self._entries_per_message = entries_per_message
        self._leaving: set[str] = set()
        """Boots that are about to stop: one that agreed connects once more, to hear that it no longer does."""
        self._authority: KeepAuthority | None = None
        self._is_waking = False
        self._woken_s = 0.0
        """When everybody was last told of news, by the event loop's clock."""
        self._encoded: dict[tuple[int, int, int], list[bytes]] = {}

    @property
    def is_hosting(self) -> bool:
        return bool(self.sessions) or self._roll.is_open

    # --- terms --------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """The term is opened: from here on it counts who is not there."""
        situation = self._situation
        logger.info(
            "leading the cluster {} in term {} at index {}",
            situation.cluster_id,
            situation.core.term,
            situation.state.index,
        )
        self._roll.open({session.node_id for session in self.sessions.values()})

    def close_all(self, reason: str) -> None:
        self._roll.clear()
        self._leaving.clear()
        sessions = list(self.sessions.values())
        self.sessions.clear()
        for session in sessions:
            session.connection.close(reason)

    def close(self, number: int, reason: str) -> None:
        session = self.sessions.get(number)
        if session is not None:
            session.connection.close(reason)

    def have_all(self, index: int) -> bool:
        """Say whether everybody who is connected was sent everything up to `index`, and knows that it counts."""
        leading = self._situation.core.leading
        progress = leading.progress if leading is not None else {}
        return all(
            (session.next_index or 0) > index
            if session.gets_entries
            else session.node_id in progress and progress[session.node_id].match_index >= index
            for session in self.sessions.values()
        )

    def wake_all(self) -> None:
        """There is news for everybody. A crowd is told at once, but then of all that comes up for a while together."""
        if self._is_waking or not self.sessions:
            return
        self._is_waking = True
        loop = asyncio.get_running_loop()
        due_s = self._woken_s + CROWD_PAUSE_S * len(self.sessions)
        if len(self.sessions) <= CROWD or due_s <= loop.time():
            loop.call_soon(self._wake)
        else:
            loop.call_at(due_s, self._wake)

    def _wake(self) -> None:
        self._is_waking = False
        self._woken_s = asyncio.get_running_loop().time()
        for session in self.sessions.values():
            session.wake.fire()

    # --- followers ----------------------------------------------------------------------------------------------

    def arrived(self, session: Session, index: int | None, term: int) -> Welcome:
        """Take a follower in that is at (index, term) of this cluster, or at None of any use."""
        for number, other in list(self.sessions.items()):
            if other.node_id == session.node_id:
                del self.sessions[number]
                other.connection.close("the same node has connected again")
        core = self._situation.core
        assert core.leading is not None
        session.gets_entries = session.node_id not in core.leading.progress
        if index and self._recent.holds(index, term):
            session.next_index = index + 1
        session.is_leaving = session.boot_id in self._leaving
        self.sessions[session.number] = session
        self._roll.arrived(session.node_id)
        return Welcome(
            facts=self._situation.facts(),
            is_snapshot_next=session.gets_entries and session.next_index is None,
            is_agreeing=not session.gets_entries,
            last_seq=core.admission.last_seq(session.node_id),
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
        self._roll.lost(
            session.node_id,
            STOPPED if session.is_leaving else clean_text(reason),
            silences_s=(one.connection.silent_s for one in self.sessions.values()),
        )

    def proposal_received(self, session: Session, message: ProposeMessage) -> None:
        if self.sessions.get(session.number) is not session or session.is_removed:
            return
        fault = proposal_fault(self._situation.state, session.node_id, message.events)
        if fault is not None:
            self._counts["peer_lied"] += 1
            logger.warning("ending the connection to {}: {}", session.node_id, fault)
            session.connection.close(fault)
            return
        self._dispatch.received(
            Propose(
                session=session.number,
                origin=session.node_id,
                term=message.term,
                first_seq=message.first_seq,
                after_seq=message.after_seq,
                cause_id=message.cause_id,
                at=message.at,
                events=message.events,
            )
        )

    def farewell_received(self, session: Session) -> None:
        """A follower is about to stop; somebody else should vote in its place."""
        session.is_leaving = True
        self._leaving.add(session.boot_id)

    # --- what they are sent -------------------------------------------------------------------------------------

    def share_authority(self, authority: KeepAuthority | None) -> None:
        """Pass the key of the cluster's authority on to whoever may lead next, where this node has it."""
        self._authority = authority
        self.wake_all()

    def outgoing(self, session: Session) -> Sequence[bytes]:
        """Return what to send to a follower next; empty when it has everything.

        Decisions first, so that telemetry and answers never arrive before what they are about.
        """
        if self.sessions.get(session.number) is not session:
            return ()
        state, ring = self._situation.state, self._lane.ring
        if session.gets_entries:
            index = session.next_index
            entries = None if index is None else self._recent.after(index - 1, self._entries_per_message)
            if entries is None:
                session.next_index = state.index + 1
                session.tick = ring.tick
                session.needs_live = False
                return encode_snapshot(state)
            if entries:
                session.next_index = entries[-1].index + 1
                return self._encode(entries)
        ticks = None if session.needs_live else ring.since(session.tick)
        session.tick, session.needs_live = ring.tick, False
        if ticks is None:
            live = encode(LiveState(live=state.live, index=state.index))
            # Beyond what one message can carry, the whole state goes in pieces.
            ticks = [live] if len(live) <= MESSAGE_BYTES_MAX else encode_snapshot(state)
        return [*self._authority_for(session), *session.take_answers(), *ticks]

    def _authority_for(self, session: Session) -> Sequence[bytes]:
        """Whoever may lead next has to be able to sign certificates then. The key of an earlier cluster stays here."""
        is_heir = session.node_id in self._situation.core.voters.members
        if session.has_authority or not is_heir or self._authority is None:
            return ()
        if self._authority.certificate_pem != self._situation.state.access.authority_pem:
            return ()
        session.has_authority = True
        return (encode(self._authority),)

    def _encode(self, entries: Sequence[LogEntry]) -> list[bytes]:
        """Followers that are level get the same bytes: encoded once."""
        term = self._situation.core.term
        key = (term, entries[0].index, entries[-1].index)
        encoded = self._encoded.get(key)
        if encoded is None:
            encoded = encode_entries(term, entries)
            if len(self._encoded) >= 8:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[key] = encoded
        return encoded
