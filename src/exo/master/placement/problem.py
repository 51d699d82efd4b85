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
    pool: str
    """The memory that it takes from; candidates of one pool share what is free."""
    memory_free_bytes: int
    """Of the whole pool."""
    memory_total_bytes: int
    """Of the whole pool."""


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

    @property
    def pool_by_device(self) -> dict[DeviceId, str]:
        """The memory pool of every device that may take part."""
        return {one.device.device_id: one.pool for one in self.candidates}

    @property
    def free_bytes_by_pool(self) -> dict[str, int]:
        """What is free of the candidates' pools."""
        return {one.pool: one.memory_free_bytes for one in self.candidates}

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
    free = free_bytes_by_pool(state)
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
                    pool=(pool := pool_of(node, device)),
                    memory_free_bytes=free[pool],
                    memory_total_bytes=device.memory_total_bytes,
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


def pool_of(node: Node, device: GPUDevice) -> str:
    """Name the memory that the device takes from: its own, or its host's, which all nodes of that host share."""
    return device.device_id if device.memory_kind == "vram" else f"{node.identity.host_id}/ram"


def free_bytes_by_pool(state: State) -> dict[str, int]:
    """Free memory of every pool: what the latest readings leave of it, less what is promised and not yet visible.

    A stage that is still loading shows in no reading, so its promise comes off the measured value. One that has
    loaded may not have taken its whole cache, and readings are seconds old: all promises together never exceed
    the pool's size. Without a reading only the promises are known.
    """
    total: dict[str, int] = {}
    measured: dict[str, int] = {}
    pools: dict[DeviceId, str] = {}
    for node_id, node in state.nodes.items():
        live = state.live.get(node_id)
        for device in node.identity.devices:
            pool = pools[device.device_id] = pool_of(node, device)
            total[pool] = min(total.get(pool, device.memory_total_bytes), device.memory_total_bytes)
            reading = live.devices.get(device.device_id) if live is not None and node.is_connected else None
            free = reading.memory_free_bytes if reading is not None else None
            if free is not None:
                measured[pool] = min(measured.get(pool, free), free)
    promised = dict.fromkeys(total, 0)
    invisible = dict.fromkeys(total, 0)
    for instance in state.instances.values():
        for plan, stage in zip(instance.plan.stages, instance.stages, strict=True):
            for device_id in plan.device_ids:
                pool = pools.get(device_id)
                if pool is None or stage.phase == "failed":
                    continue
                share = plan.memory_bytes // len(plan.device_ids)
                promised[pool] += share
                if stage.phase in {"pending", "starting", "loading"}:
                    invisible[pool] += share
    return {
        pool: max(0, min(size - promised[pool], measured.get(pool, size) - invisible[pool]))
        for pool, size in total.items()
    }


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
    if device.is_simulated:
        return "it is simulated: no layers can run on it"
    if device.backend not in identity.engine_backends.get(engine, ("cpu",)):
        return f"the {engine} engine of its node has no {device.backend} build (exo doctor says how to install one)"
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
