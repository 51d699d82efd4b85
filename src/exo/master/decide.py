"""State x command -> events, or a refusal. Pure: the loop solves and commits, this decides."""

from collections.abc import Collection

from exo.master.placement.around import around
from exo.master.placement.evaluate import violations
from exo.master.placement.place import find_model
from exo.master.placement.problem import build_problem
from exo.shared.serving import instance_status
from exo.shared.types.commands import CommitPlan, DeleteInstance, Refusal
from exo.shared.types.events import Decision, InstanceCreated, InstanceDeleted
from exo.shared.types.ids import DeviceId, ModelId
from exo.shared.types.instances import Instance, StageState
from exo.shared.types.state import State

PLAN_OUTDATED = "plan_outdated"
"""Code of the refusal that asks for the plan to be solved again on the newest state."""


def decide(state: State, command: CommitPlan | DeleteInstance) -> list[Decision] | Refusal:
    """Return the events that carry the command out on this state."""
    match command:
        case CommitPlan():
            return _commit_plan(state, command)
        case DeleteInstance():
            return _delete_instance(state, command)


def existing_instance(
    state: State, model_id: ModelId, device_ids: Collection[DeviceId] = ()
) -> Instance | None:
    """The instance of a model that is ready or on its way, or None; the readiest first, then the oldest.

    Where devices are named, only one that runs on these alone.
    """
    order = {"ready": 0, "loading": 1, "pending": 2}
    found = [
        (order[status], instance_id, instance)
        for instance_id, instance in state.instances.items()
        if instance.model.model_id == model_id
        and (not device_ids or instance.plan.is_within(device_ids))
        and (status := instance_status(state, instance)[0]) in order
    ]
    return min(found, key=lambda one: one[:2])[2] if found else None


def _commit_plan(state: State, command: CommitPlan) -> list[Decision] | Refusal:
    plan = command.plan
    model = find_model(state, command.request.model_id)
    if isinstance(model, Refusal):
        return model
    problem = build_problem(around(state, plan.stages), model, command.request, plan.engine)
    wrong = violations(
        plan.stages,
        model=model,
        context_length=plan.context_length,
        concurrency=plan.concurrency,
        pool_by_device=problem.pool_by_device,
        free_bytes_by_pool=problem.free_bytes_by_pool,
    )
    if wrong:
        return Refusal(
            status=409,
            code=PLAN_OUTDATED,
            message=f"The cluster changed while the plan was made: {wrong[0]}. Try again.",
        )
    instance = Instance(
        instance_id=command.instance_id,
        model=model,
        plan=plan,
        request=command.request,
        stages=tuple(StageState() for _ in plan.stages),
        created_by=command.command_id,
        basis=command.basis,
    )
    return [InstanceCreated(instance=instance)]


def _delete_instance(state: State, command: DeleteInstance) -> list[Decision] | Refusal:
    if command.instance_id not in state.instances:
        return Refusal(
            status=404,
            code="instance_not_found",
            message=f"There is no instance {command.instance_id!r}; `exo status` lists those there are.",
            near_matches=tuple(
                key for key in sorted(state.instances) if key.startswith(command.instance_id[:4])
            )[:3],
        )
    return [InstanceDeleted(instance_id=command.instance_id, reason="deleted on request")]
