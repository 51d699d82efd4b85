"""`GET /state` put together from kept pieces says what it would say if it were encoded anew, and encodes little."""

from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.api import present
from exo.api.present_state import StateCache
from exo.api.schemas.cluster import ClusterStateView
from exo.shared import topology
from exo.shared.apply import apply_frames
from exo.shared.types import events as e
from exo.shared.types.devices import DeviceGPUState, MemoryProfile, NodePerformanceProfile, SystemProfile
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.instances import StageProgress
from exo.shared.types.state import State
from support.api_world import parse
from support.states import card, cluster, fold, gpu, identity
from support.stories import placed, stage

A = NodeId("a")
NODES = [NodeId(name) for name in "cab"]


def encoded_anew(state: State, master: NodeId | None) -> bytes:
    """The same without keeping anything."""
    profiles = {node_id: live.profile for node_id, live in state.live.items()}
    view = {
        "cluster_id": state.cluster_id,
        "namespace": state.namespace,
        "node_id": A,
        "index": state.index,
        "term": state.term,
        "incarnation": state.incarnation,
        "voters": state.voters,
        "master_node_id": master,
        "topology": {
            "nodes": [
                present.node(node, profiles.get(node_id)) for node_id, node in sorted(state.nodes.items())
            ],
            "links": topology.links(state),
            "device_links": topology.device_links(state),
            "metrics": topology.metrics(state),
        },
        "instances": {key: present.instance(state, value) for key, value in sorted(state.instances.items())},
        "gpu_device_state": {
            key: device
            for _, live in sorted(state.live.items())
            for key, device in sorted(live.devices.items())
        },
    }
    return msgspec.json.encode(view)


def published(state: State, node_id: NodeId, *events: e.Telemetry) -> State:
    node = state.nodes.get(node_id)
    if node is None:
        return state
    live = state.live.get(node_id)
    seq = live.seq + 1 if live is not None else 0
    boot_id = node.identity.boot_id
    frame = e.TelemetryFrame(node_id=node_id, boot_id=boot_id, seq=seq, events=events)
    return apply_frames(state, [frame])[0]


def reading(node_id: NodeId, name: str, used: int) -> e.DeviceGPUStateUpdated:
    return e.DeviceGPUStateUpdated(
        state=DeviceGPUState(
            device_id=DeviceId(f"{node_id}/{name}"),
            node_id=node_id,
            memory_used_bytes=used,
            last_update="2026-01-01T00:00:00Z",
        )
    )


def profile(node_id: NodeId, total: int) -> e.NodeProfileUpdated:
    memory = MemoryProfile(ram_total=total, ram_available=0, swap_total=0, swap_available=0)
    return e.NodeProfileUpdated(
        node_id=node_id, profile=NodePerformanceProfile(memory=memory, system=SystemProfile())
    )


def copied(node_id: NodeId, names: Sequence[str], latency_ms: float) -> e.GPUBandwidthMeasured:
    return e.GPUBandwidthMeasured(
        source_device_id=DeviceId(f"{node_id}/{names[0]}"),
        dest_device_id=DeviceId(f"{node_id}/{names[1]}"),
        bandwidth_mbps=1000.0,
        latency_ms=latency_ms,
        measurement_count=1,
    )


Step = Callable[[State], State]
nodes = st.sampled_from(NODES)
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(
        lambda n, name, used: lambda s: published(s, n, reading(n, name, used)),
        nodes,
        st.sampled_from(["cuda:1", "cuda:0", 'odd "name"']),
        st.integers(0, 3),
    ),
    st.builds(lambda n, total: lambda s: published(s, n, profile(n, total)), nodes, st.integers(0, 3)),
    st.builds(
        lambda n, to, ms: (
            lambda s: published(
                s,
                n,
                e.LinkMeasured(source_node_id=n, dest_node_id=to, link_type="unknown", latency_ms=ms),
            )
        ),
        nodes,
        nodes,
        st.sampled_from([0.5, 2.0]),
    ),
    st.builds(
        lambda n, names, ms: lambda s: published(s, n, copied(n, names, ms)),
        nodes,
        st.permutations(["cpu:0", "cuda:0", "cuda:1"]),
        st.sampled_from([0.5, 2.0]),
    ),
    st.builds(
        lambda n, at: lambda s: fold(s, e.DeviceAppeared(node_id=n, device=gpu(n, 1, f"cuda:{at}"))),
        nodes,
        st.integers(0, 1),
    ),
    st.builds(
        lambda n: lambda s: fold(s, e.DeviceLost(node_id=n, device_id=gpu(n, 1).device_id, reason="r")),
        nodes,
    ),
    st.builds(lambda n: lambda s: published(s, n), nodes),
    st.builds(
        lambda n, boot: lambda s: fold(s, e.NodeJoined(identity=identity(n, boot_id=boot, models=[card()]))),
        nodes,
        st.sampled_from(["boot-1", "boot-2"]),
    ),
    st.builds(lambda n: lambda s: fold(s, e.NodeDisconnected(node_id=n, reason="r")), nodes),
    st.builds(lambda n: lambda s: fold(s, e.NodeRemoved(node_id=n, reason="r")), nodes),
)


@given(st.lists(st.lists(steps, max_size=4), max_size=8))
def test_kept_pieces_say_what_encoding_anew_says(story: list[list[Step]]) -> None:
    cache = StateCache(A)
    state = placed(cluster(*(identity(name, models=[card()]) for name in NODES)))
    assert cache.encode(State(), None) == encoded_anew(State(), None)
    for several in story:
        for step in several:
            state = step(state)
        assert cache.encode(state, A) == encoded_anew(state, A)


def test_the_pieces_make_the_documented_shape() -> None:
    state = placed(cluster(*(identity(name, models=[card()]) for name in NODES)), 2)
    on = state.instances[InstanceId("i")].plan.stages[0].node_id
    progress = StageProgress(loaded_layers=1, total_layers=3, detail="reading weights")
    event = e.StageProgressed(instance_id=InstanceId("i"), generation=1, rank=0, progress=progress)
    state = published(stage(state, 0, "loading"), on, event, reading(on, "cuda:0", 1), profile(on, 5))
    view = parse(ClusterStateView, StateCache(A).encode(state, None))
    assert [node.node_id for node in view.topology.nodes] == sorted(NODES)
    assert view.instances["i"].stages[0].detail == "reading weights"
    assert list(view.gpu_device_state) == [f"{on}/cuda:0"]
    assert view.master_node_id is None


def test_ways_between_devices_are_told_while_both_are_there() -> None:
    state = cluster(identity("a"))
    for alias in ("cuda:0", "cuda:1"):
        state = fold(state, e.DeviceAppeared(node_id=A, device=gpu("a", 1, alias)))
    state = published(state, A, copied(A, ["cuda:1", "cuda:0"], 0.5), copied(A, ["cuda:0", "cuda:1"], 2.0))
    cache = StateCache(A)
    ways = parse(ClusterStateView, cache.encode(state, A)).topology.device_links
    assert [(way.source_device_id, way.dest_device_id, way.latency_ms) for way in ways] == [
        ("a/cuda:0", "a/cuda:1", 2.0),
        ("a/cuda:1", "a/cuda:0", 0.5),
    ]
    gone = fold(state, e.DeviceLost(node_id=A, device_id=DeviceId("a/cuda:1"), reason="it fell off the bus"))
    assert parse(ClusterStateView, cache.encode(gone, A)).topology.device_links == []


def test_only_what_has_changed_is_encoded_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arranged: list[NodeId] = []
    computed: list[int] = []
    arrange, compute = present.node, topology.metrics

    def counting_node(value: present.Node, own: NodePerformanceProfile | None) -> present.View:
        arranged.append(value.identity.node_id)
        return arrange(value, own)

    def counting_metrics(state: State) -> topology.TopologyMetrics:
        computed.append(1)
        return compute(state)

    monkeypatch.setattr(present, "node", counting_node)
    monkeypatch.setattr(topology, "metrics", counting_metrics)
    cache = StateCache(A)
    state = cluster(*(identity(name) for name in NODES))
    first = cache.encode(state, A)
    assert cache.encode(state, A) is first
    assert (sorted(arranged), len(computed)) == (sorted(NODES), 1)

    state = published(state, A, reading(A, "cuda:0", 1))
    assert cache.encode(state, A) != first
    assert (len(arranged), len(computed)) == (3, 2)  # The first telemetry of a node may bring links with it.
    state = published(state, A, reading(A, "cuda:0", 2), profile(A, 1))
    second = cache.encode(state, A)
    assert (arranged[3:], len(computed)) == ([A], 2)
    assert cache.encode(state, None) == second.replace(b'"master_node_id":"a"', b'"master_node_id":null')
    assert (len(arranged), len(computed)) == (4, 2)
