"""What nodes measured of the links between them, as the ways between the candidates of a placement."""

from array import array
from collections.abc import Callable, Sequence

import numpy as np

from exo.master.placement.assumed import ASSUMED
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.ways import NodeWays
from exo.master.placement.problem import Candidate
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.state import State

_ASSUMED_LATENCY_S = ASSUMED.zone_link.latency_s
_ASSUMED_BANDWIDTH = ASSUMED.zone_link.bandwidth_bytes_per_s
"""Bytes/s."""


def measured_ways(state: State, candidates: Sequence[Candidate], should_stop: Callable[[], bool]) -> NodeWays:
    """Return the measured links between candidates of different hosts; what is missing is assumed by class.

    Raises:
        StoppedError: `should_stop` said so; it is asked at every node.
    """
    by_node: dict[NodeId, list[DeviceId]] = {}
    for one in candidates:
        by_node.setdefault(one.node_id, []).append(one.device.device_id)
    number_of = {node_id: number for number, node_id in enumerate(by_node)}
    hosts = [state.nodes[node_id].identity.host_id for node_id in by_node]
    # Of a thousand nodes it is a million links: arrays take them without an object for each.
    counts = array("q")
    targets, latencies_s, bandwidths = array("q"), array("d"), array("d")
    for source, node_id in enumerate(by_node):
        if should_stop():
            raise StoppedError
        host, before = hosts[source], len(targets)
        live = state.live.get(node_id)
        for dest, link in live.links.items() if live is not None else ():
            target = number_of.get(dest)
            if target is None or link.link_type == "loopback" or hosts[target] == host:
                continue
            latency_ms, mbps = link.latency_ms, link.bandwidth_mbps
            if latency_ms is None and mbps is None:
                continue
            targets.append(target)
            latencies_s.append(_ASSUMED_LATENCY_S if latency_ms is None else latency_ms / 1000)
            bandwidths.append(_ASSUMED_BANDWIDTH if mbps is None else mbps * 1e6 / 8)
        counts.append(len(targets) - before)
    return NodeWays.told(
        tuple(map(tuple, by_node.values())),
        np.repeat(np.arange(len(counts)), np.array(counts, dtype=np.int64)),
        np.array(targets, dtype=np.int64),
        np.array(latencies_s, dtype=np.float64),
        np.array(bandwidths, dtype=np.float64),
    )
