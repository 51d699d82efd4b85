"""Bad input at the front door of placement: a refusal with the reason or a right plan, never an exception or a hang."""

import math
import time
from collections.abc import Callable, Iterator

import pytest
from benchmarks.placement.judge import faults
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.place import place_instance
from exo.shared.types.commands import Refusal
from exo.shared.types.devices import ThermalStatus
from exo.shared.types.ids import ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Link
from exo.shared.types.state import NodeTelemetry, State
from support.placing import MIXED, big, joined, mixed_state, reading
from support.states import GIB, card, cluster, cpu, gpu, identity

HOME = mixed_state(MIXED["studio and PCs, 70B"])
MODEL = HOME.nodes[NodeId("node-00-0")].identity.models[0]
NODES = tuple(HOME.nodes)
ABSURD = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e-300, 1e300)
DEADLINE_S = 2.0
PATIENCE_S = 30.0
"""Far beyond the deadline: whoever needs this long hangs."""


def answered(state: State, **request: object) -> Plan | Refusal:
    """Place, and judge the answer."""
    asked = PlacementRequest(**{"model_id": ModelId("big"), **request})  # pyright: ignore
    began_s = time.monotonic()
    answer = place_instance(
        state, asked, should_stop=lambda: time.monotonic() - began_s > DEADLINE_S, has_constraint_layer=True
    )
    assert time.monotonic() - began_s < PATIENCE_S
    assert faults(state, asked, answer) == []
    return answer


def refused(state: State, words: str, **request: object) -> Refusal:
    answer = answered(state, **request)
    assert isinstance(answer, Refusal), answer
    assert words in answer.message, answer.message
    return answer


def with_model(model: ModelCard, state: State = HOME) -> State:
    return with_identities(state, lambda node: {"models": (model,)})


def with_identities(state: State, change: Callable[[NodeId], dict[str, object]]) -> State:
    nodes = {
        node_id: replace(node, identity=replace(node.identity, **change(node_id)))
        for node_id, node in state.nodes.items()
    }
    return replace(state, nodes=nodes)


def with_devices(state: State, **changes: object) -> State:
    """The same with figures of every device changed."""
    return with_identities(
        state,
        lambda node: {
            "devices": tuple(replace(one, **changes) for one in state.nodes[node].identity.devices)
        },
    )


def with_links(state: State, *told: tuple[str, str, float | None, float | None]) -> State:
    live = dict(state.live)
    for source, target, latency_ms, bandwidth_mbps in told:
        of = live.get(NodeId(source), NodeTelemetry())
        link = Link(
            source_node_id=NodeId(source),
            dest_node_id=NodeId(target),
            link_type="ethernet",
            latency_ms=latency_ms,
            bandwidth_mbps=bandwidth_mbps,
        )
        live[NodeId(source)] = replace(of, links={**of.links, NodeId(target): link})
    return replace(state, live=live)


def everywhere(state: State, **told: object) -> State:
    """Every node's first device tells this."""
    for node in state.nodes:
        state = reading(state, node, **told)
    return state


def test_the_cluster_that_is_spoilt_below_is_sound() -> None:
    assert isinstance(answered(HOME), Plan)


def test_no_nodes_no_devices_and_no_model() -> None:
    refused(State(), "big")
    nobody = with_identities(HOME, lambda _: {"devices": ()})
    refused(nobody, "no node can take part; start more")
    refused(with_identities(HOME, lambda _: {"models": ()}), "big")
    refused(with_identities(HOME, lambda _: {"engines": ()}), "no mlx engine")


def test_one_device_takes_all_or_says_what_is_missing() -> None:
    alone = joined([("a", gpu("a", 64 * GIB), "host-a")], big(8, GIB))
    assert isinstance(answered(alone), Plan)
    refusal = refused(joined([("a", gpu("a", 4 * GIB), "host-a")], big(8, GIB)), "needs")
    assert refusal.status == 422 and (refusal.missing_bytes or 0) > 0


def test_no_memory_is_free_at_all() -> None:
    full = HOME
    for node in NODES:
        total = HOME.nodes[node].identity.devices[0].memory_total_bytes
        full = reading(full, node, memory_used_bytes=total)
    assert refused(full, "missing").status == 409


SIZES: dict[str, dict[str, object]] = {
    "no layer sizes": {"layer_bytes": ()},
    "all layers of no size": {"layer_bytes": (0,) * MODEL.layer_count},
    "one layer of no size": {"layer_bytes": (0, *MODEL.layer_bytes[1:])},
    "fewer sizes than layers": {"layer_bytes": MODEL.layer_bytes[:5]},
    "more sizes than layers": {"layer_bytes": (*MODEL.layer_bytes, 5, 5)},
    "negative sizes": {"layer_bytes": (-1, *MODEL.layer_bytes[1:])},
    "sizes beyond all machines": {"layer_bytes": (2**62,) * MODEL.layer_count},
    "no layers": {"layer_count": 0, "layer_bytes": ()},
    "fewer than no layers": {"layer_count": -3},
    "no hidden size": {"hidden_size": 0},
    "a negative hidden size": {"hidden_size": -8192},
    "an absurd hidden size": {"hidden_size": 2**62},
    "a negative embedding": {"embedding_bytes": -(2**40)},
    "a negative head": {"head_bytes": -1},
    "an absurd head": {"head_bytes": 2**62},
    "a negative cache": {"kv_bytes_per_token_and_layer": -4096},
    "an absurd cache": {"kv_bytes_per_token_and_layer": 2**40},
    "a type nobody knows": {"dtype": ""},
    "zero bits": {"dtype": "0-bit"},
    "no context": {"context_length_max": 0},
    "active bytes of some layers": {"layer_active_bytes": (5, 5)},
    "negative active bytes": {"layer_active_bytes": (-5,) * MODEL.layer_count},
    "active bytes of nothing": {"layer_active_bytes": (0,) * MODEL.layer_count},
    "more active bytes than bytes": {"layer_active_bytes": (2**60,) * MODEL.layer_count},
    "five thousand layers": {"layer_count": 5000, "layer_bytes": (1000,) * 5000},
}


@pytest.mark.parametrize("changes", SIZES.values(), ids=SIZES.keys())
def test_models_whose_figures_are_missing_or_absurd(changes: dict[str, object]) -> None:
    answered(with_model(replace(MODEL, **changes)))


@pytest.mark.parametrize(
    "name",
    ["no layer sizes", "all layers of no size", "fewer sizes than layers", "negative sizes", "no layers"],
)
def test_a_model_without_its_sizes_is_refused_in_words(name: str) -> None:
    refusal = refused(with_model(replace(MODEL, **SIZES[name])), "layer")
    assert refusal.status == 422


REQUESTS: dict[str, dict[str, object]] = {
    "more nodes than layers": {"min_nodes": MODEL.layer_count + 1},
    "more nodes than there are": {"min_nodes": 60},
    "a million nodes": {"min_nodes": 1_000_000},
    "no nodes": {"min_nodes": 0},
    "fewer than no nodes": {"min_nodes": -5},
    "more zones than there are": {"min_zones": 3},
    "fewer than no zones": {"min_zones": -1},
    "a zone that is not there": {"zones": ("moon",)},
    "used and excluded": {"must_use": (NODES[0],), "exclude": (NODES[0],)},
    "its device excluded": {"must_use": (NODES[0],), "exclude": (f"{NODES[0]}/metal:0",)},
    "used and not among the nodes": {"must_use": (NODES[0],), "node_ids": (NODES[1],)},
    "all excluded": {"exclude": NODES},
    "nodes and devices that do not meet": {"node_ids": (NODES[0],), "device_ids": (f"{NODES[1]}/cuda:0",)},
    "an unknown node": {"node_ids": (NodeId("nobody"),)},
    "an unknown device": {"device_ids": ("nobody/cuda:0",)},
    "an unknown exclusion": {"exclude": ("nobody",)},
    "an unknown node to use": {"must_use": ("nobody",)},
    "apart from what is not there": {"apart_from": ("nobody",)},
    "the same node twice": {"must_use": (NODES[0], NODES[0]), "node_ids": (NODES[0], NODES[0], NODES[1])},
    "all to be used": {"must_use": NODES},
    "the longest context": {"context_length": 2**31 - 1},
    "no context": {"context_length": 0},
    "a negative context": {"context_length": -1},
    "a million requests": {"concurrency": 1_000_000},
    "no requests": {"concurrency": 0},
    "fewer than no requests": {"concurrency": -3},
    "a split over more stages than layers": {"layer_split": (1,) * (MODEL.layer_count + 1)},
    "a split over more nodes than there are": {"layer_split": (1,) * MODEL.layer_count},
    "a split with nothing in it": {"layer_split": (MODEL.layer_count, 0)},
    "a split with less than nothing": {"layer_split": (MODEL.layer_count + 5, -5)},
    "an engine nobody has": {"engine": "abacus"},
    "no engine": {"engine": ""},
    "tensor": {"sharding": "tensor"},
    "hybrid": {"sharding": "hybrid"},
    "no model": {"model_id": ModelId("")},
    "a model that is nearly there": {"model_id": ModelId("bigg")},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("prefer_gpu", [True, False], ids=["gpu", "any"])
def test_requests_that_contradict_themselves_or_name_what_is_not_there(
    request_: dict[str, object], *, prefer_gpu: bool
) -> None:
    answered(HOME, prefer_gpu=prefer_gpu, **request_)


@pytest.mark.parametrize(
    "name",
    [
        "more nodes than layers",
        "more nodes than there are",
        "more zones than there are",
        "a zone that is not there",
        "used and excluded",
        "used and not among the nodes",
        "all excluded",
        "an unknown node",
        "an unknown node to use",
        "apart from what is not there",
        "the longest context",
        "no context",
        "no requests",
    ],
)
def test_what_no_plan_can_do_is_refused(name: str) -> None:
    assert isinstance(answered(HOME, **REQUESTS[name]), Refusal)


def test_a_model_that_knows_long_contexts_is_refused_for_memory_not_by_an_overflow() -> None:
    endless = with_model(replace(MODEL, context_length_max=2**31 - 1))
    refusal = refused(endless, "needs", context_length=2**31 - 1, concurrency=1_000_000)
    assert refusal.status == 422 and (refusal.missing_bytes or 0) > 2**60


@pytest.mark.parametrize("latency_ms", [None, *ABSURD])
@pytest.mark.parametrize("bandwidth_mbps", [None, *ABSURD])
def test_links_that_are_missing_or_absurd(latency_ms: float | None, bandwidth_mbps: float | None) -> None:
    pairs = [(one, other) for one in NODES for other in NODES]
    spoilt = with_links(HOME, *((*pair, latency_ms, bandwidth_mbps) for pair in pairs))
    plan = answered(spoilt, min_nodes=2)
    assert isinstance(plan, Plan)


def test_links_to_nodes_that_are_not_there_count_for_nothing() -> None:
    lost = with_links(HOME, (NODES[0], "ghost", 1.0, 1.0), ("ghost", NODES[0], 1.0, 1.0))
    assert isinstance(answered(lost, min_nodes=2), Plan)


TOLD = (math.nan, math.inf, -math.inf, -5.0, 0.0, 255.0, 1e300)


@pytest.mark.parametrize("value", TOLD)
@pytest.mark.parametrize(
    "field", ["compute_utilization_percent", "thermal_temperature_c", "thermal_throttle_threshold_c"]
)
def test_telemetry_that_cannot_be(field: str, value: float) -> None:
    told: dict[str, object] = {"thermal_temperature_c": 50.0, "thermal_throttle_threshold_c": 90.0}
    assert isinstance(answered(everywhere(HOME, **{**told, field: value})), Plan)


@pytest.mark.parametrize("value", TOLD)
def test_thermal_forecasts_that_cannot_be(value: float) -> None:
    thermal = ThermalStatus(
        state="cool", reason="", work_fraction=value, limit_c=value, sustained_fraction=value
    )
    assert isinstance(answered(everywhere(HOME, thermal=thermal, thermal_temperature_c=value)), Plan)


@pytest.mark.parametrize(
    ("total", "used"), [(None, None), (0, 0), (-1, 0), (0, 2**62), (2**62, 0), (2**62, -5), (10, -(2**62))]
)
def test_readings_of_memory_that_cannot_be(total: int | None, used: int | None) -> None:
    answered(everywhere(HOME, memory_total_bytes=total, memory_used_bytes=used))


@pytest.mark.parametrize("total", [0, -1, 1, 2**40, 2**62, 2**63 - 1])
def test_devices_with_no_memory_or_more_than_there_is_in_the_world(total: int) -> None:
    answered(with_devices(HOME, memory_total_bytes=total), min_nodes=2)
    answered(with_devices(HOME, memory_total_bytes=total))


@pytest.mark.parametrize("value", [None, *ABSURD])
@pytest.mark.parametrize(
    "field",
    [
        "memory_bandwidth_bytes_per_s",
        "measured_memory_bandwidth_bytes_per_s",
        "flops_per_s",
        "measured_flops_per_s",
        "clock_mhz",
    ],
)
def test_devices_whose_figures_cannot_be(field: str, value: float | None) -> None:
    answered(with_devices(HOME, **{field: value}))


@pytest.mark.parametrize("units", [None, 0, -4, 2**62])
def test_devices_of_which_nobody_knows_anything(units: int | None) -> None:
    nameless = with_devices(
        HOME,
        name="",
        vendor="",
        uuid=None,
        compute_units=units,
        memory_bandwidth_bytes_per_s=None,
        flops_per_s=None,
    )
    assert isinstance(answered(nameless), Plan)


def equals(count: int, *, memory_bytes: int = 2 * GIB) -> State:
    model = big(60, GIB // 2, ends_bytes=GIB // 8)
    return joined([(f"n{i:04}", gpu(f"n{i:04}", memory_bytes), f"h{i:04}") for i in range(count)], model)


def test_a_thousand_equal_devices() -> None:
    plan = answered(equals(1000))
    assert isinstance(plan, Plan)
    assert plan.certificate is not None and plan.certificate.gap_percent == pytest.approx(0, abs=1e-6)
    refused(equals(1000, memory_bytes=GIB // 4), "needs")


def test_two_nodes_that_say_they_are_one_device() -> None:
    """Ids are the cluster's; a node that tells of another's device must not have it used twice."""
    twin = gpu("a", 64 * GIB)
    model = big(8, GIB)
    state = cluster(
        *(
            replace(identity(name, models=[model], devices=[twin], host_id=f"host-{name}"))
            for name in ("a", "b")
        )
    )
    answered(state)
    answered(state, min_nodes=2)


def test_nodes_of_one_host_that_disagree_about_its_memory() -> None:
    model = big(8, GIB)
    state = joined([("a", cpu("a", 64 * GIB), "host"), ("b", cpu("b", 3 * GIB), "host")], model)
    answered(state, min_nodes=2)


def words() -> Iterator[str]:
    yield from (*NODES, f"{NODES[1]}/cuda:0", "nobody", "", "\x00", "big")


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "min_nodes": st.sampled_from([-1, 0, 1, 2, 4, 5, 10**6]),
            "min_zones": st.sampled_from([-1, 0, 1, 2, 10**6]),
            "prefer_gpu": st.booleans(),
            "node_ids": st.lists(st.sampled_from(list(words())), max_size=3).map(tuple),
            "device_ids": st.lists(st.sampled_from(list(words())), max_size=2).map(tuple),
            "exclude": st.lists(st.sampled_from(list(words())), max_size=2).map(tuple),
            "must_use": st.lists(st.sampled_from(list(words())), max_size=3).map(tuple),
            "apart_from": st.lists(st.sampled_from(list(words())), max_size=2).map(tuple),
            "zones": st.lists(st.sampled_from(["", "moon"]), max_size=2).map(tuple),
            "context_length": st.sampled_from([None, -1, 0, 1, 4096, 2**31 - 1]),
            "concurrency": st.sampled_from([-1, 0, 1, 3, 10**6]),
            "objective": st.sampled_from(["auto", "latency", "throughput"]),
            "layer_split": st.lists(st.sampled_from([-1, 0, 1, 20, 40, 80]), max_size=3).map(tuple),
            "sharding": st.sampled_from(["auto", "pipeline", "tensor", "hybrid"]),
        },
    )
)
def test_any_mix_of_wishes(request_: dict[str, object]) -> None:
    answered(HOME, **request_)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_mix_of_readings(data: st.DataObject) -> None:
    state = HOME
    number = st.sampled_from([None, *TOLD, 50.0])
    size = st.sampled_from([None, 0, -1, 2**35, 2**62])
    for node in NODES:
        if data.draw(st.booleans()):
            state = reading(
                state,
                node,
                memory_total_bytes=data.draw(size),
                memory_used_bytes=data.draw(size),
                compute_utilization_percent=data.draw(number),
                thermal_temperature_c=data.draw(number),
                thermal_throttle_threshold_c=data.draw(number),
                health=data.draw(st.sampled_from(["healthy", "degraded", "failed"])),
            )
        if data.draw(st.booleans()):
            state = with_links(
                state, (node, data.draw(st.sampled_from(NODES)), data.draw(number), data.draw(number))
            )
    answered(state, min_nodes=data.draw(st.integers(1, 4)), concurrency=data.draw(st.sampled_from([1, 5])))


def test_a_small_model_on_many_layers_of_one_byte() -> None:
    tiny = card("big", layers=4096, layer_bytes=1)
    state = joined([("a", gpu("a", GIB), "host-a"), ("b", gpu("b", GIB), "host-b")], tiny)
    answered(state)
    answered(state, min_nodes=2)
