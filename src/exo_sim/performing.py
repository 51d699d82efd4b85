"""Carries out on a simulated machine what its core wants, and tells the ledger of everything that is a promise."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from exo.cluster.raft.core import Core
from exo.cluster.raft.messages import InstallSnapshot, Snapshot, VoteAnswer
from exo.cluster.raft.steps import (
    Commit,
    Distrust,
    Effect,
    Input,
    Outlived,
    Propose,
    ReadConfirmed,
    ReadRefused,
    Refuse,
    Restore,
    RoleChanged,
    Send,
    SendSnapshot,
    Write,
)
from exo.shared.apply import apply_entries
from exo.shared.types.events import HistoryForced, LogEntry, NodeDisconnected, TermOpened, VotersChanged
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from exo_sim.disk import Disk
from exo_sim.errors import BrokenPromiseError
from exo_sim.origin import Hang, Origin
from exo_sim.surroundings import Surroundings
from exo_sim.wording import describe, describe_role

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(State)


class Performed(Protocol):
    """What is needed of a machine."""

    node_id: NodeId
    disk: Disk
    state: State
    boot: int
    origin: Origin
    is_to_crash_after_vote: bool
    term_led: int
    present: Input

    @property
    def cluster(self) -> Surroundings: ...

    @property
    def up(self) -> Core: ...

    @property
    def incarnation(self) -> int: ...

    @property
    def leads(self) -> bool: ...

    def say(self, to: NodeId, message: object, *, extra_us: int = 0) -> None: ...

    def role_changed(self) -> None: ...

    def stop(self, why: str) -> None: ...

    def begin_anew(self, incarnation: int) -> None: ...


class Performer:
    """One boot of one machine.

    Args:
        machine: Where effects are carried out.
    """

    def __init__(self, machine: Performed) -> None:
        self._machine = machine
        self.sessions: dict[NodeId, int] = {}
        """As a leader: with whom it talks about proposals, in which conversation."""
        self._told_term = machine.up.term
        self._just_folded: Sequence[LogEntry] = ()
        self._act: dict[type, Callable[[Any], None]] = {
            Write: machine.disk.submit,
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

    def carry_out(self, effect: Effect) -> None:
        self._act[type(effect)](effect)

    def acknowledge(self, event_ids: Sequence[EventId]) -> None:
        """The machine's origin hears that what it proposed is done."""
        machine, cluster = self._machine, self._machine.cluster
        cluster.ledger.acknowledged(machine, event_ids)
        if cluster.is_telling_facts:
            for entry in self._just_folded:
                if entry.event_id in event_ids and isinstance(entry.event, NodeDisconnected):
                    cluster.tell_fact(machine.node_id, entry.event.reason, "hears that {} is done")

    def _tell(self, what: str) -> None:
        self._machine.cluster.tell(self._machine.node_id, what)

    # --- messages -----------------------------------------------------------------------------------------------

    def _send(self, effect: Send) -> None:
        machine, message = self._machine, effect.message
        machine.cluster.ledger.said(machine, effect.to, message)
        machine.say(effect.to, message)
        is_vote = isinstance(message, VoteAnswer) and message.is_granted and not message.is_trial
        if machine.is_to_crash_after_vote and is_vote:
            machine.stop(f"crashes right after its vote for {effect.to} in term {message.term}")

    def _send_snapshot(self, effect: SendSnapshot) -> None:
        machine, core, cluster = self._machine, self._machine.up, self._machine.cluster
        if cluster.is_telling:
            self._tell(f"sends {effect.to} a snapshot at {machine.state.index}")
        message = InstallSnapshot(
            incarnation=core.incarnation, term=core.term, snapshot=snapshot_of(machine.state)
        )
        machine.say(effect.to, message, extra_us=cluster.random.randint(1_000, 20_000))

    def _refuse(self, effect: Refuse) -> None:
        machine = self._machine
        if effect.session is None:
            assert isinstance(machine.present, Propose)
            machine.origin.refused_here(machine.present)
            return
        for node_id, session in self.sessions.items():
            if session == effect.session:
                machine.say(node_id, Hang(session))

    def _distrust(self, effect: Distrust) -> None:
        raise BrokenPromiseError(
            f"{self._machine.node_id} distrusts {effect.node_id}, which is honest: {effect.reason}"
        )

    # --- what is agreed on --------------------------------------------------------------------------------------

    def _commit(self, effect: Commit) -> None:
        machine, core, cluster = self._machine, self._machine.up, self._machine.cluster
        entries = effect.entries
        term_led = core.term if core.role == "leader" else machine.term_led
        cluster.ledger.committed(machine, entries, core.voters, term_led=term_led)
        machine.state = apply_entries(machine.state, entries)
        cluster.ledger.folded(machine)
        self._just_folded = [entry for entry in entries if entry.origin == machine.node_id]
        for entry in entries:
            if entry.origin == machine.node_id:
                machine.origin.committed(entry.seq, entry.event_id)
            if (
                cluster.is_telling
                and isinstance(entry.event, VotersChanged | HistoryForced)
                and machine.leads
            ):
                self._tell(f"voters are now {describe(entry.event.voters)} (entry {entry.index})")
        self._look_for_removal(machine.state.voters)
        synced, state = machine.disk.synced, machine.state
        is_due = state.index - synced.base_index >= cluster.snapshot_entries
        if is_due and synced.term_at(state.index) == state.term:
            machine.disk.save_snapshot(snapshot_of(state))

    def _restore(self, effect: Restore) -> None:
        machine, cluster = self._machine, self._machine.cluster
        before = machine.state.index
        machine.state = state_of(effect.snapshot)
        if cluster.is_telling:
            self._tell(f"goes on from a snapshot at {machine.state.index}, it was at {before}")
        cluster.ledger.restored(machine, effect.snapshot.index, before)
        self._look_for_removal(machine.state.voters)
        own_seq = machine.state.last_seq.get(machine.node_id, 0)
        if own_seq:
            machine.origin.committed(own_seq, None)

    def _look_for_removal(self, voters: Voters) -> None:
        """As a real node does: the first state that does not count on it takes the mark away. It may be an old one."""
        machine, core = self._machine, self._machine.up
        if core.may_vote or not voters.voters or machine.node_id in voters.members:
            return
        core.may_vote = True
        if machine.disk.is_voteless:
            machine.disk.is_voteless = False
            self._tell("may vote again once it has everything: nobody counts on what it has forgotten")
            machine.origin.ask()

    def _outlived(self, effect: Outlived) -> None:
        self._machine.stop(
            f"is outlived by incarnation {effect.incarnation}: its log does not count any more"
        )
        self._machine.begin_anew(effect.incarnation)

    # --- who leads ----------------------------------------------------------------------------------------------

    def _role_changed(self, effect: RoleChanged) -> None:
        machine, cluster = self._machine, self._machine.cluster
        is_new_term, self._told_term = effect.term > self._told_term, effect.term
        if cluster.is_telling:
            self._tell(describe_role(effect, is_new_term=is_new_term))
        machine.origin.leader_changed(effect.leader, effect.term)
        machine.role_changed()
        if effect.role != "leader":
            return
        cluster.ledger.leads(machine, effect.term, is_forced=_is_forced(machine.up))
        self.sessions.clear()
        machine.origin.opens([TermOpened(master_node_id=machine.node_id)])

    def _read_confirmed(self, effect: ReadConfirmed) -> None:
        machine = self._machine
        machine.cluster.ledger.read_confirmed(machine, machine.boot, effect.read_id, effect.index)
        self._tell(f"read {effect.read_id} is confirmed at index {effect.index}")

    def _read_refused(self, effect: ReadRefused) -> None:
        machine = self._machine
        machine.cluster.ledger.read_refused(machine, machine.boot, effect.read_id)
        self._tell(f"read {effect.read_id} is refused: it does not lead")


def _is_forced(core: Core) -> bool:
    last = core.log.between(core.log.last_index - 1, core.log.last_index)
    return bool(last) and isinstance(last[0].event, HistoryForced) and last[0].term == core.term


def snapshot_of(state: State) -> Snapshot:
    """Return what a machine keeps or sends of a state."""
    return Snapshot(
        index=state.index,
        term=state.term,
        incarnation=state.incarnation,
        voters=state.voters,
        last_seq=state.last_seq,
        data=_encoder.encode(state),
    )


def state_of(snapshot: Snapshot) -> State:
    return _decoder.decode(snapshot.data)
