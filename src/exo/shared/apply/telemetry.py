"""How telemetry changes the live part of the state. Last value wins, per node by (boot, seq)."""

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from exo.shared.types import events as e
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.nodes import DeviceLink, Link, LinkType
from exo.shared.types.pace import pace_key
from exo.shared.types.state import NodeTelemetry, State

_NOTHING = NodeTelemetry()


def frames_received(
    state: State, frames: Sequence[e.TelemetryFrame]
) -> tuple[State, Sequence[e.TelemetryFrame]]:
    """Return the new state and the frames that were news; see `apply_frames`."""
    live = state.live
    news: list[e.TelemetryFrame] = []
    for frame in frames:
        node = state.nodes.get(frame.node_id)
        if node is None or node.identity.boot_id != frame.boot_id:
            continue
        before = live.get(frame.node_id)
        if before is None or before.boot_id != frame.boot_id:
            before = _NOTHING
        elif frame.seq <= before.seq:
            continue
        if not news:
            live = dict(live)
        live[frame.node_id] = _latest(before, frame, state.instances)
        news.append(frame)
    return (replace(state, live=live) if news else state), news


def _latest(
    before: NodeTelemetry, frame: e.TelemetryFrame, instances: Collection[InstanceId]
) -> NodeTelemetry:
    """Return what is known of a node with its next frame. What the frame does not speak of stays the same object."""
    profile, devices, links, stages = before.profile, before.devices, before.links, before.stages
    device_links, key_usage = before.device_links, before.key_usage
    paces, instance_paces = before.paces, before.instance_paces
    for event in frame.events:
        match event:  # Attributes in these patterns would triple what they cost.
            case e.DeviceGPUStateUpdated():
                if devices is before.devices:
                    devices = dict(devices)
                devices[event.state.device_id] = event.state
            case e.NodeProfileUpdated():
                profile, key_usage = event.profile, event.key_usage
            case e.StageProgressed():
                if stages is before.stages:
                    stages = dict(stages)
                stages[f"{event.instance_id}/{event.generation}/{event.rank}"] = event.progress
            case e.GPUBandwidthMeasured() if _is_within_a_node(event):
                if device_links is before.device_links:
                    device_links = dict(device_links)
                key = f"{event.source_device_id} {event.dest_device_id}"
                device_links[key] = _device_link(event)
            case e.LinkMeasured() | e.GPUBandwidthMeasured():
                if links is before.links:
                    links = dict(links)
                link = _link(links, frame.node_id, event)
                links[link.dest_node_id] = link
            case e.DevicePaceMeasured():
                if paces is before.paces:
                    paces = dict(paces)
                pace = event.pace
                paces[pace_key(pace.device_id, pace.engine, pace.dtype)] = pace
            case e.InstancePaceMeasured():
                if instance_paces is before.instance_paces:
                    instance_paces = dict(instance_paces)
                instance_paces[event.pace.instance_id] = event.pace
    if stages and any(key.split("/", 1)[0] not in instances for key in stages):
        stages = {key: one for key, one in stages.items() if key.split("/", 1)[0] in instances}
    if any(key not in instances for key in instance_paces):
        instance_paces = {key: one for key, one in instance_paces.items() if key in instances}
    return NodeTelemetry(
        boot_id=frame.boot_id,
        seq=frame.seq,
        profile=profile,
        devices=devices,
        links=links,
        stages=stages,
        device_links=device_links,
        key_usage=key_usage,
        paces=paces,
        instance_paces=instance_paces,
    )


def _is_within_a_node(event: e.GPUBandwidthMeasured) -> bool:
    """Say whether both devices are of one node."""
    return event.source_device_id.split("/", 1)[0] == event.dest_device_id.split("/", 1)[0]


def _device_link(event: e.GPUBandwidthMeasured) -> DeviceLink:
    """Return the record of a way between two devices of a node."""
    return DeviceLink(
        source_device_id=event.source_device_id,
        dest_device_id=event.dest_device_id,
        link_type=event.link_type,
        latency_ms=event.latency_ms,
        bandwidth_mbps=event.bandwidth_mbps,
        measurement_count=event.measurement_count,
    )


def _link(known: dict[NodeId, Link], source: NodeId, event: e.LinkMeasured | e.GPUBandwidthMeasured) -> Link:
    """Return the record of a link with a new measurement; there is one for all devices of the two nodes."""
    if isinstance(event, e.GPUBandwidthMeasured):
        dest = NodeId(event.dest_device_id.split("/", 1)[0])
        before = known.get(dest)
        return Link(
            source_node_id=source,
            dest_node_id=dest,
            link_type=_link_type(event, before),
            latency_ms=event.latency_ms,
            bandwidth_mbps=event.bandwidth_mbps,
            measurement_count=event.measurement_count,
        )
    before = known.get(event.dest_node_id)
    latency_ms, bandwidth_mbps = event.latency_ms, event.bandwidth_mbps
    if before is not None:
        # A ping measures no bandwidth: what a transfer measured earlier stays.
        latency_ms = latency_ms if latency_ms is not None else before.latency_ms
        bandwidth_mbps = bandwidth_mbps if bandwidth_mbps is not None else before.bandwidth_mbps
    return Link(
        source_node_id=source,
        dest_node_id=event.dest_node_id,
        link_type=_link_type(event, before),
        latency_ms=latency_ms,
        bandwidth_mbps=bandwidth_mbps,
        measurement_count=event.measurement_count,
    )


def _link_type(event: e.LinkMeasured | e.GPUBandwidthMeasured, before: Link | None) -> LinkType:
    """Return what kind of link it is. Who measures need not know it: then what was known before stays."""
    return event.link_type if event.link_type != "unknown" or before is None else before.link_type
