"""Machines with GPUs that fail, vanish and come back, and models placed on them."""

from collections.abc import Sequence
from typing import Any

from exo.master.decide import decide
from exo.master.placement.place import place_instance
from exo.shared.apply import apply_telemetry
from exo.shared.types.commands import CommitPlan
from exo.shared.types.devices import DeviceGPUState, Health
from exo.shared.types.events import DeviceGPUStateUpdated, DeviceLost, StageChanged, TelemetryFrame
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.state import State
from support.states import card, cpu, fold, gpu, identity

MIB = 2**20


def model(model_id: str = "toy", *, size_mib: int = 600) -> ModelCard:
    """Six layers of this size in all; each stage takes 128 MiB and some KiB more."""
    return card(model_id, layer_bytes=size_mib * MIB // 6)


def machine(
    node_id: str,
    *aliases: str,
    vram_mib: int = 1024,
    ram_mib: int = 8192,
    models: Sequence[ModelCard] | None = None,
) -> NodeIdentity:
    """A host of its own with these GPUs beside its processor."""
    gpus = [gpu(node_id, vram_mib * MIB, alias) for alias in aliases]
    return identity(
        node_id,
        devices=[cpu(node_id, ram_mib * MIB), *gpus],
        models=models if models is not None else [model()],
        host_id=f"host-{node_id}",
    )


def on(state: State, *device_ids: str, instance_id: str = "i", model_id: str = "toy", **asked: Any) -> State:
    """Place a model so that it is on these devices and ready, as if nothing else had been there at the time."""
    nodes = [DeviceId(one).partition("/")[0] for one in device_ids]
    narrow = PlacementRequest(
        model_id=ModelId(model_id),
        device_ids=tuple(DeviceId(one) for one in device_ids),
        min_nodes=len(nodes),
    )
    plan = place_instance(state, narrow, should_stop=lambda: False)
    assert isinstance(plan, Plan), plan
    asked.setdefault("min_nodes", 1)
    request = PlacementRequest(model_id=ModelId(model_id), **asked)
    command = CommitPlan(
        command_id=CommandId(f"c-{instance_id}"),
        instance_id=InstanceId(instance_id),
        request=request,
        plan=plan,
    )
    events = decide(state, command)
    assert isinstance(events, list), events
    ready = [
        StageChanged(instance_id=command.instance_id, generation=1, rank=stage.rank, phase="ready")
        for stage in plan.stages
    ]
    return fold(state, *events, *ready)


def told(
    state: State,
    device_id: str,
    health: Health = "healthy",
    reason: str | None = None,
    *,
    used_mib: int = 0,
) -> State:
    """What its node says of a device."""
    node_id = NodeId(device_id.partition("/")[0])
    member = state.nodes[node_id].identity
    device = next(one for one in member.devices if one.device_id == device_id)
    live = state.live.get(node_id)
    reading = DeviceGPUState(
        device_id=device.device_id,
        node_id=node_id,
        memory_total_bytes=device.memory_total_bytes,
        memory_used_bytes=used_mib * MIB,
        health=health,
        health_reason=reason,
        last_update="2026-01-01T00:00:00Z",
    )
    frame = TelemetryFrame(
        node_id=node_id,
        boot_id=member.boot_id,
        seq=live.seq + 1 if live else 0,
        events=(DeviceGPUStateUpdated(state=reading),),
    )
    return apply_telemetry(state, frame)


def failed(state: State, device_id: str, reason: str = "Xid 79") -> State:
    return told(state, device_id, "failed", reason)


def gone(state: State, device_id: str) -> State:
    node_id = NodeId(device_id.partition("/")[0])
    return fold(state, DeviceLost(node_id=node_id, device_id=DeviceId(device_id), reason="test"))


def devices_of(state: State, instance_id: str = "i") -> list[str]:
    """Return where an instance is, without the names of nodes where they need none."""
    plan = state.instances[InstanceId(instance_id)].plan
    return [device_id for stage in plan.stages for device_id in stage.device_ids]
