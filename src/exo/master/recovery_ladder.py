"""Where an instance goes on when a device or a node of it is lost: on other GPUs, on fewer, on processors. Pure.

Every step is told as an event with its reason, so that people see why a model moved or has become slower.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from exo.master.placement.around import around
from exo.master.placement.asked import is_known_to_run
from exo.master.placement.evaluate import broken_wishes, violations
from exo.master.placement.filters import also_apart_from
from exo.master.placement.place import find_model
from exo.master.placement.problem import build_problem, pool_of
from exo.master.placement.words import gibibytes
from exo.master.recovery import Trouble, trouble_of
from exo.master.replacement import moved_bytes
from exo.shared.types.commands import Refusal
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.events import InstanceMoved, InstanceStranded, InstanceWaits
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.instances import Instance, PlacementRequest, Plan, StagePlan
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.state import State

_WHY_CHARACTERS_MAX = 400
"""Of a refusal that becomes part of an event: one of a large cluster names every device."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A request to be solved."""

    rung: Literal["moved", "reduced", "joined", "cpu"]
    request: PlacementRequest
    refused: str
    """What is said where it has no answer."""
    is_last: bool = False


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a placement depends on, free memory aside: while it is the same, asking again is of little use."""

    nodes: dict[NodeId, NodeIdentity]
    failed: frozenset[DeviceId]
    instances: frozenset[tuple[InstanceId, int]]


def surroundings(state: State) -> Surroundings:
    """Return what a placement depends on now."""
    connected = {node_id: node for node_id, node in state.nodes.items() if node.is_connected}
    return Surroundings(
        nodes={node_id: node.identity for node_id, node in connected.items()},
        failed=frozenset(
            device_id
            for node_id, live in state.live.items()
            for device_id, reading in live.devices.items()
            if node_id in connected and reading.health == "failed"
        ),
        instances=frozenset((key, one.generation) for key, one in state.instances.items()),
    )


def obstacle(state: State, instance: Instance) -> str | None:
    """Say why nothing can be asked for at all; None where something can."""
    known = _known(state)
    asked = instance.request
    if any(names and known.isdisjoint(names) for names in (asked.device_ids, asked.node_ids)):
        return "it may only be on the devices or nodes that were asked for, and these are gone"
    model = find_model(state, instance.model.model_id)
    if isinstance(model, Refusal):
        return _shortened(model.message)
    if model.fingerprint != instance.model.fingerprint:
        return "the copies of the model that the nodes have now are others"
    return None


def attempts(state: State, instance: Instance, avoid: Collection[DeviceId] = ()) -> list[Attempt]:
    """Return what to ask for, best first: what was asked for, fewer nodes, processors beside GPUs, processors alone.

    What the person asked for holds on every rung: devices and nodes that were named, and those that were excluded.
    Only how many nodes there are at least, and how the layers are split, is given up where it cannot be had. What
    is lost needs no mention: nothing is placed on it.

    Args:
        state: Without the instance (see `without`).
        instance: What goes on elsewhere.
        avoid: Devices on which it was tried in vain.
    """
    known, asked = _known(state), instance.request
    base = _excluding(
        replace(
            asked,
            device_ids=tuple(one for one in asked.device_ids if one in known),
            node_ids=tuple(one for one in asked.node_ids if one in known),
            exclude=tuple(one for one in asked.exclude if one in known),
            must_use=tuple(one for one in asked.must_use if one in known),
            apart_from=apart_from(state, instance),
        ),
        (one for one in avoid if one in known),
    )
    devices = [one for node in state.nodes.values() for one in node.identity.devices]
    processors = [one.device_id for one in devices if one.backend == "cpu"]
    gpus = [one.device_id for one in devices if one.backend != "cpu"]
    had = [_is_gpu(stage.node_id, one) for stage in instance.plan.stages for one in stage.device_ids]
    alike = _excluding(base, processors) if all(had) else base
    kind = "GPUs" if all(had) else "devices"

    count = asked.min_nodes
    where = f" on {count} nodes" if count > 1 else ""
    found = [Attempt(rung="moved", request=alike, refused=f"no other healthy {kind} with room for it{where}")]
    # The solver answers with the fastest plan of so many nodes or more: three questions find an answer where there
    # is one, and prefer more nodes to fewer.
    for least in dict.fromkeys((count - 1, count // 2, 1)):
        if 0 < least < count:
            fewer = replace(alike, min_nodes=least, layer_split=())
            refused = f"no healthy {kind} with room for it on fewer nodes"
            found.append(Attempt(rung="reduced", request=fewer, refused=refused))
    if asked.layer_split and count <= 1:
        refused = f"no healthy {kind} with room for it in another split"
        found.append(Attempt(rung="reduced", request=replace(alike, layer_split=()), refused=refused))
    if all(had):
        joined = replace(base, min_nodes=1, layer_split=())
        found.append(Attempt(rung="joined", request=joined, refused="not with processors beside GPUs"))
    if any(had):
        slow = replace(_excluding(base, gpus), prefer_gpu=False, min_nodes=1, layer_split=())
        found.append(Attempt(rung="cpu", request=slow, refused="not on processors"))
    return [*found[:-1], replace(found[-1], is_last=True)]


def apart_from(state: State, instance: Instance) -> tuple[str, ...]:
    """Return what an instance is to be apart from, by its own wish or by the others'.

    What was deleted meanwhile is nowhere to be apart from.
    """
    own = (one for one in instance.request.apart_from if is_known_to_run(state, one))
    return tuple(dict.fromkeys((*own, *also_apart_from(state, instance.instance_id))))


def why_refused(attempt: Attempt, refusal: Refusal) -> str:
    """Say in words why a rung was not to be had; of the last one, with the numbers and what would help."""
    return f"{attempt.refused}: {_shortened(refusal.message)}" if attempt.is_last else attempt.refused


def without(state: State, instance_id: InstanceId) -> State:
    """Return the state as it is once the instance has ended: what its loaded stages take is free again.

    A stage may take less than it was promised, so that this is at most too hopeful by what it never took.
    """
    instance = state.instances[instance_id]
    pools = {
        device.device_id: pool_of(node, device)
        for node in state.nodes.values()
        for device in node.identity.devices
    }
    left = {device_id for plan in instance.plan.stages for device_id in plan.device_ids}
    freed_bytes: dict[str, int] = {}
    for plan, stage in zip(instance.plan.stages, instance.stages, strict=True):
        for device_id in plan.device_ids:
            if device_id in pools and stage.phase in {"loaded", "ready"}:
                share = plan.memory_bytes // len(plan.device_ids)
                freed_bytes[pools[device_id]] = freed_bytes.get(pools[device_id], 0) + share
    live = {
        node_id: replace(
            telemetry,
            devices={
                device_id: _as_left(
                    reading, freed_bytes.get(pools.get(device_id, ""), 0), is_left=device_id in left
                )
                for device_id, reading in telemetry.devices.items()
            },
        )
        for node_id, telemetry in state.live.items()
    }
    others = {key: one for key, one in state.instances.items() if key != instance_id}
    return replace(state, instances=others, live=live)


def _as_left(reading: DeviceGPUState, freed_bytes: int, *, is_left: bool) -> DeviceGPUState:
    """Return a reading without what the instance took; the load of a device that it worked on was mostly its own."""
    if is_left:
        reading = replace(reading, compute_utilization_percent=None)
    if reading.memory_used_bytes is None:
        return reading
    return replace(reading, memory_used_bytes=max(0, reading.memory_used_bytes - freed_bytes))


def decide_move(
    state: State,
    trouble: Trouble,
    attempt: Attempt,
    plan: Plan,
    refused: Sequence[str],
    *,
    basis: bytes = b"",
) -> InstanceMoved | None:
    """Return the move to a plan, or None where it does not fit the newest state: then solve again.

    Args:
        state: The newest state.
        trouble: As it is now.
        attempt: What was asked for, on an earlier state.
        plan: The answer.
        refused: Why the rungs above were not to be had.
        basis: What the answer was solved on.
    """
    instance = state.instances[trouble.instance_id]
    if not is_legal(state, instance, attempt.request, plan):
        return None
    tried = f"; not possible before that: {_each_once(refused)}" if refused else ""
    return InstanceMoved(
        instance_id=instance.instance_id,
        generation=instance.generation + 1,
        plan=plan,
        basis=basis,
        reason=f"{trouble.cause}; it now runs{where_to(state, instance, plan)}{tried}",
    )


def is_legal(state: State, instance: Instance, request: PlacementRequest, plan: Plan) -> bool:
    """Say whether an instance may go on by a plan that was made for a request, by the state as it is."""
    freed = without(around(state, plan.stages), instance.instance_id)
    # Who is to be apart from it may have come since.
    names = dict.fromkeys((*request.apart_from, *also_apart_from(freed, instance.instance_id)))
    request = replace(request, apart_from=tuple(names))
    problem = build_problem(freed, instance.model, request, plan.engine)
    zones = {node_id: node.identity.zone for node_id, node in state.nodes.items()}
    return not broken_wishes(plan.stages, request, zones) and not violations(
        plan.stages,
        model=instance.model,
        context_length=plan.context_length,
        concurrency=plan.concurrency,
        pool_by_device=problem.pool_by_device,
        free_bytes_by_pool=problem.free_bytes_by_pool,
    )


def where_to(state: State, instance: Instance, plan: Plan) -> str:
    """Say where a plan takes an instance, what that means for its speed, and how much has to be read for it."""
    before, after = len(instance.plan.stages), len(plan.stages)
    how = f" in {_stages(after)} instead of {before}" if before != after else ""
    where = ", ".join(_name(state, stage) for stage in plan.stages)
    size_bytes = moved_bytes(plan, instance)
    size = gibibytes(size_bytes) if size_bytes >= 2**20 else "less than a MiB"
    moved = f"{size} of" if size_bytes else "no"
    return f"{how} on {where}{_slower(instance, plan)}, with {moved} weights moved"


def _slower(instance: Instance, plan: Plan) -> str:
    had = [_is_gpu(stage.node_id, one) for stage in instance.plan.stages for one in stage.device_ids]
    has = [_is_gpu(stage.node_id, one) for stage in plan.stages for one in stage.device_ids]
    if not any(had) or all(has):
        return ""
    if not any(has):
        return ", on processors, which is much slower"
    return ", partly on processors, which is slower" if all(had) else ""


def decide_stranding(state: State, trouble: Trouble, refused: Sequence[str]) -> InstanceStranded | None:
    """Return the event that says why the instance cannot go on; None where that has been said already."""
    instance = state.instances[trouble.instance_id]
    if instance.stranded_reason is not None:
        return None
    return InstanceStranded(
        instance_id=instance.instance_id,
        generation=instance.generation,
        reason=f"{trouble.cause}; it cannot go on elsewhere: {_each_once(refused)}. It goes on by itself once that "
        "device works again, another one is there, or memory is free",
    )


def decide_waiting(state: State, trouble: Trouble, refused: Sequence[str]) -> InstanceWaits | None:
    """Return the event that says why the instance waits for its node; None where that has been said already."""
    instance = state.instances[trouble.instance_id]
    if instance.waiting_reason is not None:
        return None
    return InstanceWaits(
        instance_id=instance.instance_id,
        generation=instance.generation,
        reason=f"it waits for that node, since it cannot go on elsewhere: {_each_once(refused)}",
    )


def present_trouble(state: State, instance_id: InstanceId) -> Trouble | None:
    """Return what is the matter with an instance that may be gone meanwhile."""
    instance = state.instances.get(instance_id)
    return trouble_of(state, instance) if instance is not None else None


def _known(state: State) -> set[str]:
    devices = {one.device_id for node in state.nodes.values() for one in node.identity.devices}
    return {*state.nodes, *devices}


def _excluding(request: PlacementRequest, device_ids: Iterable[DeviceId]) -> PlacementRequest:
    return replace(request, exclude=tuple(dict.fromkeys((*request.exclude, *device_ids))))


def _is_gpu(node_id: NodeId, device_id: DeviceId) -> bool:
    """Read it off the id, since a device that is gone is known by nothing else."""
    return not device_id.removeprefix(f"{node_id}/").startswith("cpu:")


def _name(state: State, stage: StagePlan) -> str:
    identity = state.nodes[stage.node_id].identity
    aliases = {one.device_id: one.local_alias for one in identity.devices}
    return f"{'+'.join(aliases[one] for one in stage.device_ids)} of {identity.name}"


def _each_once(sentences: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(sentences))


def _shortened(text: str) -> str:
    text = text.rstrip(".")
    return text if len(text) <= _WHY_CHARACTERS_MAX else f"{text[:_WHY_CHARACTERS_MAX]}…"


def _stages(count: int) -> str:
    return "one stage" if count == 1 else f"{count} stages"
