"""What holds of every State, whatever happened. Used by tests and by `EXO_CHECK_INVARIANTS=1`."""

from exo.shared.types.state import State


def check(state: State) -> list[str]:
    """Return every violated invariant as a sentence; an empty list is the good answer."""
    found: list[str] = []
    if state.index < 0 or state.term < 0:
        found.append(f"index {state.index} or term {state.term} is negative")
    if state.master_node_id is not None and state.index == 0:
        found.append("there is a master before the first event")
    for node_id, node in state.nodes.items():
        if node.identity.node_id != node_id:
            found.append(f"node {node_id} is filed under another id than its own, {node.identity.node_id}")
        ids = [device.device_id for device in node.identity.devices]
        if len(set(ids)) != len(ids):
            found.append(f"node {node_id} lists a device twice")
    for node_id in state.live:
        if node_id not in state.nodes:
            found.append(f"there is telemetry of {node_id}, which is not a member")
    for instance_id, instance in state.instances.items():
        if len(instance.stages) != len(instance.plan.stages):
            found.append(f"instance {instance_id} has {len(instance.plan.stages)} planned stages")
        next_layer = 0
        for rank, stage in enumerate(instance.plan.stages):
            if stage.rank != rank:
                found.append(f"instance {instance_id}: stage {rank} says it is rank {stage.rank}")
            if stage.start_layer != next_layer or stage.end_layer <= stage.start_layer:
                found.append(f"instance {instance_id}: stage {rank} does not continue at layer {next_layer}")
            next_layer = stage.end_layer
        if next_layer != instance.model.layer_count:
            found.append(
                f"instance {instance_id}: {next_layer} of {instance.model.layer_count} layers placed"
            )
    return found
