"""Reading the cluster: the answers have the documented shapes, and say what the state says."""

import httpx

from exo.api.schemas.cluster import ClusterStateView, GpuInfoView, PeerList
from exo.api.schemas.models import ModelList
from exo.cluster.facts import PeerSeen
from exo.shared.types.devices import (
    DeviceGPUState,
    DeviceRefusal,
    MemoryProfile,
    NodePerformanceProfile,
    SystemProfile,
    ThermalStatus,
)
from exo.shared.types.events import (
    DeviceAppeared,
    DeviceGPUStateUpdated,
    InstanceRestarted,
    LinkMeasured,
    NodeDisconnected,
    NodeProfileUpdated,
    StageProgressed,
)
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.instances import StageProgress
from exo.shared.types.nodes import HostPort
from support.api_world import INSTANCE_ID, World, client_of, parse
from support.states import GIB, fold, gpu
from support.stories import placed, stage

REFUSED = DeviceRefusal(
    backend="cuda",
    kind="wrong",
    name="Test GPU",
    local_alias="cuda:1",
    reason="its check failed: wrong sums",
    next_step="update its driver",
)


def measure(world: World) -> None:
    """Publish one of everything that a node measures."""
    node_id = NodeId("a")
    memory = MemoryProfile(ram_total=8 * GIB, ram_available=6 * GIB, swap_total=0, swap_available=0)
    reading = DeviceGPUState(
        device_id=DeviceId("a/cpu:0"),
        node_id=node_id,
        memory_used_bytes=2 * GIB,
        memory_total_bytes=8 * GIB,
        compute_utilization_percent=12.5,
        thermal_temperature_c=61.0,
        thermal_throttle_threshold_c=95.0,
        health="degraded",
        health_reason="it is warm",
        last_update="2026-01-01T00:00:00Z",
        thermal=ThermalStatus(
            state="slowed",
            reason="Slowed to 60% at 61 C.",
            work_fraction=0.6,
            limit_c=95.0,
            predicted_temperature_c=70.5,
            prediction_error_c=0.8,
            sustained_fraction=0.65,
            is_calibrated=True,
            power_source="measured",
        ),
    )
    world.coordinator.publish(
        [
            NodeProfileUpdated(
                node_id=node_id,
                profile=NodePerformanceProfile(
                    memory=memory, system=SystemProfile(pcpu_usage=12.5), refused_devices=(REFUSED,)
                ),
            ),
            DeviceGPUStateUpdated(state=reading),
            LinkMeasured(
                source_node_id=node_id,
                dest_node_id=NodeId("b"),
                link_type="loopback",
                latency_ms=0.5,
                bandwidth_mbps=1000.0,
            ),
        ]
    )


async def test_state_says_what_is_known(world: World, http: httpx.AsyncClient) -> None:
    measure(world)
    response = await http.get("/state")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    state = parse(ClusterStateView, response.content)
    assert state.index == world.coordinator.state.index
    assert state.master_node_id == "a"
    assert [node.node_id for node in state.topology.nodes] == ["a", "b"]
    first = state.topology.nodes[0]
    assert first.node_profile is not None
    assert first.node_profile.memory.ram_total == 8 * GIB
    assert first.node_profile.system.gpu_count == 0
    assert [model.model_id for model in first.models] == ["toy", "org/broken"]
    assert first.devices[0].memory_total_bytes == 8 * GIB
    assert state.topology.nodes[1].node_profile is None
    assert state.topology.links[0].latency_ms == 0.5
    assert state.topology.metrics.mean_bandwidth_mbps == 1000.0
    assert state.gpu_device_state["a/cpu:0"].memory_used_bytes == 2 * GIB
    thermal = state.gpu_device_state["a/cpu:0"].thermal
    assert thermal is not None and (thermal.state, thermal.sustained_fraction) == ("slowed", 0.65)
    instance = state.instances["i"]
    assert (instance.status, instance.model_id, instance.loaded_layers) == ("ready", "toy", 6)
    assert instance.stages[0].address == "127.0.0.1:7"


async def test_peers_that_are_no_members_are_listed_with_the_reason(
    world: World, http: httpx.AsyncClient
) -> None:
    world.coordinator.peers = (
        PeerSeen(
            address=HostPort("127.0.0.1", 5),
            via="static",
            status="other_namespace",
            detail="it belongs to the namespace blue; start it with --namespace red",
            age_s=1.0,
        ),
    )
    (peer,) = parse(PeerList, (await http.get("/peers")).content).peers
    assert peer.status == "other_namespace" and peer.address is not None and peer.address.port == 5
    assert "--namespace" in peer.detail


async def test_state_shows_loading_and_failing(unplaced: World) -> None:
    unplaced.coordinator.set_state(stage(placed(unplaced.coordinator.state), 0, "loading"))
    instance = unplaced.coordinator.state.instances[INSTANCE_ID]
    node_id = instance.plan.stages[0].node_id
    assert node_id == "a"
    progress = StageProgress(loaded_layers=4, total_layers=6, detail="reading weights")
    unplaced.coordinator.publish(
        [StageProgressed(instance_id=INSTANCE_ID, generation=1, rank=0, progress=progress)]
    )
    async with client_of(unplaced.app()) as http:
        loading = parse(ClusterStateView, (await http.get("/state")).content).instances["i"]
        assert (loading.status, loading.loaded_layers, loading.layer_count) == ("loading", 4, 6)
        assert loading.stages[0].detail == "reading weights"

        unplaced.coordinator.set_state(
            stage(unplaced.coordinator.state, 0, "failed", reason="the file is truncated", is_permanent=True)
        )
        failed = parse(ClusterStateView, (await http.get("/state")).content).instances["i"]
        assert (failed.status, failed.reason) == ("failed", "the file is truncated")

        restarted = InstanceRestarted(instance_id=INSTANCE_ID, generation=2, reason="again")
        unplaced.coordinator.set_state(fold(unplaced.coordinator.state, restarted))
        again = parse(ClusterStateView, (await http.get("/state")).content).instances["i"]
        assert (again.status, again.generation, again.loaded_layers) == ("pending", 2, 0)


async def test_a_node_that_is_away_makes_its_instance_fail(world: World, http: httpx.AsyncClient) -> None:
    gone = NodeDisconnected(node_id=NodeId("a"), reason="no answer for 5 s")
    world.coordinator.set_state(fold(world.coordinator.state, gone))
    state = parse(ClusterStateView, (await http.get("/state")).content)
    assert state.topology.nodes[0].is_connected is False
    assert state.topology.metrics.connected_node_count == 1
    assert state.instances["i"].status == "failed"
    assert "not connected" in (state.instances["i"].reason or "")


async def test_gpu_info_joins_devices_telemetry_and_allocation(world: World, http: httpx.AsyncClient) -> None:
    before = parse(GpuInfoView, (await http.get("/gpu/info")).content)
    assert before.nodes[0].devices[0].health == "unknown"
    assert before.hottest_device is None
    measure(world)
    info = parse(GpuInfoView, (await http.get("/gpu/info")).content)
    device = info.nodes[0].devices[0]
    assert (device.health, device.health_reason) == ("degraded", "it is warm")
    assert device.memory_free_bytes == 6 * GIB
    assert device.thermal.headroom_c == 34.0
    governed = device.thermal.governed
    assert governed is not None and governed.reason == "Slowed to 60% at 61 C."
    assert (governed.state, governed.work_fraction, governed.limit_c) == ("slowed", 0.6, 95.0)
    assert (governed.predicted_temperature_c, governed.prediction_error_c) == (70.5, 0.8)
    assert before.nodes[0].devices[0].thermal.governed is None
    assert [(held.instance_id, held.start_layer, held.end_layer) for held in device.allocations] == [
        ("i", 0, 6)
    ]
    assert info.hottest_device is not None
    assert info.hottest_device.device_id == "a/cpu:0"
    assert info.nodes[1].devices[0].allocations == []
    for alias in ("cuda:10", "cuda:9"):
        appeared = DeviceAppeared(node_id=NodeId("b"), device=gpu("b", GIB, alias))
        world.coordinator.set_state(fold(world.coordinator.state, appeared))
    info = parse(GpuInfoView, (await http.get("/gpu/info")).content)
    numbers = [(one.gpu_id, one.device.local_alias) for one in info.nodes[1].devices]
    assert numbers == [(9, "cuda:9"), (10, "cuda:10"), (11, "cpu:0")]
    assert info.nodes[1].devices[0].thermal.temperature_c is None


async def test_a_device_that_is_refused_is_shown_with_the_reason_and_is_none_of_the_devices(
    world: World, http: httpx.AsyncClient
) -> None:
    measure(world)
    node = parse(ClusterStateView, (await http.get("/state")).content).topology.nodes[0]
    shown = parse(GpuInfoView, (await http.get("/gpu/info")).content).nodes
    for refused in (node.refused_devices, shown[0].refused_devices):
        assert [(one.local_alias, one.kind, one.reason, one.next_step) for one in refused] == [
            ("cuda:1", "wrong", "its check failed: wrong sums", "update its driver")
        ]
    assert shown[1].refused_devices == []
    assert {one.device.local_alias for one in shown[0].devices} == {"cpu:0"}
    assert [one.local_alias for one in node.devices] == ["cpu:0"]
    assert node.node_profile is not None and node.node_profile.system.gpu_count == 0


async def test_models_are_listed_once_with_all_their_nodes(http: httpx.AsyncClient) -> None:
    models = parse(ModelList, (await http.get("/models")).content).models
    assert [model.model_id for model in models] == ["org/broken", "toy"]
    broken, toy = models
    assert broken.problem == "model.safetensors is truncated"
    assert (toy.problem, [node.node_id for node in toy.nodes], toy.instance_ids) == (None, ["a", "b"], ["i"])
    assert toy.total_bytes == 6600


async def test_a_confirmed_state_is_refused_without_a_master(world: World, http: httpx.AsyncClient) -> None:
    answer = await http.get("/state", params={"confirm": "true"})
    assert answer.status_code == 200
    world.coordinator.has_master = False
    assert (await http.get("/state")).status_code == 200, "unconfirmed, it is what this node knows"
    answer = await http.get("/state", params={"confirm": "true"})
    assert answer.status_code == 503
    assert answer.json()["code"] == "no_master"
