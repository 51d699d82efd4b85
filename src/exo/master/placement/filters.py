"""The hard filters: why a device may take no part in a placement, by what was asked for and by how it is."""

from collections.abc import Collection, Mapping

from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.instances import Instance, PlacementRequest
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Node
from exo.shared.types.state import State

UNNAMED_ZONE = "the zone without a name"
_OTHER_NODE = "its node is not among the nodes asked for"
_OTHER_DEVICE = "it is not among the devices asked for"
NOT_ASKED_FOR = frozenset((_OTHER_NODE, _OTHER_DEVICE))
"""Reasons of what nobody named, where somebody named what may take part."""


def zone_words(zone: str) -> str:
    """A zone for people."""
    return f"the zone {zone}" if zone else UNNAMED_ZONE


def why_not_wanted(
    node: Node, device: GPUDevice, request: PlacementRequest, avoided: Mapping[NodeId, str]
) -> str | None:
    """Say why a device is not among those asked for; None: it is.

    Args:
        node: Of the device.
        device: What may take part.
        request: What was asked for.
        avoided: Nodes that are to be left alone, each with the reason; see `nodes_to_avoid`.
    """
    identity = node.identity
    if request.node_ids and identity.node_id not in request.node_ids:
        return _OTHER_NODE
    if request.device_ids and device.device_id not in request.device_ids:
        return _OTHER_DEVICE
    if identity.node_id in request.exclude or device.device_id in request.exclude:
        return "it was excluded"
    if request.zones and identity.zone not in request.zones:
        return f"its node is in {zone_words(identity.zone)}, not in a zone asked for"
    return avoided.get(identity.node_id)


def nodes_to_avoid(state: State, request: PlacementRequest) -> dict[NodeId, str]:
    """Return the nodes that run what the request is to be apart from, or what is to be apart from its model.

    To be apart holds both ways: whichever of the two is placed or moved later leaves the other's nodes alone.

    Args:
        state: What runs. An instance that is being moved is not among it.
        request: What was asked for. Of one that is placed already, see `also_apart_from`.

    Returns:
        Each of these nodes with the reason.
    """
    avoided: dict[NodeId, str] = {}
    for instance_id, instance in sorted(state.instances.items()):
        who = f"its node runs {instance_id} ({instance.model.model_id}), which"
        if _is_named(instance, request.apart_from):
            reason = f"{who} this is to be apart from"
        elif request.model_id in instance.request.apart_from:
            reason = f"{who} is to be apart from {request.model_id}"
        else:
            continue
        for stage in instance.plan.stages:
            avoided.setdefault(stage.node_id, reason)
    return avoided


def also_apart_from(state: State, instance_id: InstanceId) -> tuple[str, ...]:
    """Return the instances that are to be apart from this one by its id: a request does not say whose it is.

    Those that are to be apart from its model are found by the model.
    """
    return tuple(
        sorted(
            key
            for key, one in state.instances.items()
            if key != instance_id and instance_id in one.request.apart_from
        )
    )


def _is_named(instance: Instance, names: Collection[str]) -> bool:
    return instance.instance_id in names or instance.model.model_id in names


def why_not_able(state: State, node: Node, device: GPUDevice, model: ModelCard, engine: str) -> str | None:
    """Say why a device cannot run layers of the model now; None: it can."""
    identity = node.identity
    live = state.live.get(identity.node_id)
    reading = live.devices.get(device.device_id) if live is not None else None
    if not node.is_connected:
        return f"its node is not connected: {node.left_reason or 'unknown reason'}"
    if not identity.is_worker:
        return "its node only coordinates (--no-worker)"
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
