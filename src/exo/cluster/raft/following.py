"""What a follower does with what a leader says: entries, the commit index, snapshots. Pure."""

from exo.cluster.raft.admission import Admission
from exo.cluster.raft.log_window import LogWindow
from exo.cluster.raft.messages import (
    Append,
    AppendAnswer,
    Heartbeat,
    HeartbeatAnswer,
    InstallSnapshot,
    Snapshot,
)
from exo.cluster.raft.state import CoreState
from exo.cluster.raft.steps import Restore
from exo.shared.types.ids import NodeId


def leader_said(core: CoreState, source: NodeId, message: Append | Heartbeat | InstallSnapshot) -> None:
    """Take in what the leader of the present term says."""
    if core.leading is not None or core.leader_id not in (None, source):
        core.output.distrust(source, f"it leads term {core.term}, and so does {core.leader_id}")
        return
    core.become_follower(core.term, source)
    match message:
        case Append():
            _append_received(core, source, message)
        case Heartbeat():
            core.commit_to(min(message.commit_index, core.log.last_index))
            # Who has forgotten in which term it was confirms nobody's leadership: it may have ended it.
            is_level = core.hard_state.is_level
            answer = HeartbeatAnswer(
                incarnation=core.incarnation,
                term=core.term,
                read_id=message.read_id if is_level else 0,
                is_level=is_level,
            )
            core.output.send_when_term_durable(source, answer)
        case InstallSnapshot(snapshot=snapshot):
            _snapshot_received(core, source, snapshot)


def tell_term(core: CoreState, source: NodeId) -> None:
    """A leader does not know yet that its term is over."""
    core.output.send(source, _answer(core, 0, is_accepted=False))


def _answer(
    core: CoreState, index: int, *, is_accepted: bool, hint: tuple[int, int] = (0, 0)
) -> AppendAnswer:
    return AppendAnswer(
        incarnation=core.incarnation,
        term=core.term,
        is_accepted=is_accepted,
        index=index,
        hint_index=hint[0],
        hint_term=hint[1],
        is_level=core.hard_state.is_level,
    )


def _append_received(core: CoreState, source: NodeId, message: Append) -> None:
    core.heard_commit_index = max(core.heard_commit_index, message.commit_index)
    log, previous = core.log, message.previous_index
    if previous < core.commit_index:
        core.output.send_when_durable(source, _answer(core, core.commit_index, is_accepted=True))
        return
    if log.term_at(previous) != message.previous_term:
        hint = log.agreement_hint(previous, message.previous_term)
        core.output.send(source, _answer(core, previous, is_accepted=False, hint=hint))
        return
    conflict = log.first_conflict(message.entries)
    if conflict is not None:
        if conflict <= log.last_index:
            log.truncate_after(conflict - 1)
            core.durable_index = min(core.durable_index, conflict - 1)
            core.output.truncate_after(conflict - 1)
        fresh = message.entries[conflict - previous - 1 :]
        log.append(fresh)
        core.output.append(fresh)
        core.note_incarnation(fresh)
    last_index = previous + len(message.entries)
    core.commit_to(min(message.commit_index, last_index))
    core.output.send_when_durable(source, _answer(core, last_index, is_accepted=True))


def _snapshot_received(core: CoreState, source: NodeId, snapshot: Snapshot) -> None:
    if snapshot.index > core.commit_index:
        if core.log.term_at(snapshot.index) == snapshot.term:
            core.commit_to(snapshot.index)
        else:
            core.log = LogWindow(snapshot.index, snapshot.term, snapshot.voters, ())
            core.commit_index, core.durable_index = snapshot.index, 0
            core.admission = Admission(snapshot.last_seq)
            core.output.replace_log(snapshot)
            core.output.effects.append(Restore(snapshot=snapshot))
    core.output.send_when_durable(source, _answer(core, core.commit_index, is_accepted=True))
