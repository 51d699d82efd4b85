"""One simulated machine: the real core, carried out on a simulated disk, network and clock."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

import msgspec

from exo.cluster.raft.core import Core
from exo.cluster.raft.messages import InstallSnapshot, Snapshot, VoteAnswer
from exo.cluster.raft.options import CoreOptions, SnapshotPoint
from exo.cluster.raft.steps import (
    Commit,
    ConfirmRead,
    Distrust,
    Effect,
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
    RoleChanged,
    Send,
    SendSnapshot,
    Tick,
    Write,
    Written,
)
from exo.shared.apply import apply_entries
from exo.shared.types.events import (
    Decision,
    HistoryForced,
    LogEntry,
    NodeDisconnected,
    TermOpened,
    VotersChanged,
)
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from exo_sim.disk import Disk
from exo_sim.errors import BrokenPromiseError
from exo_sim.ledger import Ledger
from exo_sim.network import Network
from exo_sim.origin import Ask, Hang, Offer, Origin, Tell
from exo_sim.policy import Policy
from exo_sim.steering import Steering
from exo_sim.timeline import Timeline

TICK_US = 50_000
POLICY_TICKS = 6

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)


class Surroundings(Protocol):
    """What a machine needs of the cluster it is in."""

    timeline: Timeline
    network: Network
    ledger: Ledger
    random: Random
    options: CoreOptions
    policy: Policy
    members: frozenset[NodeId]
    is_telling: bool
    is_telling_facts: bool
    snapshot_entries: int

    def tell(self, who: str, what: str) -> None: ...

    def tell_fact(self, who: str, fact: str, what: str) -> None: ...

    def machine(self, node_id: NodeId) -> "Machine": ...

    def new_id(self) -> str: ...

    def has_stopped(self, machine: "Machine", why: str) -> None: ...


class Machine:
    """Args:
    cluster: What it is part of.
    node_id: Its name.
    first_voters: Who agreed on the first entries; empty for a newcomer.
    """

    def __init__(self, cluster: Surroundings, node_id: NodeId, first_voters: Voters) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.disk = Disk(
            cluster.timeline, cluster.random, written=self._disk_written, failed=self._disk_failed
        )
        self.first_voters = first_voters
        self.first_state = State()
        self.core: Core | None = None
        self.state = State()
        self.boot = 0
        self.origin = Origin(self, cluster.new_id)
        self.clock_rate = 1.0
        """Its ticks take this many times as long."""
        self.is_stalled = False
        """It gets no ticks."""
        self.is_frozen = False
        """Its process does not run at all; what arrives waits."""
        self.is_to_crash_after_vote = False
        self.lost_log_at: int | None = None
        """How much was committed when it lost its log: only a later removal of it lets it vote again."""
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._inbox: list[Input] = []
        self._step: Input = Tick()
        self._is_busy = False
        self._term_led = 0
        """The term that it led before the present step; what it commits last before it retires is committed in that."""
        self.ticks = 0
        self._read_id = 0
        self._steering = Steering(self)
        self._sessions: dict[NodeId, int] = {}
        self._told_term = 0
        self._just_folded: Sequence[LogEntry] = ()
        self._act: dict[type, Callable[[Any], None]] = {
            Write: self._write,
            Send: self._send,
            SendSnapshot: self._send_snapshot,
            Commit: self._commit,
            Restore: self._restore,
            RoleChanged: self._role_changed,
            ReadConfirmed: self._read_confirmed,
            ReadRefused: self._read_refused,
            Refuse: self._refuse,
            Distrust: self._distrust,
            Outlived: self._outlived,
        }

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        return self.core is not None

    @property
    def up(self) -> Core:
        """The core of a machine that runs."""
        assert self.core is not None
        return self.core

    @property
    def leads(self) -> bool:
        return self.core is not None and self.core.role == "leader"

    @property
    def incarnation(self) -> int:
        return self.core.incarnation if self.core is not None else self.disk.incarnation

    @property
    def _may_vote(self) -> bool:
        """Not while what it acknowledged may be lost, nor while what it has is of before a history begun anew.

        A newcomer is sent the log from its beginning, where it may read that it is a voter, or even the only one.
        """
        return not self.disk.is_forgetful and self.disk.log_incarnation >= self.disk.incarnation

    # --- starting and stopping ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin from what the disk has."""
        assert self.core is None
        self.boot += 1
        disk, snapshot = self.disk, self.disk.snapshot
        if snapshot is not None:
            self.state = _decoder.decode(snapshot.data)
            point = SnapshotPoint(
                index=snapshot.index, term=snapshot.term, voters=snapshot.voters, last_seq=snapshot.last_seq
            )
        else:
            self.state = State()
            point = SnapshotPoint(voters=self.first_voters)
        self.core = Core(
            self.node_id,
            hard_state=disk.hard_state,
            incarnation=disk.incarnation,
            snapshot=point,
            entries=tuple(disk.synced.entries),
            options=self.cluster.options,
            random=self.cluster.random.random,
            may_vote=self._may_vote,
        )
        self._inbox.clear()
        self._backlog.clear()
        self._sessions.clear()
        self._steering = Steering(self)
        self.is_frozen = self.is_stalled = self.is_to_crash_after_vote = False
        self.origin.restarted()
        self._told_term = self.core.term
        if self.cluster.is_telling:
            log = disk.synced
            self.cluster.tell(
                self.node_id,
                f"starts in term {self.core.term}, log {log.base_index}..{log.last_index}"
                + (", may not vote" if disk.is_forgetful else ""),
            )
        phase_us = self.cluster.random.randint(1, TICK_US)
        self.cluster.timeline.after(phase_us, self._tick, self.boot)

    def stop(self, why: str) -> None:
        """Lose power: what was not synced is gone, and perhaps half of what was under way."""
        if self.core is None:
            return
        lost = self.disk.lose_power()
        if self.core.incarnation > self.disk.incarnation:
            self.cluster.ledger.stillborn(self, self.core.incarnation)
        self.core = None
        if self.cluster.is_telling:
            torn = f", {lost} unsynced writes lost" if lost else ""
            self.cluster.tell(self.node_id, f"{why}{torn}")
        self.cluster.has_stopped(self, why)

    def rot(self) -> None:
        """What it has on disk becomes unreadable while it is down; its vote is kept."""
        assert self.core is None
        self.disk.rot()
        self.first_voters = Voters()
        history = self.cluster.ledger.history(self.disk.incarnation)
        self.lost_log_at = history.last_index
        self.cluster.tell(
            self.node_id, f"loses its log to bit rot, {self.lost_log_at} entries were committed"
        )

    # --- time ---------------------------------------------------------------------------------------------------

    def _tick(self, boot: int) -> None:
        if boot != self.boot or self.core is None:
            return
        self.cluster.timeline.after(int(TICK_US * self.clock_rate), self._tick, boot)
        if self.is_stalled or self.is_frozen:
            return
        self.ticks += 1
        self.take(Tick())
        if self.is_running:
            self.origin.tick()
        if self.leads and self.ticks % POLICY_TICKS == 0:
            self._steering.think()

    def freeze(self) -> None:
        self.is_frozen = True

    def thaw(self) -> None:
        """Go on; what arrived meanwhile is dealt with at once."""
        if self.core is None or not self.is_frozen:
            return
        self.is_frozen = False
        backlog, self._backlog = self._backlog, []
        for function, arguments in backlog:
            function(*arguments)

    def _is_deaf(self, function: Callable[..., None], *arguments: object) -> bool:
        """Whether nothing can be dealt with now; what comes while frozen waits."""
        if self.core is None:
            return True
        if self.is_frozen:
            self._backlog.append((function, arguments))
            return True
        return False

    # --- the core's inputs --------------------------------------------------------------------------------------

    def take(self, message: Input) -> None:
        """Give the core an input and carry out what it wants, one input after the other."""
        self._inbox.append(message)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._inbox:
                core = self.core
                if core is None:
                    self._inbox.clear()
                    return
                self._term_led = core.term if core.role == "leader" else 0
                self._step = self._inbox.pop(0)
                for effect in core.step(self._step):
                    self._carry_out(effect)
                    if self.core is not core:
                        break
                else:
                    self.cluster.ledger.stepped(self, self.boot, core.term, core.commit_index)
        finally:
            self._is_busy = False

    def _carry_out(self, effect: Effect) -> None:
        self._act[type(effect)](effect)

    def _disk_written(self, number: int) -> None:
        if not self._is_deaf(self._disk_written, number):
            self.take(Written(number=number))

    def _disk_failed(self) -> None:
        self.stop("stops: no room on its disk")

    def peer_lost(self, node_id: NodeId, *, is_ended: bool) -> None:
        if not self._is_deaf(lambda: self.peer_lost(node_id, is_ended=is_ended)):
            self.take(PeerLost(node_id=node_id, is_ended=is_ended))

    def hear(self, source: NodeId, message: object) -> None:
        """Something arrives from another machine."""
        if self._is_deaf(self.hear, source, message):
            return
        core = self.up
        self._steering.heard(source)
        match message:
            case Ask():
                self._steering.told(source, message)
                if core.is_admitting:
                    self._sessions[source] = message.session
                    tell = Tell(message.session, core.term, core.admission.last_seq(source))
                    self._say(source, tell)
            case Tell():
                self.origin.told(source, message)
            case Hang():
                self.origin.hung_up(source, message)
            case Offer(propose=propose):
                if self._sessions.get(source) == propose.session:
                    self.take(propose)
            case _:
                self.take(Received(source=source, message=message))  # pyright: ignore[reportArgumentType]

    def _say(self, to: NodeId, message: object, *, extra_us: int = 0) -> None:
        cluster = self.cluster
        cluster.network.send(self.node_id, to, cluster.machine(to).hear, message, extra_us=extra_us)

    # --- what people ask of it ----------------------------------------------------------------------------------

    def propose(self, events: Sequence[Decision]) -> None:
        """Tell facts about this node: true whoever leads."""
        if self.core is not None and not self.is_frozen:
            self.origin.add(events)
            self.origin.pump()

    def decide(self, events: Sequence[Decision]) -> None:
        """As the leader, decide something that is void in any other term."""
        if self.core is not None and not self.is_frozen:
            self.origin.decide(events)

    def read(self) -> int:
        """Ask whether this node still leads; returns the number of the question."""
        self._read_id += 1
        self.cluster.ledger.read_asked(self, self.boot, self._read_id)
        self.take(ConfirmRead(read_id=self._read_id))
        return self._read_id

    def hand_over(self, to: NodeId | None) -> None:
        self.take(HandOver(to=to))

    def force(self, forgotten: tuple[NodeId, ...]) -> None:
        """An operator gives up other voters."""
        before = self.incarnation
        self.cluster.ledger.forced(self, before)
        self.take(ForceHistory(forgotten=forgotten, event_id=self.cluster.new_id(), cause_id="force", at=""))

    # --- what an origin asks of its node ------------------------------------------------------------------------

    def ask(self, leader: NodeId, session: int) -> None:
        self._say(leader, Ask(session, is_forgetful=self.disk.is_forgetful, boot=self.boot))

    def offer(self, leader: NodeId, message: Propose) -> None:
        self._say(leader, Offer(message))

    def propose_here(self, message: Propose) -> None:
        self.take(message)

    def last_seq_here(self) -> int:
        return self.up.admission.last_seq(self.node_id)

    def acknowledge(self, event_ids: Sequence[EventId]) -> None:
        self.cluster.ledger.acknowledged(self, event_ids)
        if self.cluster.is_telling_facts:
            for entry in self._just_folded:
                if entry.event_id in event_ids and isinstance(entry.event, NodeDisconnected):
                    self.cluster.tell_fact(self.node_id, entry.event.reason, "hears that {} is done")

    # --- effects ------------------------------------------------------------------------------------------------

    def _write(self, effect: Write) -> None:
        self.disk.submit(effect)
        self.up.may_vote = self._may_vote

    def _send(self, effect: Send) -> None:
        message = effect.message
        self.cluster.ledger.said(self, effect.to, message)
        self._say(effect.to, message)
        is_vote = isinstance(message, VoteAnswer) and message.is_granted and not message.is_trial
        if self.is_to_crash_after_vote and is_vote:
            self.stop(f"crashes right after its vote for {effect.to} in term {message.term}")

    def _send_snapshot(self, effect: SendSnapshot) -> None:
        core = self.up
        if self.cluster.is_telling:
            self.cluster.tell(self.node_id, f"sends {effect.to} a snapshot at {self.state.index}")
        message = InstallSnapshot(incarnation=core.incarnation, term=core.term, snapshot=self._snapshot())
        self._say(effect.to, message, extra_us=self.cluster.random.randint(1_000, 20_000))

    def _snapshot(self) -> Snapshot:
        state = self.state
        return Snapshot(
            index=state.index,
            term=state.term,
            incarnation=state.incarnation,
            voters=state.voters,
            last_seq=state.last_seq,
            data=_encoder.encode(state),
        )

    def _commit(self, effect: Commit) -> None:
        ledger, entries, core = self.cluster.ledger, effect.entries, self.up
        term_led = core.term if core.role == "leader" else self._term_led
        ledger.committed(self, entries, core.voters, term_led=term_led)
        self.state = apply_entries(self.state, entries)
        ledger.folded(self)
        self._just_folded = [entry for entry in entries if entry.origin == self.node_id]
        for entry in entries:
            if entry.origin == self.node_id:
                self.origin.committed(entry.seq, entry.event_id)
            if isinstance(entry.event, VotersChanged | HistoryForced):
                self._voters_changed(entry.index, entry.event)
        self._look_for_removal(self.state.index, self.state.voters)
        synced = self.disk.synced
        is_due = self.state.index - synced.base_index >= self.cluster.snapshot_entries
        if is_due and synced.term_at(self.state.index) == self.state.term:
            self.disk.save_snapshot(self._snapshot())

    def _voters_changed(self, index: int, event: VotersChanged | HistoryForced) -> None:
        if self.cluster.is_telling and self.leads:
            self.cluster.tell(self.node_id, f"voters are now {describe(event.voters)} (entry {index})")
        self._look_for_removal(index, event.voters)

    def _look_for_removal(self, index: int, voters: Voters) -> None:
        is_removed = self.node_id not in voters.members
        if self.lost_log_at is not None and index > self.lost_log_at and is_removed:
            self._removed_since_loss()

    def _removed_since_loss(self) -> None:
        """Nobody counts any more on what it acknowledged. It need not be a voter again: votes it gives are new ones."""
        self.lost_log_at = None
        self.disk.is_forgetful = False
        self.up.may_vote = self._may_vote
        self.cluster.tell(self.node_id, "may vote again: it was no voter since it lost its log")
        self.origin.ask()

    def _restore(self, effect: Restore) -> None:
        before = self.state.index
        self.state = _decoder.decode(effect.snapshot.data)
        if self.cluster.is_telling:
            self.cluster.tell(
                self.node_id, f"goes on from a snapshot at {self.state.index}, it was at {before}"
            )
        self.cluster.ledger.restored(self, effect.snapshot.index, before)
        self._look_for_removal(self.state.index, self.state.voters)
        own_seq = self.state.last_seq.get(self.node_id, 0)
        if own_seq:
            self.origin.committed(own_seq, None)

    def _role_changed(self, effect: RoleChanged) -> None:
        core = self.up
        if self.cluster.is_telling:
            self.cluster.tell(self.node_id, self._describe(effect))
        self.origin.leader_changed(effect.leader, effect.term)
        self._steering.begin()
        if effect.role != "leader":
            return
        is_forced = bool(core.log.last_index) and self._is_forced(core)
        self.cluster.ledger.leads(self, effect.term, is_forced=is_forced)
        self._sessions.clear()
        self.origin.opens([TermOpened(master_node_id=self.node_id)])

    def _describe(self, effect: RoleChanged) -> str:
        is_new, self._told_term = effect.term > self._told_term, effect.term
        if effect.role == "leader":
            return f"leads term {effect.term}"
        if effect.role == "candidate":
            return (
                f"stands in term {effect.term}"
                if is_new
                else f"asks whether it would win term {effect.term + 1}"
            )
        if effect.leader is None:
            return f"is in term {effect.term} and knows no leader"
        return f"follows {effect.leader} in term {effect.term}"

    def _is_forced(self, core: Core) -> bool:
        last = core.log.between(core.log.last_index - 1, core.log.last_index)
        return bool(last) and isinstance(last[0].event, HistoryForced) and last[0].term == core.term

    def _read_confirmed(self, effect: ReadConfirmed) -> None:
        self.cluster.ledger.read_confirmed(self, self.boot, effect.read_id, effect.index)
        if self.cluster.is_telling:
            self.cluster.tell(self.node_id, f"read {effect.read_id} is confirmed at index {effect.index}")

    def _read_refused(self, effect: ReadRefused) -> None:
        self.cluster.ledger.read_refused(self, self.boot, effect.read_id)
        if self.cluster.is_telling:
            self.cluster.tell(self.node_id, f"read {effect.read_id} is refused: it does not lead")

    def _refuse(self, effect: Refuse) -> None:
        if effect.session is None:
            assert isinstance(self._step, Propose)
            self.origin.refused_here(self._step)
            return
        for node_id, session in self._sessions.items():
            if session == effect.session:
                self._say(node_id, Hang(session))

    def _distrust(self, effect: Distrust) -> None:
        raise BrokenPromiseError(
            f"{self.node_id} distrusts {effect.node_id}, which is honest: {effect.reason}"
        )

    def _outlived(self, effect: Outlived) -> None:
        """Begin as a newcomer of the new incarnation."""
        self.stop(f"is outlived by incarnation {effect.incarnation}: its log does not count any more")
        self.disk.wipe()
        self.disk.hard_state = HardState()
        self.disk.incarnation = effect.incarnation
        self.disk.is_forgetful = False
        self.lost_log_at = None
        self.first_voters = Voters()
        self.cluster.timeline.after(TICK_US, self._start_again, self.boot)

    def _start_again(self, boot: int) -> None:
        if self.core is None and self.boot == boot:
            self.start()


def describe(voters: Voters) -> str:
    """Return who has to agree, for people."""
    text = " ".join(voters.voters)
    return f"{text} with replica {' '.join(voters.replicas)}" if voters.replicas else text
