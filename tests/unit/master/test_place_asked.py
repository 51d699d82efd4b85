"""What is asked of a placement: must-use, apart-from, zones; and each contradiction refused by its name."""

from typing import Any

import pytest
from benchmarks.placement.front_faults import faults_of
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.basis import pack, unpack
from exo.master.placement.costs import cost_rounds
from exo.master.placement.filters import zone_words
from exo.master.placement.place import place_instance
from exo.master.placement.problem import build_problem
from exo.shared.types.commands import Refusal
from exo.shared.types.events import NodeDisconnected
from exo.shared.types.ids import DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State
from support.states import GIB, card, cluster, cpu, fold, gpu, identity
from support.stories import placed


def zoned(**zones: str) -> State:
    """A node for each name, with 8 GiB, in these zones, on a host of its own."""
    nodes = (
        replace(
            identity(
                name, models=[card(), card("other")], devices=[cpu(name, 8 * GIB)], host_id=f"host-{name}"
            ),
            zone=zone,
        )
        for name, zone in zones.items()
    )
    return cluster(*nodes)


def place(state: State, **request: Any) -> Plan | Refusal:
    asked = PlacementRequest(**{"model_id": ModelId("toy"), **request})
    return place_instance(state, asked, should_stop=lambda: False)


def nodes_of(state: State, **request: Any) -> set[str]:
    answer = place(state, **request)
    assert isinstance(answer, Plan), answer
    return {str(one.node_id) for one in answer.stages}


def refusal(state: State, **request: Any) -> Refusal:
    answer = place(state, **request)
    assert isinstance(answer, Refusal), answer
    return answer


ROOMS = zoned(a="garage", b="garage", c="office", d="")


def test_what_must_be_used_takes_part() -> None:
    assert nodes_of(ROOMS, must_use=("c",)) == {"c"}
    assert nodes_of(ROOMS, must_use=("b", "c/cpu:0")) == {"b", "c"}
    assert nodes_of(ROOMS, must_use=("b",), min_nodes=3) >= {"b"}
    both = cluster(identity("a", models=[card()], devices=[gpu("a", GIB), gpu("a", GIB, "cuda:1")]))
    answer = place(both, must_use=("a/cuda:1",))
    assert isinstance(answer, Plan) and answer.stages[0].device_ids == ("a/cuda:1",)


def test_zones_limit_and_spread() -> None:
    assert nodes_of(ROOMS, zones=("office",)) == {"c"}
    assert nodes_of(ROOMS, zones=("garage",), min_nodes=2) == {"a", "b"}
    assert nodes_of(ROOMS, zones=("",)) == {"d"}
    spread = nodes_of(ROOMS, min_zones=2)
    assert len({ROOMS.nodes[NodeId(one)].identity.zone for one in spread}) == 2
    assert len(nodes_of(ROOMS, min_zones=3)) == 3
    answer = place(ROOMS, zones=("office",))
    assert isinstance(answer, Plan)
    reasons = {one.device_id: one.reason for one in answer.excluded}
    assert reasons[next(one for one in reasons if one.startswith("a/"))] == (
        "its node is in the zone garage, not in a zone asked for"
    )
    assert "without a name" in reasons[next(one for one in reasons if one.startswith("d/"))]


def test_apart_from_an_instance_or_a_model_leaves_their_nodes_alone() -> None:
    state = placed(ROOMS, node_ids=(NodeId("a"),))
    assert "a" not in nodes_of(state, apart_from=("i",), min_nodes=3)
    assert "a" not in nodes_of(state, apart_from=("toy",), min_nodes=3)
    assert len(nodes_of(state, apart_from=("other",), min_nodes=4)) == 4
    answer = place(state, apart_from=("i",))
    assert isinstance(answer, Plan)
    told = next(one.reason for one in answer.excluded if one.device_id == "a/cpu:0")
    assert told == "its node runs i (toy), which this is to be apart from"


def test_who_is_placed_later_leaves_those_alone_that_are_to_be_apart_from_it() -> None:
    state = placed(ROOMS, node_ids=(NodeId("a"),))
    first = state.instances[InstanceId("i")]

    def wishing(*names: str) -> State:
        asked = replace(first.request, apart_from=names)
        return replace(state, instances={first.instance_id: replace(first, request=asked)})

    assert "a" not in nodes_of(wishing("toy"), min_nodes=3)
    assert len(nodes_of(wishing("other"), min_nodes=4)) == 4
    answer = place(wishing("toy"))
    assert isinstance(answer, Plan)
    told = next(one.reason for one in answer.excluded if one.device_id == "a/cpu:0")
    assert told == "its node runs i (toy), which is to be apart from toy"
    refused = refusal(wishing("toy"), min_nodes=4)
    assert refused.code == "too_few_nodes"
    assert "cpu:0 of host-a: its node runs i (toy), which is to be apart from toy" in refused.message
    basis = unpack(pack(wishing("toy"), PlacementRequest(model_id=ModelId("toy"))))
    assert basis.state is not None and place(basis.state) == answer


def test_links_between_zones_are_slower_than_within() -> None:
    problem = build_problem(ROOMS, card(), PlacementRequest(model_id=ModelId("toy")), "mlx")
    costs = cost_rounds(ROOMS, problem).rounds[0]
    by_node = {one.node_id: one for one in costs.devices}
    within = costs.links.between(by_node["a"], by_node["b"])
    across = costs.links.between(by_node["a"], by_node["c"])
    unnamed = zoned(a="", b="")
    near = cost_rounds(
        unnamed, build_problem(unnamed, card(), PlacementRequest(model_id=ModelId("toy")), "mlx")
    ).rounds[0]
    assert within.forward_ns == near.links.between(*near.devices).forward_ns < across.forward_ns


def test_nodes_of_one_machine_that_name_two_zones_are_weighed_all_the_same() -> None:
    names = {"a": "garage", "b": "office", "c": ""}
    nodes = (
        replace(identity(name, models=[card()], devices=[cpu(name, 8 * GIB)], host_id="host"), zone=zone)
        for name, zone in names.items()
    )
    answer = place(cluster(*nodes), min_nodes=2)
    assert isinstance(answer, Plan) and answer.certificate is not None
    assert not any("two hosts" in line for line in answer.explanation.splitlines())


def test_names_of_zones_in_words() -> None:
    assert zone_words("garage") == "the zone garage"
    assert zone_words("") == "the zone without a name"


@pytest.mark.parametrize(
    ("request_", "status", "code", "words"),
    [
        ({"must_use": ("a",), "exclude": ("a",)}, 422, "contradictory_request", "must_use names host-a,"),
        ({"must_use": ("a",), "exclude": ("a/cpu:0",)}, 422, "contradictory_request", "excluded"),
        (
            {"must_use": ("a/cpu:0",), "exclude": ("a",)},
            422,
            "contradictory_request",
            "must_use names cpu:0 of host-a,",
        ),
        ({"must_use": ("c",), "zones": ("garage",)}, 422, "contradictory_request", "the zone office"),
        ({"must_use": ("c",), "node_ids": ("a", "b")}, 422, "contradictory_request", "nodes asked for"),
        ({"must_use": ("c",), "device_ids": ("a/cpu:0",)}, 422, "contradictory_request", "devices asked for"),
        ({"min_nodes": 3, "node_ids": ("a", "b")}, 422, "contradictory_request", "min_nodes"),
        ({"min_nodes": 3, "device_ids": ("a/cpu:0", "b/cpu:0")}, 422, "contradictory_request", "device_ids"),
        ({"min_zones": 2, "zones": ("garage",)}, 422, "contradictory_request", "min_zones"),
        ({"min_nodes": 3, "layer_split": (3, 3)}, 422, "contradictory_request", "layer_split"),
        ({"min_zones": 3, "layer_split": (3, 3)}, 422, "contradictory_request", "layer_split"),
        ({"must_use": ("a", "b", "c"), "layer_split": (3, 3)}, 422, "contradictory_request", "must_use"),
        ({"min_nodes": 5}, 409, "too_few_nodes", "4 of the 5 nodes"),
        ({"min_zones": 4}, 409, "too_few_zones", "3 of the 4 zones"),
        ({"min_zones": 2, "node_ids": ("a", "b")}, 409, "too_few_zones", "1 of the 2 zones"),
        ({"must_use": ("e",)}, 404, "unknown_node_or_device", "'e'"),
        ({"exclude": ("a/cuda:9",)}, 404, "unknown_node_or_device", "'a/cuda:9'"),
        ({"zones": ("gargae",)}, 404, "unknown_zone", "'gargae'"),
        ({"apart_from": ("tou",)}, 404, "unknown_instance_or_model", "'tou'"),
        ({"min_nodes": 7}, 422, "too_few_layers", "6 layers"),
    ],
)
def test_what_cannot_be_had_is_refused_by_its_name(
    request_: dict[str, object], status: int, code: str, words: str
) -> None:
    answer = refusal(ROOMS, **request_)
    assert (answer.status, answer.code) == (status, code)
    assert words in answer.message


def test_reasons_name_devices_as_people_do_and_only_those_that_were_asked_for() -> None:
    played = replace(gpu("a", 8 * GIB), is_simulated=True)
    state = cluster(
        identity("a", models=[card()], devices=[played, replace(played, device_id=DeviceId("a/x"))]),
        identity("b", models=[card()], devices=[cpu("b", 8 * GIB)]),
    )
    assert refusal(state, min_nodes=2).message == (
        "1 of the 2 nodes wanted can take part (8.0 GiB free): "
        "cuda:0 of host-a, cuda:0 of host-a: it is simulated: no layers can run on it."
    )
    answer = refusal(state, device_ids=("a/cuda:0",))
    assert answer.message == (
        "no node can take part: cuda:0 of host-a: it is simulated: no layers can run on it."
    )
    answer = refusal(state, node_ids=("b",), apart_from=("toy",), exclude=("b",))
    assert answer.message == "no node can take part: cpu:0 of host-b: it was excluded."
    answer = place(state)
    assert isinstance(answer, Plan)
    assert "not used: cuda:0 of host-a: it is simulated" in answer.explanation


def test_too_few_zones_in_the_cluster_are_no_devices_fault() -> None:
    assert refusal(ROOMS, min_zones=4).message == (
        "3 of the 4 zones that min_zones wants can take part: the zone garage, the zone office, the zone without "
        "a name; start nodes in other ones with --zone, or ask for fewer."
    )
    assert refusal(ROOMS, min_zones=2, exclude=("c", "d")).message.endswith(
        "cpu:0 of host-c, cpu:0 of host-d: it was excluded."
    )


def test_near_matches_of_zones_and_models() -> None:
    assert refusal(ROOMS, zones=("gargae",)).near_matches == ("garage",)
    assert refusal(ROOMS, apart_from=("tou",)).near_matches == ("toy",)


def test_what_must_be_used_and_cannot_now_may_later() -> None:
    away = fold(ROOMS, NodeDisconnected(node_id=NodeId("a"), reason="gone"))
    answer = refusal(away, must_use=("a",))
    assert (answer.status, answer.code) == (409, "must_use_unavailable")
    assert "not connected: gone" in answer.message
    busy = placed(ROOMS, node_ids=(NodeId("a"),))
    answer = refusal(busy, must_use=("a",), apart_from=("i",))
    assert (answer.status, answer.code) == (409, "must_use_unavailable")
    assert "to be apart from" in answer.message
    bare = cluster(identity("a", models=[card()]), identity("b", models=[card()], devices=[]))
    assert "it has no device" in refusal(bare, must_use=("b",)).message


def test_more_that_must_be_used_than_there_are_layers() -> None:
    names = [f"n{number}" for number in range(8)]
    state = zoned(**dict.fromkeys(names, ""))
    answer = refusal(state, must_use=tuple(names))
    assert (answer.status, answer.code) == (422, "too_few_layers")


def test_a_refusal_of_many_devices_names_a_few() -> None:
    state = zoned(**{f"n{number:02}": "" for number in range(40)})
    answer = refusal(state, min_nodes=6, node_ids=tuple(NodeId(f"n{number:02}") for number in range(5)))
    assert answer.code == "contradictory_request"
    many = refusal(state, min_nodes=2, exclude=tuple(f"n{number:02}" for number in range(39)))
    assert "and 31 more" in many.message and len(many.message) < 600


names = st.lists(st.sampled_from(["a", "b", "c", "d", "a/cpu:0", "d/cpu:0", "nobody", ""]), max_size=2)


@settings(max_examples=100, deadline=None)
@given(
    wishes=st.fixed_dictionaries(
        {
            "must_use": names.map(tuple),
            "exclude": names.map(tuple),
            "node_ids": names.map(tuple),
            "device_ids": names.map(tuple),
            "apart_from": st.lists(st.sampled_from(["i", "toy", "other", "what"]), max_size=1).map(tuple),
            "zones": st.lists(st.sampled_from(["garage", "office", "", "moon"]), max_size=2).map(tuple),
            "min_zones": st.integers(0, 4),
            "min_nodes": st.integers(-1, 8),
            "layer_split": st.sampled_from([(), (6,), (2, 4), (2, 2, 2), (1, 1), (0, 6)]),
            "prefer_gpu": st.booleans(),
        }
    )
)
def test_every_wish_is_kept_or_refused(wishes: dict[str, Any]) -> None:
    state = placed(ROOMS, node_ids=(NodeId("a"),))
    answer = place(state, **wishes)
    if isinstance(answer, Refusal):
        assert answer.status in (404, 409, 422) and answer.message.endswith(".")
        return
    nodes = {str(one.node_id) for one in answer.stages}
    devices = {str(one) for stage in answer.stages for one in stage.device_ids}
    zones = {ROOMS.nodes[NodeId(one)].identity.zone for one in nodes}
    assert set(wishes["must_use"]) <= nodes | devices
    assert not set(wishes["exclude"]) & (nodes | devices)
    assert not wishes["node_ids"] or nodes <= set(wishes["node_ids"])
    assert not wishes["device_ids"] or devices <= set(wishes["device_ids"])
    assert not wishes["zones"] or zones <= set(wishes["zones"])
    assert len(zones) >= wishes["min_zones"] and len(nodes) >= wishes["min_nodes"]
    if set(wishes["apart_from"]) & {"i", "toy"}:
        assert "a" not in nodes
    split = tuple(one.end_layer - one.start_layer for one in answer.stages)
    assert not wishes["layer_split"] or split == wishes["layer_split"]


def test_a_refusal_is_the_same_in_whatever_order_devices_are_told() -> None:
    assert faults_of(2032)["plan differs on permuted input"] == 0
