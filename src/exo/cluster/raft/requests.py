"""What this node's own process asks of its core: confirmed reads, hand-over, learners, a history begun anew. Pure."""

from exo.cluster.raft import replication
from exo.cluster.raft.output import SelfVote
from exo.cluster.raft.state import CoreState
from exo.cluster.raft.steps import ForceHistory, ReadRefused
from exo.shared.types.events import HistoryForced, LogEntry
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.voters import Voters


def confirm_read(core: CoreState, read_id: int) -> None:
    """Ask a majority whether this node still leads."""
    if core.leading is None:
        core.output.effects.append(ReadRefused(read_id=read_id))
        return
    core.leading.read_asked(read_id, core.commit_index)
    replication.send_heartbeats(core)
    replication.confirm_reads(core)


def hand_over(core: CoreState, to: NodeId | None) -> None:
    """Admit nothing more, and let another voter lead once it has everything."""
    if core.leading is None:
        return
    successor = core.leading.successor(to)
    if successor is None:
        return
    core.leading.hand_over_to, core.leading.hand_over_ticks = successor, 0
    replication.send_append(core, successor, may_be_empty=True)
    replication.ask_to_stand(core)


def follow(core: CoreState, node_id: NodeId, *, is_wanted: bool) -> None:
    """Send entries to a node that does not count, or stop that."""
    if core.leading is None:
        return
    if is_wanted:
        core.leading.learners.add(node_id)
    else:
        core.leading.learners.discard(node_id)
    core.leading.reconcile()
    if node_id in core.leading.progress:
        replication.send_append(core, node_id, may_be_empty=True)


def force_history(core: CoreState, message: ForceHistory) -> None:
    """Begin the next incarnation with this node as its only voter."""
    if core.leading is not None:
        return
    core.incarnation += 1
    core.remember(core.term + 1, core.node_id, is_level=True)
    core.admission.begin(core.log.between(core.commit_index, core.log.last_index))
    entry = LogEntry(
        index=core.log.last_index + 1,
        term=core.term,
        event_id=EventId(message.event_id),
        cause_id=message.cause_id,
        origin=core.node_id,
        # No number of its own: the next one may be bound to what this node's outbox has sent to others.
        seq=core.admission.last_seq(core.node_id),
        at=message.at,
        event=HistoryForced(
            incarnation=core.incarnation,
            forgotten=message.forgotten,
            voters=Voters(voters=(core.node_id,)),
        ),
    )
    core.log.append([entry])
    core.output.append([entry])
    # It leads once this is on disk: others must not hear of an incarnation that a crash may undo.
    core.role, core.leader_id, core.is_trial, core.votes = "candidate", None, False, {}
    core.output.vote_when_durable(SelfVote(core.term, entry.index))
