"""What nodes tell each other of themselves before they agree on anything, and which of two clusters is senior."""

from typing import Literal

import msgspec

from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort

PROTOCOL_VERSION = 1
"""Of beacons and of the messages between nodes."""


class ClusterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One node's word about itself and its cluster: a hint that may be old by the time it is read."""

    version: int = PROTOCOL_VERSION
    exo_version: str
    namespace: str
    node_id: NodeId
    boot_id: str
    name: str
    cluster_address: HostPort
    cluster_id: ClusterId | None
    incarnation: int
    term: int
    index: int
    master_node_id: NodeId | None
    """None while this node knows no master that it can reach."""
    master_address: HostPort | None
    member_count: int
    instance_count: int
    is_established: bool = False
    """The cluster has an authority or keys, or removed a node: somebody made it more than one that has just started."""
    is_voteless: bool = False
    """The node has lost its log: it may not vote before it was removed from the voters and added again."""

    @property
    def has_something_to_lose(self) -> bool:
        """The cluster has instances or is established: it never gives itself up to join another."""
        return self.instance_count > 0 or self.is_established

    @property
    def is_master(self) -> bool:
        """The node leads its cluster."""
        return self.master_node_id == self.node_id


def is_senior(one: ClusterFacts, other: ClusterFacts) -> bool:
    """Say whether the first one's cluster keeps its history when the two meet: a total order on clusters.

    A cluster with something to lose goes before one without, then the one with more members, then the smaller id.
    """
    return _rank(one) < _rank(other)


def _rank(facts: ClusterFacts) -> tuple[bool, int, str]:
    return not facts.has_something_to_lose, -facts.member_count, facts.cluster_id or "~"


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody was noticed: an address to try, and what it said of itself if it said anything."""

    address: HostPort
    facts: ClusterFacts | None = None
    via: str
    """How: `multicast`, `static`, `greeting`, ..."""
    expected_node_id: NodeId | None = None
    """Whom to find there: a member that was at this address when it was seen last."""


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """This node was put out of its cluster."""

    cluster_id: ClusterId
    authority_pem: str | None
    """Of that cluster."""
    reason: str


PeerStatus = Literal[
    "member",
    "joining",
    "other_cluster",
    "other_namespace",
    "other_secret",
    "other_version",
    "both_have_instances",
    "no_master",
    "same_node_id",
    "two_masters",
    "removed",
    "unreachable",
    "malformed",
]


class PeerSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What became of somebody that was noticed; for `exo status` and `exo doctor`."""

    address: HostPort | None
    node_id: NodeId | None = None
    name: str | None = None
    namespace: str | None = None
    cluster_id: ClusterId | None = None
    via: str
    status: PeerStatus
    detail: str
    """One sentence for people: why it is not part of this cluster, and what to do."""
    age_s: float
    """Seconds since it was last noticed."""
    count: int = 1
