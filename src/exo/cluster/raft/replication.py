"""A leader's part: sending entries and heartbeats, and what follows from the answers. Pure."""

from exo.cluster.raft.leader import Leader
from exo.cluster.raft.messages import Append, AppendAnswer, Heartbeat, HeartbeatAnswer, StandNow
from exo.cluster.raft.state import CoreState
from exo.cluster.raft.steps import ReadConfirmed, SendSnapshot
from exo.shared.types.ids import NodeId


def send_append(core: CoreState, to: NodeId, *, may_be_empty: bool) -> bool:
    """Send what a follower lacks next; say whether anything was sent."""
    assert core.leading is not None
    progress, log = core.leading.progress[to], core.log
    if progress.is_held:
        return False
    previous = progress.next_index - 1
    previous_term = log.term_at(previous)
    if previous_term is None:
        progress.snapshot_sent()
        core.output.effects.append(SendSnapshot(to=to))
        return True
    until = log.end_of_proposal(min(log.last_index, previous + core.options.entries_per_message))
    entries = tuple(log.between(previous, until))
    if not entries and not may_be_empty:
        return False
    message = Append(
        incarnation=core.incarnation,
        term=core.term,
        previous_index=previous,
        previous_term=previous_term,
        entries=entries,
        commit_index=core.commit_index,
    )
    progress.sent(until, has_entries=bool(entries))
    core.output.send(to, message)
    return True


def send_entries(core: CoreState, to: NodeId) -> None:
    while send_append(core, to, may_be_empty=False):
        pass


def send_heartbeats(core: CoreState) -> None:
    assert core.leading is not None
    for node_id, progress in core.leading.progress.items():
        heartbeat = Heartbeat(
            incarnation=core.incarnation,
            term=core.term,
            commit_index=min(core.commit_index, progress.match_index),
            read_id=core.leading.read_id,
        )
        core.output.send(node_id, heartbeat)


# --- answers ---------------------------------------------------------------------------------------------------------


def append_answered(core: CoreState, source: NodeId, message: AppendAnswer) -> None:
    progress = core.leading.progress.get(source) if core.leading is not None else None
    if core.leading is None or progress is None:
        return
    progress.is_here(is_level=message.is_level)
    if not message.is_accepted:
        retry, _ = core.log.agreement_hint(message.hint_index, message.hint_term)
        if progress.refused(message.index, retry):
            send_append(core, source, may_be_empty=True)
        return
    if message.index > core.log.last_index:
        core.output.distrust(source, f"it has entry {message.index} of {core.log.last_index}")
        return
    if progress.accepted(message.index):
        advance_commit(core)
    _go_on_with(core, source)


def _go_on_with(core: CoreState, source: NodeId) -> None:
    if core.leading is not None and source in core.leading.progress:  # It may have retired just now.
        send_entries(core, source)
        ask_to_stand(core)


def heartbeat_answered(core: CoreState, source: NodeId, message: HeartbeatAnswer) -> None:
    progress = core.leading.progress.get(source) if core.leading is not None else None
    if core.leading is None or progress is None:
        return
    if message.read_id > core.leading.read_id_asked:
        core.output.distrust(source, f"it confirms read {message.read_id}, which nobody asked for")
        return
    progress.is_here(is_level=message.is_level)
    progress.heard()
    if progress.match_index < core.log.last_index or progress.mode == "probe":
        send_append(core, source, may_be_empty=True)
    if message.read_id:
        core.leading.read_acknowledged(source, message.read_id)
        confirm_reads(core)


def advance_commit(core: CoreState) -> None:
    """More is on some disk: commit what enough of them have."""
    leading = core.leading
    if leading is None:
        return
    index = leading.committed_index(core.durable_index)
    if index <= core.commit_index:
        return
    core.commit_to(index)
    for node_id in leading.peers:
        send_append(core, node_id, may_be_empty=True)
    confirm_reads(core)
    if core.node_id not in core.voters.voters and core.log.voters.index <= core.commit_index:
        _retire(core, leading)


def _retire(core: CoreState, leading: Leader) -> None:
    """This node was removed and the change is committed: somebody else leads."""
    successor = leading.successor(None)
    if successor is not None:
        core.output.send(successor, StandNow(incarnation=core.incarnation, term=core.term))
    core.become_follower(core.term, None)


def confirm_reads(core: CoreState) -> None:
    """Answer the reads that a majority has confirmed by now."""
    if core.leading is not None:
        core.output.effects += [
            ReadConfirmed(read_id=read_id, index=index)
            for read_id, index in core.leading.take_confirmed(core.commit_index)
        ]


def ask_to_stand(core: CoreState) -> None:
    """Have the heir stand for election, once it has everything."""
    leading = core.leading
    if leading is None or leading.hand_over_to is None:
        return
    progress = leading.progress.get(leading.hand_over_to)
    if progress is not None and progress.match_index == core.log.last_index:
        core.output.send(leading.hand_over_to, StandNow(incarnation=core.incarnation, term=core.term))
