"""How membership changes the state."""

from msgspec.structs import replace

from exo.shared.types import events as e
from exo.shared.types.instances import StageState
from exo.shared.types.nodes import Node
from exo.shared.types.state import State


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


def node_removed(state: State, event: e.NodeRemoved) -> State:
    """Forget the node; the stages that it ran have failed for good."""
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
