"""What a peer cannot truthfully say, whoever it is. Pure.

Raft trusts its voters: a leader that lies can do much. But a mistake, or a peer of another cluster's making, must not
end in numbers that nobody can count on from, or in an error in the middle of a step.
"""

from exo.cluster.raft.messages import Append, AppendAnswer, InstallSnapshot, PeerMessage, VoteRequest
from exo.shared.types.ids import NodeId

TERMS_AHEAD_MAX = 2**32
"""A node that has slept may find the others that many terms ahead: 68 years of two elections a second."""
INDEX_MAX = 2**53


def fault_of(message: PeerMessage, source: NodeId, node_id: NodeId, term: int) -> str | None:
    """Return why a message cannot be true, or None when it can.

    Args:
        message: Of this node's incarnation.
        source: Who said it.
        node_id: This node.
        term: This node's.
    """
    if source == node_id:
        return "it speaks with this node's own name: a copied data directory"
    if not 0 <= message.term <= term + TERMS_AHEAD_MAX:
        return f"it is in term {message.term}, this node in term {term}"
    match message:
        case Append():
            return _append_fault(message)
        case AppendAnswer(index=index, hint_index=hint_index, hint_term=hint_term):
            if min(index, hint_index, hint_term) < 0:
                return f"it answers about entry {index}, and names entry {hint_index} of term {hint_term}"
        case VoteRequest(last_index=last_index, last_term=last_term):
            if not (_is_index(last_index) and 0 <= last_term <= message.term):
                return f"its log ends with entry {last_index} of term {last_term}, in term {message.term}"
        case InstallSnapshot(snapshot=snapshot):
            is_older = 0 <= snapshot.term <= message.term and snapshot.incarnation <= message.incarnation
            if not (_is_index(snapshot.index) and is_older):
                return f"its snapshot is of entry {snapshot.index} of term {snapshot.term}, in term {message.term}"
        case _:
            pass
    return None


def _is_index(index: int) -> bool:
    return 0 <= index <= INDEX_MAX


def _append_fault(message: Append) -> str | None:
    index, term = message.previous_index, message.previous_term
    if not (_is_index(index) and 0 <= term <= message.term):
        return f"it continues entry {index} of term {term}, in term {message.term}"
    last_index = index + len(message.entries)
    for entry in message.entries:
        if entry.index != index + 1:
            return f"it sent entry {entry.index} where {index + 1} was expected"
        if not term <= entry.term <= message.term:
            return f"it sent entry {entry.index} of term {entry.term} behind one of term {term}"
        if not 0 <= entry.more <= last_index - entry.index:
            return f"it sent entry {entry.index} without the {entry.more} that belong to it"
        index, term = entry.index, entry.term
    return None
