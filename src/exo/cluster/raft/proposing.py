"""What a leader admits to its log. Pure."""

from collections.abc import Sequence

from exo.cluster.raft.leader import Leader
from exo.cluster.raft.quorum import change_fault, voters_of
from exo.cluster.raft.state import CoreState
from exo.cluster.raft.steps import Propose, Refuse
from exo.shared.types.events import (
    ClusterDissolved,
    ClusterFormed,
    Decision,
    HistoryForced,
    LogEntry,
    TermOpened,
    VotersChanged,
)
from exo.shared.types.voters import Voters

_AGREEMENT = ClusterFormed | ClusterDissolved | HistoryForced | TermOpened | VotersChanged
"""Events about the agreement itself, which are for the leader to decide."""


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
    events = [proposed.event for proposed in message.events]
    is_opening = any(isinstance(event, TermOpened) for event in events)
    if leading.is_dissolving and not (is_opening and len(events) == 1):
        return "this cluster is about to join another one"
    if not core.is_term_opened and not is_opening:
        return f"term {core.term} is not opened yet"
    if sum(isinstance(event, _AGREEMENT) for event in events) == 0:
        return None
    return _agreement_fault(core, events, is_own=message.session is None)


def _agreement_fault(core: CoreState, events: Sequence[Decision], *, is_own: bool) -> str | None:
    """Return what is wrong with events about the agreement itself, beside others."""
    changes = [event for event in events if voters_of(event) is not None]
    if len(changes) > 1:
        return "who has to agree changes once in a proposal"
    for position, event in enumerate(events):
        if isinstance(event, _AGREEMENT) and not is_own:
            return f"only the leader itself decides {type(event).__name__}"
        if isinstance(event, HistoryForced):
            return "a history is begun anew by an operator, not by a proposal"
        if isinstance(event, ClusterFormed) and (position or core.log.last_index):
            return "a cluster is formed by its first entry"
        if isinstance(event, VotersChanged):
            fault = voters_fault(core, event.voters)
            if fault is not None:
                return fault
    return None


def voters_fault(core: CoreState, voters: Voters) -> str | None:
    """Return why the voters cannot be changed to these now, or None when that may be proposed."""
    before = core.voters
    decides_alone = core.is_admitting and voters.voters == before.voters == (core.node_id,)
    if decides_alone and set(voters.replicas) < set(before.replicas):
        return None  # Its own disk decides; a replica that is gone must not keep it from opening its term.
    leading = core.leading
    if leading is None or not core.is_admitting or not core.is_term_committed:
        return "this node does not lead, or its term is not committed yet"
    if core.log.voters.index > core.commit_index:
        return "an earlier change is not committed yet"
    for node_id in sorted(set(voters.voters) - set(before.voters)):
        progress = leading.progress.get(node_id)
        if progress is not None and not progress.is_level:
            # Its vote would be asked for where it cannot be given: if this node crashed now, nobody might lead again.
            return f"{node_id} has not caught up yet, and could not vote"
    return change_fault(before, voters)


def _append_own(core: CoreState, leading: Leader, entries: Sequence[LogEntry]) -> None:
    changed = core.log.voters.index
    core.log.append(entries)
    core.output.append(entries)
    if core.log.voters.index != changed:
        leading.reconcile()
    leading.note_farewell(entries)
    core.has_to_send = True
