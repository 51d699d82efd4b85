"""What is told to be in the way is in the way: without that one thing, the placement is made."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from exo.master.decide import decide
from exo.master.placement.place import place_instance
from exo.master.remedy import remedy_for
from exo.master.what_if import changed, imagine
from exo.shared.types.commands import CommitPlan, Planned, Refusal, Remedy
from exo.shared.types.events import NodeJoined
from exo.shared.types.ids import CommandId, InstanceId, ModelId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State
from exo.shared.types.what_if import Change
from support.placing import big, never
from support.states import GIB, cluster, cpu, fold, gpu, identity

ASKED = PlacementRequest(model_id=ModelId("big"))


def three(**zones: str) -> State:
    """Two roomy nodes and one that holds next to nothing."""
    model = big(20, GIB)
    nodes = (
        identity(name, devices=[gpu(name, size)], models=[model], host_id=name)
        for name, size in (("a", 12 * GIB), ("b", 12 * GIB), ("c", GIB // 2))
    )
    return cluster(*(replace(one, zone=zones.get(one.node_id, "")) for one in nodes))


def helped(state: State, request: PlacementRequest) -> Remedy | None:
    assert isinstance(place_instance(state, request, should_stop=never), Refusal)
    found = remedy_for(state, request, Change(), should_stop=never)
    if found is not None and not found.instead:
        assert isinstance(place_instance(state, found.request, should_stop=never), Plan), found
    return found


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"min_nodes": 3}, "Ask for 2 nodes, not 3"),
        ({"exclude": ("a",)}, "Let host-a take part"),
        ({"exclude": ("c", "b")}, "Let host-b take part"),
        ({"must_use": ("c",)}, "Do not insist on host-c"),
        ({"node_ids": ("a", "c")}, "Let other nodes take part"),
        ({"device_ids": ("a/cuda:0",)}, "Let other devices take part"),
        ({"layer_split": (19, 1)}, "Do not prescribe the layers of each stage"),
        ({"sharding": "tensor"}, "Do not ask for tensor sharding"),
        ({"engine": "numpy"}, "Do not ask for the engine numpy"),
        ({"min_zones": 3}, "Ask for one zone, not 3"),
        ({"context_length": 1_000_000}, "Keep room for 4,096 tokens of context, not 1,000,000"),
    ],
)
def test_the_one_wish_in_the_way_is_named(told: dict[str, object], words: str) -> None:
    found = helped(three(), replace(ASKED, **told))
    assert found is not None and found.words == words
    changed_fields = [
        name
        for name in PlacementRequest.__struct_fields__
        if getattr(found.request, name) != getattr(replace(ASKED, **told), name)
    ]
    assert changed_fields == list(told)


def test_gpus_that_were_not_wanted_are_offered() -> None:
    devices = [cpu("a", 8 * GIB), gpu("a", 36 * GIB)]
    state = cluster(identity("a", devices=devices, models=[big(20, GIB)], host_id="a"))
    found = helped(state, replace(ASKED, prefer_gpu=False))
    assert found is not None and found.words == "Let GPUs take part" and found.request == ASKED


def test_of_several_zones_as_many_are_kept_as_fit() -> None:
    state = three(a="left", b="right", c="cellar")
    found = helped(state, replace(ASKED, min_zones=3))
    assert found is not None and found.words == "Ask for 2 zones, not 3"


def test_the_most_requests_that_fit_are_offered() -> None:
    found = helped(three(), replace(ASKED, concurrency=100_000))
    assert found is not None and found.words.startswith("Keep room for ")
    most = found.request.concurrency
    assert 1 <= most < 100_000
    more = replace(ASKED, concurrency=most + 1)
    assert isinstance(place_instance(three(), more, should_stop=never), Refusal)


def test_where_two_things_are_in_the_way_none_is_named() -> None:
    assert helped(three(), replace(ASKED, min_nodes=3, must_use=("c",), exclude=("b",))) is None


def test_nothing_helps_a_model_that_is_too_large_for_all_of_them() -> None:
    model = big(200, GIB)
    state = cluster(identity("a", devices=[gpu("a", 12 * GIB)], models=[model], host_id="a"))
    assert helped(state, ASKED) is None


def test_an_instance_that_takes_the_room_is_named_last() -> None:
    node = identity("a", devices=[gpu("a", 36 * GIB)], models=[big(20, GIB)], host_id="a")
    state = cluster(node)
    plan = place_instance(state, ASKED, should_stop=never)
    assert isinstance(plan, Plan)
    command = CommitPlan(command_id=CommandId("c"), instance_id=InstanceId("i"), request=ASKED, plan=plan)
    events = decide(state, command)
    assert isinstance(events, list)
    found = helped(fold(state, *events), ASKED)
    assert found is not None and found.instead == ("i",) and found.request == ASKED
    assert found.words.startswith("Stop big (i), which takes 21.")


def crowded(total_gib: int, *layers: int) -> State:
    """A node on which instances `i0`, `i1`, ... of models with so many layers of a GiB run."""
    others = [replace(big(count, GIB), model_id=ModelId(f"m{at}")) for at, count in enumerate(layers)]
    devices = [gpu("a", total_gib * GIB)]
    state = cluster(identity("a", devices=devices, models=[big(20, GIB), *others], host_id="a"))
    for at, model in enumerate(others):
        request = PlacementRequest(model_id=model.model_id)
        plan = place_instance(state, request, should_stop=never)
        assert isinstance(plan, Plan), plan
        name = f"i{at}"
        command = CommitPlan(
            command_id=CommandId(name), instance_id=InstanceId(name), request=request, plan=plan
        )
        events = decide(state, command)
        assert isinstance(events, list)
        state = fold(state, *events)
    return state


def test_of_instances_that_would_do_the_smallest_is_named() -> None:
    found = helped(crowded(70, 20, 12, 24), ASKED)
    assert found is not None and found.instead == ("i1",) and found.words.startswith("Stop m1 (i1)")


def test_of_many_instances_those_that_take_most_are_tried() -> None:
    found = helped(crowded(50, 20, *(1 for _ in range(9))), ASKED)
    assert found is not None and found.instead == ("i0",)


def test_what_is_imagined_stays_so_in_a_remedy() -> None:
    state = crowded(42, 1, 20)
    there = identity("b", devices=[gpu("b", GIB)], models=[big(20, GIB)], host_id="b")
    state = fold(state, NodeJoined(identity=there))
    gone = Change(without=("b",), instead=("i0",))
    both = replace(gone, instead=("i0", "i1"))
    many = replace(ASKED, concurrency=100_000)
    for wish, change, words in ((ASKED, gone, "Stop m1 (i1)"), (many, both, "Keep room for ")):
        found = imagine(state, wish, change, share=lambda _: never)
        assert isinstance(found, Planned) and found.answer.remedy is not None, found
        told = found.answer.remedy
        assert told.words.startswith(words)
        assert (told.without, told.instead) == (both.without, both.instead)


def test_what_is_to_be_kept_is_all_that_changes() -> None:
    gone = Change(without=("c", "a"), instead=("i",))
    state = three()
    plan = place_instance(state, replace(ASKED, node_ids=("b", "a")), should_stop=never)
    assert isinstance(plan, Plan)
    command = CommitPlan(command_id=CommandId("c"), instance_id=InstanceId("i"), request=ASKED, plan=plan)
    events = decide(state, command)
    assert isinstance(events, list)
    found = imagine(fold(state, *events), ASKED, gone, share=lambda _: never)
    assert isinstance(found, Planned) and found.answer.remedy is not None
    told = found.answer.remedy
    assert (told.words, told.without, told.instead) == ("Keep host-a", ("c",), ("i",))


def test_no_more_context_is_given_up_than_needed() -> None:
    model = big(20, GIB)
    roomy = cluster(identity("a", devices=[gpu("a", 36 * GIB)], models=[model], host_id="a"))
    plan = place_instance(roomy, replace(ASKED, context_length=2048), should_stop=never)
    assert isinstance(plan, Plan) and len(plan.stages) == 1
    just = [gpu("a", plan.stages[0].memory_bytes)]
    found = helped(cluster(identity("a", devices=just, models=[model], host_id="a")), ASKED)
    assert found is not None and found.words == "Keep room for 2,048 tokens of context, not 4,096"


def test_to_be_kept_apart_can_be_what_is_in_the_way() -> None:
    request = replace(ASKED, apart_from=("m0",))
    found = helped(crowded(40, 2), request)
    assert found is not None and found.words == "Do not keep it apart from m0" and found.request == ASKED


def test_when_time_runs_out_in_mid_search_what_is_known_to_fit_is_told() -> None:
    calls: list[int] = []
    request = replace(ASKED, concurrency=1_000_000)
    whole = remedy_for(three(), request, Change(), should_stop=lambda: bool(calls.append(1)))
    assert whole is not None
    found = remedy_for(three(), request, Change(), should_stop=_after(len(calls) - 3))
    assert found is not None and 1 <= found.request.concurrency <= whole.request.concurrency
    assert isinstance(place_instance(three(), found.request, should_stop=never), Plan)


def _after(count: int) -> Callable[[], bool]:
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def test_it_is_not_looked_for_without_time() -> None:
    request = replace(ASKED, min_nodes=3)
    assert remedy_for(three(), request, Change(), should_stop=lambda: True) is None


def test_of_what_is_taken_to_be_gone_the_one_that_is_needed_is_kept() -> None:
    found = imagine(three(), ASKED, Change(without=("c", "a")), share=lambda _: never)
    assert isinstance(found, Planned) and found.answer.refusal is not None
    remedy = found.answer.remedy
    assert remedy is not None and remedy.words == "Keep host-a"
    there = changed(three(), remedy.request, Change(without=remedy.without))
    assert not isinstance(there, Refusal)
    assert isinstance(place_instance(there[0], remedy.request, should_stop=never), Plan)


def test_a_wish_for_what_is_taken_to_be_gone_is_given_up() -> None:
    request = replace(ASKED, must_use=("c",))
    found = imagine(three(), request, Change(without=("c",)), share=lambda _: never)
    assert isinstance(found, Planned) and found.answer.remedy is not None
    assert found.answer.remedy.words == "Do not insist on host-c"
    assert found.answer.remedy.request.must_use == ()
