"""What a leader admits to its log. Pure."""

from collections.abc import Sequence

from exo.cluster.raft.leader import Leader
from exo.cluster.raft.quorum import change_fault
from exo.cluster.raft.state import CoreState
from exo.cluster.raft.steps import Propose, Refuse
from exo.shared.types.events import ClusterDissolved, LogEntry, TermOpened, VotersChanged
from exo.shared.types.voters import Voters


def propose(core: CoreState, message: Propose) -> None:
    """Admit a proposal, or refuse it."""
    leading = core.leading
    if leading is None or not core.is_admitting:
        core.output.effects.append(Refuse(session=message.session, reason="this node does not lead"))
        return
    fault = _fault(core, leading, message)
    if fault is None:
        admitted = core.admission.admit(message, index=core.log.last_index + 1)
        if isinstance(admitted, str):
            fault = admitted
        elif admitted:
            _append_own(core, leading, admitted)
    if fault is not None:
        core.output.effects.append(Refuse(session=message.session, reason=fault))


def _fault(core: CoreState, leading: Leader, message: Propose) -> str | None:
    if message.term != core.term:
        return f"it is for term {message.term}, this is term {core.term}"
    if leading.is_dissolving:
        return "this cluster is about to join another one"
    events = [proposed.event for proposed in message.events]
    if core.log.last_index < leading.first_index and not any(isinstance(e, TermOpened) for e in events):
        return f"term {core.term} is not opened yet"
    for event in events:
        if isinstance(event, VotersChanged):
            fault = "only the leader changes voters" if message.session is not None else None
            fault = fault or voters_fault(core, event.voters)
            if fault is not None:
                return fault
    return None


def voters_fault(core: CoreState, voters: Voters) -> str | None:
    """Return why the voters cannot be changed to these now, or None when that may be proposed."""
    before = core.voters
    decides_alone = core.is_admitting and voters.voters == before.voters == (core.node_id,)
    if decides_alone and set(voters.replicas) < set(before.replicas):
        return None  # Its own disk decides; a replica that is gone must not keep it from opening its term.
    if not core.is_admitting or not core.is_term_committed:
        return "this node does not lead, or its term is not committed yet"
    if core.log.voters.index > core.commit_index:
        return "an earlier change is not committed yet"
    return change_fault(before, voters)


def _append_own(core: CoreState, leading: Leader, entries: Sequence[LogEntry]) -> None:
    changed = core.log.voters.index
    core.log.append(entries)
    core.output.append(entries)
    if core.log.voters.index != changed:
        leading.reconcile()
    leading.is_dissolving = leading.is_dissolving or any(
        isinstance(entry.event, ClusterDissolved) for entry in entries
    )
    core.has_to_send = True
