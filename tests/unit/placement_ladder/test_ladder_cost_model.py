"""The cost model on figures that were worked out by hand."""

import math

import pytest
from msgspec.structs import replace

from exo.master.placement.ladder.cost_model import (
    Assumptions,
    DeviceFigures,
    LayerFigures,
    LinkFigures,
    ModelFigures,
    RequestShape,
    build_problem,
    effective_bandwidth_bytes_per_s,
    free_share,
    is_usable,
    link_cost,
    roofline_s,
    thermal_share,
)
from exo.master.placement.ladder.problem import LinkCost

ASSUMED = Assumptions(
    bandwidth_share=0.5,
    compute_share=0.5,
    stage_overhead_s=0.001,
    memory_share=0.9,
    reserve_bytes=1000,
    activation_values_per_hidden=10,
    bandwidth_share_by_device={"calibrated": 0.8},
    stage_overhead_s_by_device={"calibrated": 0.002},
)
GPU = DeviceFigures(
    device_id="gpu",
    node_id="node",
    host="host",
    zone="zone",
    pool_id="vram",
    memory_bandwidth_bytes_per_s=1e9,
    flops_per_s=1e12,
)
MODEL = ModelFigures(
    layers=(LayerFigures(weight_bytes=1_000_000, kv_bytes_per_token=10, flops_per_token=1e6),) * 4,
    hidden_size=100,
    embedding_bytes=5_000,
    head_bytes=2_000_000,
)


def test_heat_takes_speed_evenly_below_fifteen_degrees() -> None:
    shares = [thermal_share(headroom, ASSUMED) for headroom in (None, 40, 15, 7.5, 0, -10, math.nan)]
    assert shares == [1, 1, 1, 0.75, 0.5, 0.5, 1]


def test_use_by_others_and_heat_multiply_and_never_leave_nothing() -> None:
    assert free_share(replace(GPU, utilization_percent=50, thermal_headroom_c=0), ASSUMED) == 0.25
    assert free_share(replace(GPU, utilization_percent=250), ASSUMED) == pytest.approx(0.01)
    assert free_share(replace(GPU, utilization_percent=math.nan), ASSUMED) == 1


def test_calibration_takes_the_place_of_the_assumption() -> None:
    assert effective_bandwidth_bytes_per_s(GPU, ASSUMED) == 0.5e9
    assert effective_bandwidth_bytes_per_s(replace(GPU, device_id="calibrated"), ASSUMED) == 0.8e9


def test_a_layer_takes_the_longer_of_memory_and_compute_time() -> None:
    assert roofline_s(1e6, 1e6, GPU, ASSUMED) == 0.002
    assert roofline_s(1e6, 1e10, GPU, ASSUMED) == 0.02
    assert roofline_s(1e6, 1e10, replace(GPU, flops_per_s=None), ASSUMED) == 0.002


def test_a_hop_carries_two_bytes_a_value_forward_and_four_a_sequence_back() -> None:
    link = LinkFigures(latency_s=1e-3, bandwidth_bytes_per_s=1e6)
    assert link_cost(link, batch=3, hidden_size=500) == LinkCost(forward_ns=4_000_000, return_ns=1_012_000)


def test_a_request_becomes_integers() -> None:
    built = build_problem(
        [GPU, replace(GPU, device_id="calibrated", pool_id="other")],
        {"vram": 10_000_000, "other": -5},
        MODEL,
        RequestShape(context_length=1000, concurrency=8, micro_batches=4),
        assumed=ASSUMED,
    )
    gpu, calibrated = built.problem.devices
    # Two sequences at once, each with 1,000 tokens of 10 bytes: 1,020,000 bytes a layer at 0.5 GB/s.
    assert gpu.layer_ns == 2_040_000
    assert gpu.overhead_ns == 1_000_000
    assert gpu.head_ns == 4_000_000
    assert (calibrated.layer_ns, calibrated.overhead_ns) == (1_275_000, 2_000_000)
    assert {pool.pool_id: pool.room_bytes for pool in built.problem.pools} == {"vram": 9_000_000, "other": 0}
    layer = built.problem.model.layers[0]
    assert (layer.weight_bytes, layer.cache_bytes, layer.time_weight) == (1_000_000, 80_000, 1_000_000)
    assert built.problem.model.stage_bytes == 1000 + 2 * 10 * 100 * 8
    assert (built.problem.concurrency, built.problem.micro_batches) == (8, 4)


def test_experts_that_are_not_asked_take_memory_but_no_time() -> None:
    sparse = replace(MODEL, layers=(LayerFigures(weight_bytes=1_000_000, active_bytes=100_000),) * 4)
    problem = build_problem(
        [GPU], {"vram": 1}, sparse, RequestShape(context_length=1), assumed=ASSUMED
    ).problem
    assert problem.devices[0].layer_ns == 200_000
    assert problem.model.layers[0].weight_bytes == 1_000_000


def test_layers_that_read_more_weigh_more() -> None:
    layers = (LayerFigures(weight_bytes=500_000), LayerFigures(weight_bytes=1_500_000))
    uneven = replace(MODEL, layers=layers)
    problem = build_problem(
        [GPU], {"vram": 1}, uneven, RequestShape(context_length=1), assumed=ASSUMED
    ).problem
    assert [layer.time_weight for layer in problem.model.layers] == [500_000, 1_500_000]
    assert problem.devices[0].layer_ns == 2_000_000


@pytest.mark.parametrize("value", [None, 0, -1.0, math.nan, math.inf])
def test_a_device_of_no_known_bandwidth_is_left_out_with_the_reason(value: float | None) -> None:
    assert not is_usable(value)
    blind = replace(GPU, device_id="blind", memory_bandwidth_bytes_per_s=value)
    built = build_problem([GPU, blind], {"vram": 1}, MODEL, RequestShape(context_length=1))
    assert [one.device_id for one in built.problem.devices] == ["gpu"]
    assert built.left_out[0][0] == "blind"


@pytest.mark.parametrize(
    ("latency_s", "bandwidth"), [(0.1, 0), (0.1, -1), (0.1, math.nan), (math.nan, 1), (-1, 1)]
)
def test_a_measured_link_that_is_no_use_leaves_its_class_in_place(latency_s: float, bandwidth: float) -> None:
    other = replace(GPU, device_id="other")
    good, bad = (
        LinkFigures(latency_s=0, bandwidth_bytes_per_s=1e6),
        LinkFigures(latency_s=latency_s, bandwidth_bytes_per_s=bandwidth),
    )
    built = build_problem(
        [GPU, other],
        {"vram": 1},
        MODEL,
        RequestShape(context_length=1),
        measured={("gpu", "other"): bad, ("other", "gpu"): good, ("other", "gone"): good},
    )
    assert [link.source_device_id for link in built.problem.links.measured] == ["other"]
    assert "gpu to other" in built.notes[0]
