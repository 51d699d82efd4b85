"""The placement problem, read off the state: which devices may take part, with how much room, and why others not."""

from collections.abc import Collection, Mapping

import msgspec
from msgspec.structs import replace

from exo.master.placement.filters import nodes_to_avoid, why_not_able, why_not_wanted
from exo.master.placement.held import process_bytes
from exo.shared.node_names import distinct_names
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.instances import ExcludedDevice, PlacementRequest
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

CONTEXT_LENGTH_DEFAULT = 4096


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A device that may take part."""

    device: GPUDevice
    node_id: NodeId
    node_name: str
    """As people call it: with the start of its id where another node has the same name."""
    pool: str
    """The memory that it takes from; candidates of one pool share what is free."""
    memory_free_bytes: int
    """Of the whole pool."""
    memory_total_bytes: int
    """Of the whole pool."""
    zone: str = ""
    is_offload: bool = False
    """A processor beside a GPU of its node: GPUs come first."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a solver needs, and nothing else."""

    model: ModelCard
    request: PlacementRequest
    engine: str
    context_length: int
    candidates: tuple[Candidate, ...]
    """Sorted by device id."""
    spare: tuple[Candidate, ...] = ()
    """Processors beside GPUs, sorted by device id: they join where VRAM does not hold the model, or not as fast."""
    excluded: tuple[ExcludedDevice, ...]
    excluded_names: Mapping[DeviceId, str] = {}
    """What people call them, such as `cuda:0 of oak`; ids may be long."""
    state_index: int

    @property
    def pool_by_device(self) -> dict[DeviceId, str]:
        """The memory pool of every device that may take part, those that may only join included."""
        return {one.device.device_id: one.pool for one in (*self.candidates, *self.spare)}

    @property
    def free_bytes_by_pool(self) -> dict[str, int]:
        """What is free of these devices' pools."""
        return {one.pool: one.memory_free_bytes for one in (*self.candidates, *self.spare)}

    @property
    def node_count(self) -> int:
        """Nodes with a candidate."""
        return len({one.node_id for one in self.candidates})

    def with_offload(self, device_ids: Collection[str] | None = None) -> "Problem":
        """Return the problem with the processors beside GPUs as candidates: all of them, or these."""
        joining = [one for one in self.spare if device_ids is None or one.device.device_id in device_ids]
        names = {one.device.device_id for one in joining}
        return replace(
            self,
            candidates=tuple(sorted((*self.candidates, *joining), key=lambda one: one.device.device_id)),
            spare=tuple(one for one in self.spare if one.device.device_id not in names),
            excluded=tuple(one for one in self.excluded if one.device_id not in names),
        )

    def stage_memory_bytes(self, start_layer: int, end_layer: int) -> int:
        """Bytes that a stage with these layers takes: weights, caches for the whole context, activations, reserve."""
        model = self.model
        total = sum(model.layer_bytes[start_layer:end_layer])
        total += self.request.concurrency * self._cache_bytes(start_layer, end_layer)
        is_last = end_layer == model.layer_count
        if start_layer == 0 or (is_last and model.has_tied_head):
            total += model.embedding_bytes
        if is_last:
            total += model.head_bytes
        return total + process_bytes(model)

    def _cache_bytes(self, start_layer: int, end_layer: int) -> int:
        """Of one sequence."""
        model = self.model
        if not (model.layer_kv_bytes_per_token or model.layer_kv_tokens_max or model.layer_state_bytes):
            return model.cache_bytes(0, self.context_length) * (end_layer - start_layer)
        return sum(model.cache_bytes(layer, self.context_length) for layer in range(start_layer, end_layer))


def context_length_of(model: ModelCard, request: PlacementRequest) -> int:
    """Tokens per sequence to keep room for."""
    if request.context_length is not None:
        return request.context_length
    return min(model.context_length_max, CONTEXT_LENGTH_DEFAULT)


def build_problem(state: State, model: ModelCard, request: PlacementRequest, engine: str) -> Problem:
    """Apply the hard filters; keep a reason for every device that is dropped."""
    candidates: list[Candidate] = []
    spare: list[Candidate] = []
    excluded: list[ExcludedDevice] = []
    free = free_bytes_by_pool(state)
    avoided = nodes_to_avoid(state, request)
    told: set[DeviceId] = set()
    names: dict[DeviceId, str] = {}
    called = distinct_names({node_id: node.identity.name for node_id, node in state.nodes.items()})
    for node_id in sorted(state.nodes):
        node, node_name = state.nodes[node_id], called[node_id]
        usable: list[Candidate] = []
        for device in node.identity.devices:
            reason = why_not_wanted(node, device, request, avoided)
            reason = reason or why_not_able(state, node, device, model, engine)
            if device.device_id in told:
                reason = f"another node tells of the same device, so {node_name} cannot use it"
            told.add(device.device_id)
            if reason is not None:
                names.setdefault(device.device_id, f"{device.local_alias} of {node_name}")
                excluded.append(ExcludedDevice(device_id=device.device_id, reason=reason))
                continue
            usable.append(
                Candidate(
                    device=device,
                    node_id=node_id,
                    node_name=node_name,
                    pool=(pool := pool_of(node, device)),
                    memory_free_bytes=free[pool],
                    memory_total_bytes=device.memory_total_bytes,
                    zone=node.identity.zone,
                )
            )
        taken, left, may_join = _of_node(usable, request)
        candidates.extend(taken)
        spare.extend(may_join)
        excluded.extend(left)
        out = {one.device_id for one in left}
        names |= {
            one.device.device_id: f"{one.device.local_alias} of {one.node_name}"
            for one in usable
            if one.device.device_id in out
        }
    return Problem(
        model=model,
        request=request,
        engine=engine,
        context_length=context_length_of(model, request),
        candidates=tuple(sorted(candidates, key=lambda one: one.device.device_id)),
        spare=tuple(sorted(spare, key=lambda one: one.device.device_id)),
        excluded=tuple(sorted(excluded, key=lambda one: one.device_id)),
        excluded_names=names,
        state_index=state.index,
    )


def _of_node(
    usable: list[Candidate], request: PlacementRequest
) -> tuple[list[Candidate], list[ExcludedDevice], list[Candidate]]:
    """Choose by kind: GPUs where there are any and they are wanted, else processors; a device that must be used always.

    Returns the candidates, the devices left out, and those of them that may join where GPUs alone do not do, or not as
    fast: processors with memory of their own beside the GPUs.
    """
    gpus = [one for one in usable if one.device.backend != "cpu"]
    processors = [one for one in usable if one.device.backend == "cpu"]
    is_gpu_wanted = request.prefer_gpu and bool(gpus)
    wanted = gpus if is_gpu_wanted or not processors else processors
    taken = [one for one in usable if one in wanted or one.device.device_id in request.must_use]
    left = [one for one in usable if one not in taken]
    preferred = "GPU of its node is" if len(wanted) == 1 else "GPUs of its node are"
    reason = f"the {preferred} preferred" if is_gpu_wanted else "the processor of its node is preferred"
    shared = {one.pool for one in taken}
    may_join = [replace(one, is_offload=True) for one in left if is_gpu_wanted and one.pool not in shared]
    return taken, [ExcludedDevice(device_id=one.device.device_id, reason=reason) for one in left], may_join


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
