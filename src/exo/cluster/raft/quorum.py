"""Who has to have an entry before it counts. Pure."""

from collections.abc import Callable, Iterable

import msgspec

from exo.shared.types.events import ClusterFormed, Decision, HistoryForced, VotersChanged
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters


def voters_of(event: Decision) -> Voters | None:
    """Return the voters that an event names, if it names any."""
    if isinstance(event, ClusterFormed | VotersChanged | HistoryForced) and event.voters.voters:
        return event.voters
    return None


def agreed_index(voters: Voters, index_at: Callable[[NodeId], int]) -> int:
    """Return the highest index that a majority of the voters and every replica have on disk.

    Args:
        voters: Who has to agree.
        index_at: How far a node's disk is known to reach.
    """
    reached = sorted((index_at(node_id) for node_id in voters.voters), reverse=True)
    agreed = reached[voters.majority - 1] if reached else 0
    return min([agreed, *(index_at(node_id) for node_id in voters.replicas)])


def has_majority(voters: Voters, present: Iterable[NodeId]) -> bool:
    return len(set(present).intersection(voters.voters)) >= voters.majority


def change_fault(before: Voters, after: Voters) -> str | None:
    """Return why the voters may not change like this in one step, or None when they may.

    One voter at a time keeps every majority of the old voters and every majority of the new ones in touch
    (Ongaro's thesis, 4.1). Replicas only make more nodes necessary, so they may change along with it.
    """
    if not after.voters:
        return "nobody would be left to vote"
    if len(set(before.voters) ^ set(after.voters)) > 1:
        return "more than one voter would change at once"
    if tuple(sorted(set(after.voters))) != after.voters:
        return "the voters are not sorted, or one is named twice"
    if after.replicas and len(after.voters) != 1:
        return "replicas are for a single voter"
    if len(set(after.replicas)) != len(after.replicas) or set(after.replicas) & set(after.voters):
        return "a replica is named twice, or is a voter too"
    return None


class VotersAt(msgspec.Struct, frozen=True):
    """Who has to agree from the entry at `index` on."""

    index: int
    voters: Voters
