"""How instances come, change and go."""

from msgspec.structs import replace

from exo.shared.types import events as e
from exo.shared.types.instances import StageState
from exo.shared.types.state import State


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
    )
    return replace(state, instances={**state.instances, event.instance_id: restarted})


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
