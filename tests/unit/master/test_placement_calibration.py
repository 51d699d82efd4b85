"""From measured paces to predictions: by figures worked out by hand, and when a prediction counts as calibrated."""

import math

import pytest
from msgspec.structs import replace

from exo.master.placement.calibration import (
    ERROR_MAX_PERCENT,
    MEASUREMENTS_MIN,
    REACH,
    ROUNDS_MIN,
    STEPS_MIN,
    calibration_of,
)
from exo.master.placement.costs import Costs, cost_rounds
from exo.master.placement.ladder.problem import Device
from exo.master.placement.problem import Problem, build_problem
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId, device_id
from exo.shared.types.instances import Instance, PlacementRequest, StagePlan, StageState
from exo.shared.types.nodes import Link
from exo.shared.types.pace import DevicePace, pace_key
from exo.shared.types.state import NodeTelemetry, State
from support.placing import big, joined, planned
from support.states import GIB, gpu

LAYER_BYTES = 100_000_000
CONTEXT = 1024
MODEL = big(10, LAYER_BYTES, ends_bytes=GIB // 8)
READ_BYTES = LAYER_BYTES + CONTEXT * MODEL.kv_bytes_per_token_and_layer


def pace(node: str = "a", **fields: object) -> DevicePace:
    made = DevicePace(
        device_id=device_id(NodeId(node), "cuda:0"),
        engine="mlx",
        dtype=MODEL.dtype,
        step_overhead_s=0.001,
        layer_overhead_s=0.0002,
        bandwidth_bytes_per_s=2e11,
        reads_min_bytes=5 * READ_BYTES,
        reads_max_bytes=5 * READ_BYTES,
        measurement_count=MEASUREMENTS_MIN,
        error_percent=1.0,
    )
    return replace(made, **fields)


def cluster(*paces: DevicePace, hosts: str = "ab", load_percent: float | None = None) -> State:
    """Two cards of 1 TB/s on two hosts, and what was measured of them."""
    rows = [
        (name, replace(gpu(name, 24 * GIB), memory_bandwidth_bytes_per_s=1e12), f"host-{host}")
        for name, host in zip("ab", hosts, strict=True)
    ]
    state = joined(rows, MODEL)
    live = dict(state.live)
    for name in "ab":
        node = live.get(NodeId(name), NodeTelemetry())
        reading = DeviceGPUState(
            device_id=device_id(NodeId(name), "cuda:0"),
            node_id=NodeId(name),
            compute_utilization_percent=load_percent,
            memory_total_bytes=24 * GIB,
            memory_used_bytes=0,
            last_update="",
        )
        live[NodeId(name)] = replace(
            node,
            devices={reading.device_id: reading},
            paces={
                pace_key(one.device_id, one.engine, one.dtype): one
                for one in paces
                if one.device_id.startswith(f"{name}/")
            },
        )
    return replace(state, live=live)


def hard(state: State, **request: object) -> Problem:
    asked = PlacementRequest(
        **{"model_id": ModelId("big"), "context_length": CONTEXT, **request}  # pyright: ignore
    )
    return build_problem(state, MODEL, asked, "mlx")


def costs(state: State, **request: object) -> Costs:
    return cost_rounds(state, hard(state, **request))


def device(state: State, node: str = "a", **request: object) -> Device:
    return next(one for one in costs(state, **request).rounds[0].devices if one.node_id == node)


def stages(*layers: int) -> list[StagePlan]:
    made: list[StagePlan] = []
    for rank, (node, count) in enumerate(zip("ab", layers, strict=False)):
        start = made[-1].end_layer if made else 0
        made.append(
            StagePlan(
                rank=rank,
                node_id=NodeId(node),
                device_ids=(device_id(NodeId(node), "cuda:0"),),
                start_layer=start,
                end_layer=start + count,
                memory_bytes=0,
            )
        )
    return made


def confirms(state: State, *layers: int, **request: object) -> bool:
    return calibration_of(state, hard(state, **request)).confirms(stages(*layers))


def test_a_layer_takes_what_was_measured_of_layers_and_of_bytes() -> None:
    told = device(cluster(pace()))
    layer_s = 0.0002 + READ_BYTES / 2e11
    assert told.layer_ns == pytest.approx(layer_s * 1e9, abs=2)
    assert told.overhead_ns == 1_000_000
    head_bytes = MODEL.head_bytes + (MODEL.embedding_bytes if MODEL.has_tied_head else 0)
    assert told.head_ns == pytest.approx(head_bytes / READ_BYTES * layer_s * 1e9, rel=1e-6)


def test_devices_that_were_not_measured_stay_as_they_were() -> None:
    assert device(cluster(pace()), "b") == device(cluster(), "b")
    assert costs(cluster()).rounds == costs(cluster(pace(dtype="3-bit"), pace(engine="other"))).rounds


@pytest.mark.parametrize(
    "unsound",
    [
        {"measurement_count": STEPS_MIN - 1},
        {"bandwidth_bytes_per_s": 0.0},
        {"bandwidth_bytes_per_s": math.nan},
        {"bandwidth_bytes_per_s": -1.0},
        {"bandwidth_bytes_per_s": math.inf},
        {"step_overhead_s": -1.0},
        {"step_overhead_s": math.nan},
        {"step_overhead_s": math.inf},
        {"layer_overhead_s": math.nan},
        {"layer_overhead_s": math.inf},
        {"layer_overhead_s": -1.0},
    ],
)
def test_what_cannot_be_or_is_too_little_counts_for_nothing(unsound: dict[str, object]) -> None:
    assert costs(cluster(pace(**unsound))).rounds == costs(cluster()).rounds


@pytest.mark.parametrize("hop_s", [math.nan, math.inf, -1.0])
def test_hops_that_cannot_be_count_for_nothing(hop_s: float) -> None:
    ring = tuple(one.device_ids[0] for one in stages(5, 5))
    told = cluster(pace(hop_s=hop_s, hop_count=100, hop_device_ids=ring))
    assert costs(told).rounds == costs(cluster(pace())).rounds


def test_load_counts_as_far_as_it_is_more_than_when_steps_were_measured() -> None:
    layer_ns = device(cluster(pace())).layer_ns
    assert device(cluster(pace(), load_percent=50.0)).layer_ns == pytest.approx(layer_ns / 0.6, rel=1e-6)
    under_load = pace(used_by_others_percent=45.0)
    assert device(cluster(under_load, load_percent=45.0)).layer_ns == pytest.approx(layer_ns, rel=1e-6)
    assert device(cluster(under_load, load_percent=0.0)).layer_ns == pytest.approx(layer_ns, rel=1e-6)
    assert device(cluster(under_load, load_percent=65.0)).layer_ns == pytest.approx(layer_ns * 1.5, rel=1e-6)
    assert device(cluster(under_load, load_percent=None)).layer_ns == pytest.approx(layer_ns, rel=1e-6)


def test_load_of_ones_own_is_not_counted_again() -> None:
    idle, busy = cluster(pace()), cluster(pace(), load_percent=90.0)
    plan = planned(busy, model_id=ModelId("big"), context_length=CONTEXT)
    made = Instance(
        instance_id=InstanceId("i"),
        model=MODEL,
        plan=replace(plan, stages=tuple(stages(10))),
        request=PlacementRequest(model_id=MODEL.model_id),
        stages=(StageState(phase="ready"),),
        created_by=CommandId("c"),
    )
    working = replace(busy, instances={made.instance_id: made})
    assert device(busy).layer_ns == pytest.approx(device(idle).layer_ns / 0.2, rel=1e-6)
    assert device(working).layer_ns == pytest.approx(device(idle).layer_ns, rel=1e-6)


def test_arithmetic_was_in_what_was_measured() -> None:
    state = cluster(pace())
    for node in state.nodes.values():
        slow = replace(node.identity.devices[0], measured_flops_per_s=1e9)
        state = replace(
            state,
            nodes={
                **state.nodes,
                node.identity.node_id: replace(node, identity=replace(node.identity, devices=(slow,))),
            },
        )
    assert device(state).layer_ns == pytest.approx(device(cluster(pace())).layer_ns, abs=2)
    # For several sequences it is as before.
    assert device(state, concurrency=64, objective="latency").layer_ns > 60 * device(state).layer_ns


def test_hops_take_what_software_takes_besides_their_links() -> None:
    ring = tuple(one.device_ids[0] for one in stages(5, 5))
    told = pace(hop_s=0.002, hop_count=ROUNDS_MIN, hop_device_ids=ring)
    before, after = costs(cluster(pace())).rounds[0].links, costs(cluster(told)).rounds[0].links
    # The zone's link was assumed to take 0.3 ms of it.
    assert after.zone.forward_ns - before.zone.forward_ns == pytest.approx(1_700_000, abs=2)
    assert after.cluster.return_ns - before.cluster.return_ns == pytest.approx(1_700_000, abs=2)
    # Within a host nothing was measured; the software is the same.
    assert after.host.forward_ns - before.host.forward_ns == pytest.approx(1_700_000, abs=2)
    few = pace(hop_s=0.002, hop_count=ROUNDS_MIN - 1, hop_device_ids=ring)
    assert costs(cluster(few)).rounds[0].links == before
    gone = pace(hop_s=0.002, hop_count=99, hop_device_ids=(ring[0], DeviceId("gone/cuda:0")))
    assert costs(cluster(gone)).rounds[0].links == before


def test_a_link_that_was_measured_is_not_counted_twice_in_the_hop() -> None:
    ring = tuple(one.device_ids[0] for one in stages(5, 5))
    state = cluster(pace(hop_s=0.005, hop_count=100, hop_device_ids=ring))
    live = dict(state.live)
    for source, target in (("a", "b"), ("b", "a")):
        link = Link(
            source_node_id=NodeId(source),
            dest_node_id=NodeId(target),
            link_type="ethernet",
            latency_ms=4.0,
            bandwidth_mbps=8000.0,
        )
        live[NodeId(source)] = replace(live[NodeId(source)], links={NodeId(target): link})
    told = costs(replace(state, live=live)).rounds[0].links
    assert all(one.cost.return_ns == pytest.approx(5_000_000, abs=10) for one in told.measured)
    assert len(told.measured) == 2
    # Nor in a plan for one of its nodes only: or it would look slower where it is than anywhere else.
    alone = costs(replace(state, live=live), node_ids=("a",)).rounds[0].links
    assert (alone.zone, alone.host, alone.measured) == (told.zone, told.host, ())


def test_hops_within_a_host_and_between_hosts_are_told_apart() -> None:
    ring = tuple(one.device_ids[0] for one in stages(5, 5))
    within = costs(cluster(pace(hop_s=0.001, hop_count=100, hop_device_ids=ring), hosts="aa")).rounds[0].links
    plain = costs(cluster(pace(), hosts="aa")).rounds[0].links
    assert within.host.forward_ns - plain.host.forward_ns == pytest.approx(970_000, abs=2)


def test_a_prediction_is_calibrated_when_devices_sizes_and_hops_were_measured() -> None:
    ring = tuple(one.device_ids[0] for one in stages(5, 5))
    hops = pace(hop_s=0.002, hop_count=100, hop_device_ids=ring)
    assert confirms(cluster(pace()), 10)
    assert not confirms(cluster(), 10)
    assert not confirms(cluster(pace()), 5, 5)
    assert not confirms(cluster(pace(), pace("b")), 5, 5), "no hop was measured"
    assert confirms(cluster(hops, pace("b")), 5, 5)
    assert not confirms(cluster(hops), 5, 5), "only one of the devices was measured"
    assert not confirms(cluster(pace()), 10, concurrency=2), "steps with several sequences were not measured"
    for doubtful in (
        {"measurement_count": MEASUREMENTS_MIN - 1},
        {"error_percent": ERROR_MAX_PERCENT + 0.1},
        {"error_percent": math.nan},
    ):
        # It is believed more than an assumption, but is no proof.
        assert device(cluster(pace(**doubtful))) == device(cluster(pace()))
        assert not confirms(cluster(pace(**doubtful)), 10)
    far = pace(reads_min_bytes=int(12 * READ_BYTES * REACH * 1.1), reads_max_bytes=10**13)
    assert not confirms(cluster(far), 10)
    tiny = pace(reads_min_bytes=1, reads_max_bytes=int(READ_BYTES / REACH))
    assert not confirms(cluster(tiny), 10), "what is measured of a toy says nothing of a large model"


def test_plans_say_what_their_predictions_rest_on() -> None:
    plan = planned(cluster(pace(), pace("b")), model_id=ModelId("big"), context_length=CONTEXT)
    assert plan.prediction is not None and plan.prediction.is_calibrated
    assert "tokens/s; from measured tokens/s" in plan.explanation
    assumed = planned(cluster(), model_id=ModelId("big"), context_length=CONTEXT)
    assert assumed.prediction is not None and not assumed.prediction.is_calibrated
    assert "for what was not measured" in assumed.explanation


def test_a_slow_device_gets_few_layers_once_that_was_measured() -> None:
    slow = pace("b", bandwidth_bytes_per_s=2e10)
    asked = {"model_id": ModelId("big"), "context_length": CONTEXT, "min_nodes": 2}
    alike = planned(cluster(), **asked)
    known = planned(cluster(pace(), slow), **asked)

    def of_b(plan_stages: tuple[StagePlan, ...]) -> int:
        return next(one.end_layer - one.start_layer for one in plan_stages if one.node_id == "b")

    assert of_b(alike.stages) == 5
    assert of_b(known.stages) == 1
