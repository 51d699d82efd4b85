"""How telemetry changes the live part of the state. Last value wins, per node by (boot, seq)."""

from msgspec.structs import replace

from exo.shared.types import events as e
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import Link
from exo.shared.types.state import NodeTelemetry, State


def frame_received(state: State, frame: e.TelemetryFrame) -> State:
    node = state.nodes.get(frame.node_id)
    if node is None or node.identity.boot_id != frame.boot_id:
        return state
    live = state.live.get(frame.node_id)
    if live is None or live.boot_id != frame.boot_id:
        live = NodeTelemetry(boot_id=frame.boot_id)
    elif frame.seq <= live.seq:
        return state
    live = replace(live, seq=frame.seq)
    for event in frame.events:
        live = _fold(live, frame.node_id, event)
    if live.stages:
        kept = {key: one for key, one in live.stages.items() if key.split("/", 1)[0] in state.instances}
        live = replace(live, stages=kept)
    return replace(state, live={**state.live, frame.node_id: live})


def _fold(live: NodeTelemetry, node_id: NodeId, event: e.Telemetry) -> NodeTelemetry:
    match event:
        case e.DeviceGPUStateUpdated(state=device):
            return replace(live, devices={**live.devices, device.device_id: device})
        case e.NodeProfileUpdated(profile=profile):
            return replace(live, profile=profile)
        case e.LinkMeasured():
            before = live.links.get(event.dest_node_id)
            link = Link(
                source_node_id=node_id,
                dest_node_id=event.dest_node_id,
                link_type=event.link_type,
                # A ping measures no bandwidth: what a transfer measured earlier stays.
                latency_ms=event.latency_ms
                if event.latency_ms is not None or before is None
                else before.latency_ms,
                bandwidth_mbps=event.bandwidth_mbps
                if event.bandwidth_mbps is not None or before is None
                else before.bandwidth_mbps,
                measurement_count=event.measurement_count,
            )
            return replace(live, links={**live.links, event.dest_node_id: link})
        case e.GPUBandwidthMeasured():
            dest = NodeId(event.dest_device_id.split("/", 1)[0])
            before = live.links.get(dest)
            link = Link(
                source_node_id=node_id,
                dest_node_id=dest,
                link_type=before.link_type if before is not None else "unknown",
                latency_ms=event.latency_ms,
                bandwidth_mbps=event.bandwidth_mbps,
                measurement_count=event.measurement_count,
            )
            return replace(live, links={**live.links, dest: link})
        case e.StageProgressed():
            key = f"{event.instance_id}/{event.generation}/{event.rank}"
            return replace(live, stages={**live.stages, key: event.progress})
