"""A plan in numbers: where time goes, what devices left out would cost, scores, offload, mixed clusters."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.decide import decide
from exo.master.placement.confirm import DEVICES_MAX, confirm
from exo.master.placement.costs import cost_rounds
from exo.master.placement.figures import figures_of
from exo.master.placement.ladder.answer import Options, Solution
from exo.master.placement.ladder.solve import solve
from exo.master.placement.place import place_instance
from exo.master.placement.problem import Problem, build_problem
from exo.master.placement.score import GPUDeviceScore, device_scores
from exo.shared.types.commands import CommitPlan, Refusal
from exo.shared.types.devices import GPUDevice, ThermalStatus
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import ExcludedDevice, PlacementRequest, Plan, StagePlan
from exo.shared.types.nodes import Link
from exo.shared.types.state import NodeTelemetry, State
from support.placing import MIXED, big, mixed_state, never, place, planned, reading
from support.states import GIB, cluster, cpu, gpu, identity

MODEL = big(20, GIB, ends_bytes=1000)


def card(node: str, gib: int, number: int = 0, bandwidth: float = 1e12) -> GPUDevice:
    made = gpu(node, gib * GIB, f"cuda:{number}")
    return replace(made, memory_bandwidth_bytes_per_s=bandwidth, flops_per_s=1e14, name=f"GPU {number}")


def machines(**devices: list[GPUDevice]) -> State:
    return cluster(
        *(
            identity(name, models=[MODEL], devices=own, host_id=f"host-{name}")
            for name, own in devices.items()
        )
    )


def problem_of(state: State, **request: object) -> Problem:
    asked = PlacementRequest(**{"model_id": ModelId("big"), **request})  # pyright: ignore
    return build_problem(state, MODEL, asked, "mlx")


def left(plan: Plan, device_id: str) -> ExcludedDevice:
    return next(one for one in plan.excluded if one.device_id == device_id)


def line(plan: Plan, begins: str) -> str:
    return next(one for one in plan.explanation.splitlines() if one.startswith(begins))


# --- shares -----------------------------------------------------------------------------------------------------


def total_ms(stage: StagePlan) -> float:
    shares = stage.shares
    assert shares is not None
    parts = (
        shares.memory_ms,
        shares.utilization_ms,
        shares.thermal_ms,
        shares.overhead_ms,
        shares.network_ms,
    )
    assert min(parts) >= -1e-9
    return sum(parts)


@settings(max_examples=25, deadline=None)
@given(
    load=st.sampled_from([None, 0.0, 19.0, 45.0, 99.0]),
    headroom=st.sampled_from([None, 0.0, 7.0, 40.0]),
    fraction=st.sampled_from([None, 0.3, 1.0]),
    concurrency=st.sampled_from([1, 4]),
)
def test_shares_add_up_to_a_stage_and_its_hop_and_the_stages_to_the_token(
    load: float | None, headroom: float | None, fraction: float | None, concurrency: int
) -> None:
    heat = None
    if fraction is not None:
        heat = ThermalStatus(state="warm", reason="", work_fraction=1.0, sustained_fraction=fraction)
    state = reading(
        machines(a=[card("a", 14)], b=[card("b", 14)]),
        "a",
        compute_utilization_percent=load,
        thermal_temperature_c=None if headroom is None else 90.0 - headroom,
        thermal_throttle_threshold_c=90.0,
        thermal=heat,
    )
    plan = planned(state, concurrency=concurrency, objective="latency")
    assert len(plan.stages) == 2
    assert plan.prediction is not None and plan.prediction.ms_per_token is not None
    for stage in plan.stages:
        assert stage.shares is not None and stage.time_ms is not None
        assert total_ms(stage) == pytest.approx(stage.time_ms + stage.shares.network_ms)
    assert sum(map(total_ms, plan.stages)) == pytest.approx(plan.prediction.ms_per_token)


def test_load_and_heat_cost_what_they_take_from_an_idle_and_cool_device() -> None:
    calm = machines(a=[card("a", 24)])
    (idle,) = planned(calm).stages
    assert idle.shares is not None and idle.time_ms is not None
    assert (idle.shares.utilization_ms, idle.shares.thermal_ms, idle.shares.network_ms) == (0, 0, 0)
    assert idle.shares.overhead_ms == pytest.approx(0.3)
    (busy,) = planned(reading(calm, "a", compute_utilization_percent=60.0)).stages
    assert busy.shares is not None and busy.time_ms is not None
    assert busy.shares.memory_ms == pytest.approx(idle.shares.memory_ms, rel=1e-4)
    assert busy.shares.utilization_ms == pytest.approx(busy.time_ms - idle.time_ms, rel=1e-4)
    hot = ThermalStatus(state="warm", reason="", work_fraction=1.0, sustained_fraction=0.5)
    (warm,) = planned(reading(calm, "a", thermal=hot)).stages
    assert warm.shares is not None and warm.time_ms is not None
    assert warm.shares.thermal_ms == pytest.approx(warm.time_ms - idle.time_ms, rel=1e-4)
    assert warm.shares.utilization_ms == pytest.approx(0, abs=1e-9)


# --- left out, binding, scores ----------------------------------------------------------------------------------


def test_candidates_left_out_are_told_with_their_price_and_score() -> None:
    state = machines(a=[card("a", 40)], b=[card("b", 24)], c=[card("c", 24, bandwidth=5e10)])
    plan = planned(state, exclude=("b",))
    assert left(plan, "b/cuda:0") == ExcludedDevice(device_id=DeviceId("b/cuda:0"), reason="it was excluded")
    unused = left(plan, "c/cuda:0")
    assert unused.forcing_ms is not None and unused.forcing_ms > 0
    assert unused.score is not None and 0 < unused.score < (plan.stages[0].score or 0) <= 1
    with_it = planned(state, exclude=("b",), must_use=("c",))
    assert with_it.prediction is not None and plan.prediction is not None
    assert with_it.prediction.ms_per_token is not None and plan.prediction.ms_per_token is not None
    assert unused.forcing_ms == pytest.approx(with_it.prediction.ms_per_token - plan.prediction.ms_per_token)
    assert [one.device_id for one in plan.excluded] == sorted(one.device_id for one in plan.excluded)


def test_the_memory_that_binds_is_a_field_and_what_it_saves_is_true() -> None:
    plan = planned(machines(a=[card("a", 12)], b=[card("b", 24, bandwidth=1e11)]))
    assert plan.binding is not None
    assert plan.binding.device_ids == ("a/cuda:0",)
    assert "more VRAM on host-a (cuda:0)" in line(plan, "memory that binds")
    bigger = replace(card("a", 12), memory_total_bytes=12 * GIB + plan.binding.more_bytes)
    more = planned(machines(a=[bigger], b=[card("b", 24, bandwidth=1e11)]))
    assert plan.prediction is not None and more.prediction is not None
    assert plan.prediction.ms_per_token is not None and more.prediction.ms_per_token is not None
    assert plan.binding.saved_ms == pytest.approx(plan.prediction.ms_per_token - more.prediction.ms_per_token)
    assert planned(machines(a=[card("a", 40)])).binding is None


def test_an_explanation_of_many_unused_devices_stays_short_and_the_plan_has_them_all() -> None:
    nodes = {f"n{number:02}": [card(f"n{number:02}", 40)] for number in range(60)}
    plan = planned(machines(**nodes))
    assert len(plan.excluded) == 59
    assert len(plan.explanation.splitlines()) < 50
    assert "more that could take part" in plan.explanation


def test_the_score_weighs_five_parts() -> None:
    whole = GPUDeviceScore(compute=1, memory=1, network=1, thermal=1, bandwidth=1)
    none = GPUDeviceScore(compute=0, memory=0, network=0, thermal=0, bandwidth=0)
    assert (whole.total, none.total) == (1.0, 0.0)
    for part, weight in (
        ("compute", 0.4),
        ("memory", 0.3),
        ("network", 0.15),
        ("thermal", 0.1),
        ("bandwidth", 0.05),
    ):
        assert replace(none, **{part: 1.0}).total == weight


def test_each_part_of_the_score_is_a_share_of_the_best() -> None:
    state = machines(a=[card("a", 40), card("a", 40, 1)], b=[card("b", 20, bandwidth=5e11)])
    state = reading(state, "b", compute_utilization_percent=45.0)
    problem = problem_of(state)
    scores = device_scores(problem, figures_of(state, problem).speeds, cost_rounds(state, problem).rounds[0])
    assert scores["a/cuda:0"] == GPUDeviceScore(compute=1, memory=1, network=1, thermal=1, bandwidth=1)
    slow = scores["b/cuda:0"]
    assert slow.compute == pytest.approx(0.6) and slow.memory == 0.5 and slow.bandwidth == 0.5
    assert 0 < slow.network < 0.2 and slow.thermal == 1


def test_a_device_alone_scores_its_network_as_best() -> None:
    (stage,) = planned(machines(a=[card("a", 40)])).stages
    assert stage.score == 1.0


# --- offload ----------------------------------------------------------------------------------------------------


def test_a_processor_takes_no_layers_while_vram_holds_the_model() -> None:
    plan = planned(machines(a=[cpu("a", 64 * GIB), card("a", 24)]))
    assert [one.device_ids for one in plan.stages] == [("a/cuda:0",)]
    assert left(plan, "a/cpu:0").reason == "the GPU of its node is preferred"
    assert not any(one.is_offloaded for one in plan.stages)
    # A machine without a GPU is no offload: its processor is what it has.
    plain = planned(machines(a=[cpu("a", 64 * GIB)]))
    assert not any(one.is_offloaded for one in plain.stages)


def test_layers_that_vram_does_not_hold_run_from_host_memory_and_that_is_priced() -> None:
    state = machines(a=[cpu("a", 64 * GIB), card("a", 12)])
    plan = planned(state)
    offloaded = [one for one in plan.stages if one.is_offloaded]
    assert [one.device_ids for one in offloaded] == [("a/cpu:0",)]
    kept = next(one for one in plan.stages if not one.is_offloaded)
    # VRAM is full: the processor has only what did not fit.
    assert kept.memory_bytes <= 12 * GIB < kept.memory_bytes + GIB + 4096 * 4096
    told = line(plan, "offloaded: ")
    assert "from host memory" in told and "more VRAM on host-a (cuda:0)" in told and "instead of" in told
    assert ", from host memory)" in plan.explanation
    assert all(one.device_id != "a/cpu:0" for one in plan.excluded)
    request = PlacementRequest(model_id=ModelId("big"))
    command = CommitPlan(command_id=CommandId("c"), instance_id=InstanceId("i"), request=request, plan=plan)
    assert isinstance(decide(state, command), list)


def test_offload_leaves_most_to_the_gpus_of_all_nodes_and_the_deadline_changes_nothing_legal() -> None:
    state = machines(
        a=[cpu("a", 64 * GIB), card("a", 8), card("a", 8, 1)], b=[cpu("b", 64 * GIB), card("b", 4)]
    )
    plan = planned(state)
    on_gpus = {one for stage in plan.stages if not stage.is_offloaded for one in stage.device_ids}
    assert on_gpus == {"a/cuda:0", "a/cuda:1", "b/cuda:0"}
    request = PlacementRequest(model_id=ModelId("big"))
    at_once = place_instance(state, request, should_stop=lambda: True)
    assert isinstance(at_once, Plan)
    layers = sum(one.end_layer - one.start_layer for one in at_once.stages if one.is_offloaded)
    assert 0 < layers <= 5


def far_apart(*gib: int, slow: str = "") -> State:
    """PCs with a card and a processor each, `slow` with a very slow one; a token takes a second to the next PC."""
    names = "abc"[: len(gib)]
    state = machines(
        **{
            name: [
                replace(cpu(name, 64 * GIB), memory_bandwidth_bytes_per_s=1e8 if name == slow else None),
                card(name, free),
            ]
            for name, free in zip(names, gib, strict=True)
        }
    )
    ways = {
        NodeId(one): NodeTelemetry(
            links={
                NodeId(other): Link(
                    source_node_id=NodeId(one),
                    dest_node_id=NodeId(other),
                    latency_ms=1000.0,
                    bandwidth_mbps=1.0,
                )
                for other in names
                if other != one
            }
        )
        for one in names
    }
    return replace(state, live=ways)


def test_a_processor_helps_where_the_other_gpus_are_too_far_away_and_a_machine_more_slows_nothing() -> None:
    alone, both = planned(far_apart(18)), planned(far_apart(18, 18))
    for plan in (alone, both):
        assert {one.device_ids[0] for one in plan.stages} == {"a/cuda:0", "a/cpu:0"}
    assert both.prediction == alone.prediction
    assert "since VRAM does not hold the model" in line(alone, "offloaded: ")
    told = line(both, "offloaded: 3 layers run from host memory, since on GPUs alone each token would take ")
    assert "more VRAM on host-a (cuda:0) all would run there" in told
    assert both.certificate is not None and both.certificate.gap_percent == 0
    near = planned(machines(a=[cpu("a", 64 * GIB), card("a", 18)], b=[cpu("b", 64 * GIB), card("b", 18)]))
    assert not any(one.is_offloaded for one in near.stages)


@pytest.mark.parametrize(("slow", "helps"), [("a", "b"), ("b", "a")])
def test_of_several_processors_the_one_that_helps_joins(slow: str, helps: str) -> None:
    plan = planned(far_apart(18, 18, slow=slow))
    assert {one.device_ids[0] for one in plan.stages} == {f"{helps}/cuda:0", f"{helps}/cpu:0"}
    assert left(plan, f"{slow}/cpu:0").reason == "the GPU of its node is preferred"
    on_gpus = planned(far_apart(18, 18, slow=slow), exclude=("a/cpu:0", "b/cpu:0"))
    assert plan.baseline == on_gpus.baseline != plan.prediction


def uneven(state: State) -> State:
    """The same, with layers that differ."""
    sizes = tuple(GIB + (GIB // 8 if layer % 2 else -GIB // 8) for layer in range(MODEL.layer_count))
    model = replace(MODEL, layer_bytes=sizes)
    nodes = {
        key: replace(node, identity=replace(node.identity, models=(model,)))
        for key, node in state.nodes.items()
    }
    return replace(state, nodes=nodes)


@pytest.mark.parametrize("state", [far_apart(18, 18), uneven(far_apart(18, 18))], ids=["even", "uneven"])
def test_a_deadline_before_processors_are_weighed_proves_nothing_of_them(state: State) -> None:
    request = PlacementRequest(model_id=ModelId("big"))
    best_ms = planned(state).prediction
    assert best_ms is not None and best_ms.ms_per_token is not None
    on_gpus = planned(state, exclude=("a/cpu:0", "b/cpu:0")).prediction
    assert on_gpus is not None and on_gpus.ms_per_token is not None
    slower = 0
    for calls in range(24):
        asked = iter(range(calls))
        plan = place_instance(state, request, should_stop=lambda left=asked: next(left, None) is None)
        assert isinstance(plan, Plan) and plan.prediction is not None
        assert plan.prediction.ms_per_token is not None
        assert plan.prediction.ms_per_token <= on_gpus.ms_per_token
        told = plan.certificate
        if told is not None:
            assert told.lower_bound_ms is not None and 0 < told.lower_bound_ms <= best_ms.ms_per_token
        is_proven = "no plan is faster" in plan.explanation
        assert not (is_proven and "may be a faster plan" in plan.explanation)
        if plan.prediction.ms_per_token > best_ms.ms_per_token:
            slower += 1
            assert plan.is_truncated and "no plan is faster" not in plan.explanation
    assert slower > 0


def test_nodes_of_one_name_are_told_apart() -> None:
    state = machines(a=[card("a", 12)], b=[card("b", 12)])
    same = {key: replace(one, identity=replace(one.identity, name="vm")) for key, one in state.nodes.items()}
    told = planned(replace(state, nodes=same)).explanation
    assert "on vm a (cuda:0)" in told and "on vm b (cuda:0)" in told


def test_a_split_that_was_given_is_not_widened() -> None:
    plan = planned(far_apart(18, 18), layer_split=(10, 10))
    assert not any(one.is_offloaded for one in plan.stages)


def test_unified_memory_is_one_pool_and_no_offload() -> None:
    def mac(gib: int) -> GPUDevice:
        return replace(gpu("a", gib * GIB, "metal:0"), backend="metal", memory_kind="unified", vendor="apple")

    roomy = planned(machines(a=[cpu("a", 32 * GIB), mac(32)]))
    assert [one.device_ids for one in roomy.stages] == [("a/metal:0",)]
    answer = place(machines(a=[cpu("a", 16 * GIB), mac(16)]))
    assert isinstance(answer, Refusal), "16 GiB are not 32, however many devices share them"


def test_processors_alone_where_gpus_are_not_wanted() -> None:
    state = machines(a=[cpu("a", 64 * GIB), card("a", 40)])
    plan = planned(state, prefer_gpu=False)
    assert [one.device_ids for one in plan.stages] == [("a/cpu:0",)]
    assert not plan.stages[0].is_offloaded
    assert left(plan, "a/cuda:0").reason == "the processor of its node is preferred"


def test_what_must_be_used_takes_part_beside_what_is_preferred() -> None:
    state = machines(a=[cpu("a", 64 * GIB), card("a", 40)])
    plan = planned(state, must_use=("a/cpu:0",))
    assert DeviceId("a/cpu:0") in {one for stage in plan.stages for one in stage.device_ids}
    assert not any(one.is_offloaded for one in plan.stages)


def test_a_refusal_tells_vram_and_ram_apart() -> None:
    answer = place(machines(a=[cpu("a", 4 * GIB), card("a", 8)]))
    assert isinstance(answer, Refusal) and answer.code == "not_enough_memory"
    assert "4.0 GiB of RAM and 8.0 GiB of VRAM free" in answer.message
    assert [row.free_bytes for row in answer.nodes] == [12 * GIB]


# --- mixed clusters ---------------------------------------------------------------------------------------------


def loaded(first: float | None, second: float | None) -> State:
    state = machines(a=[card("a", 24)], b=[card("b", 24)])
    state = reading(state, "a", compute_utilization_percent=first)
    return reading(state, "b", compute_utilization_percent=second)


@pytest.mark.parametrize(
    ("first", "second", "is_mixed"),
    [(0, 20, False), (0, 21, True), (60, 80, False), (59, 80, True), (None, 90, False), (None, None, False)],
)
def test_more_than_twenty_points_of_load_make_a_cluster_heterogeneous(
    first: float | None, second: float | None, is_mixed: bool
) -> None:
    plan = planned(loaded(first, second))
    assert bool(plan.heterogeneity) == is_mixed
    assert ("heterogeneous: load of" in plan.explanation) == is_mixed


@pytest.mark.parametrize(("gib", "is_mixed"), [(24, False), (23, False), (20, True), (48, True)])
def test_different_memory_makes_a_cluster_heterogeneous(gib: int, is_mixed: bool) -> None:
    plan = planned(machines(a=[card("a", 24)], b=[card("b", gib)]))
    assert bool(plan.heterogeneity) == is_mixed


def test_in_a_homogeneous_cluster_the_ring_by_memory_stands() -> None:
    plan = planned(machines(a=[card("a", 12)], b=[card("b", 12)]))
    assert plan.method == "greedy" and plan.heterogeneity == ()
    assert "heterogeneous" not in plan.explanation


def test_the_constraint_layer_takes_part_where_devices_differ_and_can_be_left_out() -> None:
    state = machines(a=[card("a", 12)], b=[card("b", 24, bandwidth=1e11)])
    request = PlacementRequest(model_id=ModelId("big"))
    told = line(planned(state), "heterogeneous: memory of 12.0 GiB to 24.0 GiB")
    assert "the constraint layer tried" in told and "none is faster" in told
    without = place_instance(state, request, should_stop=never, has_constraint_layer=False)
    assert isinstance(without, Plan)
    assert "left out (EXO_CSP_PLACEMENT=0)" in line(without, "heterogeneous: ")
    assert without.stages == planned(state).stages
    asked = planned(state, min_nodes=2, concurrency=4)
    assert "only keeps rules" in line(asked, "heterogeneous: ")
    ruled = planned(machines(a=[card("a", 12), card("a", 12, 1)], b=[card("b", 30)]), must_use=("a",))
    assert "kept the rules" in line(ruled, "heterogeneous: ")


@pytest.mark.parametrize("named", MIXED.values(), ids=lambda named: named.name)
def test_the_constraint_layer_agrees_with_the_ladder(named: object) -> None:
    state = mixed_state(named)  # pyright: ignore
    (costs,) = cost_rounds(state, build_problem(state, _model_of(state), _request(), "mlx")).rounds
    solution = solve(costs)
    assert isinstance(solution, Solution)
    found = confirm(costs, solution, options=Options(), should_stop=never)
    assert found is not None and found.is_whole
    assert found.solution.assessment.round_ns == solution.assessment.round_ns


def test_the_constraint_layer_finds_what_another_search_missed() -> None:
    state = machines(a=[card("a", 14)], b=[card("b", 14, bandwidth=1e11)], c=[card("c", 14)])
    (costs,) = cost_rounds(state, problem_of(state)).rounds
    best = solve(costs)
    poor = solve(replace(costs, devices=tuple(one for one in costs.devices if one.node_id != "c")))
    assert isinstance(best, Solution) and isinstance(poor, Solution)
    assert poor.assessment.round_ns > best.assessment.round_ns
    told = replace(poor, lower_bound_ns=1)
    found = confirm(costs, told, options=Options(), should_stop=never)
    assert found is not None and found.solution.method == "constraint layer"
    assert found.solution.assessment.round_ns == best.assessment.round_ns
    assert found.solution.lower_bound_ns <= best.assessment.round_ns


def test_the_constraint_layer_leaves_alone_what_is_not_for_it() -> None:
    state = machines(a=[card("a", 14)], b=[card("b", 14)])
    (costs,) = cost_rounds(state, problem_of(state)).rounds
    solution = solve(costs)
    assert isinstance(solution, Solution)

    def asked(**changes: object) -> object:
        return confirm(replace(costs, **changes), solution, options=Options(), should_stop=never)

    assert asked() is not None
    assert asked(micro_batches=2, concurrency=2) is None
    many = tuple(replace(costs.devices[0], device_id=f"d{number}") for number in range(DEVICES_MAX + 1))
    assert asked(devices=many) is None
    assert confirm(costs, replace(solution, is_truncated=True), options=Options(), should_stop=never) is None


def _model_of(state: State):
    return next(iter(state.nodes.values())).identity.models[0]


def _request() -> PlacementRequest:
    return PlacementRequest(model_id=ModelId("big"))
