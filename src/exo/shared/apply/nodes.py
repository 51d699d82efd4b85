"""How membership changes the state."""

from collections.abc import Callable

from msgspec.structs import replace

from exo.shared.apply.draft import Draft
from exo.shared.types import events as e
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import StageState
from exo.shared.types.nodes import Node


def cluster_formed(draft: Draft, event: e.ClusterFormed) -> None:
    draft.cluster_id = event.cluster_id
    draft.namespace = event.namespace
    draft.voters = event.voters


def cluster_dissolved(draft: Draft, event: e.ClusterDissolved) -> None:
    draft.dissolved_into = event.into_cluster_id


def voters_changed(draft: Draft, event: e.VotersChanged) -> None:
    draft.voters = event.voters


def history_forced(draft: Draft, event: e.HistoryForced) -> None:
    draft.voters = event.voters
    draft.incarnation = event.incarnation


def term_opened(draft: Draft, event: e.TermOpened) -> None:
    draft.master_node_id = event.master_node_id


def node_joined(draft: Draft, event: e.NodeJoined) -> None:
    """Admit the node; where it comes back with a new boot, its stages are pending again. Nobody waits for it now."""
    node_id = event.identity.node_id
    before = draft.nodes.get(node_id)
    draft.put_node(Node(identity=event.identity))
    for instance in tuple(draft.instances.values()):
        if instance.waiting_reason is not None and any(
            one.node_id == node_id for one in instance.plan.stages
        ):
            draft.put_instance(replace(instance, waiting_reason=None))
    if before is not None and before.identity.boot_id != event.identity.boot_id:
        _change_stages(draft, node_id, lambda stage: stage if stage.is_permanent else StageState())
        draft.drop_live(node_id)


def node_disconnected(draft: Draft, event: e.NodeDisconnected) -> None:
    node = draft.nodes.get(event.node_id)
    if node is not None:
        draft.put_node(replace(node, is_connected=False, left_reason=event.reason))


def node_removed(draft: Draft, event: e.NodeRemoved) -> None:
    """Forget the node; the stages that it ran have failed for good."""
    if event.node_id not in draft.nodes:
        return
    failed = StageState(phase="failed", reason=f"its node was removed: {event.reason}", is_permanent=True)
    _change_stages(draft, event.node_id, lambda _: failed)
    draft.drop_node(event.node_id)
    draft.drop_live(event.node_id)


def node_models_changed(draft: Draft, event: e.NodeModelsChanged) -> None:
    node = draft.nodes.get(event.node_id)
    if node is not None:
        draft.put_node(replace(node, identity=replace(node.identity, models=event.models)))


def _change_stages(draft: Draft, node_id: NodeId, change: Callable[[StageState], StageState]) -> None:
    """Replace the stages that are on a node, in every instance that has one there."""
    for instance in tuple(draft.instances.values()):
        if any(plan.node_id == node_id for plan in instance.plan.stages):
            pairs = zip(instance.plan.stages, instance.stages, strict=True)
            stages = tuple(change(stage) if plan.node_id == node_id else stage for plan, stage in pairs)
            draft.put_instance(replace(instance, stages=stages))
