"""Decisions on the newest state: a plan that no longer fits is solved again, never committed."""

from exo.master.decide import PLAN_OUTDATED, decide, existing_instance
from exo.master.placement.place import place_instance
from exo.shared.types.commands import CommitPlan, DeleteInstance, Refusal
from exo.shared.types.events import InstanceCreated, InstanceDeleted, NodeDisconnected
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State
from support.states import GIB, card, cluster, fold, identity, with_free_memory
from support.stories import placed, stage


def one_node() -> State:
    return with_free_memory(cluster(identity("a", models=[card()])), {"a": GIB})


def commit_on(state: State) -> CommitPlan:
    request = PlacementRequest(model_id=ModelId("toy"))
    plan = place_instance(state, request, should_stop=lambda: False)
    assert isinstance(plan, Plan)
    return CommitPlan(command_id=CommandId("c"), instance_id=InstanceId("i"), request=request, plan=plan)


def test_a_plan_that_fits_becomes_an_instance() -> None:
    state = one_node()
    events = decide(state, commit_on(state))
    assert isinstance(events, list) and isinstance(events[0], InstanceCreated)
    assert events[0].instance.created_by == "c"


def test_a_plan_on_memory_that_is_gone_is_outdated() -> None:
    command = commit_on(one_node())
    for newer in (
        with_free_memory(one_node(), {"a": 1000}),
        fold(one_node(), NodeDisconnected(node_id=NodeId("a"), reason="gone")),
    ):
        answer = decide(newer, command)
        assert isinstance(answer, Refusal) and answer.status == 409
    assert answer.code in {PLAN_OUTDATED, "model_not_here_now"}


def test_deleting_what_is_not_there_is_404() -> None:
    answer = decide(one_node(), DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("nope")))
    assert isinstance(answer, Refusal) and answer.status == 404
    state = placed(one_node())
    events = decide(state, DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("i")))
    assert isinstance(events, list) and isinstance(events[0], InstanceDeleted)


def test_an_existing_instance_is_found_unless_it_failed() -> None:
    state = placed(one_node())
    found = existing_instance(state, ModelId("toy"))
    assert found is not None and found.instance_id == "i"
    assert existing_instance(stage(state, 0, "failed", reason="x"), ModelId("toy")) is None
    assert existing_instance(state, ModelId("other")) is None


def test_an_existing_instance_counts_only_where_it_runs_on_the_devices_named_alone() -> None:
    state = placed(one_node())
    (used,) = state.instances[InstanceId("i")].plan.stages[0].device_ids
    assert existing_instance(state, ModelId("toy"), (used, DeviceId("b/cpu:0"))) is not None
    assert existing_instance(state, ModelId("toy"), (DeviceId("b/cpu:0"),)) is None
