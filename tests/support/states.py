"""Small builders of the shared values, with defaults that fit together."""

from collections.abc import Sequence

from exo.shared.apply import apply_entry, apply_telemetry
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.events import (
    ClusterFormed,
    Decision,
    DeviceGPUStateUpdated,
    LogEntry,
    NodeJoined,
    TelemetryFrame,
    TermOpened,
)
from exo.shared.types.ids import ClusterId, CommandId, EventId, InstanceId, ModelId, NodeId, device_id
from exo.shared.types.instances import (
    Instance,
    PlacementRequest,
    Plan,
    StagePhase,
    StagePlan,
    StageState,
)
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.shared.types.state import State

GIB = 2**30


def card(
    model_id: str = "toy", *, layers: int = 6, layer_bytes: int = 1000, problem: str | None = None
) -> ModelCard:
    """A model whose layers are all of one size."""
    return ModelCard(
        model_id=ModelId(model_id),
        name=model_id,
        family="qwen3",
        dtype="bfloat16",
        layer_count=layers,
        hidden_size=64,
        vocabulary_size=512,
        context_length_max=1024,
        layer_bytes=(layer_bytes,) * layers,
        embedding_bytes=500,
        head_bytes=100,
        has_tied_head=True,
        kv_bytes_per_token_and_layer=64,
        fingerprint=f"{model_id}-{layers}",
        problem=problem,
    )


def cpu(node_id: str, memory_bytes: int) -> GPUDevice:
    """A node's processor."""
    return GPUDevice(
        device_id=device_id(NodeId(node_id), "cpu:0"),
        local_alias="cpu:0",
        name="Test CPU",
        vendor="intel",
        backend="cpu",
        memory_kind="ram",
        memory_total_bytes=memory_bytes,
    )


def gpu(node_id: str, memory_bytes: int, alias: str = "cuda:0") -> GPUDevice:
    """A graphics card with memory of its own."""
    return GPUDevice(
        device_id=device_id(NodeId(node_id), alias),
        local_alias=alias,
        name="Test GPU",
        vendor="nvidia",
        backend="cuda",
        memory_kind="vram",
        memory_total_bytes=memory_bytes,
    )


def identity(
    node_id: str,
    *,
    boot_id: str = "boot-1",
    devices: Sequence[GPUDevice] | None = None,
    models: Sequence[ModelCard] = (),
    is_worker: bool = True,
    host_id: str = "host",
) -> NodeIdentity:
    """A node with one processor of 8 GiB; by default all share one host, and so its memory."""
    return NodeIdentity(
        node_id=NodeId(node_id),
        boot_id=boot_id,
        name=f"host-{node_id}",
        host_id=host_id,
        platform="linux",
        exo_version="0",
        cluster_address=HostPort("127.0.0.1", 1),
        data_address=HostPort("127.0.0.1", 2),
        api_address=HostPort("127.0.0.1", 3),
        is_worker=is_worker,
        devices=tuple(devices) if devices is not None else (cpu(node_id, 8 * GIB),),
        models=tuple(models),
        engines=("mlx",),
        engine_backends={"mlx": ("cuda", "metal", "cpu")},
    )


def fold(state: State, *events: Decision, term: int = 1) -> State:
    """Apply decisions one after the other, as the log would."""
    for event in events:
        entry = LogEntry(
            index=state.index + 1,
            term=term,
            event_id=EventId(f"event-{state.index + 1}"),
            cause_id="test",
            origin=NodeId("test"),
            seq=state.last_seq.get(NodeId("test"), 0) + 1,
            at="2026-01-01T00:00:00Z",
            event=event,
        )
        state = apply_entry(state, entry)
    return state


def cluster(*identities: NodeIdentity) -> State:
    """A formed cluster with these members; the first is the master."""
    return fold(
        State(),
        ClusterFormed(cluster_id=ClusterId("cluster"), namespace="test"),
        TermOpened(master_node_id=identities[0].node_id),
        *(NodeJoined(identity=one) for one in identities),
    )


def with_free_memory(state: State, free_bytes: dict[str, int]) -> State:
    """Set what telemetry says is free on each node's first device."""
    for node_id, free in free_bytes.items():
        node = state.nodes[NodeId(node_id)].identity
        device = node.devices[0]
        live = state.live.get(node.node_id)
        reading = DeviceGPUState(
            device_id=device.device_id,
            node_id=node.node_id,
            memory_total_bytes=device.memory_total_bytes,
            memory_used_bytes=device.memory_total_bytes - free,
            last_update="2026-01-01T00:00:00Z",
        )
        frame = TelemetryFrame(
            node_id=node.node_id,
            boot_id=node.boot_id,
            seq=live.seq + 1 if live else 0,
            events=(DeviceGPUStateUpdated(state=reading),),
        )
        state = apply_telemetry(state, frame)
    return state


def running(
    model: ModelCard, stage: StagePlan, *, instance_id: str = "i", phase: StagePhase = "ready"
) -> Instance:
    """What runs in one stage, as if it had been asked for without wishes."""
    return Instance(
        instance_id=InstanceId(instance_id),
        model=model,
        plan=Plan(
            stages=(stage,),
            sharding="pipeline",
            engine="mlx",
            context_length=1,
            concurrency=1,
            method="greedy",
        ),
        request=PlacementRequest(model_id=model.model_id),
        stages=(StageState(phase=phase),),
        created_by=CommandId("c"),
    )
