"""How devices that appear or are lost change the state."""

from msgspec.structs import replace

from exo.shared.apply.draft import Draft
from exo.shared.types import events as e
from exo.shared.types.devices import GPUDevice
from exo.shared.types.nodes import Node


def device_appeared(draft: Draft, event: e.DeviceAppeared) -> None:
    node = draft.nodes.get(event.node_id)
    if node is not None:
        others = tuple(d for d in node.identity.devices if d.device_id != event.device.device_id)
        draft.put_node(_with_devices(node, (*others, event.device)))


def device_lost(draft: Draft, event: e.DeviceLost) -> None:
    node = draft.nodes.get(event.node_id)
    if node is not None:
        left = tuple(d for d in node.identity.devices if d.device_id != event.device_id)
        draft.put_node(_with_devices(node, left))


def _with_devices(node: Node, devices: tuple[GPUDevice, ...]) -> Node:
    ordered = tuple(sorted(devices, key=lambda device: device.device_id))
    return replace(node, identity=replace(node.identity, devices=ordered))
