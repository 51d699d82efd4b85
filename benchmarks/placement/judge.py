"""Judges what placement answers by a reading of state and request of its own: nothing here is shared with placement."""

import math
import random

from exo.shared.types.commands import Refusal
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.instances import Instance, PlacementRequest, Plan
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

_STAGE_BYTES = 512 * 2**20
"""More than what placement keeps for a stage's process and activations: what fits with it fits."""
_LOADING = {"pending", "starting", "loading"}


def faults(state: State, request: PlacementRequest, answer: object) -> list[str]:
    """What is wrong with an answer: a plan that must not be, or a refusal that does not say why."""
    if isinstance(answer, Refusal):
        said = [] if len(answer.message) > 20 and answer.code else [f"a refusal without a reason: {answer!r}"]
        if not 400 <= answer.status < 500:
            said.append(f"a refusal with the status {answer.status}: {answer.message}")
        return said
    if not isinstance(answer, Plan):
        return [f"neither a plan nor a refusal: {answer!r}"]
    return [
        *_of_layers(state, answer),
        *_of_memory(state, request, answer),
        *_of_request(state, request, answer),
        *_of_figures(answer),
    ]


def free_bytes(state: State) -> dict[str, int]:
    """What is free of each memory, by its name: a card's own, or that of its host."""
    size: dict[str, int] = {}
    seen: dict[str, int] = {}
    promised: dict[str, int] = {}
    unseen: dict[str, int] = {}
    for node in state.nodes.values():
        for device in node.identity.devices:
            name = memory_of(node, device)
            size[name] = min(size.get(name, device.memory_total_bytes), device.memory_total_bytes)
            live = state.live.get(node.identity.node_id)
            told = live.devices.get(device.device_id) if live is not None and node.is_connected else None
            if (
                told is not None
                and told.memory_total_bytes is not None
                and told.memory_used_bytes is not None
            ):
                free = max(0, told.memory_total_bytes - told.memory_used_bytes)
                seen[name] = min(seen.get(name, free), free)
    homes = _homes(state)
    for instance in state.instances.values():
        for plan, stage in zip(instance.plan.stages, instance.stages, strict=True):
            for device_id in plan.device_ids:
                if device_id not in homes or stage.phase == "failed":
                    continue
                name, share = memory_of(*homes[device_id]), plan.memory_bytes // len(plan.device_ids)
                promised[name] = promised.get(name, 0) + share
                unseen[name] = unseen.get(name, 0) + (share if stage.phase in _LOADING else 0)
    return {
        name: max(0, min(most - promised.get(name, 0), seen.get(name, most) - unseen.get(name, 0)))
        for name, most in size.items()
    }


def memory_of(node: Node, device: GPUDevice) -> str:
    """Cards have memory of their own; all else on a host shares the host's."""
    return str(device.device_id) if device.memory_kind == "vram" else f"memory of {node.identity.host_id}"


def needed_bytes(model: ModelCard, request: PlacementRequest, plan: Plan, rank: int) -> int:
    """The least that a stage takes: its weights, its part of the cache, and embedding or head at the ends."""
    stage = plan.stages[rank]
    layers = range(stage.start_layer, stage.end_layer)
    total = sum(
        model.layer_bytes[layer] + request.concurrency * _cache_bytes(model, layer, plan.context_length)
        for layer in layers
    )
    if rank == 0:
        total += model.embedding_bytes
    if rank == len(plan.stages) - 1:
        total += model.head_bytes + (model.embedding_bytes if model.has_tied_head and rank else 0)
    return total


def _cache_bytes(model: ModelCard, layer: int, tokens: int) -> int:
    """What one sequence keeps in a layer, rounded to no engine's steps."""
    kept = model.layer_kv_tokens_max[layer] if model.layer_kv_tokens_max else 0
    each = model.layer_kv_bytes_per_token or (model.kv_bytes_per_token_and_layer,) * model.layer_count
    state = model.layer_state_bytes[layer] if model.layer_state_bytes else 0
    return each[layer] * (min(kept, tokens) if kept else tokens) + state


def model_of(state: State, plan: Plan) -> ModelCard | None:
    """The card of the plan's model on its first stage's node."""
    cards = state.nodes[plan.stages[0].node_id].identity.models if plan.stages else ()
    named = plan.explanation.split(":", 1)[0]
    return next((card for card in cards if card.model_id == named), cards[0] if len(cards) == 1 else None)


def _homes(state: State) -> dict[DeviceId, tuple[Node, GPUDevice]]:
    return {
        device.device_id: (node, device) for node in state.nodes.values() for device in node.identity.devices
    }


def _of_layers(state: State, plan: Plan) -> list[str]:
    said: list[str] = []
    at = 0
    used: list[DeviceId] = []
    for rank, stage in enumerate(plan.stages):
        if stage.rank != rank or stage.start_layer != at or stage.end_layer <= at:
            said.append(
                f"stage {rank} is {stage.rank} with layers {stage.start_layer} to {stage.end_layer}, not from {at}"
            )
        at = stage.end_layer
        used.extend(stage.device_ids)
        node = state.nodes.get(stage.node_id)
        if node is None or not node.is_connected or not node.identity.is_worker:
            said.append(f"stage {rank} is on {stage.node_id}, which cannot run it")
        elif not set(stage.device_ids) <= {one.device_id for one in node.identity.devices}:
            said.append(f"stage {rank} uses devices that {stage.node_id} does not have")
        if not stage.device_ids:
            said.append(f"stage {rank} has no device")
    if len(set(used)) < len(used):
        said.append("a device is used twice")
    model = model_of(state, plan) if plan.stages else None
    if model is None or at != model.layer_count:
        said.append(f"{at} layers are placed of {model.layer_count if model else 'no model'}")
    return said


def _of_memory(state: State, request: PlacementRequest, plan: Plan) -> list[str]:
    model = model_of(state, plan)
    if model is None:
        return ["no card of the model"]
    said: list[str] = []
    taken: dict[str, int] = {}
    homes = _homes(state)
    for rank, stage in enumerate(plan.stages):
        least = needed_bytes(model, request, plan, rank)
        if stage.memory_bytes < least:
            said.append(f"stage {rank} promises {stage.memory_bytes} bytes and needs {least}")
        for one in stage.device_ids:
            name = memory_of(*homes[one])
            taken[name] = taken.get(name, 0) + -(-max(least, stage.memory_bytes) // len(stage.device_ids))
    free = free_bytes(state)
    said += [
        f"{name} has {free[name]} bytes free of {size}" for name, size in taken.items() if size > free[name]
    ]
    return said


def _of_request(state: State, request: PlacementRequest, plan: Plan) -> list[str]:
    nodes = {stage.node_id for stage in plan.stages}
    devices = {one for stage in plan.stages for one in stage.device_ids}
    zones = {state.nodes[node].identity.zone for node in nodes}
    named: set[str] = {*nodes, *devices}
    said: list[str] = []
    if len(nodes) < request.min_nodes:
        said.append(f"{len(nodes)} nodes of {request.min_nodes}")
    if len(zones) < request.min_zones:
        said.append(f"{len(zones)} zones of {request.min_zones}")
    if request.node_ids and not nodes <= set(request.node_ids):
        said.append("a node that was not asked for")
    if request.device_ids and not devices <= set(request.device_ids):
        said.append("a device that was not asked for")
    if named & set(request.exclude):
        said.append(f"excluded: {named & set(request.exclude)}")
    if not set(request.must_use) <= named:
        said.append(f"not used: {set(request.must_use) - named}")
    if request.zones and not zones <= set(request.zones):
        said.append(f"zones {zones}")
    if request.layer_split and list(request.layer_split) != [
        s.end_layer - s.start_layer for s in plan.stages
    ]:
        said.append("another split")
    for instance in state.instances.values():
        if _are_apart(instance, request):
            shared = nodes & {stage.node_id for stage in instance.plan.stages}
            said += [f"{shared} run {instance.instance_id}"] if shared else []
    return said


def _of_figures(plan: Plan) -> list[str]:
    said: list[str] = []
    told = plan.prediction
    numbers: list[tuple[str, float | None]] = [(f"time of {s.rank}", s.time_ms) for s in plan.stages]
    if told is not None:
        numbers += [("time", told.ms_per_token), ("tokens/s", told.tokens_per_s)]
    if plan.certificate is not None:
        numbers += [("bound", plan.certificate.lower_bound_ms), ("gap", plan.certificate.gap_percent)]
    if plan.baseline is not None:
        numbers.append(("baseline", plan.baseline.ms_per_token))
    for name, value in numbers:
        if value is not None and not (math.isfinite(value) and value >= 0):
            said.append(f"{name} is {value}")
    ms = None if told is None else told.ms_per_token
    bound = None if plan.certificate is None else plan.certificate.lower_bound_ms
    simple = None if plan.baseline is None else plan.baseline.ms_per_token
    if ms is not None and bound is not None and bound > ms * (1 + 1e-9):
        said.append(f"the bound {bound} is above the plan's {ms}")
    if ms is not None and simple is not None and simple < ms * (1 - 1e-9):
        said.append(f"the plan's {ms} is above the simple split's {simple}")
    words = " ".join(line for line in plan.explanation.splitlines() if not line.startswith("note:")).split()
    if not words or {"nan", "inf", "-inf"} & set(words):
        said.append(f"an explanation that is none: {plan.explanation[:200]!r}")
    return said


def has_plain_plan(state: State, request: PlacementRequest, chance: random.Random) -> bool:
    """Look for a plan where none is said to be: random rings of what may surely be used, filled one after the other.

    Only for requests without rules on what takes part together; each stage has the reserve that placement keeps.
    """
    if request.min_nodes > 1 or request.min_zones > 1 or request.must_use or request.layer_split:
        return False
    free = free_bytes(state)
    usable: list[tuple[Node, GPUDevice]] = []
    for node in state.nodes.values():
        identity = node.identity
        if not node.is_connected or {identity.node_id} & set(request.exclude):
            continue
        if (request.node_ids and identity.node_id not in request.node_ids) or (
            request.zones and identity.zone not in request.zones
        ):
            continue
        if _runs_what_to_avoid(state, request, identity.node_id):
            continue
        for device in identity.devices:
            told = (
                state.live[identity.node_id].devices.get(device.device_id)
                if identity.node_id in state.live
                else None
            )
            is_out = device.device_id in request.exclude or (told is not None and told.health == "failed")
            if is_out or (request.device_ids and device.device_id not in request.device_ids):
                continue
            is_beside_gpu = any(one.backend != "cpu" for one in identity.devices)
            if device.backend == "cpu" and request.prefer_gpu and is_beside_gpu:
                continue
            if (
                device.backend != "cpu"
                and not request.prefer_gpu
                and any(one.backend == "cpu" for one in identity.devices)
            ):
                continue
            usable.append((node, device))
    model = state.nodes[min(state.nodes)].identity.models[0]
    tokens = request.context_length or min(model.context_length_max, 4096)
    sizes = [
        size + request.concurrency * _cache_bytes(model, layer, tokens)
        for layer, size in enumerate(model.layer_bytes)
    ]
    for _ in range(40):
        if usable and _fills(model, sizes, dict(free), chance.sample(usable, chance.randint(1, len(usable)))):
            return True
    return False


def _fills(
    model: ModelCard, sizes: list[int], left: dict[str, int], ring: list[tuple[Node, GPUDevice]]
) -> bool:
    at = 0
    for rank, (node, device) in enumerate(ring):
        name, is_last = memory_of(node, device), rank == len(ring) - 1
        held = _STAGE_BYTES + (model.embedding_bytes if rank == 0 or (is_last and model.has_tied_head) else 0)
        left[name] -= held + (model.head_bytes if is_last else 0)
        begin = at
        while at < len(sizes) - (len(ring) - rank - 1) and sizes[at] <= left[name]:
            left[name] -= sizes[at]
            at += 1
        if at == begin or left[name] < 0:
            return False
    return at == len(sizes)


def _runs_what_to_avoid(state: State, request: PlacementRequest, node_id: NodeId) -> bool:
    return any(
        _are_apart(instance, request) and any(stage.node_id == node_id for stage in instance.plan.stages)
        for instance in state.instances.values()
    )


def _are_apart(instance: Instance, request: PlacementRequest) -> bool:
    """Whichever of the two was placed first."""
    return bool({instance.instance_id, instance.model.model_id} & set(request.apart_from)) or (
        request.model_id in instance.request.apart_from
    )
