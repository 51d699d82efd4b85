"""How an instance is as a whole: its stages' own reports, and whether their nodes can be reached."""

from exo.shared.types.instances import Instance, InstanceStatus
from exo.shared.types.state import State

FAILURES_IN_A_ROW_MAX = 5
"""After so many generations that never became ready, an instance stays failed until a person acts."""


def instance_status(state: State, instance: Instance) -> tuple[InstanceStatus, str | None]:
    """Return the status people and requests go by, with the reason where it is `failed`.

    A stage keeps its phase while its node is away, because it may be running on and come back as it was; until
    then the instance cannot serve.
    """
    for stage in instance.plan.stages:
        node = state.nodes.get(stage.node_id)
        if node is None or not node.is_connected:
            name = node.identity.name if node is not None else stage.node_id
            reason = node.left_reason if node is not None else "it was removed"
            why_there = instance.stranded_reason or instance.waiting_reason
            return "failed", f"stage {stage.rank} is on {name}, which is not connected" + (
                (f" ({reason})" if reason else "") + (f"; {why_there}" if why_there else "")
            )
    if instance.stranded_reason is not None:
        return "failed", instance.stranded_reason
    return instance.status, instance.reason


def may_restart(state: State, instance: Instance) -> bool:
    """Say whether starting all stages of a failed instance again may mend it: the master then does so."""
    if instance.stranded_reason is not None:
        return False
    if instance.failures_in_a_row >= FAILURES_IN_A_ROW_MAX:
        return False
    if any(stage.is_permanent for stage in instance.stages):
        return False
    return are_nodes_connected(state, instance)


def is_being_replaced(state: State, instance: Instance) -> bool:
    """Say whether the master is about to have an instance go on elsewhere, or to say why it cannot.

    That is so from when a node of it is called disconnected, or is removed, until either was decided.
    """
    if instance.stranded_reason is not None or instance.waiting_reason is not None:
        return False
    has_failed_for_good = any(
        stage.is_permanent and plan.node_id in state.nodes
        for plan, stage in zip(instance.plan.stages, instance.stages, strict=True)
    )
    return not has_failed_for_good and not are_nodes_connected(state, instance)


def measured_tokens_per_s(state: State, instance: Instance) -> float | None:
    """Return what one request gets while it is the only one, as the first stage saw it lately; None: not known."""
    first = instance.plan.stages[0].node_id if instance.plan.stages else None
    live = state.live.get(first) if first is not None else None
    pace = live.instance_paces.get(instance.instance_id) if live is not None else None
    if pace is None or pace.generation != instance.generation or pace.ms_per_token <= 0:
        return None
    return 1000 / pace.ms_per_token


def are_nodes_connected(state: State, instance: Instance) -> bool:
    """Say whether every node that has a stage of the instance is here."""
    nodes = (state.nodes.get(stage.node_id) for stage in instance.plan.stages)
    return all(node is not None and node.is_connected for node in nodes)
