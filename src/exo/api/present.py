"""State as the outside sees it: internal values arranged into the shapes of `api/schemas`, by plain functions.

The results are dictionaries that hold msgspec structs wherever a shape has a struct's own fields, so that
`msgspec.json.encode` writes them at once; tests hold them against the pydantic shapes.
"""

from typing import Any

from exo.gpu.numbering import with_numbers
from exo.shared.serving import instance_status, measured_tokens_per_s
from exo.shared.types.commands import Preview
from exo.shared.types.devices import DeviceGPUState, GPUDevice, NodePerformanceProfile
from exo.shared.types.ids import DeviceId, ModelId
from exo.shared.types.instances import Instance, StagePlan
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

View = dict[str, Any]


def node(value: Node, profile: NodePerformanceProfile | None) -> View:
    """Return the shape `NodeView`."""
    identity = value.identity
    return {
        "node_id": identity.node_id,
        "name": identity.name,
        "host_id": identity.host_id,
        "zone": identity.zone,
        "boot_id": identity.boot_id,
        "platform": identity.platform,
        "exo_version": identity.exo_version,
        "is_worker": identity.is_worker,
        "is_connected": value.is_connected,
        "left_reason": value.left_reason,
        "api_address": identity.api_address,
        "cluster_address": identity.cluster_address,
        "data_address": identity.data_address,
        "engines": identity.engines,
        "node_profile": None if profile is None else {"memory": profile.memory, "system": profile.system},
        "devices": identity.devices,
        "refused_devices": () if profile is None else profile.refused_devices,
        "models": [
            {"model_id": card.model_id, "total_bytes": card.total_bytes, "problem": card.hindrance}
            for card in identity.models
        ],
    }


def instance(state: State, value: Instance) -> View:
    """Return the shape `InstanceView`."""
    stages = [_stage(state, value, plan) for plan in value.plan.stages]
    status, reason = instance_status(state, value)
    return {
        "instance_id": value.instance_id,
        "model_id": value.model.model_id,
        "status": status,
        "reason": reason,
        "moved_reason": value.moved_reason,
        "generation": value.generation,
        "failures_in_a_row": value.failures_in_a_row,
        "measured_tokens_per_s": measured_tokens_per_s(state, value),
        "loaded_layers": sum(stage["loaded_layers"] for stage in stages),
        "layer_count": value.model.layer_count,
        "request": value.request,
        "plan": value.plan,
        "stages": stages,
        "created_by": value.created_by,
    }


def _stage(state: State, value: Instance, plan: StagePlan) -> View:
    stage = value.stages[plan.rank]
    live = state.live.get(plan.node_id)
    key = f"{value.instance_id}/{value.generation}/{plan.rank}"
    progress = live.stages.get(key) if live is not None else None
    total_layers = plan.end_layer - plan.start_layer
    if stage.phase in ("loaded", "ready"):
        loaded_layers = total_layers
    else:
        loaded_layers = min(progress.loaded_layers, total_layers) if progress is not None else 0
    return {
        "rank": plan.rank,
        "node_id": plan.node_id,
        "phase": stage.phase,
        "address": str(stage.address) if stage.address is not None else None,
        "reason": stage.reason,
        "is_permanent": stage.is_permanent,
        "loaded_layers": loaded_layers,
        "total_layers": total_layers,
        "detail": progress.detail if progress is not None else "",
    }


def preview(value: Preview) -> View:
    """Return the shape `PreviewView`. A struct's type tag is no part of it."""
    refusal = value.refusal
    return {
        "title": value.title,
        "request": value.request,
        "plan": value.plan,
        "refusal": None
        if refusal is None
        else {
            "status": refusal.status,
            "code": refusal.code,
            "message": refusal.message,
            "near_matches": refusal.near_matches,
            "needed_bytes": refusal.needed_bytes,
            "missing_bytes": refusal.missing_bytes,
            "nodes": refusal.nodes,
        },
        "remedy": value.remedy,
    }


def known_cards(state: State) -> dict[ModelId, ModelCard]:
    """Return a card for every model on any node or in any instance; of several, one that can be loaded."""
    found: dict[ModelId, ModelCard] = {}
    for value in state.instances.values():
        found[value.model.model_id] = value.model
    for _, node in sorted(state.nodes.items()):
        for card in node.identity.models:
            before = found.get(card.model_id)
            if before is None or (before.hindrance is not None and card.hindrance is None):
                found[card.model_id] = card
    return found


def models(state: State) -> list[View]:
    """Return the shapes `ModelView`, sorted by id."""
    return [_model(state, card) for _, card in sorted(known_cards(state).items())]


def _model(state: State, card: ModelCard) -> View:
    nodes = [
        {
            "node_id": node_id,
            "name": node.identity.name,
            "is_connected": node.is_connected,
            "fingerprint": own.fingerprint,
            "problem": own.hindrance,
        }
        for node_id, node in sorted(state.nodes.items())
        for own in node.identity.models
        if own.model_id == card.model_id
    ]
    return {
        "model_id": card.model_id,
        "name": card.name,
        "description": card.description,
        "family": card.family,
        "format": card.format,
        "dtype": card.dtype,
        "layer_count": card.layer_count,
        "hidden_size": card.hidden_size,
        "vocabulary_size": card.vocabulary_size,
        "context_length_max": card.context_length_max,
        "total_bytes": card.total_bytes,
        "kv_bytes_per_token_and_layer": card.kv_bytes_per_token_and_layer,
        "problem": card.hindrance,
        "nodes": nodes,
        "instance_ids": sorted(
            key for key, value in state.instances.items() if value.model.model_id == card.model_id
        ),
    }


def gpu_info(state: State) -> View:
    """Return the shape `GpuInfoView`."""
    held: dict[DeviceId, list[View]] = {}
    for _, value in sorted(state.instances.items()):
        for plan in value.plan.stages:
            for device_id in plan.device_ids:
                held.setdefault(device_id, []).append(_allocation(value, plan))
    hottest: View | None = None
    nodes: list[View] = []
    for node_id, node in sorted(state.nodes.items()):
        live = state.live.get(node_id)
        devices: list[View] = []
        for gpu_id, device in with_numbers(node.identity.devices):
            now = live.devices.get(device.device_id) if live is not None else None
            devices.append(_device_info(gpu_id, device, now, held.get(device.device_id, [])))
            heat = now.thermal_temperature_c if now is not None else None
            if heat is not None and (hottest is None or heat > hottest["temperature_c"]):
                hottest = {"node_id": node_id, "device_id": device.device_id, "temperature_c": heat}
        nodes.append(
            {
                "node_id": node_id,
                "name": node.identity.name,
                "is_connected": node.is_connected,
                "devices": devices,
                "refused_devices": live.profile.refused_devices
                if live is not None and live.profile is not None
                else (),
            }
        )
    return {"index": state.index, "nodes": nodes, "hottest_device": hottest}


def _allocation(value: Instance, plan: StagePlan) -> View:
    return {
        "instance_id": value.instance_id,
        "model_id": value.model.model_id,
        "rank": plan.rank,
        "start_layer": plan.start_layer,
        "end_layer": plan.end_layer,
        "memory_bytes": plan.memory_bytes,
    }


def _device_info(gpu_id: int, device: GPUDevice, now: DeviceGPUState | None, allocations: list[View]) -> View:
    heat = now.thermal_temperature_c if now is not None else None
    limit = now.thermal_throttle_threshold_c if now is not None else None
    governed = now.thermal if now is not None else None
    return {
        "gpu_id": gpu_id,
        "device": device,
        "state": now,
        "health": now.health if now is not None else "unknown",
        "health_reason": now.health_reason if now is not None else None,
        "memory_free_bytes": now.memory_free_bytes if now is not None else None,
        "allocations": allocations,
        "thermal": {
            "temperature_c": heat,
            "throttle_threshold_c": limit,
            "headroom_c": limit - heat if limit is not None and heat is not None else None,
            "is_throttling": now.is_thermal_throttling if now is not None else None,
            "governed": governed,
        },
    }
