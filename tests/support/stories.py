"""Steps in the life of an instance, for tests that start in the middle of it."""

from exo.master.decide import decide
from exo.master.placement.place import place_instance
from exo.shared.types.commands import CommitPlan
from exo.shared.types.events import StageChanged
from exo.shared.types.ids import CommandId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan, StagePhase
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State
from support.states import fold


def placed(
    state: State,
    min_nodes: int = 1,
    *,
    node_ids: tuple[NodeId, ...] = (),
    layer_split: tuple[int, ...] = (),
) -> State:
    """Place the model `toy` as the instance `i`."""
    request = PlacementRequest(
        model_id=ModelId("toy"), min_nodes=min_nodes, node_ids=node_ids, layer_split=layer_split
    )
    plan = place_instance(state, request, should_stop=lambda: False)
    assert isinstance(plan, Plan), plan
    command = CommitPlan(command_id=CommandId("c"), instance_id=InstanceId("i"), request=request, plan=plan)
    events = decide(state, command)
    assert isinstance(events, list), events
    return fold(state, *events)


def stage(
    state: State,
    rank: int,
    phase: StagePhase,
    *,
    address: HostPort | None = None,
    reason: str | None = None,
    is_permanent: bool = False,
) -> State:
    """Report a phase of a stage of the instance `i`, in its present generation."""
    instance = state.instances[InstanceId("i")]
    return fold(
        state,
        StageChanged(
            instance_id=instance.instance_id,
            generation=instance.generation,
            rank=rank,
            phase=phase,
            address=address,
            reason=reason,
            is_permanent=is_permanent,
        ),
    )
