"""An independent check of a plan, written apart from the solvers: what it refuses is never committed."""

from collections.abc import Mapping, Sequence

from exo.master.placement.held import RESERVE_BYTES, activation_bytes
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.instances import PlacementRequest, StagePlan
from exo.shared.types.models import ModelCard


def violations(
    stages: Sequence[StagePlan],
    *,
    model: ModelCard,
    context_length: int,
    concurrency: int,
    pool_by_device: Mapping[DeviceId, str],
    free_bytes_by_pool: Mapping[str, int],
) -> list[str]:
    """Return what is wrong with a plan, as sentences; an empty list means that it may be committed.

    Checks that every layer is placed exactly once and in order, that each stage's devices are there and used
    once, and that weights, caches, activations and reserve fit into what is free of each memory pool, all stages on
    it together.
    """
    found: list[str] = []
    placed: list[int] = []
    seen: set[DeviceId] = set()
    taken_bytes: dict[str, int] = {}
    for position, stage in enumerate(stages):
        if stage.rank != position:
            found.append(f"stage {position} says it is rank {stage.rank}")
        placed.extend(range(stage.start_layer, stage.end_layer))
        if stage.end_layer <= stage.start_layer:
            found.append(f"stage {position} has no layers")
        if not stage.device_ids:
            found.append(f"stage {position} has no device")
        for device in stage.device_ids:
            if device in seen:
                found.append(f"device {device} is used twice")
            seen.add(device)
            pool = pool_by_device.get(device)
            if pool is None:
                found.append(f"device {device} may not be used")
                continue
            taken_bytes[pool] = taken_bytes.get(pool, 0) + -(-stage.memory_bytes // len(stage.device_ids))
        # Layers that the model does not have, as when it was replaced meanwhile, are told of below.
        layers = range(max(0, stage.start_layer), min(stage.end_layer, model.layer_count))
        weights = sum(model.layer_bytes[layer] for layer in layers)
        cache = concurrency * sum(model.cache_bytes(layer, context_length) for layer in layers)
        ends = model.embedding_bytes if position == 0 else 0
        if position == len(stages) - 1:
            ends += model.head_bytes
            if model.has_tied_head and position > 0:
                ends += model.embedding_bytes
        needed_bytes = weights + cache + ends + RESERVE_BYTES + activation_bytes(model)
        if needed_bytes > stage.memory_bytes:
            found.append(f"stage {position} promises {stage.memory_bytes} bytes but needs {needed_bytes}")
    for pool, taken in sorted(taken_bytes.items()):
        free = free_bytes_by_pool.get(pool, 0)
        if taken > free:
            found.append(f"the stages on {pool} take {taken} bytes of {free} free ones")
    if placed != list(range(model.layer_count)):
        found.append(f"layers {placed} are placed, not 0 to {model.layer_count - 1}, each once and in order")
    return found


def broken_wishes(
    stages: Sequence[StagePlan], request: PlacementRequest, zones: Mapping[NodeId, str]
) -> list[str]:
    """Return what a plan does not keep of a request, as sentences.

    Args:
        stages: The plan.
        request: What was asked for.
        zones: The zone of every node.
    """
    found: list[str] = []
    nodes = {stage.node_id for stage in stages}
    devices = {device for stage in stages for device in stage.device_ids}
    if len(nodes) < request.min_nodes:
        found.append(f"{len(nodes)} of {request.min_nodes} nodes take part")
    found.extend(f"{name} takes no part" for name in request.must_use if name not in nodes | devices)
    found.extend(
        f"{name} takes part, which was excluded" for name in request.exclude if name in nodes | devices
    )
    spread = {zones.get(node, "") for node in nodes}
    if len(spread) < request.min_zones:
        found.append(f"{len(spread)} of {request.min_zones} zones take part")
    if request.zones and not spread <= set(request.zones):
        found.append(f"it is in {', '.join(sorted(spread))}, not only in {', '.join(request.zones)}")
    if request.node_ids and not nodes <= set(request.node_ids):
        found.append("it uses other nodes than those asked for")
    if request.device_ids and not devices <= set(request.device_ids):
        found.append("it uses other devices than those asked for")
    split = tuple(stage.end_layer - stage.start_layer for stage in stages)
    if request.layer_split and split != request.layer_split:
        found.append(f"its stages have {split} layers, not {request.layer_split}")
    return found
