"""The state machine of agreement: `step(input) -> effects`. Pure: no clock, no I/O, no ids or randomness of its own.

Raft (Ongaro and Ousterhout 2014; Ongaro's thesis for PreVote, CheckQuorum, hand-over, confirmed reads and changes of
one voter at a time), with replicas for clusters of two nodes and an incarnation that an operator's force raises.
"""

from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from exo.cluster.raft.admission import Admission
from exo.cluster.raft.leader import Leader
from exo.cluster.raft.log_window import LogWindow
from exo.cluster.raft.messages import (
    Append,
    AppendAnswer,
    Heartbeat,
    HeartbeatAnswer,
    InstallSnapshot,
    PeerMessage,
    Snapshot,
    StandNow,
    VoteAnswer,
    VoteRequest,
)
from exo.cluster.raft.options import CoreOptions, SnapshotPoint
from exo.cluster.raft.quorum import change_fault, has_majority
from exo.cluster.raft.steps import (
    Campaign,
    Commit,
    ConfirmRead,
    Distrust,
    Effect,
    Follow,
    ForceHistory,
    HandOver,
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
    Role,
    RoleChanged,
    Send,
    SendSnapshot,
    Tick,
    Write,
    Written,
)
from exo.shared.types.events import ClusterDissolved, HistoryForced, LogEntry, TermOpened, VotersChanged
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.voters import Voters


class _SelfVote(msgspec.Struct, frozen=True):
    """This node's own vote, which counts when it is durable."""

    term: int
    forced_index: int | None = None
    """It was forced to lead, and nobody else is asked: its term begins with the entry at this index."""


class _Pending(msgspec.Struct):
    """A Write under way, and what is said once it is done."""

    number: int
    last_index: int
    last_term: int
    then: list[Send | _SelfVote]


class Core:
    """One node's part in the agreement.

    Args:
        node_id: This node.
        hard_state: Its term and vote, as on its disk.
        incarnation: Of the snapshot; HistoryForced among the entries raises it.
        snapshot: Where its log begins; the voters of a new cluster when there is none.
        entries: Its log behind the snapshot, committed or not.
        options: Times in ticks and bounds.
        random: A number from 0 to 1: keeps nodes from standing for election at the same time.
        commit_index: As far as is known to be committed; 0 where that is not known.
        may_vote: False for a node that has lost its log: what it voted and acknowledged is forgotten.
    """

    def __init__(
        self,
        node_id: NodeId,
        *,
        hard_state: HardState,
        incarnation: int,
        snapshot: SnapshotPoint,
        entries: Sequence[LogEntry],
        options: CoreOptions,
        random: Callable[[], float],
        commit_index: int = 0,
        may_vote: bool = True,
    ) -> None:
        self.node_id = node_id
        self.options = options
        self.may_vote = may_vote
        self.incarnation = max(
            [incarnation, *(e.event.incarnation for e in entries if isinstance(e.event, HistoryForced))]
        )
        self.role: Role = "follower"
        self.leader_id: NodeId | None = None
        self.log = LogWindow(snapshot.index, snapshot.term, snapshot.voters, entries)
        self.commit_index = max(snapshot.index, min(commit_index, self.log.last_index))
        self.durable_index = self.log.last_index
        self.admission = Admission(snapshot.last_seq)
        self.admission.committed(self.log.between(snapshot.index, self.commit_index))
        self._random = random
        self._hard = msgspec.structs.replace(hard_state, term=max(hard_state.term, self.log.last_term))
        self._leading: Leader | None = None
        self._votes: dict[NodeId, bool] = {}
        self._is_trial = False
        self._is_hand_over = False
        self._silent_ticks = 0
        self._timeout_ticks = 0
        self._draw_timeout()
        self._announced = (self.role, self.term, self.leader_id)
        self._pending: deque[_Pending] = deque()
        self._write_number = 0
        # What the present step gathers:
        self._effects: list[Effect] = []
        self._then: list[Send | _SelfVote] = []
        self._is_hard_state_new = False
        self._snapshot: Snapshot | None = None
        self._truncate_after: int | None = None
        self._appended: list[LogEntry] = []
        self._has_to_send = False

    # --- what is so ---------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return self._hard.term

    @property
    def voters(self) -> Voters:
        """Who has to agree now: the newest change in the log, committed or not."""
        return self.log.voters.voters

    @property
    def leading(self) -> Leader | None:
        """What this node knows as the leader; None while it does not lead."""
        return self._leading

    @property
    def is_admitting(self) -> bool:
        """Proposals are taken: this node leads and is not about to hand over."""
        leading = self._leading
        return leading is not None and leading.hand_over_to is None and not leading.is_dissolving

    @property
    def is_term_committed(self) -> bool:
        """This node leads and knows that everything committed before is committed here too."""
        return self._leading is not None and self.commit_index >= self._leading.first_index

    @property
    def is_promotable(self) -> bool:
        """This node may stand for election.

        Also when it is about to be removed: until the change is committed it may be the only one that can finish it.
        """
        return self.may_vote and any(
            self.node_id in voters.voters for voters in self.log.voters_since(self.commit_index)
        )

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
        before = self.voters
        decides_alone = self.is_admitting and voters.voters == before.voters == (self.node_id,)
        if decides_alone and set(voters.replicas) < set(before.replicas):
            return None  # Its own disk decides; a replica that is gone must not keep it from opening its term.
        if not self.is_admitting or not self.is_term_committed:
            return "this node does not lead, or its term is not committed yet"
        if self.log.voters.index > self.commit_index:
            return "an earlier change is not committed yet"
        return change_fault(self.voters, voters)

    # --- stepping -----------------------------------------------------------------------------------------------

    def step(self, *messages: Input) -> list[Effect]:
        """Take in what happened and return what is to be done about it, in order.

        Several proposals in one step are one write, and one message to each follower.
        """
        for message in messages:
            self._take(message)
        return self._finish()

    def _take(self, message: Input) -> None:
        match message:
            case Tick():
                self._tick()
            case Received(source=source, message=said):
                self._received(source, said)
            case Propose():
                self._propose(message)
            case Written(number=number):
                self._written(number)
            case PeerLost():
                self._peer_lost(message)
            case HandOver(to=to):
                self._hand_over(to)
            case ConfirmRead(read_id=read_id):
                self._confirm_read(read_id)
            case Follow(node_id=node_id, is_wanted=is_wanted):
                self._follow(node_id, is_wanted=is_wanted)
            case Campaign():
                if self._leading is None and self.is_promotable:
                    self._stand(is_trial=not self._is_only_voter)
            case ForceHistory():
                self._force_history(message)

    def _finish(self) -> list[Effect]:
        if self._has_to_send:
            self._has_to_send = False
            for node_id in self._leading.peers if self._leading is not None else ():
                self._send_entries(node_id)
        effects, self._effects = self._effects, []
        then, self._then = self._then, []
        appended, self._appended = self._appended, []
        if self._is_hard_state_new or self._snapshot or self._truncate_after is not None or appended:
            self._write_number += 1
            self._pending.append(_Pending(self._write_number, self.log.last_index, self.log.last_term, then))
            write = Write(
                number=self._write_number,
                hard_state=self._hard if self._is_hard_state_new else None,
                snapshot=self._snapshot,
                truncate_after=self._truncate_after,
                entries=tuple(appended),
            )
            effects.insert(0, write)
            self._is_hard_state_new, self._snapshot, self._truncate_after = False, None, None
        elif then and self._pending:
            # What it speaks of may be part of a write that is still under way.
            self._pending[-1].then.extend(then)
        else:
            effects.extend(self._release(then))
        announced = (self.role, self.term, self.leader_id)
        if announced != self._announced:
            self._announced = announced
            effects.append(RoleChanged(role=self.role, term=self.term, leader=self.leader_id))
        return effects

    def _release(self, then: Sequence[Send | _SelfVote]) -> list[Effect]:
        # What was said in an earlier term is of no use to anybody.
        return [one for one in then if isinstance(one, Send) and one.message.term == self.term]

    def _written(self, number: int) -> None:
        while self._pending and self._pending[0].number <= number:
            done = self._pending.popleft()
            if self.log.term_at(done.last_index) == done.last_term:
                self.durable_index = max(self.durable_index, done.last_index)
            self._effects.extend(self._release(done.then))
            for one in done.then:
                if not isinstance(one, _SelfVote) or one.term != self.term or self.role != "candidate":
                    continue
                if one.forced_index is None:
                    self._count_vote(self.node_id, is_granted=True)
                else:
                    self._begin_leading(one.forced_index)
        self._advance_commit()

    def _send(self, to: NodeId, message: PeerMessage) -> None:
        self._effects.append(Send(to=to, message=message))

    def _send_when_durable(self, to: NodeId, message: PeerMessage) -> None:
        self._then.append(Send(to=to, message=message))

    def _distrust(self, source: NodeId, reason: str) -> None:
        self._effects.append(Distrust(node_id=source, reason=reason))

    # --- time ---------------------------------------------------------------------------------------------------

    @property
    def _is_only_voter(self) -> bool:
        return self.voters.voters == (self.node_id,)

    def _draw_timeout(self) -> None:
        shortest, longest = self.options.election_ticks
        self._timeout_ticks = shortest + int(self._random() * (longest - shortest + 1))

    def _tick(self) -> None:
        self._silent_ticks += 1
        leading = self._leading
        if leading is None:
            if self.is_promotable and (self._is_only_voter or self._silent_ticks >= self._timeout_ticks):
                if not (self._is_only_voter and self.role == "candidate"):  # Its own vote is being written.
                    self._stand(is_trial=not self._is_only_voter)
            elif self._silent_ticks >= self._timeout_ticks:
                self.leader_id = None
            return
        leading.ticks += 1
        leading.retry_snapshots()
        if leading.hand_over_to is not None:
            leading.hand_over_ticks += 1
            if leading.hand_over_ticks >= self.options.election_ticks[0]:
                leading.hand_over_to = None
        if leading.ticks % self.options.election_ticks[0] == 0 and not leading.take_attendance():
            self._become_follower(self.term, None)
        elif leading.ticks % self.options.heartbeat_ticks == 0:
            self._send_heartbeats()

    def _peer_lost(self, message: PeerLost) -> None:
        if self._leading is not None:
            progress = self._leading.progress.get(message.node_id)
            if progress is not None:
                progress.lost()
        elif message.node_id == self.leader_id and message.is_ended:
            # Its process is gone: stand soon, but not all at the same moment. Where others still hear it, they refuse.
            self.leader_id = None
            self._timeout_ticks = self._silent_ticks + 1 + int(self._random() * 4)

    # --- roles --------------------------------------------------------------------------------------------------

    def _become_follower(self, term: int, leader: NodeId | None) -> None:
        if term > self.term:
            self._hard = HardState(term=term)
            self._is_hard_state_new = True
        if self._leading is not None:
            self._effects += [ReadRefused(read_id=read_id) for read_id in self._leading.drop_reads()]
            self._leading = None
            self.admission.end()
        if self.role != "follower" or leader != self.leader_id or leader is not None:
            self._silent_ticks = 0
            self._draw_timeout()
        self.role = "follower"
        self.leader_id = leader
        self._votes = {}

    def _stand(self, *, is_trial: bool, is_hand_over: bool = False) -> None:
        """Ask for votes; a trial (PreVote) first, so that a node that cannot win disturbs nobody."""
        self.role = "candidate"
        self.leader_id = None
        self._is_trial, self._is_hand_over = is_trial, is_hand_over
        self._votes = {}
        self._silent_ticks = 0
        self._draw_timeout()
        if not is_trial:
            self._hard = HardState(term=self.term + 1, voted_for=self.node_id)
            self._is_hard_state_new = True
            self._then.append(_SelfVote(self.term))
        request = VoteRequest(
            incarnation=self.incarnation,
            term=self.term + 1 if is_trial else self.term,
            is_trial=is_trial,
            last_index=self.log.last_index,
            last_term=self.log.last_term,
            is_hand_over=is_hand_over,
        )
        for node_id in self.voters.voters:
            if node_id == self.node_id:
                continue
            if is_trial:
                self._send(node_id, request)
            else:
                self._send_when_durable(node_id, request)
        if is_trial:
            self._count_vote(self.node_id, is_granted=True)

    def _count_vote(self, source: NodeId, *, is_granted: bool) -> None:
        self._votes[source] = is_granted
        granted = [node_id for node_id, given in self._votes.items() if given]
        refused = [node_id for node_id, given in self._votes.items() if not given]
        if has_majority(self.voters, granted):
            if self._is_trial:
                self._stand(is_trial=False)
            else:
                self._lead()
        elif has_majority(self.voters, refused):
            self._become_follower(self.term, None)

    def _lead(self) -> None:
        self._begin_leading(self.log.last_index + 1)
        assert self._leading is not None
        for node_id in self._leading.peers:
            self._send_append(node_id, may_be_empty=True)

    def _begin_leading(self, first_index: int) -> None:
        self.role = "leader"
        self.leader_id = self.node_id
        self._votes = {}
        self._leading = Leader(self.node_id, self.log, self.options, first_index=first_index)
        self.admission.begin(self.log.between(self.commit_index, self.log.last_index))

    # --- votes --------------------------------------------------------------------------------------------------

    def _vote_requested(self, source: NodeId, message: VoteRequest) -> None:
        is_loyal = self.leader_id is not None and self._silent_ticks < self.options.election_ticks[0]
        is_sticky = self._leading is not None or (is_loyal and source != self.leader_id)
        if is_sticky and not message.is_hand_over:
            return  # Whoever hears the leader lets nobody depose it.
        if message.term < self.term:
            self._send(source, self._vote_answer(message, is_granted=False))
            return
        if message.term > self.term and not message.is_trial:
            self._become_follower(message.term, None)
        is_free = (
            message.term > self.term  # Only a trial is still ahead here.
            or self._hard.voted_for == source
            or (self._hard.voted_for is None and self.leader_id is None)
        )
        is_granted = self.may_vote and is_free and self.log.is_behind(message.last_index, message.last_term)
        if not is_granted:
            self._send(source, self._vote_answer(message, is_granted=False))
        elif message.is_trial:
            self._send(source, self._vote_answer(message, is_granted=True))
        else:
            if self._hard.voted_for != source:
                self._hard = HardState(term=self.term, voted_for=source)
                self._is_hard_state_new = True
            self._silent_ticks = 0
            self._send_when_durable(source, self._vote_answer(message, is_granted=True))

    def _vote_answer(self, request: VoteRequest, *, is_granted: bool) -> VoteAnswer:
        return VoteAnswer(
            incarnation=self.incarnation,
            term=request.term if is_granted else self.term,
            is_trial=request.is_trial,
            is_granted=is_granted,
        )

    def _vote_answered(self, source: NodeId, message: VoteAnswer) -> None:
        asked = self.term + 1 if self._is_trial else self.term
        is_answer = self.role == "candidate" and message.is_trial == self._is_trial
        if is_answer and (not message.is_granted or message.term == asked):
            self._count_vote(source, is_granted=message.is_granted)

    # --- what peers say -----------------------------------------------------------------------------------------

    def _received(self, source: NodeId, message: PeerMessage) -> None:
        if message.incarnation != self.incarnation:
            if message.incarnation > self.incarnation:
                self._effects.append(Outlived(incarnation=message.incarnation))
            return
        is_from_leader = isinstance(message, Append | Heartbeat | InstallSnapshot)
        if isinstance(message, VoteRequest):
            self._vote_requested(source, message)
            return
        is_promise = isinstance(message, VoteAnswer) and message.is_trial and message.is_granted
        if message.term > self.term and not is_promise:
            self._become_follower(message.term, source if is_from_leader else None)
        elif message.term < self.term:
            if is_from_leader:  # It does not know yet that its term is over.
                self._send(source, self._answer(0, is_accepted=False))
            return
        match message:
            case VoteAnswer():
                self._vote_answered(source, message)
            case AppendAnswer():
                self._append_answered(source, message)
            case HeartbeatAnswer():
                self._heartbeat_answered(source, message)
            case StandNow():
                if source == self.leader_id and self.is_promotable:
                    self._stand(is_trial=False, is_hand_over=True)
            case _:
                self._leader_said(source, message)

    def _leader_said(self, source: NodeId, message: Append | Heartbeat | InstallSnapshot) -> None:
        if self._leading is not None or self.leader_id not in (None, source):
            self._distrust(source, f"it leads term {self.term}, and so does {self.leader_id}")
            return
        self._become_follower(self.term, source)
        match message:
            case Append():
                self._append_received(source, message)
            case Heartbeat():
                self._commit_to(min(message.commit_index, self.log.last_index))
                answer = HeartbeatAnswer(
                    incarnation=self.incarnation, term=self.term, read_id=message.read_id
                )
                self._send_when_durable(source, answer)
            case InstallSnapshot(snapshot=snapshot):
                self._snapshot_received(source, snapshot)

    def _answer(self, index: int, *, is_accepted: bool, hint: tuple[int, int] = (0, 0)) -> AppendAnswer:
        return AppendAnswer(
            incarnation=self.incarnation,
            term=self.term,
            is_accepted=is_accepted,
            index=index,
            hint_index=hint[0],
            hint_term=hint[1],
        )

    # --- following ----------------------------------------------------------------------------------------------

    def _append_received(self, source: NodeId, message: Append) -> None:
        fault = _order_fault(message)
        if fault is not None:
            self._distrust(source, fault)
            return
        previous = message.previous_index
        if previous < self.commit_index:
            self._send_when_durable(source, self._answer(self.commit_index, is_accepted=True))
            return
        if self.log.term_at(previous) != message.previous_term:
            hint = self.log.agreement_hint(previous, message.previous_term)
            self._send(source, self._answer(previous, is_accepted=False, hint=hint))
            return
        conflict = self.log.first_conflict(message.entries)
        if conflict is not None:
            if conflict <= self.log.last_index:
                self.log.truncate_after(conflict - 1)
                self.durable_index = min(self.durable_index, conflict - 1)
                self._truncate_after = conflict - 1
            fresh = message.entries[conflict - previous - 1 :]
            self.log.append(fresh)
            self._appended.extend(fresh)
            self._note_incarnation(fresh)
        last_index = previous + len(message.entries)
        self._commit_to(min(message.commit_index, last_index))
        self._send_when_durable(source, self._answer(last_index, is_accepted=True))

    def _note_incarnation(self, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            if isinstance(entry.event, HistoryForced):
                self.incarnation = max(self.incarnation, entry.event.incarnation)

    def _snapshot_received(self, source: NodeId, snapshot: Snapshot) -> None:
        if snapshot.index > self.commit_index:
            if self.log.term_at(snapshot.index) == snapshot.term:
                self._commit_to(snapshot.index)
            else:
                self.log = LogWindow(snapshot.index, snapshot.term, snapshot.voters, ())
                self.commit_index = self.durable_index = snapshot.index
                self.admission = Admission(snapshot.last_seq)
                self._snapshot = snapshot
                self._effects.append(Restore(snapshot=snapshot))
        self._send_when_durable(source, self._answer(self.commit_index, is_accepted=True))

    def _commit_to(self, index: int) -> None:
        if index <= self.commit_index:
            return
        entries = tuple(self.log.between(self.commit_index, index))
        self.commit_index = index
        self.admission.committed(entries)
        self._effects.append(Commit(entries=entries))
        if index - self.log.base_index > 2 * self.options.recent_max:
            self.log.trim(index - self.options.recent_max)

    # --- leading ------------------------------------------------------------------------------------------------

    def _propose(self, message: Propose) -> None:
        leading = self._leading
        if leading is None or not self.is_admitting:
            self._effects.append(Refuse(session=message.session, reason="this node does not lead"))
            return
        fault = self._proposal_fault(message, leading)
        if fault is None:
            admitted = self.admission.admit(message, index=self.log.last_index + 1)
            if isinstance(admitted, str):
                fault = admitted
            elif admitted:
                self._append_own(leading, admitted)
        if fault is not None:
            self._effects.append(Refuse(session=message.session, reason=fault))

    def _proposal_fault(self, message: Propose, leading: Leader) -> str | None:
        if message.term != self.term:
            return f"it is for term {message.term}, this is term {self.term}"
        if leading.is_dissolving:
            return "this cluster is about to join another one"
        events = [proposed.event for proposed in message.events]
        if self.log.last_index < leading.first_index and not any(isinstance(e, TermOpened) for e in events):
            return f"term {self.term} is not opened yet"
        for event in events:
            if isinstance(event, VotersChanged):
                fault = "only the leader changes voters" if message.session is not None else None
                fault = fault or self.voters_fault(event.voters)
                if fault is not None:
                    return fault
        return None

    def _append_own(self, leading: Leader, entries: Sequence[LogEntry]) -> None:
        changed = self.log.voters.index
        self.log.append(entries)
        self._appended.extend(entries)
        if self.log.voters.index != changed:
            leading.reconcile()
        leading.is_dissolving = leading.is_dissolving or any(
            isinstance(entry.event, ClusterDissolved) for entry in entries
        )
        self._has_to_send = True

    def _send_append(self, to: NodeId, *, may_be_empty: bool) -> bool:
        """Send what a follower lacks next; say whether anything was sent."""
        assert self._leading is not None
        progress = self._leading.progress[to]
        if progress.is_held:
            return False
        previous = progress.next_index - 1
        previous_term = self.log.term_at(previous)
        if previous_term is None:
            progress.snapshot_sent()
            self._effects.append(SendSnapshot(to=to))
            return True
        until = self.log.end_of_proposal(
            min(self.log.last_index, previous + self.options.entries_per_message)
        )
        entries = tuple(self.log.between(previous, until))
        if not entries and not may_be_empty:
            return False
        message = Append(
            incarnation=self.incarnation,
            term=self.term,
            previous_index=previous,
            previous_term=previous_term,
            entries=entries,
            commit_index=self.commit_index,
        )
        progress.sent(until, has_entries=bool(entries))
        self._send(to, message)
        return True

    def _send_entries(self, to: NodeId) -> None:
        while self._send_append(to, may_be_empty=False):
            pass

    def _send_heartbeats(self) -> None:
        assert self._leading is not None
        for node_id, progress in self._leading.progress.items():
            heartbeat = Heartbeat(
                incarnation=self.incarnation,
                term=self.term,
                commit_index=min(self.commit_index, progress.match_index),
                read_id=self._leading.read_id,
            )
            self._send(node_id, heartbeat)

    def _append_answered(self, source: NodeId, message: AppendAnswer) -> None:
        progress = self._leading.progress.get(source) if self._leading is not None else None
        if self._leading is None or progress is None:
            return
        progress.is_active = True
        if not message.is_accepted:
            retry, _ = self.log.agreement_hint(message.hint_index, message.hint_term)
            if progress.refused(message.index, retry):
                self._send_append(source, may_be_empty=True)
            return
        if message.index > self.log.last_index:
            self._distrust(source, f"it has entry {message.index} of {self.log.last_index}")
            return
        if progress.accepted(message.index):
            self._advance_commit()
        if self.leading is not None and source in self.leading.progress:  # It may have retired just now.
            self._send_entries(source)
            self._ask_to_stand()

    def _heartbeat_answered(self, source: NodeId, message: HeartbeatAnswer) -> None:
        progress = self._leading.progress.get(source) if self._leading is not None else None
        if self._leading is None or progress is None:
            return
        progress.heard()
        if progress.match_index < self.log.last_index or progress.mode == "probe":
            self._send_append(source, may_be_empty=True)
        if message.read_id:
            self._leading.read_acknowledged(source, message.read_id)
            self._confirm_reads()

    def _advance_commit(self) -> None:
        leading = self._leading
        if leading is None:
            return
        index = leading.committed_index(self.durable_index)
        if index <= self.commit_index:
            return
        self._commit_to(index)
        for node_id in leading.peers:
            self._send_append(node_id, may_be_empty=True)
        self._confirm_reads()
        if self.node_id not in self.voters.voters and self.log.voters.index <= self.commit_index:
            self._retire(leading)

    def _retire(self, leading: Leader) -> None:
        """This node was removed and the change is committed: somebody else leads."""
        successor = leading.successor(None)
        if successor is not None:
            self._send(successor, StandNow(incarnation=self.incarnation, term=self.term))
        self._become_follower(self.term, None)

    # --- reads, hand-over, learners, force ----------------------------------------------------------------------

    def _confirm_read(self, read_id: int) -> None:
        if self._leading is None:
            self._effects.append(ReadRefused(read_id=read_id))
            return
        self._leading.read_asked(read_id, self.commit_index)
        self._send_heartbeats()
        self._confirm_reads()

    def _confirm_reads(self) -> None:
        if self._leading is not None:
            self._effects += [
                ReadConfirmed(read_id=read_id, index=index)
                for read_id, index in self._leading.take_confirmed(self.commit_index)
            ]

    def _hand_over(self, to: NodeId | None) -> None:
        if self._leading is None:
            return
        successor = self._leading.successor(to)
        if successor is None:
            return
        self._leading.hand_over_to, self._leading.hand_over_ticks = successor, 0
        self._send_append(successor, may_be_empty=True)
        self._ask_to_stand()

    def _ask_to_stand(self) -> None:
        leading = self._leading
        if leading is None or leading.hand_over_to is None:
            return
        progress = leading.progress.get(leading.hand_over_to)
        if progress is not None and progress.match_index == self.log.last_index:
            self._send(leading.hand_over_to, StandNow(incarnation=self.incarnation, term=self.term))

    def _follow(self, node_id: NodeId, *, is_wanted: bool) -> None:
        if self._leading is None:
            return
        if is_wanted:
            self._leading.learners.add(node_id)
        else:
            self._leading.learners.discard(node_id)
        self._leading.reconcile()
        if node_id in self._leading.progress:
            self._send_append(node_id, may_be_empty=True)

    def _force_history(self, message: ForceHistory) -> None:
        if self._leading is not None:
            return
        self.incarnation += 1
        self._hard = HardState(term=self.term + 1, voted_for=self.node_id)
        self._is_hard_state_new = True
        self.admission.begin(self.log.between(self.commit_index, self.log.last_index))
        entry = LogEntry(
            index=self.log.last_index + 1,
            term=self.term,
            event_id=EventId(message.event_id),
            cause_id=message.cause_id,
            origin=self.node_id,
            # No number of its own: the next one may be bound to what this node's outbox has sent to others.
            seq=self.admission.last_seq(self.node_id),
            at=message.at,
            event=HistoryForced(
                incarnation=self.incarnation,
                forgotten=message.forgotten,
                voters=Voters(voters=(self.node_id,)),
            ),
        )
        self.log.append([entry])
        self._appended.append(entry)
        # It leads once this is on disk: others must not hear of an incarnation that a crash may undo.
        self.role, self.leader_id, self._is_trial, self._votes = "candidate", None, False, {}
        self._then.append(_SelfVote(self.term, entry.index))


def _order_fault(message: Append) -> str | None:
    """Return what is impossible about entries that a leader sent."""
    index, term = message.previous_index, message.previous_term
    for entry in message.entries:
        if entry.index != index + 1:
            return f"it sent entry {entry.index} where {index + 1} was expected"
        if not term <= entry.term <= message.term:
            return f"it sent entry {entry.index} of term {entry.term} behind one of term {term}"
        index, term = entry.index, entry.term
    return None
