"""What a machine more or less would bring, before it is bought or switched off."""

import pytest
from msgspec.structs import replace

from exo.master.what_if import changed, imagine, verdict
from exo.shared.device_figures import catalogue
from exo.shared.types.commands import Planned, Preview, Refusal
from exo.shared.types.ids import InstanceId, ModelId
from exo.shared.types.instances import PlacementRequest, Plan, Prediction
from exo.shared.types.state import State
from exo.shared.types.what_if import Change, WishedDevice, WishedMachine
from support.placing import MIXED, big, mixed_state, never, planned
from support.states import GIB, card, cluster, cpu, gpu, identity
from support.stories import placed, stage

ASKED = PlacementRequest(model_id=ModelId("big"))


def lab() -> State:
    return mixed_state(MIXED["what was at hand, 32B"])


def machine(*names: str, **told: object) -> WishedMachine:
    return replace(
        WishedMachine(name="used PC", devices=tuple(WishedDevice(name=name) for name in names)), **told
    )


def asked(state: State, **told: object) -> Planned | Refusal:
    return imagine(state, ASKED, Change(**told), share=lambda _: never)  # pyright: ignore


def answered(state: State, **told: object) -> Planned:
    answer = asked(state, **told)
    assert isinstance(answer, Planned), answer
    return answer


def speed(plan: Plan | None) -> float:
    assert plan is not None and plan.prediction is not None and plan.prediction.tokens_per_s is not None
    return plan.prediction.tokens_per_s


def test_without_a_change_there_is_one_answer() -> None:
    found = answered(lab())
    assert found.before is None and found.verdict is None and not found.added
    assert found.answer.plan == planned(lab())


def test_a_second_hand_card_is_compared_with_the_cluster_as_it_is() -> None:
    found = answered(lab(), machines=(machine("RTX 3090"),))
    assert found.before is not None
    new, old = speed(found.answer.plan), speed(found.before.plan)
    assert new > old
    assert found.verdict is not None
    assert found.verdict.startswith(f"With used PC: {new:.3g} tokens/s instead of {old:.3g}")
    (added,) = found.added
    assert added.devices[0].name == "GeForce RTX 3090"
    assert added.devices[0].memory_total_bytes == 24 * GIB > added.devices[0].memory_free_bytes
    assert added.devices[0].memory_bandwidth_bytes_per_s == pytest.approx(936e9, rel=0.01)
    assert found.answer.plan is not None
    assert added.node_id in {one.node_id for one in found.answer.plan.stages}


def test_it_makes_fit_what_did_not() -> None:
    state = cluster(identity("a", devices=[cpu("a", 8 * GIB)], models=[big(20, GIB)], host_id="a"))
    found = answered(state, machines=(machine("RTX 3090"),))
    assert found.before is not None and found.before.refusal is not None
    assert found.verdict is not None and "it would fit, at" in found.verdict


def test_a_machine_that_would_do_nothing_is_told_so() -> None:
    found = answered(mixed_state(MIXED["lab of everything, 70B"]), machines=(machine("GeForce GTX 1080"),))
    assert found.verdict is not None
    assert "nothing changes" in found.verdict and "used PC would not be used" in found.verdict


def test_without_the_only_node_that_has_the_model_nobody_has_it() -> None:
    state = cluster(
        identity("a", models=[big(2, GIB)], devices=[cpu("a", 64 * GIB)]),
        identity("b", devices=[cpu("b", 64 * GIB)]),
    )
    found = answered(state, without=("a",))
    assert found.verdict is not None and found.verdict.startswith("Without host-a, it would not fit any more")
    assert found.answer.refusal is not None
    assert found.answer.refusal.message == (
        "Without host-a, no node that is left has big; put its files on another one."
    )


def test_what_is_taken_to_be_gone_cannot_be_asked_for_and_need_not_be_left_out() -> None:
    state = lab()
    node = next(iter(state.nodes.values()))
    gone = node.identity.node_id
    for wish in (
        replace(ASKED, must_use=(gone,)),
        replace(ASKED, node_ids=(gone,)),
        replace(ASKED, device_ids=(node.identity.devices[0].device_id,)),
    ):
        found = imagine(state, wish, Change(without=(gone,)), share=lambda _: never)
        assert isinstance(found, Planned) and found.answer.refusal is not None
        told = found.answer.refusal
        assert (told.status, told.code) == (422, "contradictory_request")
        assert node.identity.name in told.message and "taken to be gone" in told.message
    found = imagine(state, replace(ASKED, exclude=(gone,)), Change(without=(gone,)), share=lambda _: never)
    assert isinstance(found, Planned) and found.answer.plan is not None


def test_what_is_taken_to_be_gone_need_not_be_kept_apart_from() -> None:
    model = card("toy", layers=8, layer_bytes=GIB // 2)
    state = cluster(identity("a", models=[model, replace(model, model_id=ModelId("big"))]))
    state = stage(placed(state), 0, "ready")
    gone = Change(instead=(InstanceId("i"),))
    for name in ("i", "toy"):
        found = imagine(state, replace(ASKED, apart_from=(name,)), gone, share=lambda _: never)
        assert isinstance(found, Planned) and found.answer.plan is not None, found
    found = imagine(state, replace(ASKED, apart_from=("nothing",)), gone, share=lambda _: never)
    assert isinstance(found, Planned) and found.answer.refusal is not None
    assert found.answer.refusal.code == "unknown_instance_or_model"


def test_a_zone_whose_nodes_are_all_taken_to_be_gone_cannot_be_asked_for() -> None:
    state = cluster(
        *(
            replace(identity(name, models=[big(2, GIB)], devices=[cpu(name, 64 * GIB)]), zone=zone)
            for name, zone in (("a", "left"), ("b", "right"))
        )
    )
    found = imagine(state, replace(ASKED, zones=("left",)), Change(without=("a",)), share=lambda _: never)
    assert isinstance(found, Planned) and found.answer.refusal is not None
    assert found.answer.refusal.message == (
        "zones names left, which is taken to be gone; give up one of them."
    )
    assert found.answer.remedy is not None and found.answer.remedy.words == "Let other zones take part"


def test_without_a_node_it_uses_the_others() -> None:
    state = lab()
    plan = planned(state)
    gone = plan.stages[0].node_id
    found = answered(state, without=(gone,))
    assert found.answer.plan is not None
    assert gone not in {one.node_id for one in found.answer.plan.stages}
    assert found.verdict is not None and found.verdict.startswith(
        f"Without {state.nodes[gone].identity.name}"
    )
    assert speed(found.answer.plan) <= speed(plan)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (9.0, "Without x: 9 tokens/s instead of 10, 10.0 % slower."),
        (11.0, "Without x: 11 tokens/s instead of 10, 10.0 % faster."),
        (5.0, "Without x: 5 tokens/s instead of 10, 50 % of the speed."),
        (20.0, "Without x: 20 tokens/s instead of 10, 2 times as fast."),
        (10.01, "Without x, nothing changes: 10 tokens/s either way."),
    ],
)
def test_a_verdict_says_which_way_it_goes(then: float, words: str) -> None:
    def at(tokens_per_s: float) -> Preview:
        told = Prediction(ms_per_token=1000 / tokens_per_s, tokens_per_s=tokens_per_s)
        return Preview(title="x", request=ASKED, plan=replace(planned(lab()), prediction=told))

    assert verdict(at(then), at(10.0), "Without x", ()) == words


def test_without_one_device_the_node_stays() -> None:
    node = identity("a", devices=[cpu("a", 8 * GIB), gpu("a", 8 * GIB)], models=[card("big")])
    found = answered(cluster(node), without=("a/cuda:0",))
    assert found.answer.plan is not None
    assert found.answer.plan.stages[0].device_ids == ("a/cpu:0",)
    assert found.verdict is not None and found.verdict.startswith("Without cuda:0 of host-a")


def test_in_the_place_of_an_instance_its_memory_is_free() -> None:
    model = card("toy", layers=8, layer_bytes=GIB // 2)
    state = cluster(identity("a", models=[model, replace(model, model_id=ModelId("big"))]))
    state = stage(placed(state), 0, "ready")
    assert isinstance(answered(state).answer.refusal, Refusal)
    found = answered(state, instead=(InstanceId("i"),))
    assert found.answer.plan is not None


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        ({"without": ("zebra",)}, "unknown_node_or_device", "'zebra' is no node or device"),
        ({"instead": ("zebra",)}, "unknown_instance", "'zebra' is no instance"),
        ({"machines": (machine("RTX 4095"),)}, "unknown_hardware", "did you mean"),
        ({"machines": (machine("A100"),)}, "unknown_hardware", "A100"),
        ({"machines": (machine("Apple M2 Max"),)}, "unknown_hardware", "how much memory"),
        ({"machines": (machine("qqq"),)}, "unknown_hardware", "the catalogue has no 'qqq'"),
    ],
)
def test_what_cannot_be_imagined_is_refused_in_words(told: dict[str, object], code: str, words: str) -> None:
    answer = asked(lab(), **told)
    assert isinstance(answer, Refusal)
    assert answer.code == code and words in answer.message


def test_a_card_that_sold_in_two_sizes_is_taken_in_the_size_that_is_named() -> None:
    small, large = (
        answered(
            lab(),
            machines=(
                WishedMachine(
                    name="PC", devices=(WishedDevice(name="RTX 3060", memory_total_bytes=size * GIB),)
                ),
            ),
        )
        for size in (8, 12)
    )
    assert isinstance(asked(lab(), machines=(machine("RTX 3060"),)), Refusal)
    assert (
        small.added[0].devices[0].memory_bandwidth_bytes_per_s
        < large.added[0].devices[0].memory_bandwidth_bytes_per_s
    )


def test_a_device_that_nobody_knows_can_be_described() -> None:
    own = WishedDevice(
        name="Prototype",
        vendor="amd",
        memory_kind="vram",
        memory_total_bytes=96 * GIB,
        memory_bandwidth_bytes_per_s=2e12,
    )
    found = answered(lab(), machines=(WishedMachine(name="PC", devices=(own,)),))
    assert found.added[0].devices[0].memory_bandwidth_bytes_per_s == 2e12
    assert not found.added[0].devices[0].is_estimated
    assert speed(found.answer.plan) > 30


def test_a_link_that_is_told_holds_both_ways() -> None:
    found = changed(lab(), ASKED, Change(machines=(machine("RTX 3090", link_mbps=10_000.0),)))
    assert not isinstance(found, Refusal)
    state, (added,) = found
    others = set(state.nodes) - {added.node_id}
    assert others
    for other in others:
        there, back = state.live[added.node_id].links[other], state.live[other].links[added.node_id]
        assert there.bandwidth_mbps == back.bandwidth_mbps == 10_000.0


def test_a_slow_cable_counts() -> None:
    fast = answered(lab(), machines=(machine("RTX 3090", link_mbps=10_000.0, link_latency_ms=0.1),))
    slow = answered(lab(), machines=(machine("RTX 3090", link_mbps=1.0, link_latency_ms=50.0),))
    assert speed(fast.answer.plan) >= speed(slow.answer.plan)
    pair = PlacementRequest(model_id=ModelId("big"), min_nodes=2, must_use=())
    quick, late = (
        imagine(lab(), pair, Change(machines=(one,)), share=lambda _: never)
        for one in (machine("RTX 3090", link_latency_ms=0.1), machine("RTX 3090", link_latency_ms=50.0))
    )
    assert isinstance(quick, Planned) and isinstance(late, Planned)
    assert speed(quick.answer.plan) > speed(late.answer.plan)


@pytest.mark.parametrize("known", [one for one in catalogue() if one.kind == "gpu"], ids=lambda one: one.name)
def test_every_card_of_the_catalogue_can_be_wished_for(known: object) -> None:
    name, gib = known.name, known.memory.gib  # type: ignore[attr-defined]
    size = int((gib[-1] if gib else 32) * GIB)
    wished = WishedDevice(name=name, memory_total_bytes=size)
    found = answered(
        cluster(identity("a", models=[card("big")])), machines=(WishedMachine(name="PC", devices=(wished,)),)
    )
    assert found.added[0].devices[0].memory_bandwidth_bytes_per_s > 1e10
