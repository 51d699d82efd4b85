"""The naive fold: one event, one new state, every dictionary copied. The fast one is held to it."""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from exo.shared.apply import access
from exo.shared.errors import LogOrderError
from exo.shared.types import events as e
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import StageState
from exo.shared.types.nodes import DeviceLink, Link, Node
from exo.shared.types.state import NodeTelemetry, State


def cluster_formed(state: State, event: e.ClusterFormed) -> State:
    return replace(state, cluster_id=event.cluster_id, namespace=event.namespace, voters=event.voters)


def cluster_dissolved(state: State, event: e.ClusterDissolved) -> State:
    return replace(state, dissolved_into=event.into_cluster_id)


def voters_changed(state: State, event: e.VotersChanged) -> State:
    return replace(state, voters=event.voters)


def history_forced(state: State, event: e.HistoryForced) -> State:
    return replace(state, voters=event.voters, incarnation=event.incarnation)


def term_opened(state: State, event: e.TermOpened) -> State:
    return replace(state, master_node_id=event.master_node_id)


def node_joined(state: State, event: e.NodeJoined) -> State:
    """Admit the node; where it comes back with a new boot, its stages are pending again."""
    node_id = event.identity.node_id
    before = state.nodes.get(node_id)
    nodes = {**state.nodes, node_id: Node(identity=event.identity)}
    back = {
        key: replace(one, waiting_reason=None)
        if any(stage.node_id == node_id for stage in one.plan.stages)
        else one
        for key, one in state.instances.items()
    }
    state = replace(state, instances=back)
    if before is None or before.identity.boot_id == event.identity.boot_id:
        return replace(state, nodes=nodes)
    instances = {
        instance_id: replace(
            instance,
            stages=tuple(
                StageState() if plan.node_id == node_id and not stage.is_permanent else stage
                for plan, stage in zip(instance.plan.stages, instance.stages, strict=True)
            ),
        )
        if any(plan.node_id == node_id for plan in instance.plan.stages)
        else instance
        for instance_id, instance in state.instances.items()
    }
    live = {key: value for key, value in state.live.items() if key != node_id}
    return replace(state, nodes=nodes, instances=instances, live=live)


def node_disconnected(state: State, event: e.NodeDisconnected) -> State:
    node = state.nodes.get(event.node_id)
    if node is None:
        return state
    gone = replace(node, is_connected=False, left_reason=event.reason)
    return replace(state, nodes={**state.nodes, event.node_id: gone})


def about_access(state: State, event: e.Decision) -> State:
    return replace(state, access=access.fold(state.access, event))


def node_removed(state: State, event: e.NodeRemoved) -> State:
    """Forget the node; the stages that it ran have failed for good."""
    state = about_access(state, event)
    if event.node_id not in state.nodes:
        return state
    nodes = {key: node for key, node in state.nodes.items() if key != event.node_id}
    live = {key: latest for key, latest in state.live.items() if key != event.node_id}
    instances = {
        instance_id: replace(
            instance,
            stages=tuple(
                StageState(phase="failed", reason=f"its node was removed: {event.reason}", is_permanent=True)
                if plan.node_id == event.node_id
                else stage
                for plan, stage in zip(instance.plan.stages, instance.stages, strict=True)
            ),
        )
        if any(plan.node_id == event.node_id for plan in instance.plan.stages)
        else instance
        for instance_id, instance in state.instances.items()
    }
    return replace(state, nodes=nodes, instances=instances, live=live)


def node_models_changed(state: State, event: e.NodeModelsChanged) -> State:
    node = state.nodes.get(event.node_id)
    if node is None:
        return state
    identity = replace(node.identity, models=event.models)
    return replace(state, nodes={**state.nodes, event.node_id: replace(node, identity=identity)})


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


def instance_created(state: State, event: e.InstanceCreated) -> State:
    instance = event.instance
    return replace(state, instances={**state.instances, instance.instance_id: instance})


def instance_deleted(state: State, event: e.InstanceDeleted) -> State:
    instances = {key: value for key, value in state.instances.items() if key != event.instance_id}
    return replace(state, instances=instances)


def instance_restarted(state: State, event: e.InstanceRestarted) -> State:
    """Begin a new generation; what older generations still report no longer counts."""
    instance = state.instances.get(event.instance_id)
    if instance is None or event.generation <= instance.generation:
        return state
    restarted = replace(
        instance,
        generation=event.generation,
        failures_in_a_row=instance.failures_in_a_row + 1,
        stages=tuple(StageState() for _ in instance.stages),
        stranded_reason=None,
        waiting_reason=None,
    )
    return replace(state, instances={**state.instances, event.instance_id: restarted})


def instance_moved(state: State, event: e.InstanceMoved) -> State:
    """Begin a new generation where the new plan says."""
    instance = state.instances.get(event.instance_id)
    if instance is None or event.generation <= instance.generation:
        return state
    moved = replace(
        instance,
        plan=event.plan,
        generation=event.generation,
        failures_in_a_row=0,
        stages=tuple(StageState() for _ in event.plan.stages),
        moved_reason=event.reason,
        stranded_reason=None,
        waiting_reason=None,
    )
    return replace(state, instances={**state.instances, event.instance_id: moved})


def instance_stranded(state: State, event: e.InstanceStranded) -> State:
    instance = state.instances.get(event.instance_id)
    if instance is None or event.generation != instance.generation:
        return state
    stranded = replace(instance, stranded_reason=event.reason)
    return replace(state, instances={**state.instances, event.instance_id: stranded})


def instance_waits(state: State, event: e.InstanceWaits) -> State:
    instance = state.instances.get(event.instance_id)
    if instance is None or event.generation != instance.generation:
        return state
    waiting = replace(instance, waiting_reason=event.reason)
    return replace(state, instances={**state.instances, event.instance_id: waiting})


def stage_changed(state: State, event: e.StageChanged) -> State:
    instance = state.instances.get(event.instance_id)
    if instance is None or event.generation != instance.generation or event.rank >= len(instance.stages):
        return state
    before = instance.stages[event.rank]
    stage = StageState(
        phase=event.phase,
        address=event.address if event.address is not None else before.address,
        reason=event.reason,
        is_permanent=event.is_permanent,
    )
    stages = (*instance.stages[: event.rank], stage, *instance.stages[event.rank + 1 :])
    changed = replace(instance, stages=stages)
    if changed.status == "ready":
        changed = replace(changed, failures_in_a_row=0)
    return replace(state, instances={**state.instances, event.instance_id: changed})


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
    paces = {key: one for key, one in live.instance_paces.items() if key in state.instances}
    live = replace(live, instance_paces=paces)
    return replace(state, live={**state.live, frame.node_id: live})


def _fold(live: NodeTelemetry, node_id: NodeId, event: e.Telemetry) -> NodeTelemetry:
    match event:
        case e.DeviceGPUStateUpdated(state=device):
            return replace(live, devices={**live.devices, device.device_id: device})
        case e.NodeProfileUpdated(profile=profile):
            return replace(live, profile=profile, key_usage=event.key_usage)
        case e.LinkMeasured():
            before = live.links.get(event.dest_node_id)
            link = Link(
                source_node_id=node_id,
                dest_node_id=event.dest_node_id,
                link_type=event.link_type
                if event.link_type != "unknown" or before is None
                else before.link_type,
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
            if event.source_device_id.startswith(f"{dest}/"):
                key = f"{event.source_device_id} {event.dest_device_id}"
                way = DeviceLink(
                    source_device_id=event.source_device_id,
                    dest_device_id=event.dest_device_id,
                    link_type=event.link_type,
                    latency_ms=event.latency_ms,
                    bandwidth_mbps=event.bandwidth_mbps,
                    measurement_count=event.measurement_count,
                )
                return replace(live, device_links={**live.device_links, key: way})
            before = live.links.get(dest)
            link = Link(
                source_node_id=node_id,
                dest_node_id=dest,
                link_type=event.link_type
                if event.link_type != "unknown" or before is None
                else before.link_type,
                latency_ms=event.latency_ms,
                bandwidth_mbps=event.bandwidth_mbps,
                measurement_count=event.measurement_count,
            )
            return replace(live, links={**live.links, dest: link})
        case e.StageProgressed():
            key = f"{event.instance_id}/{event.generation}/{event.rank}"
            return replace(live, stages={**live.stages, key: event.progress})
        case e.DevicePaceMeasured():
            key = " ".join((event.pace.device_id, event.pace.engine, event.pace.dtype))
            return replace(live, paces={**live.paces, key: event.pace})
        case e.InstancePaceMeasured():
            return replace(live, instance_paces={**live.instance_paces, event.pace.instance_id: event.pace})


DECISIONS: dict[type, Callable[[State, Any], State]] = {
    **dict.fromkeys(access.CHANGES, about_access),
    e.ClusterFormed: cluster_formed,
    e.ClusterDissolved: cluster_dissolved,
    e.VotersChanged: voters_changed,
    e.HistoryForced: history_forced,
    e.TermOpened: term_opened,
    e.NodeJoined: node_joined,
    e.NodeDisconnected: node_disconnected,
    e.NodeRemoved: node_removed,
    e.NodeModelsChanged: node_models_changed,
    e.DeviceAppeared: device_appeared,
    e.DeviceLost: device_lost,
    e.InstanceCreated: instance_created,
    e.InstanceDeleted: instance_deleted,
    e.InstanceRestarted: instance_restarted,
    e.InstanceMoved: instance_moved,
    e.InstanceStranded: instance_stranded,
    e.InstanceWaits: instance_waits,
    e.StageChanged: stage_changed,
}


def apply_entry(state: State, entry: e.LogEntry) -> State:
    """Fold one decision in."""
    if entry.index != state.index + 1:
        raise LogOrderError(expected_index=state.index + 1, got_index=entry.index)
    changed = DECISIONS[type(entry.event)](state, entry.event)
    return replace(
        changed,
        index=entry.index,
        term=entry.term,
        last_seq={**changed.last_seq, entry.origin: entry.seq},
    )
