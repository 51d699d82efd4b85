"""From states to costs: figures, load of others, heat, links, memory. By figures that were worked out by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.assumed import ASSUMED
from exo.master.placement.costs import Costs, bits_per_weight, cost_rounds, model_figures
from exo.master.placement.evaluate import violations
from exo.master.placement.figures import heat_of, used_by_others_percent
from exo.master.placement.held import RESERVE_BYTES, VALUES_PER_HIDDEN, activation_bytes, process_bytes
from exo.master.placement.ladder.cost_model import link_cost
from exo.master.placement.ladder.evaluate import Stage, assess
from exo.master.placement.ladder.problem import Device
from exo.master.placement.problem import Problem, build_problem
from exo.shared.types.devices import DeviceGPUState, ThermalStatus
from exo.shared.types.ids import DeviceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, StagePlan
from exo.shared.types.nodes import Link, LinkType
from exo.shared.types.state import NodeTelemetry, State
from support.placing import big, joined, reading
from support.states import GIB, card, cpu, gpu
from support.stories import placed

LAYER_BYTES = 100_000_000
MODEL = big(10, LAYER_BYTES, ends_bytes=GIB)


def two_gpus(*, is_one_host: bool = False, **figures: object) -> State:
    """Two cards of 1 TB/s."""
    rows = [
        (
            name,
            replace(gpu(name, 24 * GIB), **{"memory_bandwidth_bytes_per_s": 1e12, **figures}),
            "host" if is_one_host else f"host-{name}",
        )
        for name in ("a", "b")
    ]
    return joined(rows, MODEL)


def hard(state: State, **request: object) -> Problem:
    asked = PlacementRequest(**{"model_id": ModelId("big"), **request})  # pyright: ignore
    return build_problem(state, MODEL, asked, "mlx")


def costs(state: State, **request: object) -> Costs:
    return cost_rounds(state, hard(state, **request))


def device(state: State, node: str = "a", **request: object) -> Device:
    return next(one for one in costs(state, **request).rounds[0].devices if one.node_id == node)


def with_link(
    state: State, *, latency_ms: float | None, bandwidth_mbps: float | None, link_type: LinkType = "ethernet"
) -> State:
    link = Link(
        source_node_id=NodeId("a"),
        dest_node_id=NodeId("b"),
        link_type=link_type,
        latency_ms=latency_ms,
        bandwidth_mbps=bandwidth_mbps,
    )
    live = state.live.get(NodeId("a"), NodeTelemetry())
    return replace(state, live={**state.live, NodeId("a"): replace(live, links={NodeId("b"): link})})


def test_a_layer_takes_what_reading_it_takes() -> None:
    read_bytes = LAYER_BYTES + 4096 * MODEL.kv_bytes_per_token_and_layer
    assert device(two_gpus()).layer_ns == round(read_bytes / (1e12 * ASSUMED.bandwidth_share) * 1e9)
    assert device(two_gpus()).head_ns == round(GIB / (1e12 * ASSUMED.bandwidth_share) * 1e9)


def test_what_was_measured_is_reached_already() -> None:
    measured = two_gpus(measured_memory_bandwidth_bytes_per_s=5e11)
    read_bytes = LAYER_BYTES + 4096 * MODEL.kv_bytes_per_token_and_layer
    assert device(measured).layer_ns == round(read_bytes / 5e11 * 1e9)


def test_slow_arithmetic_counts_where_it_takes_longer_than_reading() -> None:
    flops = 2 * LAYER_BYTES * 8 / 4.5
    assert model_figures(MODEL, 4096).layers[0].flops_per_token == pytest.approx(flops)
    assert device(two_gpus(measured_flops_per_s=1e9)).layer_ns == pytest.approx(
        flops / (1e9 * ASSUMED.compute_share) * 1e9, rel=1e-6
    )


def test_a_tied_head_is_read_like_one_of_its_own() -> None:
    state = two_gpus()
    tied = replace(MODEL, has_tied_head=True, head_bytes=1000)
    problem = build_problem(state, tied, PlacementRequest(model_id=ModelId("big")), "mlx")
    tied_ns = (
        cost_rounds(state, replace(problem, candidates=hard(state).candidates)).rounds[0].devices[0].head_ns
    )
    assert tied_ns == round((GIB + 1000) / (1e12 * ASSUMED.bandwidth_share) * 1e9)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("4-bit", 4.5), ("8-bit", 8.5), ("bfloat16", 16), ("float32", 32), ("", 16), ("0-bit", 16)],
)
def test_bits_of_a_weight(dtype: str, bits: float) -> None:
    assert bits_per_weight(dtype) == bits


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        (None, None),
        (math.nan, None),
        (-5.0, 0),
        (0.0, 0),
        (19.9, 0),
        (20.0, 20),
        (59.0, 40),
        (100.0, 80),
        (1e9, 80),
    ],
)
def test_load_counts_in_steps_of_twenty_points(told: float | None, counted: float | None) -> None:
    assert used_by_others_percent(told) == counted


def test_load_of_others_slows_and_load_of_ours_does_not() -> None:
    idle = device(two_gpus()).layer_ns
    busy = reading(two_gpus(), "a", compute_utilization_percent=55.0)
    assert device(busy).layer_ns == pytest.approx(idle / 0.6, rel=1e-5)
    assert device(busy, "b").layer_ns == idle
    plan = placed(joined([("a", cpu("a", 24 * GIB), "host-a")], card())).instances
    (instance,) = plan.values()
    stages = tuple(replace(one, device_ids=(DeviceId("a/cuda:0"),)) for one in instance.plan.stages)
    ours = replace(instance, plan=replace(instance.plan, stages=stages))
    assert device(replace(busy, instances={ours.instance_id: ours})).layer_ns == idle


def heat(**told: object) -> DeviceGPUState:
    return DeviceGPUState(
        **{  # pyright: ignore
            "device_id": DeviceId("a/cuda:0"),
            "node_id": NodeId("a"),
            "last_update": "2026-01-01T00:00:00Z",
            **told,
        }
    )


def governed(**told: object) -> ThermalStatus:
    return ThermalStatus(**{"state": "cool", "reason": "", "work_fraction": 1.0, **told})  # pyright: ignore


def test_heat_that_is_foreseen_counts_before_degrees() -> None:
    degrees = {"thermal_temperature_c": 83.0, "thermal_throttle_threshold_c": 90.0}
    assert heat_of(heat(**degrees)) == (1.0, 5.0)
    assert heat_of(heat(**degrees, thermal=governed(sustained_fraction=0.68))) == (0.65, None)
    assert heat_of(heat(thermal=governed(sustained_fraction=1.0))) == (1.0, None)
    assert heat_of(heat(thermal=governed(sustained_fraction=0.0001))) == (0.05, None)
    assert heat_of(heat()) == (1.0, None)
    # A limit that nobody told is no reason to leave a device alone.
    warm = heat(thermal_temperature_c=83.0, thermal=governed(limit_c=90.0, is_limit_assumed=True))
    assert heat_of(warm) == (1.0, None)
    told = heat(thermal_temperature_c=83.0, thermal=governed(limit_c=90.0))
    assert heat_of(told) == (1.0, 5.0)


def test_a_hot_device_is_slower() -> None:
    idle = device(two_gpus()).layer_ns
    hot = reading(two_gpus(), "a", thermal=governed(sustained_fraction=0.5))
    assert device(hot).layer_ns == pytest.approx(2 * idle, abs=1)
    near = reading(two_gpus(), "a", thermal_temperature_c=90.0, thermal_throttle_threshold_c=90.0)
    assert device(near).layer_ns == pytest.approx(2 * idle, abs=1)


def test_measured_links_count_between_hosts_and_classes_within() -> None:
    measured = with_link(two_gpus(), latency_ms=2.0, bandwidth_mbps=800.0)
    (link,) = costs(measured).rounds[0].links.measured
    assert (link.source_device_id, link.target_device_id) == ("a/cuda:0", "b/cuda:0")
    assert link.cost.forward_ns == 2_000_000 + round(2 * 8192 / 1e8 * 1e9)
    assert link.cost.return_ns == 2_000_000 + round(4 / 1e8 * 1e9)
    loop = with_link(two_gpus(), latency_ms=2.0, bandwidth_mbps=800.0, link_type="loopback")
    near = with_link(two_gpus(is_one_host=True), latency_ms=2.0, bandwidth_mbps=800.0)
    unknown = with_link(two_gpus(), latency_ms=None, bandwidth_mbps=None)
    for state in (loop, near, unknown, two_gpus()):
        assert costs(state).rounds[0].links.measured == ()
    half = with_link(two_gpus(), latency_ms=2.0, bandwidth_mbps=None)
    (link,) = costs(half).rounds[0].links.measured
    assert (
        link.cost.forward_ns
        == link_cost(replace(ASSUMED.zone_link, latency_s=0.002), batch=1, hidden_size=8192).forward_ns
    )


@pytest.mark.parametrize(
    ("latency_ms", "bandwidth_mbps"),
    [(math.nan, 100.0), (1.0, 0.0), (-1.0, 5.0), (1.0, -3.0), (math.inf, 1.0)],
)
def test_absurd_links_are_told_and_left_aside(latency_ms: float, bandwidth_mbps: float) -> None:
    found = costs(with_link(two_gpus(), latency_ms=latency_ms, bandwidth_mbps=bandwidth_mbps))
    assert found.rounds[0].links.measured == ()
    assert len(found.notes) == 1 and "no use" in found.notes[0]


sizes = st.integers(0, 3_000_000)


@settings(max_examples=40, deadline=None)
@given(
    has_tied_head=st.booleans(),
    split=st.sampled_from([[10], [4, 6], [1, 9]]),
    kv=st.one_of(st.just(()), st.lists(sizes, min_size=10, max_size=10).map(tuple)),
    window=st.one_of(
        st.just(()), st.lists(st.sampled_from([0, 128, 9999]), min_size=10, max_size=10).map(tuple)
    ),
    states=st.one_of(st.just(()), st.lists(sizes, min_size=10, max_size=10).map(tuple)),
    step=st.sampled_from([1, 256]),
    dtype=st.sampled_from(["4-bit", "float32"]),
)
def test_ladder_solvers_and_evaluator_count_the_same_memory(
    has_tied_head: bool,
    split: list[int],
    kv: tuple[int, ...],
    window: tuple[int, ...],
    states: tuple[int, ...],
    step: int,
    dtype: str,
) -> None:
    state = two_gpus()
    model = replace(
        MODEL,
        has_tied_head=has_tied_head,
        layer_kv_bytes_per_token=kv,
        layer_kv_tokens_max=window,
        layer_state_bytes=states,
        kv_step_tokens=step,
        dtype=dtype,
    )
    request = PlacementRequest(model_id=ModelId("big"), concurrency=3, context_length=777)
    problem = replace(build_problem(state, MODEL, request, "mlx"), model=model)
    start, stages = 0, list[Stage]()
    for name, count in zip(("a/cuda:0", "b/cuda:0"), split, strict=False):
        stages.append(Stage(device_id=name, start_layer=start, end_layer=start + count))
        start += count
    for cost in cost_rounds(state, problem).rounds:
        assert list(assess(cost, stages).stage_bytes) == [
            problem.stage_memory_bytes(one.start_layer, one.end_layer) for one in stages
        ]
        assert {one.pool_id: one.room_bytes for one in cost.pools} == problem.free_bytes_by_pool

    def wrongs(short_bytes: int) -> list[str]:
        plan = [
            StagePlan(
                rank=rank,
                node_id=NodeId("a"),
                device_ids=(DeviceId(one.device_id),),
                start_layer=one.start_layer,
                end_layer=one.end_layer,
                memory_bytes=problem.stage_memory_bytes(one.start_layer, one.end_layer) - short_bytes,
            )
            for rank, one in enumerate(stages)
        ]
        return violations(
            plan,
            model=model,
            context_length=777,
            concurrency=3,
            pool_by_device=problem.pool_by_device,
            free_bytes_by_pool=dict.fromkeys(problem.free_bytes_by_pool, 2**50),
        )

    assert wrongs(0) == []
    assert len(wrongs(1)) == len(stages)


def test_a_stage_holds_its_process_and_the_values_of_a_step() -> None:
    problem = hard(two_gpus())
    without = sum(MODEL.layer_bytes[2:5]) + 3 * 4096 * MODEL.kv_bytes_per_token_and_layer
    assert problem.stage_memory_bytes(2, 5) == without + process_bytes(MODEL)
    assert process_bytes(MODEL) == RESERVE_BYTES + 512 * VALUES_PER_HIDDEN * 8192 * 2
    assert activation_bytes(replace(MODEL, dtype="float32")) == 2 * activation_bytes(MODEL)


def test_a_token_reads_only_the_experts_that_it_goes_through() -> None:
    model = replace(MODEL, layer_active_bytes=(LAYER_BYTES // 10,) * 10)
    dense, sparse = model_figures(MODEL, 100), model_figures(model, 100)
    assert sparse.layers[0].weight_bytes == dense.layers[0].weight_bytes == LAYER_BYTES
    assert (dense.layers[0].active_bytes, sparse.layers[0].active_bytes) == (LAYER_BYTES, LAYER_BYTES // 10)
    assert sparse.layers[0].flops_per_token == pytest.approx(dense.layers[0].flops_per_token / 10)
    # Each sequence may choose other experts, but there are no more than there are.
    assert model_figures(model, 100, batch=4).layers[0].active_bytes == 4 * LAYER_BYTES // 10
    assert model_figures(model, 100, batch=64).layers[0].active_bytes == LAYER_BYTES
    state = two_gpus()
    mixture = replace(
        build_problem(state, MODEL, PlacementRequest(model_id=ModelId("big")), "mlx"), model=model
    )
    slow, fast = device(state), cost_rounds(state, mixture).rounds[0].devices[0]
    cache_bytes = 4096 * MODEL.kv_bytes_per_token_and_layer
    assert fast.layer_ns / slow.layer_ns == pytest.approx(
        (LAYER_BYTES / 10 + cache_bytes) / (LAYER_BYTES + cache_bytes), rel=1e-4
    )


def test_a_window_limits_what_is_read_of_a_cache() -> None:
    model = replace(MODEL, layer_kv_tokens_max=(100, 0) * 5)
    windowed, whole = model_figures(model, 4096).layers[:2]
    assert windowed.kv_bytes_per_token == 100 * MODEL.kv_bytes_per_token_and_layer
    assert whole.kv_bytes_per_token == 4096 * MODEL.kv_bytes_per_token_and_layer


def test_nodes_of_one_host_tell_of_one_processor() -> None:
    def told(name: str, bandwidth: float) -> tuple[str, object, str]:
        return (name, replace(cpu(name, 24 * GIB), measured_memory_bandwidth_bytes_per_s=bandwidth), "host")

    state = joined([told("a", 9.5e9), told("b", 10.1e9)], MODEL)  # pyright: ignore
    state = reading(state, "a", compute_utilization_percent=65.0)
    state = reading(state, "b", compute_utilization_percent=50.0)
    one, other = costs(state).rounds[0].devices
    assert one.pool_id == other.pool_id and one.layer_ns == other.layer_ns
    read_bytes = LAYER_BYTES + 4096 * MODEL.kv_bytes_per_token_and_layer
    assert one.layer_ns == round(read_bytes / (10.1e9 * 0.6) * 1e9)


def test_micro_batches_are_weighed_where_there_are_several_requests() -> None:
    state = two_gpus()

    def batches(**request: object) -> list[int]:
        return [one.micro_batches for one in costs(state, **request).rounds]

    assert batches() == batches(objective="throughput") == [1]
    assert batches(concurrency=4) == batches(concurrency=4, objective="throughput") == [1, 2, 4]
    assert batches(concurrency=4, objective="latency") == [1]
    assert costs(state, min_nodes=2).rounds[0].min_stages == 2
