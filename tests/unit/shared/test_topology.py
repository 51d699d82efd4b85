"""The cluster's numbers, against hand-made clusters and a naive oracle."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.shared import topology
from exo.shared.apply import apply_telemetry
from exo.shared.types.devices import GPUDevice
from exo.shared.types.events import LinkMeasured, NodeDisconnected, TelemetryFrame
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.nodes import Link, NodeIdentity
from exo.shared.types.state import State
from support.states import GIB, cluster, cpu, fold, gpu, identity


def measured(state: State, links: dict[tuple[str, str], tuple[float | None, float | None]]) -> State:
    """Publish measured links: (source, destination) to (latency in ms, bandwidth in Mbit/s)."""
    for (source, dest), (latency_ms, bandwidth_mbps) in links.items():
        live = state.live.get(NodeId(source))
        event = LinkMeasured(
            source_node_id=NodeId(source),
            dest_node_id=NodeId(dest),
            link_type="ethernet",
            latency_ms=latency_ms,
            bandwidth_mbps=bandwidth_mbps,
        )
        frame = TelemetryFrame(
            node_id=NodeId(source), boot_id="boot-1", seq=live.seq + 1 if live else 0, events=(event,)
        )
        state = apply_telemetry(state, frame)
    return state


def on_host(value: NodeIdentity, host_id: str) -> NodeIdentity:
    return msgspec.structs.replace(value, host_id=host_id)


def test_nothing_is_measured_on_a_lone_node() -> None:
    found = topology.metrics(cluster(identity("a")))
    assert (found.node_count, found.device_count, found.memory_total_bytes) == (1, 1, 8 * GIB)
    assert (found.mean_latency_ms, found.mean_bandwidth_mbps, found.bottleneck_link) == (None, None, None)
    assert found.diameter_ms is None
    assert found.summary == "1 node, 1 device, 8.0 GiB RAM"


def test_memory_of_gpus_and_of_hosts_is_not_added_up_in_words() -> None:
    own = identity("a")
    gpu = msgspec.structs.replace(
        own.devices[0],
        device_id=DeviceId("a/cuda:0"),
        local_alias="cuda:0",
        uuid="gpu",
        backend="cuda",
        memory_kind="vram",
        memory_total_bytes=24 * GIB,
    )
    found = topology.metrics(cluster(msgspec.structs.replace(own, devices=(own.devices[0], gpu))))
    assert found.summary == "1 node, 2 devices, 24.0 GiB VRAM, 8.0 GiB RAM"
    assert found.memory_total_bytes == 32 * GIB


def test_means_bottleneck_and_diameter() -> None:
    state = cluster(identity("a"), identity("b"), identity("c"))
    links = {
        ("a", "b"): (1.0, 1000.0),
        ("b", "a"): (2.0, 500.0),
        ("b", "c"): (3.0, 100.0),
        ("c", "b"): (4.0, None),
    }
    found = topology.metrics(measured(state, links))
    assert found.link_count == 4
    assert found.mean_latency_ms == 2.5
    assert found.mean_bandwidth_mbps == pytest.approx(1600 / 3)
    assert found.bottleneck_link is not None
    assert (found.bottleneck_link.source_node_id, found.bottleneck_link.dest_node_id) == ("b", "c")
    assert found.diameter_ms == 6.0


def test_a_node_that_is_away_takes_its_links_and_devices_along() -> None:
    state = measured(
        cluster(identity("a"), identity("b")), {("a", "b"): (1.0, 10.0), ("b", "a"): (1.0, 10.0)}
    )
    found = topology.metrics(fold(state, NodeDisconnected(node_id=NodeId("b"), reason="off")))
    assert (found.node_count, found.connected_node_count, found.device_count, found.link_count) == (
        2,
        1,
        1,
        0,
    )
    assert found.summary.startswith("2 nodes (1 away), 1 device, ")


def test_memory_of_one_machine_counts_once() -> None:
    card: GPUDevice = gpu("a", 24 * GIB)
    state = cluster(
        on_host(identity("a", devices=(cpu("a", 64 * GIB), card)), "one"),
        on_host(
            identity("b", devices=(cpu("b", 64 * GIB), msgspec.structs.replace(card, device_id="b/x"))), "one"
        ),
        on_host(identity("c", devices=(cpu("c", 32 * GIB),)), "two"),
        on_host(identity("d", devices=(cpu("d", 99 * GIB),), is_worker=False), "three"),
    )
    assert topology.metrics(state).memory_total_bytes == (64 + 24 + 32) * GIB


def test_simulated_devices_are_machines_of_their_own() -> None:
    devices = tuple(
        msgspec.structs.replace(gpu("a", GIB, alias=alias), is_simulated=True, memory_kind="unified")
        for alias in ("simulated:0", "simulated:1")
    )
    assert topology.metrics(cluster(identity("a", devices=devices))).memory_total_bytes == 2 * GIB


def test_a_transfer_takes_latency_and_size_over_bandwidth() -> None:
    link = Link(source_node_id=NodeId("a"), dest_node_id=NodeId("b"), latency_ms=2.0, bandwidth_mbps=8.0)
    assert topology.transfer_time_s(link, 1_000_000) == pytest.approx(1.002)
    for missing in ({"latency_ms": None}, {"bandwidth_mbps": None}, {"bandwidth_mbps": 0.0}):
        assert topology.transfer_time_s(msgspec.structs.replace(link, **missing), 1) is None


@given(
    st.integers(2, 5).flatmap(
        lambda count: st.dictionaries(
            st.sampled_from(list(itertools.permutations("abcde"[:count], 2))), st.integers(0, 20), max_size=20
        ).map(lambda links: (count, links))
    )
)
def test_the_diameter_equals_the_naive_one(case: tuple[int, dict[tuple[str, str], int]]) -> None:
    count, links = case
    names = "abcde"[:count]
    state = cluster(*(identity(name) for name in names))
    state = measured(state, {ends: (float(latency), None) for ends, latency in links.items()})
    # Floyd and Warshall's algorithm, over every node in between.
    best = {(a, b): 0.0 if a == b else float(links.get((a, b), 10**9)) for a in names for b in names}
    for between in names:
        for a in names:
            for b in names:
                best[a, b] = min(best[a, b], best[a, between] + best[between, b])
    longest = max(best.values())
    assert topology.metrics(state).diameter_ms == (None if longest >= 10**9 else longest)


def test_the_diameter_of_a_large_cluster_is_left_out() -> None:
    count = topology.DIAMETER_NODES_MAX + 1
    names = [f"n{number:03}" for number in range(count)]
    state = cluster(*(identity(name) for name in names))
    ring = {(names[i], names[(i + 1) % count]): (1.0, None) for i in range(count)}
    assert topology.metrics(measured(state, ring)).diameter_ms is None
