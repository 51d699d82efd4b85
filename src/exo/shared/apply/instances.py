"""How instances come, change and go."""

from msgspec.structs import replace

from exo.shared.apply.draft import Draft
from exo.shared.types import events as e
from exo.shared.types.instances import StageState


def instance_created(draft: Draft, event: e.InstanceCreated) -> None:
    draft.put_instance(event.instance)


def instance_deleted(draft: Draft, event: e.InstanceDeleted) -> None:
    draft.drop_instance(event.instance_id)


def instance_restarted(draft: Draft, event: e.InstanceRestarted) -> None:
    """Begin a new generation; what older generations still report no longer counts."""
    instance = draft.instances.get(event.instance_id)
    if instance is None or event.generation <= instance.generation:
        return
    draft.put_instance(
        replace(
            instance,
            generation=event.generation,
            failures_in_a_row=instance.failures_in_a_row + 1,
            stages=tuple(StageState() for _ in instance.stages),
            stranded_reason=None,
            waiting_reason=None,
        )
    )


def instance_moved(draft: Draft, event: e.InstanceMoved) -> None:
    """Begin a new generation elsewhere, where it has not failed yet."""
    instance = draft.instances.get(event.instance_id)
    if instance is None or event.generation <= instance.generation:
        return
    draft.put_instance(
        replace(
            instance,
            plan=event.plan,
            basis=event.basis,
            generation=event.generation,
            failures_in_a_row=0,
            stages=tuple(StageState() for _ in event.plan.stages),
            moved_reason=event.reason,
            stranded_reason=None,
            waiting_reason=None,
        )
    )


def instance_stranded(draft: Draft, event: e.InstanceStranded) -> None:
    """Note that it cannot go on. Its stages stay as they are: their devices may come back as they were."""
    instance = draft.instances.get(event.instance_id)
    if instance is not None and event.generation == instance.generation:
        draft.put_instance(replace(instance, stranded_reason=event.reason))


def instance_waits(draft: Draft, event: e.InstanceWaits) -> None:
    """Note why it waits. Its stages stay as they are: the node may come back as it was."""
    instance = draft.instances.get(event.instance_id)
    if instance is not None and event.generation == instance.generation:
        draft.put_instance(replace(instance, waiting_reason=event.reason))


def stage_changed(draft: Draft, event: e.StageChanged) -> None:
    instance = draft.instances.get(event.instance_id)
    if instance is None or event.generation != instance.generation:
        return
    if not 0 <= event.rank < len(instance.stages):
        return
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
    draft.put_instance(changed)
