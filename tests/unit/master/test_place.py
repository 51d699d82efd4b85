"""Placement: the greedy ring, the hard filters, the refusals."""

from collections.abc import Sequence
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.evaluate import violations
from exo.master.placement.greedy import memory_weighted_split
from exo.master.placement.held import process_bytes
from exo.master.placement.place import place_instance
from exo.master.placement.previews import preview_placements
from exo.shared.types.commands import Refusal
from exo.shared.types.events import NodeDisconnected
from exo.shared.types.ids import DeviceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan, StagePlan
from exo.shared.types.state import State
from support.states import GIB, card, cluster, cpu, fold, gpu, identity, with_free_memory
from support.stories import placed, stage


def never() -> bool:
    return False


def place(state: State, **request: object) -> Plan | Refusal:
    asked = PlacementRequest(**{"model_id": ModelId("toy"), **request})  # pyright: ignore
    return place_instance(state, asked, should_stop=never)


def nodes(*free: int, layers: int = 6, layer_bytes: int = 1000) -> State:
    model = card(layers=layers, layer_bytes=layer_bytes)
    names = "abcdefgh"[: len(free)]
    state = cluster(*(identity(name, models=[model], host_id=f"host-{name}") for name in names))
    return with_free_memory(state, dict(zip(names, free, strict=True)))


def refused(answer: Plan | Refusal) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


def planned(answer: Plan | Refusal) -> Plan:
    assert isinstance(answer, Plan), answer
    return answer


def test_a_model_that_fits_goes_to_the_roomiest_node_alone() -> None:
    plan = planned(place(nodes(2 * GIB, 4 * GIB, 3 * GIB)))
    assert [(s.node_id, s.start_layer, s.end_layer) for s in plan.stages] == [("b", 0, 6)]


def test_min_nodes_spreads_layers_by_memory() -> None:
    plan = planned(place(nodes(1 * GIB, 4 * GIB, 1 * GIB), min_nodes=3))
    assert [(s.node_id, s.end_layer - s.start_layer) for s in plan.stages] == [("b", 4), ("a", 1), ("c", 1)]


def test_a_model_too_large_for_one_node_takes_the_fewest_that_hold_it() -> None:
    plan = planned(
        place(nodes(5 * GIB // 2, 5 * GIB // 2, 5 * GIB // 2, layer_bytes=GIB - process_bytes(card())))
    )
    assert len(plan.stages) == 3


def test_too_little_memory_is_422_with_needed_and_free_bytes_of_each_node() -> None:
    answer = refused(place(nodes(GIB, 2 * GIB, layer_bytes=100 * GIB)))
    assert (answer.status, answer.code) == (422, "not_enough_memory")
    assert answer.needed_bytes is not None and answer.needed_bytes > 600 * GIB
    assert answer.missing_bytes == answer.needed_bytes - 3 * GIB
    assert {row.node_id: row.free_bytes for row in answer.nodes} == {"a": GIB, "b": 2 * GIB}
    assert all(row.needed_bytes > 0 for row in answer.nodes)


def test_memory_that_others_hold_now_is_409() -> None:
    assert refused(place(nodes(GIB, GIB, layer_bytes=GIB))).status == 409


def test_an_unknown_model_names_its_near_matches() -> None:
    answer = refused(place(nodes(GIB), model_id=ModelId("Toi")))
    assert (answer.status, answer.near_matches) == (404, ("toy",))


def test_a_broken_copy_is_refused_with_its_problem() -> None:
    state = cluster(identity("a", models=[card(problem="model.safetensors is truncated")]))
    answer = refused(place(state))
    assert answer.status == 422 and "truncated" in answer.message


def test_more_nodes_than_there_are_is_409_with_the_reasons() -> None:
    state = fold(nodes(GIB, GIB), NodeDisconnected(node_id=NodeId("b"), reason="gone"))
    answer = refused(place(state, min_nodes=2))
    assert answer.status == 409 and "not connected" in answer.message


def test_more_nodes_than_layers_can_never_be() -> None:
    assert refused(place(nodes(GIB, GIB), min_nodes=7)).status == 422


def on_a_gpu(**changes: object) -> Plan | Refusal:
    """Place on a node with one GPU, whose identity or GPU is changed."""
    own = identity(
        "a", devices=[replace(gpu("a", 8 * GIB), is_simulated=bool(changes.pop("is_simulated", False)))]
    )
    return place(cluster(replace(own, models=(card(),), **changes)))


def test_layers_go_to_gpus_that_the_engine_was_built_for() -> None:
    assert planned(on_a_gpu()).stages[0].device_ids == (gpu("a", 1).device_id,)
    built_for_processors = refused(on_a_gpu(engine_backends={"mlx": ("cpu",)}))
    assert "no cuda build" in built_for_processors.message and "exo doctor" in built_for_processors.message
    # Nodes of a release that did not tell yet.
    assert "no cuda build" in refused(on_a_gpu(engine_backends={})).message


def test_no_layers_go_to_a_simulated_device() -> None:
    assert "simulated" in refused(on_a_gpu(is_simulated=True)).message


def test_vram_counts_where_there_is_a_gpu_and_ram_is_never_taken_for_it() -> None:
    model = card()
    state = cluster(identity("a", models=[model], devices=[cpu("a", 64 * GIB), gpu("a", 8 * GIB)]))
    plan = planned(place(state))
    assert plan.stages[0].device_ids == (DeviceId("a/cuda:0"),)
    assert any(one.device_id == "a/cpu:0" for one in plan.excluded)
    plan = planned(place(state, prefer_gpu=False))
    assert plan.stages[0].device_ids == (DeviceId("a/cpu:0"),)


def test_exclusions_unknown_ids_and_splits() -> None:
    state = nodes(GIB, 2 * GIB, GIB)
    assert planned(place(state, exclude=("b",))).stages[0].node_id == "a"
    assert planned(place(state, node_ids=(NodeId("c"),))).stages[0].node_id == "c"
    assert refused(place(state, exclude=("zebra",))).status == 404
    split = planned(place(state, layer_split=(1, 2, 3)))
    assert [s.end_layer - s.start_layer for s in split.stages] == [1, 2, 3]
    assert refused(place(state, layer_split=(1, 2))).code == "bad_layer_split"


def test_memory_promised_to_stages_that_still_load_is_taken() -> None:
    state = placed(nodes(GIB, layer_bytes=GIB // 10))
    assert refused(place(state)).status == 409


def test_previews_differ_and_say_why_not() -> None:
    previews = preview_placements(
        nodes(GIB, GIB, GIB), PlacementRequest(model_id=ModelId("toy")), share=lambda _: never
    )
    assert [len(one.plan.stages) for one in previews if one.plan][:3] == [1, 2, 3]


@given(
    layers=st.integers(1, 200),
    weights=st.lists(st.integers(0, 2**45), min_size=1, max_size=40),
)
def test_a_split_gives_every_layer_once_and_everyone_one(layers: int, weights: list[int]) -> None:
    weights = weights[:layers]
    counts = memory_weighted_split(layers, weights)
    assert sum(counts) == layers and min(counts) >= 1
    if len(set(weights)) == 1:
        assert max(counts) - min(counts) <= 1
    for heavier, lighter in combinations(range(len(weights)), 2):
        if weights[heavier] > weights[lighter]:
            assert counts[heavier] >= counts[lighter]


def brute_force_fits(state: State, model_layers: int, order: Sequence[str], needed: int) -> bool:
    """Naive oracle: is there any contiguous split over the nodes, in this order?"""
    from exo.master.placement.place import find_model
    from exo.master.placement.problem import build_problem

    model = find_model(state, ModelId("toy"))
    assert not isinstance(model, Refusal)
    problem = build_problem(state, model, PlacementRequest(model_id=ModelId("toy"), min_nodes=needed), "mlx")
    free = {one.node_id: one.memory_free_bytes for one in problem.candidates}
    for cuts in combinations(range(1, model_layers), needed - 1):
        bounds = (0, *cuts, model_layers)
        pairs = pairwise(bounds)
        if all(
            problem.stage_memory_bytes(a, b) <= free[NodeId(n)]
            for (a, b), n in zip(pairs, order, strict=True)
        ):
            return True
    return False


@given(
    free_mib=st.lists(st.integers(0, 3000), min_size=1, max_size=4),
    layers=st.integers(4, 7),
    layer_mib=st.integers(1, 900),
    min_nodes=st.integers(1, 4),
)
def test_plans_hold_and_refusals_are_true_in_the_rings_order(
    free_mib: list[int], layers: int, layer_mib: int, min_nodes: int
) -> None:
    min_nodes = min(min_nodes, len(free_mib))
    state = nodes(*(m * 2**20 for m in free_mib), layers=layers, layer_bytes=layer_mib * 2**20)
    answer = place(state, min_nodes=min_nodes)
    names = "abcd"[: len(free_mib)]
    roomiest = sorted(names, key=lambda n: (-free_mib[names.index(n)], n))
    if isinstance(answer, Plan):
        free = {f"host-{n}/ram": m * 2**20 for n, m in zip(names, free_mib, strict=True)}
        pools = {DeviceId(f"{n}/cpu:0"): f"host-{n}/ram" for n in names}
        assert (
            violations(
                answer.stages,
                model=card(layers=layers, layer_bytes=layer_mib * 2**20),
                context_length=answer.context_length,
                concurrency=1,
                pool_by_device=pools,
                free_bytes_by_pool=free,
            )
            == []
        )
        assert place(state, min_nodes=min_nodes) == answer
    else:
        for count in range(min_nodes, len(names) + 1):
            assert not brute_force_fits(state, layers, roomiest[:count], count)


def test_the_evaluator_catches_each_kind_of_wrong_plan() -> None:
    model = card()
    good = planned(place(nodes(GIB, GIB), min_nodes=2)).stages

    def wrong(stages: Sequence[StagePlan]) -> str:
        pools = {DeviceId("a/cpu:0"): "a", DeviceId("b/cpu:0"): "b"}
        free = {"a": GIB, "b": GIB}
        return " ".join(
            violations(
                stages,
                model=model,
                context_length=1024,
                concurrency=1,
                pool_by_device=pools,
                free_bytes_by_pool=free,
            )
        )

    assert wrong(good) == ""
    assert "are placed" in wrong(good[:1])
    assert "used twice" in wrong((good[0], replace(good[1], device_ids=good[0].device_ids)))
    assert "may not be used" in wrong((good[0], replace(good[1], device_ids=(DeviceId("z/cpu:0"),))))
    assert "promises" in wrong((good[0], replace(good[1], memory_bytes=1)))
    assert "free ones" in wrong((good[0], replace(good[1], memory_bytes=2 * GIB)))
    assert "rank" in wrong((good[1], good[0]))
    # As when the model was replaced meanwhile by one with fewer layers.
    assert "are placed" in wrong((good[0], replace(good[1], end_layer=good[1].end_layer + 3)))
    assert "are placed" in wrong((replace(good[0], start_layer=-2), good[1]))


def on_one_host(*names: str, memory_bytes: int, layer_bytes: int) -> State:
    """Nodes that share the memory of one machine."""
    model = card(layer_bytes=layer_bytes)
    return cluster(*(identity(name, models=[model], devices=[cpu(name, memory_bytes)]) for name in names))


def test_memory_of_one_host_counts_once_however_many_nodes_it_runs() -> None:
    state = on_one_host("a", "b", "c", memory_bytes=8 * GIB, layer_bytes=3 * GIB)
    answer = refused(place(state, min_nodes=3))
    assert answer.status == 422 and "share" in answer.message
    assert answer.missing_bytes is not None and answer.missing_bytes > 9 * GIB
    small = on_one_host("a", "b", "c", memory_bytes=8 * GIB, layer_bytes=GIB)
    assert len(planned(place(small)).stages) == 1
    plan = planned(place(small, min_nodes=3))
    assert [s.end_layer - s.start_layer for s in plan.stages] == [2, 2, 2]
    assert sum(s.memory_bytes for s in plan.stages) <= 8 * GIB
    with_free = with_free_memory(small, {"a": 5 * GIB})
    assert refused(place(with_free, min_nodes=3)).status == 409


def test_the_promise_of_a_loaded_stage_still_counts_while_no_reading_can_show_it() -> None:
    state = placed(on_one_host("a", memory_bytes=8 * GIB, layer_bytes=GIB))
    assert refused(place(stage(state, 0, "loaded"))).status == 409
    assert refused(place(stage(state, 0, "ready"))).status == 409
    # A failed stage's process is gone, and its memory with it.
    assert planned(place(stage(state, 0, "failed", reason="test")))


def test_the_machine_that_fits_only_in_the_middle_is_put_there() -> None:
    model = replace(card(layers=5, layer_bytes=2 * GIB), embedding_bytes=3 * GIB)
    names = {"a": 84 * GIB // 10, "b": 84 * GIB // 10, "c": 3 * GIB}
    state = with_free_memory(
        cluster(
            *(
                identity(name, models=[model], devices=[cpu(name, 9 * GIB)], host_id=f"host-{name}")
                for name in names
            )
        ),
        names,
    )
    assert [s.node_id for s in planned(place(state)).stages] == ["a", "c", "b"]
