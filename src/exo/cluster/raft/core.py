"""The state machine of agreement: `step(input) -> effects`. Pure: no clock, no I/O, no ids or randomness of its own.

Raft (Ongaro and Ousterhout 2014; Ongaro's thesis for PreVote, CheckQuorum, hand-over, confirmed reads and changes of
one voter at a time), with replicas for clusters of two nodes and an incarnation that an operator's force raises.

What it knows is in `state`; the roles are functions on that: `election`, `following`, and for a leader `replication`
and `proposing`; `requests` is what the node's own process asks for.
"""

from collections.abc import Sequence

from exo.cluster.raft import election, following, plausible, proposing, replication, requests
from exo.cluster.raft.messages import (
    Append,
    AppendAnswer,
    Heartbeat,
    HeartbeatAnswer,
    InstallSnapshot,
    PeerMessage,
    StandNow,
    VoteAnswer,
    VoteRequest,
)
from exo.cluster.raft.output import SelfVote, sayable
from exo.cluster.raft.state import CoreState
from exo.cluster.raft.steps import (
    Campaign,
    ConfirmRead,
    Effect,
    Follow,
    ForceHistory,
    HandOver,
    Input,
    Outlived,
    PeerLost,
    Propose,
    Received,
    RoleChanged,
    Tick,
    Written,
)
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters

TURN_TICKS = 2
"""How much later than the one before it a voter stands when the leader's process has ended: time for an election."""


class Core(CoreState):
    """One node's part in the agreement. CoreState says what it begins with."""

    @property
    def oldest_index(self) -> int:
        """Index of the oldest committed entry in memory; one behind the newest where there is none."""
        return self.log.base_index + 1

    def recent_after(self, index: int, entries_max: int | None = None) -> Sequence[LogEntry] | None:
        """Return the committed entries behind `index`, or None when they are no longer all in memory."""
        if index > self.commit_index or index < self.log.base_index:
            return None
        until = self.commit_index if entries_max is None else min(self.commit_index, index + entries_max)
        return self.log.between(index, until)

    def voters_fault(self, voters: Voters) -> str | None:
        """Return why the voters cannot be changed to these now, or None when that may be proposed."""
        return proposing.voters_fault(self, voters)

    def step(self, *messages: Input) -> list[Effect]:
        """Take in what happened and return what is to be done about it, in order.

        Several proposals in one step are one write, and one message to each follower.
        """
        for message in messages:
            self._take(message)
        if self.has_to_send:
            self.has_to_send = False
            for node_id in self.leading.peers if self.leading is not None else ():
                replication.send_entries(self, node_id)
        if not self.hard_state.is_level:
            self.note_level()
        effects = self.output.take(self.term, self.log.last_index, self.log.last_term)
        announced = (self.role, self.term, self.leader_id)
        if announced != self.announced:
            self.announced = announced
            effects.append(RoleChanged(role=self.role, term=self.term, leader=self.leader_id))
        return effects

    def _take(self, message: Input) -> None:
        match message:
            case Tick():
                self._tick()
            case Received(source=source, message=said):
                self._received(source, said)
            case Propose():
                proposing.propose(self, message)
            case Written(number=number):
                self._written(number)
            case PeerLost():
                self._peer_lost(message)
            case HandOver(to=to):
                requests.hand_over(self, to)
            case ConfirmRead(read_id=read_id):
                requests.confirm_read(self, read_id)
            case Follow(node_id=node_id, is_wanted=is_wanted):
                requests.follow(self, node_id, is_wanted=is_wanted)
            case Campaign():
                if self.leading is None and self.is_promotable:
                    election.stand(self, is_trial=not self.is_only_voter)
            case ForceHistory():
                requests.force_history(self, message)

    # --- time and disk ------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.silent_ticks += 1
        leading = self.leading
        if leading is None:
            if self.is_promotable and (self.is_only_voter or self.silent_ticks >= self.timeout_ticks):
                if not election.is_own_vote_due(self):
                    election.stand(self, is_trial=not self.is_only_voter)
            elif self.silent_ticks >= self.timeout_ticks:
                self.leader_id = None
            return
        leading.ticks += 1
        leading.retry_snapshots()
        if leading.hand_over_to is not None:
            leading.hand_over_ticks += 1
            if leading.hand_over_ticks >= self.options.election_ticks[0]:
                leading.hand_over_to = None
        if leading.ticks % self.options.election_ticks[0] == 0 and not leading.take_attendance():
            self.become_follower(self.term, None)
        elif leading.ticks % self.options.heartbeat_ticks == 0:
            replication.send_heartbeats(self)

    def _written(self, number: int) -> None:
        for done in self.output.written(number):
            if self.log.term_at(done.last_index) == done.last_term:
                self.durable_index = max(self.durable_index, done.last_index)
            self.output.effects.extend(sayable(done.then, self.term))
            for one in done.then:
                if isinstance(one, SelfVote):
                    election.own_vote_written(self, one)
        replication.advance_commit(self)

    # --- other nodes --------------------------------------------------------------------------------------------

    def _peer_lost(self, message: PeerLost) -> None:
        if self.leading is not None:
            progress = self.leading.progress.get(message.node_id)
            if progress is not None:
                progress.lost()
        elif message.node_id == self.leader_id and message.is_ended:
            # Its process is gone: stand soon, one after the other. Where others still hear it, they refuse.
            self.leader_id = None
            rank = sum(node_id < self.node_id for node_id in self.voters.voters if node_id != message.node_id)
            self.timeout_ticks = self.silent_ticks + 1 + TURN_TICKS * rank

    def _received(self, source: NodeId, message: PeerMessage) -> None:
        if message.incarnation != self.incarnation:
            if message.incarnation > self.incarnation:
                self.output.effects.append(Outlived(incarnation=message.incarnation))
            return
        fault = plausible.fault_of(message, source, self.node_id, self.term)
        if fault is not None:
            self.output.distrust(source, fault)
            return
        is_from_leader = isinstance(message, Append | Heartbeat | InstallSnapshot)
        if isinstance(message, VoteRequest):
            election.vote_requested(self, source, message)
            return
        is_promise = isinstance(message, VoteAnswer) and message.is_trial and message.is_granted
        if message.term > self.term and not is_promise:
            self.become_follower(message.term, source if is_from_leader else None)
        elif message.term < self.term:
            if is_from_leader:
                following.tell_term(self, source)
            return
        match message:
            case VoteAnswer():
                election.vote_answered(self, source, message)
            case AppendAnswer():
                replication.append_answered(self, source, message)
            case HeartbeatAnswer():
                replication.heartbeat_answered(self, source, message)
            case StandNow():
                if source == self.leader_id and self.is_promotable:
                    election.stand(self, is_trial=False, is_hand_over=True)
            case _:
                following.leader_said(self, source, message)
