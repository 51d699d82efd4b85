"""The cluster's state as Prometheus reads it: members, links, instances, events, elections."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

from exo.api.exposition import Family, Row, labels
from exo.cluster.coordinator import CountedKind, Leadership
from exo.cluster.facts import PeerSeen, PeerStatus
from exo.shared import topology
from exo.shared.serving import instance_status
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import InstanceStatus
from exo.shared.types.state import State

_BYTES_PER_S_PER_MBPS = 125_000
_STATUSES: tuple[InstanceStatus, ...] = ("pending", "loading", "ready", "failed")


class Elections:
    """Counts the terms that began while this node was watching: each is an election somebody won."""

    def __init__(self, leadership: Leadership) -> None:
        self._last = (leadership.incarnation, leadership.term)
        self.count = 0

    def see(self, leadership: Leadership) -> int:
        """Look at who leads now, and return how many terms have begun since the start."""
        incarnation, term = self._last
        if leadership.incarnation == incarnation:
            self.count += max(0, leadership.term - term)
        else:
            # A history begun anew counts its terms anew.
            self.count += 1
        self._last = (leadership.incarnation, leadership.term)
        return self.count


_COUNTED: dict[CountedKind, tuple[str, str, str]] = {
    "connections": (
        "exo_cluster_connections_total",
        "outcome",
        "Connections of nodes to this one, by what became of them: let in, ended, or refused and why.",
    ),
    "beacons": (
        "exo_discovery_beacons_total",
        "outcome",
        "Beacons of nodes that were heard, by what became of them.",
    ),
    "incidents": (
        "exo_cluster_incidents_total",
        "kind",
        "What nodes sent that had to be refused, and what happens seldom: elections, changes of role, snapshots.",
    ),
}


def counted(counts: Mapping[CountedKind, Mapping[str, int]]) -> list[Family]:
    """Return what a coordinator has counted since it started."""
    return [
        Family(
            name, "counter", text, [(labels({label: key}), count) for key, count in sorted(by_key.items())]
        )
        for kind, by_key in counts.items()
        for name, label, text in (_COUNTED[kind],)
    ]


def peers_seen(peers: Sequence[PeerSeen]) -> Family:
    """Return how many other nodes are noticed, by what becomes of them: two clusters that stay apart refuse nothing."""
    by_status = Counter(peer.status for peer in peers)
    return Family(
        "exo_peers_seen",
        "gauge",
        "Other nodes that this one has noticed, by what becomes of them: members, and why the others are none.",
        [(labels({"status": status}), by_status[status]) for status in get_args(PeerStatus)],
    )


def families(state: State, node_id: NodeId, leadership: Leadership, elections: int) -> Sequence[Family]:
    """Return what the state says beside its devices.

    Args:
        state: The newest folded here.
        node_id: This node.
        leadership: Who leads, as far as this node knows.
        elections: See `Elections`.
    """
    connected = sum(node.is_connected for node in state.nodes.values())
    statuses = Counter(instance_status(state, instance)[0] for instance in state.instances.values())
    by_model = Counter(
        (instance.model.model_id, instance_status(state, instance)[0])
        for instance in state.instances.values()
    )
    return [
        Family(
            "exo_nodes",
            "gauge",
            "Members of the cluster.",
            [
                (labels({"connected": "true"}), connected),
                (labels({"connected": "false"}), len(state.nodes) - connected),
            ],
        ),
        Family(
            "exo_instances",
            "gauge",
            "Placed instances by status.",
            [(labels({"status": status}), statuses[status]) for status in _STATUSES],
        ),
        Family(
            "exo_model_instances",
            "gauge",
            "Placed instances by model and status.",
            [
                (labels({"model": model_id, "status": status}), count)
                for (model_id, status), count in sorted(by_model.items())
            ],
        ),
        Family(
            "exo_events_index",
            "gauge",
            "Index of the last decision folded in on this node.",
            [("", state.index)],
        ),
        Family(
            "exo_events_total", "counter", "Decisions that the cluster has made so far.", [("", state.index)]
        ),
        Family("exo_term", "gauge", "The present master's term.", [("", leadership.term)]),
        Family(
            "exo_elections_total",
            "counter",
            "Terms of masters that began since this node started.",
            [("", elections)],
        ),
        Family("exo_is_master", "gauge", "1 while this node decides, else 0.", [("", leadership.is_self)]),
        Family(
            "exo_has_master",
            "gauge",
            "1 while this node knows who decides, else 0.",
            [("", leadership.master_node_id is not None)],
        ),
        *_host_families(state),
        *_link_families(state),
        Family("exo_build_info", "gauge", "What this node runs; always 1.", _build(state, node_id)),
    ]


def _build(state: State, node_id: NodeId) -> list[Row]:
    node = state.nodes.get(node_id)
    if node is None:
        return []
    values = {"node": node_id, "version": node.identity.exo_version, "platform": node.identity.platform}
    return [(labels(values), 1)]


def _host_families(state: State) -> list[Family]:
    profiles = [
        (labels({"node": node_id, "host": node.identity.name}), live.profile)
        for node_id, node in sorted(state.nodes.items())
        if node.is_connected and (live := state.live.get(node_id)) is not None and live.profile is not None
    ]
    return [
        Family(
            "exo_host_memory_total_bytes",
            "gauge",
            "Memory of a host.",
            [(where, profile.memory.ram_total) for where, profile in profiles],
        ),
        Family(
            "exo_host_memory_available_bytes",
            "gauge",
            "Memory that is left on a host.",
            [(where, profile.memory.ram_available) for where, profile in profiles],
        ),
    ]


def _link_families(state: State) -> list[Family]:
    latencies: list[Row] = []
    bandwidths: list[Row] = []
    for link in topology.links(state):
        where = labels(
            {"source": link.source_node_id, "destination": link.dest_node_id, "type": link.link_type}
        )
        if link.latency_ms is not None:
            latencies.append((where, link.latency_ms / 1000))
        if link.bandwidth_mbps is not None:
            bandwidths.append((where, link.bandwidth_mbps * _BYTES_PER_S_PER_MBPS))
    return [
        Family("exo_link_latency_seconds", "gauge", "One way between two nodes, as measured.", latencies),
        Family(
            "exo_link_bandwidth_bytes_per_second",
            "gauge",
            "What a transfer between two nodes reached.",
            bandwidths,
        ),
    ]
