"""The cluster as a graph: its links, what a transfer takes, and the whole of it in a few numbers. Pure."""

import heapq
from collections.abc import Iterable, Mapping

import msgspec

from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import DeviceLink, Link, Node
from exo.shared.types.state import State

DIAMETER_NODES_MAX = 64
"""Above so many nodes the diameter is not computed: all pairs of a full mesh cost the cube of the nodes."""

_BITS_PER_S_PER_MBPS = 1_000_000
_GIB = 1024**3


class TopologyMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster in a few numbers. Means and the bottleneck are over links between connected nodes."""

    node_count: int
    connected_node_count: int
    device_count: int
    memory_total_bytes: int
    link_count: int
    mean_latency_ms: float | None
    mean_bandwidth_mbps: float | None
    bottleneck_link: Link | None
    diameter_ms: float | None
    summary: str


def links(state: State) -> tuple[Link, ...]:
    """Return every measured link, sorted by source, then destination."""
    return tuple(live.links[dest] for _, live in sorted(state.live.items()) for dest in sorted(live.links))


def device_links(state: State) -> tuple[DeviceLink, ...]:
    """Return every measured way between two devices that a node has, sorted by node, source, then destination."""
    found: list[DeviceLink] = []
    for node_id, live in sorted(state.live.items()):
        node = state.nodes.get(node_id)
        if not live.device_links or node is None:
            continue
        there = {device.device_id for device in node.identity.devices}
        ways = (live.device_links[key] for key in sorted(live.device_links))
        found += [way for way in ways if way.source_device_id in there and way.dest_device_id in there]
    return tuple(found)


def metrics(state: State) -> TopologyMetrics:
    """Return the cluster's numbers."""
    connected = {key: node for key, node in state.nodes.items() if node.is_connected}
    open_links = [
        link for link in links(state) if link.source_node_id in connected and link.dest_node_id in connected
    ]
    latencies = [link.latency_ms for link in open_links if link.latency_ms is not None]
    bandwidths = [link.bandwidth_mbps for link in open_links if link.bandwidth_mbps is not None]
    device_count = sum(len(node.identity.devices) for node in connected.values())
    memory_bytes = _memory_bytes_by_kind(connected.values())
    return TopologyMetrics(
        node_count=len(state.nodes),
        connected_node_count=len(connected),
        device_count=device_count,
        memory_total_bytes=sum(memory_bytes.values()),
        link_count=len(open_links),
        mean_latency_ms=sum(latencies) / len(latencies) if latencies else None,
        mean_bandwidth_mbps=sum(bandwidths) / len(bandwidths) if bandwidths else None,
        bottleneck_link=bottleneck(open_links),
        diameter_ms=diameter_ms(connected, open_links) if len(connected) <= DIAMETER_NODES_MAX else None,
        summary=_summary(len(state.nodes), len(connected), device_count, memory_bytes),
    )


def bottleneck(candidates: Iterable[Link]) -> Link | None:
    """Return the link of the lowest measured bandwidth; of equals, the first by its ends."""
    measured = [
        (link.bandwidth_mbps, link.source_node_id, link.dest_node_id, link)
        for link in candidates
        if link.bandwidth_mbps is not None
    ]
    return min(measured, key=lambda row: row[:3])[3] if measured else None


def transfer_time_s(link: Link, size_bytes: int) -> float | None:
    """Return what sending so many bytes takes over this link, in seconds; None while it is not measured."""
    if link.latency_ms is None or link.bandwidth_mbps is None or link.bandwidth_mbps <= 0:
        return None
    return link.latency_ms / 1000 + size_bytes * 8 / (link.bandwidth_mbps * _BITS_PER_S_PER_MBPS)


def diameter_ms(nodes: Mapping[NodeId, Node], candidates: Iterable[Link]) -> float | None:
    """Return the latency of the longest of all shortest ways between two nodes.

    Dijkstra's algorithm from every node. None when there are fewer than two nodes, or a pair without a way.
    """
    if len(nodes) < 2:
        return None
    neighbours: dict[NodeId, list[tuple[NodeId, float]]] = {node_id: [] for node_id in nodes}
    for link in candidates:
        if link.latency_ms is not None and link.source_node_id in nodes and link.dest_node_id in nodes:
            neighbours[link.source_node_id].append((link.dest_node_id, link.latency_ms))
    longest = 0.0
    for start in nodes:
        reached = _distances_ms(start, neighbours)
        if len(reached) < len(nodes):
            return None
        longest = max(longest, *reached.values())
    return longest


def _distances_ms(
    start: NodeId, neighbours: Mapping[NodeId, list[tuple[NodeId, float]]]
) -> dict[NodeId, float]:
    reached: dict[NodeId, float] = {}
    open_ends: list[tuple[float, NodeId]] = [(0.0, start)]
    while open_ends:
        distance, node_id = heapq.heappop(open_ends)
        if node_id in reached:
            continue
        reached[node_id] = distance
        for neighbour, latency in neighbours[node_id]:
            if neighbour not in reached:
                heapq.heappush(open_ends, (distance + latency, neighbour))
    return reached


def _memory_bytes_by_kind(nodes: Iterable[Node]) -> dict[str, int]:
    """Return the workers' device memory by what it is; what several nodes of one machine share counts once."""
    seen: dict[tuple[str, str, str], int] = {}
    for node in nodes:
        if not node.identity.is_worker:
            continue
        for device in node.identity.devices:
            own = device.uuid or device.local_alias
            part = own if device.memory_kind == "vram" else "host memory"
            if device.is_simulated:
                part = device.device_id
            kind = "VRAM" if device.memory_kind == "vram" else "RAM"
            key = (node.identity.host_id, part, kind)
            seen[key] = max(seen.get(key, 0), device.memory_total_bytes)
    total: dict[str, int] = {}
    for (_, _, kind), size_bytes in seen.items():
        total[kind] = total.get(kind, 0) + size_bytes
    return total


def _summary(
    node_count: int, connected_count: int, device_count: int, memory_bytes: Mapping[str, int]
) -> str:
    nodes = f"{node_count} node{'' if node_count == 1 else 's'}"
    away = node_count - connected_count
    if away:
        nodes += f" ({away} away)"
    devices = f"{device_count} device{'' if device_count == 1 else 's'}"
    memory = [f"{size / _GIB:.1f} GiB {kind}" for kind, size in sorted(memory_bytes.items(), reverse=True)]
    return ", ".join((nodes, devices, *memory))
