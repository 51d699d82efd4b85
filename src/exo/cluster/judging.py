"""What follows from what another node says of itself: whether to join it, to wait for it, or to leave it be. Pure."""

import msgspec

from exo.cluster.facts import PROTOCOL_VERSION, ClusterFacts, PeerStatus, is_senior
from exo.shared.types.nodes import HostPort


class Judgement(msgspec.Struct, frozen=True):
    """What follows from another node's facts."""

    status: PeerStatus
    detail: str
    join: HostPort | None = None
    """Follow the master there."""
    tell: HostPort | None = None
    """Make sure that the master there knows of this cluster, so that it can join."""


def judge(own: ClusterFacts, seen: ClusterFacts, *, is_waiting: bool) -> Judgement:
    """Decide what to do about somebody. Pure.

    Args:
        own: This node's facts as they are now.
        seen: The other's facts.
        is_waiting: If this node has lost its master, it waits for that one alone.
    """
    if seen.node_id == own.node_id:
        return Judgement(
            "same_node_id", "it has this node's id: a copied data directory; delete its file node_id"
        )
    if seen.version != PROTOCOL_VERSION:
        return Judgement("other_version", f"it speaks protocol {seen.version}, this node {PROTOCOL_VERSION}")
    if seen.namespace != own.namespace:
        return Judgement("other_namespace", f"it belongs to the namespace {seen.namespace!r}")
    if seen.cluster_id == own.cluster_id:
        if seen.incarnation > own.incarnation:
            return Judgement("member", "an operator began its history anew", join=seen.master_address)
        if own.is_master and seen.is_master and (own.incarnation, own.term) == (seen.incarnation, seen.term):
            return Judgement(
                "two_masters", "it leads this cluster too: a copied data directory; stop one of them"
            )
        has_lost = own.master_node_id is None
        return Judgement("member", "of this cluster", join=seen.master_address if has_lost else None)
    if seen.master_node_id is None or seen.master_address is None:
        return Judgement("no_master", "it waits for the master of its own cluster")
    if own.is_master:
        if own.has_something_to_lose and seen.has_something_to_lose:
            return Judgement(
                "both_have_instances",
                f"its cluster {seen.cluster_id} has instances, keys or an authority, and so has this one: such "
                "clusters are not merged; delete what one of them has, or start its node with a new data directory",
            )
        if is_senior(own, seen):
            return Judgement("joining", "its cluster should join this one", tell=seen.master_address)
        return Judgement("joining", "this node is about to join its cluster", join=seen.master_address)
    if own.master_node_id is None and not is_waiting:
        return Judgement("joining", "this node's master is gone for good", join=seen.master_address)
    return Judgement("other_cluster", f"it belongs to the cluster {seen.cluster_id}")


def is_word_of_removal(own: ClusterFacts, theirs: ClusterFacts) -> bool:
    """Say whether to believe a node by which this one is no member: it leads this cluster, and knows no less. Pure."""
    if theirs.cluster_id != own.cluster_id or not theirs.is_master:
        return False
    return theirs.incarnation > own.incarnation or (
        theirs.incarnation == own.incarnation and theirs.term >= own.term and theirs.index >= own.index
    )
