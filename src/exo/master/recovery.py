"""State x failure -> events: an instance with a broken stage starts again as a whole, while that can help."""

from exo.shared.serving import may_restart
from exo.shared.types.events import InstanceRestarted
from exo.shared.types.instances import Instance
from exo.shared.types.state import State


def restarts(state: State) -> list[InstanceRestarted]:
    """Return a restart for every instance whose group of stages is broken and may be whole again.

    A pipeline's processes are thrown away together: a stage that failed, or one that its node lost by starting
    anew, breaks the group. Nothing is restarted while one of its nodes is away, since that could not work.
    """
    return [
        InstanceRestarted(instance_id=instance_id, generation=instance.generation + 1, reason=reason)
        for instance_id, instance in sorted(state.instances.items())
        if (reason := _why_broken(instance)) is not None and may_restart(state, instance)
    ]


def _why_broken(instance: Instance) -> str | None:
    phases = [stage.phase for stage in instance.stages]
    if "failed" in phases:
        return instance.reason or "a stage failed"
    is_linked = "ready" in phases
    if is_linked and any(phase in {"pending", "starting", "loading"} for phase in phases):
        return "a stage of the group was lost when its node started anew"
    return None
