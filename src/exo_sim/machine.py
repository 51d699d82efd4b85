"""One simulated machine: the real core, carried out on a simulated disk, network and clock."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from exo.cluster.raft.core import Core
from exo.cluster.raft.options import SnapshotPoint
from exo.cluster.raft.steps import (
    ConfirmRead,
    ForceHistory,
    HandOver,
    Input,
    PeerLost,
    Propose,
    Received,
    Tick,
    Written,
)
from exo.shared.types.events import Decision
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from exo_sim.disk import Disk
from exo_sim.origin import Ask, Hang, Offer, Origin, Tell
from exo_sim.performing import Performer, state_of
from exo_sim.steering import Steering
from exo_sim.surroundings import Surroundings

TICK_US = 50_000
POLICY_TICKS = 6


class Home(Surroundings, Protocol):
    """The cluster that a machine is in."""

    def has_stopped(self, machine: "Machine", why: str) -> None: ...


class Machine:
    """Args:
    cluster: What it is part of.
    node_id: Its name.
    first_voters: Who agreed on the first entries; empty for a newcomer.
    """

    def __init__(self, cluster: Home, node_id: NodeId, first_voters: Voters) -> None:
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
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._inbox: list[Input] = []
        self.present: Input = Tick()
        """What the core is dealing with."""
        self._is_busy = False
        self.term_led = 0
        """The term that it led before the present step; what it commits last before it retires is committed in that."""
        self.ticks = 0
        self._read_id = 0
        self._steering = Steering(self)
        self._performer: Performer | None = None

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
    def performer(self) -> Performer:
        """Of a machine that runs."""
        assert self._performer is not None
        return self._performer

    # --- starting and stopping ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin from what the disk has."""
        assert self.core is None
        self.boot += 1
        disk, snapshot = self.disk, self.disk.snapshot
        # A newcomer is told how often the history was begun anew; who has a log reads it there.
        is_newcomer = disk.is_empty and not self.first_voters.voters
        incarnation = disk.incarnation if is_newcomer else 1
        if snapshot is not None:
            self.state = state_of(snapshot)
            incarnation = snapshot.incarnation
            point = SnapshotPoint(
                index=snapshot.index, term=snapshot.term, voters=snapshot.voters, last_seq=snapshot.last_seq
            )
        else:
            self.state = State()
            point = SnapshotPoint(voters=self.first_voters)
        self.core = Core(
            self.node_id,
            hard_state=disk.hard_state,
            incarnation=incarnation,
            snapshot=point,
            entries=tuple(disk.synced.entries),
            options=self.cluster.options,
            random=self.cluster.random.random,
            may_vote=not (is_newcomer or disk.is_voteless),
        )
        self._performer = Performer(self)
        self._inbox.clear()
        self._backlog.clear()
        self._steering = Steering(self)
        self.is_frozen = self.is_stalled = self.is_to_crash_after_vote = False
        self.origin.restarted()
        if self.cluster.is_telling:
            log = disk.synced
            self.cluster.tell(
                self.node_id,
                f"starts in term {self.core.term}, log {log.base_index}..{log.last_index}"
                + (", may not vote" if disk.is_impaired else ""),
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
        """Its log becomes unreadable while it is down."""
        assert self.core is None
        committed = self.cluster.ledger.history(self.disk.incarnation).last_index
        self.disk.rot()
        self.first_voters = Voters()
        self.cluster.tell(self.node_id, f"loses its log to bit rot, {committed} entries were committed")

    def begin_anew(self, incarnation: int) -> None:
        """Come back soon, as a newcomer of an incarnation."""
        self.disk.wipe()
        self.disk.incarnation = incarnation
        self.disk.is_forgetful = self.disk.is_voteless = False
        self.first_voters = Voters()
        self.cluster.timeline.after(TICK_US, self._start_again, self.boot)

    def _start_again(self, boot: int) -> None:
        if self.core is None and self.boot == boot:
            self.start()

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
                self.term_led = core.term if core.role == "leader" else 0
                self.present = self._inbox.pop(0)
                for effect in core.step(self.present):
                    self.performer.carry_out(effect)
                    if self.core is not core:
                        break
                else:
                    self.cluster.ledger.stepped(self, self.boot, core.term, core.commit_index)
        finally:
            self._is_busy = False

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
                    self.performer.sessions[source] = message.session
                    tell = Tell(message.session, core.term, core.admission.last_seq(source))
                    self.say(source, tell)
            case Tell():
                self.origin.told(source, message)
            case Hang():
                self.origin.hung_up(source, message)
            case Offer(propose=propose):
                if self.performer.sessions.get(source) == propose.session:
                    self.take(propose)
            case _:
                self.take(Received(source=source, message=message))  # pyright: ignore[reportArgumentType]

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
        self.say(leader, Ask(session, is_forgetful=self.disk.is_voteless, boot=self.boot))

    def offer(self, leader: NodeId, message: Propose) -> None:
        self.say(leader, Offer(message))

    def propose_here(self, message: Propose) -> None:
        self.take(message)

    def last_seq_here(self) -> int:
        return self.up.admission.last_seq(self.node_id)

    def acknowledge(self, event_ids: Sequence[EventId]) -> None:
        self.performer.acknowledge(event_ids)

    # --- what its effects ask of it -----------------------------------------------------------------------------

    def say(self, to: NodeId, message: object, *, extra_us: int = 0) -> None:
        cluster = self.cluster
        cluster.network.send(self.node_id, to, cluster.machine(to).hear, message, extra_us=extra_us)

    def role_changed(self) -> None:
        self._steering.begin()
