"""The placement problem, read off the state: which devices may take part, with how much room, and why others not."""

import msgspec

from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.instances import ExcludedDevice, PlacementRequest
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

CONTEXT_LENGTH_DEFAULT = 4096
RESERVE_BYTES = 128 * 1024 * 1024
"""Taken by the stage's own process beside weights and cache: interpreter, libraries, buffers."""
ENGINES_BY_FORMAT = {"safetensors": ("mlx",)}
"""Engines that can run a format, preferred first."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A device that may take part."""

    device: GPUDevice
    node_id: NodeId
    node_name: str
    memory_free_bytes: int


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a solver needs, and nothing else."""

    model: ModelCard
    request: PlacementRequest
    engine: str
    context_length: int
    candidates: tuple[Candidate, ...]
    """At most one device per node, sorted by device id."""
    excluded: tuple[ExcludedDevice, ...]
    state_index: int

    def stage_memory_bytes(self, start_layer: int, end_layer: int) -> int:
        """Bytes that a stage with these layers takes: weights, KV cache for the whole context, reserve."""
        model = self.model
        layers = end_layer - start_layer
        total = sum(model.layer_bytes[start_layer:end_layer])
        total += self.request.concurrency * self.context_length * model.kv_bytes_per_token_and_layer * layers
        is_last = end_layer == model.layer_count
        if start_layer == 0 or (is_last and model.has_tied_head):
            total += model.embedding_bytes
        if is_last:
            total += model.head_bytes
        return total + RESERVE_BYTES


def context_length_of(model: ModelCard, request: PlacementRequest) -> int:
    """Tokens per sequence to keep room for."""
    if request.context_length is not None:
        return request.context_length
    return min(model.context_length_max, CONTEXT_LENGTH_DEFAULT)


def build_problem(state: State, model: ModelCard, request: PlacementRequest, engine: str) -> Problem:
    """Apply the hard filters; keep a reason for every device that is dropped."""
    candidates: list[Candidate] = []
    excluded: list[ExcludedDevice] = []
    for node_id in sorted(state.nodes):
        node = state.nodes[node_id]
        usable: list[Candidate] = []
        for device in node.identity.devices:
            reason = _why_not(state, node, device, model, request, engine)
            if reason is not None:
                excluded.append(ExcludedDevice(device_id=device.device_id, reason=reason))
                continue
            usable.append(
                Candidate(
                    device=device,
                    node_id=node_id,
                    node_name=node.identity.name,
                    memory_free_bytes=free_bytes(state, node, device),
                )
            )
        best = _best_of_node(usable, prefer_gpu=request.prefer_gpu)
        candidates.extend(best)
        excluded.extend(
            ExcludedDevice(
                device_id=one.device.device_id,
                reason=f"{best[0].device.local_alias} of this node is preferred",
            )
            for one in usable
            if one not in best
        )
    return Problem(
        model=model,
        request=request,
        engine=engine,
        context_length=context_length_of(model, request),
        candidates=tuple(sorted(candidates, key=lambda one: one.device.device_id)),
        excluded=tuple(sorted(excluded, key=lambda one: one.device_id)),
        state_index=state.index,
    )


def free_bytes(state: State, node: Node, device: GPUDevice) -> int:
    """Free memory as last measured, less what is promised to stages that are not loaded yet."""
    live = state.live.get(node.identity.node_id)
    reading = live.devices.get(device.device_id) if live is not None else None
    measured = reading.memory_free_bytes if reading is not None else None
    free = device.memory_total_bytes if measured is None else measured
    return max(0, free - promised_bytes(state, device.device_id))


def promised_bytes(state: State, device_id: DeviceId) -> int:
    """Memory of stages placed on the device that no measurement can show yet."""
    return sum(
        plan.memory_bytes // len(plan.device_ids)
        for instance in state.instances.values()
        for plan, stage in zip(instance.plan.stages, instance.stages, strict=True)
        if device_id in plan.device_ids and stage.phase in {"pending", "starting", "loading"}
    )


def _why_not(
    state: State, node: Node, device: GPUDevice, model: ModelCard, request: PlacementRequest, engine: str
) -> str | None:
    identity = node.identity
    live = state.live.get(identity.node_id)
    reading = live.devices.get(device.device_id) if live is not None else None
    if not node.is_connected:
        return f"its node is not connected: {node.left_reason or 'unknown reason'}"
    if not identity.is_worker:
        return "its node only coordinates (--no-worker)"
    if request.node_ids and identity.node_id not in request.node_ids:
        return "its node is not among the nodes asked for"
    if request.device_ids and device.device_id not in request.device_ids:
        return "it is not among the devices asked for"
    if identity.node_id in request.exclude or device.device_id in request.exclude:
        return "it was excluded"
    if engine not in identity.engines:
        return f"its node has no {engine} engine"
    local = next((card for card in identity.models if card.model_id == model.model_id), None)
    if local is None:
        return f"its node does not have the model {model.model_id}"
    if local.problem is not None:
        return f"its node's copy of the model cannot be used: {local.problem}"
    if local.fingerprint != model.fingerprint:
        return "its node's copy of the model differs from the others"
    if reading is not None and reading.health == "failed":
        return f"it has failed: {reading.health_reason or 'unknown reason'}"
    return None


def _best_of_node(usable: list[Candidate], *, prefer_gpu: bool) -> list[Candidate]:
    """One device per node and plan: a GPU where there is one and it is wanted, else the roomiest."""
    if not usable:
        return []
    gpus = [one for one in usable if one.device.backend != "cpu"]
    others = [one for one in usable if one.device.backend == "cpu"]
    pool = (gpus or others) if prefer_gpu else (others or gpus)
    return [min(pool, key=lambda one: (-one.memory_free_bytes, one.device.device_id))]
