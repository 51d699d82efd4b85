"""Where an instance goes on: what is asked for, in which order, and what people are told."""

import pytest
from msgspec.structs import replace

from exo.master.placement.place import place_instance
from exo.master.recovery import troubles
from exo.master.recovery_ladder import (
    Attempt,
    attempts,
    decide_move,
    decide_stranding,
    obstacle,
    surroundings,
    why_refused,
    without,
)
from exo.shared.types.commands import Refusal
from exo.shared.types.events import (
    InstanceMoved,
    NodeDisconnected,
    NodeJoined,
    NodeModelsChanged,
)
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.instances import Plan
from exo.shared.types.state import State
from support.device_stories import devices_of, failed, gone, machine, model, on, told
from support.states import card, cluster, fold, gpu

I = InstanceId("i")  # noqa: E741


def solved(state: State) -> tuple[Attempt, Plan, list[str]] | list[str]:
    """Go down the ladder as the loop does."""
    freed, refused = without(state, I), []
    for attempt in attempts(freed, state.instances[I]):
        answer = place_instance(freed, attempt.request, should_stop=lambda: False)
        if isinstance(answer, Plan):
            return attempt, answer, refused
        refused.append(why_refused(attempt, answer))
    return refused


def moved(state: State) -> InstanceMoved:
    answer = solved(state)
    assert isinstance(answer, tuple), answer
    (trouble,) = troubles(state)
    event = decide_move(state, trouble, *answer)
    assert event is not None
    return event


def test_another_gpu_is_taken_before_a_processor() -> None:
    state = failed(on(cluster(machine("a", "cuda:0", "cuda:1")), "a/cuda:0"), "a/cuda:0")
    event = moved(state)
    assert event.reason == (
        "cuda:0 of host-a has failed: Xid 79; it now runs on cuda:1 of host-a, with no weights moved"
    )
    state = fold(state, event)
    assert devices_of(state) == ["a/cuda:1"]
    instance = state.instances[I]
    assert (instance.generation, instance.status, instance.moved_reason) == (2, "pending", event.reason)
    assert instance.request == on(cluster(machine("a", "cuda:0")), "a/cuda:0").instances[I].request


def test_another_machines_gpu_is_taken_before_the_own_processor() -> None:
    nodes = cluster(machine("a", "cuda:0"), machine("b", "cuda:0"))
    state = gone(on(nodes, "a/cuda:0"), "a/cuda:0")
    assert devices_of(fold(state, moved(state))) == ["b/cuda:0"]


def test_as_many_nodes_as_asked_for_then_fewer_then_processors() -> None:
    nodes = cluster(*(machine(name, "cuda:0") for name in "abc"))
    state = failed(on(nodes, "a/cuda:0", "b/cuda:0", min_nodes=2), "a/cuda:0")
    assert sorted(devices_of(fold(state, moved(state)))) == ["b/cuda:0", "c/cuda:0"]

    state = failed(state, "c/cuda:0")
    event = moved(state)
    assert devices_of(fold(state, event)) == ["b/cuda:0"]
    assert event.reason.endswith(
        "it now runs in one stage instead of 2 on cuda:0 of host-b, with 300 MiB of weights moved; "
        "not possible before that: no other healthy GPUs with room for it on 2 nodes"
    )

    state = failed(state, "b/cuda:0")
    event = moved(state)
    (device_id,) = devices_of(fold(state, event))
    assert device_id.endswith("/cpu:0")
    assert ", on processors, which is much slower, with " in event.reason
    assert "; not possible before that: no other healthy GPUs with room for it" in event.reason
    assert "no healthy GPUs with room for it on fewer nodes" in event.reason


def test_of_fewer_nodes_the_most_that_are_to_be_had() -> None:
    nodes = cluster(*(machine(name, "cuda:0") for name in "abcd"))
    state = failed(on(nodes, *(f"{name}/cuda:0" for name in "abcd"), min_nodes=4), "d/cuda:0")
    assert len(moved(state).plan.stages) == 3
    assert "in 3 stages instead of 4" in moved(state).reason


def test_a_split_that_was_asked_for_is_kept_as_long_as_it_can_be_had() -> None:
    nodes = cluster(*(machine(name, "cuda:0") for name in "abc"))
    state = on(nodes, "a/cuda:0", "b/cuda:0", layer_split=(5, 1))
    plan = moved(failed(state, "a/cuda:0")).plan
    assert [one.end_layer - one.start_layer for one in plan.stages] == [5, 1]
    assert len(moved(failed(failed(state, "a/cuda:0"), "c/cuda:0")).plan.stages) == 1


def test_what_was_named_or_excluded_stays_so() -> None:
    nodes = cluster(machine("a", "cuda:0", "cuda:1", "cuda:2"), machine("b", "cuda:0"))
    named = (DeviceId("a/cuda:0"), DeviceId("a/cuda:2"))
    state = failed(on(nodes, "a/cuda:0", device_ids=named), "a/cuda:0")
    assert devices_of(fold(state, moved(state))) == ["a/cuda:2"]
    refused = solved(failed(state, "a/cuda:2"))
    assert isinstance(refused, list) and refused[0] == "no other healthy GPUs with room for it"
    assert refused[-1].startswith("not on processors: ")

    state = failed(on(nodes, "a/cuda:0", exclude=("a/cuda:1", "a/cuda:2")), "a/cuda:0")
    assert devices_of(fold(state, moved(state))) == ["b/cuda:0"]
    state = failed(
        on(nodes, "a/cuda:0", node_ids=(NodeId("a"),), exclude=("a/cuda:1", "a/cuda:2")), "a/cuda:0"
    )
    assert devices_of(fold(state, moved(state))) == ["a/cpu:0"]


def test_what_it_is_to_be_apart_from_may_be_gone_meanwhile() -> None:
    nodes = cluster(machine("a", "cuda:0", "cuda:1"), machine("b", "cuda:0"))
    state = on(nodes, "a/cuda:0")
    instance = state.instances[I]
    asked = replace(instance.request, apart_from=("deleted", str(instance.model.model_id)))
    state = replace(state, instances={I: replace(instance, request=asked)})
    assert {one.request.apart_from for one in attempts(state, state.instances[I])} == {
        (instance.model.model_id,)
    }
    assert devices_of(fold(state, moved(failed(state, "a/cuda:0")))) == ["a/cuda:1"]


def apart(state: State, instance_id: str, *names: str) -> State:
    """What was asked for when an instance was placed: to be apart from these."""
    instance = state.instances[InstanceId(instance_id)]
    asked = replace(instance.request, apart_from=names)
    return replace(
        state, instances={**state.instances, instance.instance_id: replace(instance, request=asked)}
    )


@pytest.mark.parametrize(("who", "name"), [("i", "j"), ("j", "i"), ("i", "toy"), ("j", "toy")])
def test_what_is_to_be_apart_stays_so_whoever_of_the_two_asked_for_it(who: str, name: str) -> None:
    nodes = cluster(machine("a", "cuda:0"), machine("b", "cuda:0", "cuda:1"), machine("c"))
    state = on(on(nodes, "a/cuda:0"), "b/cuda:0", instance_id="j")
    lost = failed(state, "a/cuda:0")
    assert devices_of(fold(lost, moved(lost))) == ["b/cuda:1"]
    state = apart(state, who, name)
    lost = failed(state, "a/cuda:0")
    event = moved(lost)
    assert set(devices_of(fold(lost, event))) <= {"a/cpu:0", "c/cpu:0"}


def test_a_move_that_was_solved_before_somebody_wanted_to_be_apart_is_not_committed() -> None:
    nodes = cluster(machine("a", "cuda:0"), machine("b", "cuda:0", "cuda:1"))
    lost = failed(on(on(nodes, "a/cuda:0"), "b/cuda:0", instance_id="j"), "a/cuda:0")
    answer = solved(lost)
    assert isinstance(answer, tuple) and answer[1].stages[0].node_id == "b"
    (trouble,) = troubles(lost)
    assert decide_move(lost, trouble, *answer) is not None
    assert decide_move(apart(lost, "j", "i"), trouble, *answer) is None


def test_a_refusal_tells_who_wants_to_be_apart() -> None:
    nodes = cluster(machine("a", "cuda:0"), machine("b", "cuda:0", "cuda:1"))
    state = on(on(nodes, "a/cuda:0", exclude=("a/cpu:0",)), "b/cuda:0", instance_id="j")
    refused = solved(failed(apart(state, "j", "i"), "a/cuda:0"))
    assert isinstance(refused, list)
    assert "its node runs j (toy), which this is to be apart from" in refused[-1]


def test_a_model_on_a_processor_goes_on_wherever_there_is_room() -> None:
    state = failed(on(cluster(machine("a"), machine("b")), "a/cpu:0", prefer_gpu=False), "a/cpu:0")
    event = moved(state)
    assert event.reason == (
        "cpu:0 of host-a has failed: Xid 79; it now runs on cpu:0 of host-b, with 600 MiB of weights moved"
    )
    refused = solved(failed(state, "b/cpu:0"))
    assert isinstance(refused, list)
    (why,) = refused
    assert why.startswith(
        "no other healthy devices with room for it: no node can take part: cpu:0 of host-a, cpu:0 of "
    )


def test_named_devices_that_are_all_gone_and_other_copies_of_the_model_leave_nothing_to_ask_for() -> None:
    state = gone(
        on(cluster(machine("a", "cuda:0", "cuda:1")), "a/cuda:0", device_ids=(DeviceId("a/cuda:0"),)),
        "a/cuda:0",
    )
    assert "were asked for, and these are gone" in (obstacle(state, state.instances[I]) or "")
    state = failed(on(cluster(machine("a", "cuda:0", "cuda:1")), "a/cuda:0"), "a/cuda:0")
    assert obstacle(state, state.instances[I]) is None
    other = replace(card(), fingerprint="another")
    state = fold(state, NodeModelsChanged(node_id=NodeId("a"), models=(other,)))
    assert "are others" in (obstacle(state, state.instances[I]) or "")
    state = fold(state, NodeModelsChanged(node_id=NodeId("a"), models=()))
    assert obstacle(state, state.instances[I]) is not None


def test_memory_that_the_instance_itself_takes_counts_as_free() -> None:
    """In unified memory the processor has what the GPU's stage gives back."""
    shared = replace(gpu("a", 0), memory_kind="unified", memory_total_bytes=1024 * 2**20)
    own = replace(machine("a", ram_mib=1024), devices=(machine("a", ram_mib=1024).devices[0], shared))
    state = on(cluster(own), "a/cuda:0")
    state = told(told(state, "a/cpu:0", used_mib=900), "a/cuda:0", "failed", "Xid 79", used_mib=900)
    assert devices_of(fold(state, moved(state))) == ["a/cpu:0"]
    # What is still loading has taken nothing yet: all of this is others'.
    instance = state.instances[I]
    loading = replace(instance, stages=(replace(instance.stages[0], phase="loading"),))
    assert isinstance(solved(replace(state, instances={I: loading})), list)


def test_a_plan_that_no_longer_fits_the_newest_state_is_not_committed() -> None:
    nodes = cluster(machine("a", "cuda:0", "cuda:1", "cuda:2"))
    state = failed(on(nodes, "a/cuda:0"), "a/cuda:0")
    answer = solved(state)
    assert isinstance(answer, tuple)
    (trouble,) = troubles(state)
    assert decide_move(state, trouble, *answer) is not None
    assert decide_move(failed(state, "a/cuda:1"), trouble, *answer) is None
    assert decide_move(on(state, "a/cuda:1", instance_id="j"), trouble, *answer) is None
    other = replace(model(), fingerprint="another")
    changed = fold(state, NodeModelsChanged(node_id=NodeId("a"), models=(other,)))
    assert decide_move(changed, trouble, *answer) is None


def test_that_it_cannot_go_on_is_said_once_with_the_reason_and_what_helps() -> None:
    state = failed(on(cluster(machine("a", "cuda:0", ram_mib=200)), "a/cuda:0"), "a/cuda:0")
    refused = solved(state)
    assert isinstance(refused, list)
    (trouble,) = troubles(state)
    event = decide_stranding(state, trouble, refused)
    assert event is not None and event.generation == 1
    assert event.reason.startswith(
        "cuda:0 of host-a has failed: Xid 79; it cannot go on elsewhere: "
        "no other healthy GPUs with room for it; not with processors beside GPUs; not on processors: toy needs "
    )
    assert "goes on by itself once that device works again" in event.reason
    assert decide_stranding(fold(state, event), trouble, refused) is None


def test_a_reason_stays_readable_in_a_large_cluster() -> None:
    attempt = attempts(state := on(cluster(machine("a", "cuda:0")), "a/cuda:0"), state.instances[I])[-1]
    refusal = Refusal(status=409, code="too_few_nodes", message="no room " * 10_000)
    assert len(why_refused(attempt, refusal)) < 500


def test_the_surroundings_change_with_nodes_devices_health_models_and_instances_but_not_with_load() -> None:
    state = told(on(cluster(machine("a", "cuda:0"), machine("b")), "a/cuda:0"), "a/cuda:0")
    before = surroundings(state)
    assert surroundings(told(state, "a/cuda:0", used_mib=100)) == before
    for changed in (
        failed(state, "a/cuda:0"),
        gone(state, "a/cuda:0"),
        fold(state, NodeDisconnected(node_id=NodeId("b"), reason="killed")),
        fold(state, NodeJoined(identity=machine("c"))),
        fold(state, NodeModelsChanged(node_id=NodeId("b"), models=())),
        on(state, "b/cpu:0", instance_id="j"),
    ):
        assert surroundings(changed) != before
