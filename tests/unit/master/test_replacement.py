"""Which plan an instance goes on with: nearly the fastest, and of these the one that moves the fewest bytes."""

import itertools
import random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from exo.master import replacement_job
from exo.master.placement.costs import cost_rounds
from exo.master.placement.evaluate import violations
from exo.master.placement.place import place_instance
from exo.master.placement.problem import Problem, build_problem
from exo.master.placement.weigh import weigh_given
from exo.master.recovery_ladder import attempts, without
from exo.master.replacement import NEAR_ENOUGH, kept_variants, least_moved, moved_bytes
from exo.master.replacement_job import METHOD, KeepJob, Kept, keep_job, kept, pack_keep_job
from exo.shared.types.commands import Refusal
from exo.shared.types.events import InstanceCreated, NodeDisconnected, StageChanged
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import (
    Instance,
    PlacementRequest,
    Plan,
    Prediction,
    StagePlan,
    StageState,
)
from exo.shared.types.state import State
from support.device_stories import machine, model, on
from support.states import card, cluster, fold

I = InstanceId("i")  # noqa: E741
TOY = card("toy", layers=6, layer_bytes=1000)  # Embedding 500, head 100, tied: the last stage has both.


def plan(*stages: tuple[str, int, int], ms: float | None = 1.0) -> Plan:
    """A plan of (node, first layer, layer behind the last one)."""
    return Plan(
        stages=tuple(
            StagePlan(
                rank=rank,
                node_id=NodeId(node),
                device_ids=(DeviceId(f"{node}/cuda:0"),),
                start_layer=start,
                end_layer=end,
                memory_bytes=1,
            )
            for rank, (node, start, end) in enumerate(stages)
        ),
        sharding="pipeline",
        engine="mlx",
        context_length=16,
        concurrency=1,
        method="test",
        prediction=Prediction(ms_per_token=ms),
    )


def placed(*stages: tuple[str, int, int]) -> Instance:
    made = plan(*stages)
    return Instance(
        instance_id=I,
        model=TOY,
        plan=made,
        request=PlacementRequest(model_id=ModelId("toy")),
        stages=tuple(StageState(phase="ready") for _ in stages),
        created_by=CommandId("c"),
    )


def counted_bytes(made: Plan, instance: Instance) -> int:
    """The same as `moved_bytes`, piece by piece and node by node, as slowly as can be."""

    def has(stages: tuple[StagePlan, ...], node: str, piece: object) -> bool:
        for stage in stages:
            if stage.node_id != node:
                continue
            if isinstance(piece, int) and stage.start_layer <= piece < stage.end_layer:
                return True
            if piece == "head" and stage.end_layer == 6:
                return True
            if piece == "embedding" and (stage.start_layer == 0 or stage.end_layer == 6):
                return True
        return False

    sizes: dict[object, int] = {**dict.fromkeys(range(6), 1000), "embedding": 500, "head": 100}
    return sum(
        size
        for node in {stage.node_id for stage in made.stages}
        for piece, size in sizes.items()
        if has(made.stages, node, piece) and not has(instance.plan.stages, node, piece)
    )


def rings(nodes: str, layer_count: int) -> list[tuple[tuple[str, int, int], ...]]:
    """Every order of every choice of nodes with every split."""
    found: list[tuple[tuple[str, int, int], ...]] = []
    for count in range(1, min(len(nodes), layer_count) + 1):
        for order in itertools.permutations(nodes, count):
            for cuts in itertools.combinations(range(1, layer_count), count - 1):
                ends = (*cuts, layer_count)
                found.append(tuple(zip(order, (0, *cuts), ends, strict=True)))
    return found


def test_bytes_that_are_moved_are_those_that_a_node_has_not_read() -> None:
    instance = placed(("a", 0, 2), ("b", 2, 4), ("c", 4, 6))
    for stages in rings("abcd", 6):
        made = plan(*stages)
        assert moved_bytes(made, instance) == counted_bytes(made, instance), stages
    assert moved_bytes(instance.plan, instance) == 0
    # What never began to load has read nothing.
    pending = replace(instance, stages=tuple(StageState() for _ in range(3)))
    assert moved_bytes(instance.plan, pending) == 3 * 2000 + 500 + 500 + 100


def test_of_plans_that_are_nearly_as_fast_the_one_that_moves_least_is_taken() -> None:
    instance = placed(("a", 0, 2), ("b", 2, 4), ("c", 4, 6))
    chance = random.Random(1)
    choices = rings("abd", 6)
    for _ in range(300):
        plans = [plan(*chance.choice(choices), ms=chance.uniform(1, 1.1)) for _ in range(8)]
        times = {id(one): one.prediction.ms_per_token or 0 for one in plans if one.prediction}
        near = [one for one in plans if times[id(one)] <= min(times.values()) * NEAR_ENOUGH]
        fewest = min(counted_bytes(one, instance) for one in near)
        least = [one for one in near if counted_bytes(one, instance) == fewest]
        assert least_moved(plans, instance) is min(least, key=lambda one: times[id(one)])


def test_plans_whose_time_is_not_known_are_not_compared() -> None:
    instance = placed(("a", 0, 6))
    unknown, known = plan(("b", 0, 6), ms=None), plan(("a", 0, 6))
    assert least_moved([unknown, known], instance) is unknown
    assert least_moved([plan(("b", 0, 6)), unknown, known], instance) is known
    with pytest.raises(ValueError, match="no plan"):
        least_moved([], instance)


def lost(state: State, *nodes: str) -> State:
    return fold(state, *(NodeDisconnected(node_id=NodeId(node), reason="killed") for node in nodes))


def solved(state: State) -> tuple[Kept, Plan, Problem, State]:
    """Return what is taken, the fastest plan, and what both were made of."""
    freed, instance = without(state, I), state.instances[I]
    request = attempts(freed, instance)[0].request
    fastest = place_instance(freed, request, should_stop=lambda: False)
    assert isinstance(fastest, Plan), fastest
    problem = build_problem(freed, instance.model, request, fastest.engine)
    return kept(freed, instance, request, fastest, should_stop=lambda: False), fastest, problem, freed


def shape(made: Plan) -> list[tuple[str, int, int]]:
    return [(stage.node_id, stage.start_layer, stage.end_layer) for stage in made.stages]


def with_stages(state: State, *stages: tuple[str, int, int], **asked: object) -> State:
    """Have the model on these nodes' GPUs in this way, whatever would be faster."""
    first = PlacementRequest(model_id=ModelId("toy"))
    freed = build_problem(state, model(), first, "mlx")
    made = plan(*stages)
    made = replace(
        made,
        stages=tuple(
            replace(one, memory_bytes=freed.stage_memory_bytes(one.start_layer, one.end_layer))
            for one in made.stages
        ),
        context_length=freed.context_length,
    )
    instance = replace(placed(*stages), model=model(), plan=made, request=replace(first, **asked), stages=())
    instance = replace(instance, stages=tuple(StageState() for _ in stages))
    ready = [
        StageChanged(instance_id=I, generation=1, rank=rank, phase="ready") for rank in range(len(stages))
    ]
    return fold(state, InstanceCreated(instance=instance), *ready)


def test_a_lost_stage_is_replaced_where_it_was_and_the_others_stay() -> None:
    """Each GPU holds two of six layers, so that three are needed."""
    nodes = cluster(*(machine(name, "cuda:0", vram_mib=400) for name in "abcde"))
    state = with_stages(nodes, ("c", 0, 2), ("a", 2, 4), ("e", 4, 6))
    for gone, position in (("c", 0), ("a", 1), ("e", 2)):
        taken, fastest, _, _ = solved(lost(state, gone))
        stays = [one for one in shape(state.instances[I].plan) if one[0] != gone]
        assert [one for one in shape(taken.plan) if one in stays] == stays
        assert shape(taken.plan)[position][0] not in {"c", "a", "e"}
        assert taken.moved_bytes <= taken.fastest_moved_bytes
        assert taken.moved_bytes < 250 * 2**20, "two layers, with embedding or head"
        assert taken.plan.method == METHOD or taken.plan == fastest
        assert taken.plan.prediction is not None and fastest.prediction is not None
        least_ms, best_ms = taken.plan.prediction.ms_per_token, fastest.prediction.ms_per_token
        assert least_ms is not None and best_ms is not None and least_ms <= best_ms * NEAR_ENOUGH
        certificate = taken.plan.certificate
        assert certificate is not None and certificate.lower_bound_ms is not None
        assert 0 <= (certificate.gap_percent or 0) <= 100 * (1 - 1 / NEAR_ENOUGH) + 1e-6
        assert certificate.lower_bound_ms <= least_ms


def test_what_a_kept_plan_is_and_why_it_was_taken_is_explained() -> None:
    nodes = cluster(*(machine(name, "cuda:0", vram_mib=400) for name in "abcde"))
    state = lost(with_stages(nodes, ("c", 0, 2), ("a", 2, 4), ("e", 4, 6)), "a")
    taken, fastest, _, _ = solved(state)
    assert taken.plan != fastest
    text = taken.plan.explanation
    assert "stage 0: layers 0 to 1 on host-c" in text and "stage 2: layers 4 to 5 on host-e" in text
    assert "kept as it was as far as possible: 200 MiB of weights are moved; the fastest plan takes " in text


def test_an_instance_that_can_stay_says_how_fast_it_is_by_todays_figures() -> None:
    state = with_stages(
        cluster(*(machine(name, "cuda:0", vram_mib=400) for name in "abcd")),
        ("c", 0, 2),
        ("a", 2, 4),
        ("d", 4, 6),
    )
    taken, _, problem, freed = solved(state)
    assert shape(taken.plan) == [("c", 0, 2), ("a", 2, 4), ("d", 4, 6)] and taken.moved_bytes == 0
    stages = state.instances[I].plan.stages
    assert taken.present == weigh_given(cost_rounds(freed, problem), stages, METHOD).prediction
    # A former release did not reckon with all that a stage takes.
    instance = state.instances[I]
    less = tuple(replace(one, memory_bytes=one.memory_bytes - 2**20) for one in stages)
    older = replace(state, instances={I: replace(instance, plan=replace(instance.plan, stages=less))})
    assert solved(older)[0].present == taken.present
    two = on(cluster(machine("a", "cuda:0"), machine("b", "cuda:0")), "a/cuda:0")
    assert solved(two)[0].present is not None and solved(lost(two, "a"))[0].present is None


def test_a_split_that_was_asked_for_is_kept() -> None:
    nodes = cluster(*(machine(name, "cuda:0", vram_mib=900) for name in "abcd"))
    state = with_stages(nodes, ("c", 0, 4), ("a", 4, 6), layer_split=(4, 2))
    taken, _, _, _ = solved(lost(state, "a"))
    assert [end - start for _, start, end in shape(taken.plan)] == [4, 2]
    assert shape(taken.plan)[0] == ("c", 0, 4)


@pytest.mark.parametrize("seed", range(40))
def test_beside_every_plan_that_there_is(seed: int) -> None:
    """Never slower than allowed, and on so few devices the fewest bytes that any plan moves."""
    chance, names = random.Random(seed), "abcd"
    state = drawn(chance, names)
    while state is None:
        state = drawn(chance, names)
    taken, fastest, problem, freed = solved(state)
    costs = cost_rounds(freed, problem)
    times: list[tuple[float, int]] = []
    for one in rings(names, 6):
        made = sized(problem, plan(*one))
        if is_legal(problem, made):
            told = weigh_given(costs, made.stages, METHOD).prediction
            if told is not None and told.ms_per_token is not None:
                times.append((told.ms_per_token, moved_bytes(made, state.instances[I])))
    assert taken.plan.prediction is not None and taken.plan.prediction.ms_per_token is not None
    best_ms = min(time_ms for time_ms, _ in times)
    assert taken.plan.prediction.ms_per_token <= best_ms * NEAR_ENOUGH * 1.000001
    assert taken.moved_bytes <= taken.fastest_moved_bytes == moved_bytes(fastest, state.instances[I])
    fewest = min(size for time_ms, size in times if time_ms <= best_ms * NEAR_ENOUGH)
    assert taken.moved_bytes == fewest


def drawn(chance: random.Random, names: str) -> State | None:
    """A model on some of these nodes, one of which is lost; None where what is left does not hold it."""
    nodes = cluster(
        *(machine(name, "cuda:0", vram_mib=chance.choice((300, 400, 600, 1024))) for name in names)
    )
    whole = build_problem(nodes, model(), PlacementRequest(model_id=ModelId("toy")), "mlx")
    legal = [one for one in rings(names, 6) if len(one) > 1 and is_legal(whole, plan(*one))]
    if not legal:
        return None
    state = with_stages(nodes, *chance.choice(legal))
    state = lost(state, chance.choice([stage.node_id for stage in state.instances[I].plan.stages]))
    freed = without(state, I)
    request = attempts(freed, state.instances[I])[0].request
    answer = place_instance(freed, request, should_stop=lambda: False)
    return state if isinstance(answer, Plan) else None


def sized(problem: Problem, made: Plan) -> Plan:
    return replace(
        made,
        stages=tuple(
            replace(one, memory_bytes=problem.stage_memory_bytes(one.start_layer, one.end_layer))
            for one in made.stages
        ),
    )


def is_legal(problem: Problem, made: Plan) -> bool:
    made = sized(problem, made)
    return not violations(
        made.stages,
        model=problem.model,
        context_length=problem.context_length,
        concurrency=1,
        pool_by_device=problem.pool_by_device,
        free_bytes_by_pool=problem.free_bytes_by_pool,
    )


def test_no_variant_comes_twice_and_none_is_made_of_devices_that_may_not_be_used() -> None:
    nodes = cluster(*(machine(name, "cuda:0", vram_mib=400) for name in "abcdefgh"))
    state = lost(with_stages(nodes, ("c", 0, 2), ("a", 2, 4), ("e", 4, 6)), "a")
    _, fastest, problem, _ = solved(state)
    variants = list(kept_variants(state.instances[I], problem, fastest))
    keys = [tuple((s.device_ids, s.start_layer, s.end_layer) for s in one) for one in variants]
    assert len(set(keys)) == len(keys) > 10
    usable = {one.device.device_id for one in problem.candidates}
    assert {device for one in variants for stage in one for device in stage.device_ids} <= usable


def test_the_solver_process_answers_what_is_answered_here() -> None:
    nodes = cluster(*(machine(name, "cuda:0", vram_mib=400) for name in "abcde"))
    state = lost(with_stages(nodes, ("c", 0, 2), ("a", 2, 4), ("e", 4, 6)), "a")
    taken, fastest, _, freed = solved(state)
    request = attempts(freed, state.instances[I])[0].request
    job = KeepJob(state=freed, instance=state.instances[I], request=request, fastest=fastest, deadline_s=60.0)
    assert msgspec.msgpack.decode(keep_job(pack_keep_job(job)), type=Kept) == taken
    # Without any time the fastest plan is the answer.
    hurried = kept(freed, state.instances[I], request, fastest, should_stop=lambda: True)
    assert hurried.plan == fastest


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_constraint_layer_is_left_out_here_as_well(
    is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = cluster(*(machine(name, "cuda:0", vram_mib=400) for name in "abcde"))
    state = lost(with_stages(nodes, ("c", 0, 2), ("a", 2, 4), ("e", 4, 6)), "a")
    _, fastest, _, freed = solved(state)
    asked: list[bool] = []

    def place(*told: Any, has_constraint_layer: bool, **named: Any) -> Plan | Refusal:
        asked.append(has_constraint_layer)
        return place_instance(*told, has_constraint_layer=has_constraint_layer, **named)

    monkeypatch.setattr(replacement_job, "place_instance", place)
    job = KeepJob(
        state=freed,
        instance=state.instances[I],
        request=attempts(freed, state.instances[I])[0].request,
        fastest=fastest,
        deadline_s=60.0,
        has_constraint_layer=is_wanted,
    )
    keep_job(pack_keep_job(job))
    assert asked == [is_wanted]
