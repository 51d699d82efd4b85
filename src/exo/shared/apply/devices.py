"""How devices that appear or are lost change the state."""

from msgspec.structs import replace

from exo.shared.types import events as e
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State


def device_appeared(state: State, event: e.DeviceAppeared) -> State:
    node = state.nodes.get(event.node_id)
    if node is None:
        return state
    others = tuple(d for d in node.identity.devices if d.device_id != event.device.device_id)
    return _with_devices(state, event.node_id, (*others, event.device))


def device_lost(state: State, event: e.DeviceLost) -> State:
    node = state.nodes.get(event.node_id)
    if node is None:
        return state
    return _with_devices(
        state, event.node_id, tuple(d for d in node.identity.devices if d.device_id != event.device_id)
    )


def _with_devices(state: State, node_id: NodeId, devices: tuple[GPUDevice, ...]) -> State:
    node = state.nodes[node_id]
    ordered = tuple(sorted(devices, key=lambda device: device.device_id))
    identity = replace(node.identity, devices=ordered)
    return replace(state, nodes={**state.nodes, node_id: replace(node, identity=identity)})
