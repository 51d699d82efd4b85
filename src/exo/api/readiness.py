"""Waiting for instances: when one can serve, and when it never will by itself."""

from exo.cluster.coordinator import Coordinator
from exo.shared.serving import instance_status, is_being_replaced, may_restart
from exo.shared.types.ids import InstanceId
from exo.shared.types.instances import Instance
from exo.shared.types.state import State


def is_on_its_way(state: State, instance: Instance) -> bool:
    """Say whether the instance is being loaded, or will be started again or elsewhere without anyone's doing."""
    status, _ = instance_status(state, instance)
    will_return = may_restart(state, instance) or is_being_replaced(state, instance)
    return status in ("pending", "loading") or (status == "failed" and will_return)


async def settled_instance(coordinator: Coordinator, instance_id: InstanceId) -> Instance | None:
    """Return the instance once it is ready or has failed for good; None when it is deleted. Waits without end."""
    async for state in coordinator.changes():
        instance = state.instances.get(instance_id)
        if instance is None or not is_on_its_way(state, instance):
            return instance
    return None
