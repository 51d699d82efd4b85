"""The evaluator on plans that were counted by hand."""

import pytest
from msgspec.structs import replace

from exo.master.placement.ladder.evaluate import Stage, assess
from exo.master.placement.ladder.problem import (
    AtLeast,
    AtMost,
    CostProblem,
    Device,
    Layer,
    LinkCost,
    Links,
    MeasuredLink,
    Model,
    Pool,
)


def device(
    number: int, *, layer_ns: int, zone: str = "z", host: str | None = None, pool: str | None = None
) -> Device:
    return Device(
        device_id=f"d{number}",
        node_id=f"n{number}",
        host=host or f"h{number}",
        zone=zone,
        pool_id=pool or f"p{number}",
        layer_ns=layer_ns,
        overhead_ns=5,
        head_ns=2 * layer_ns,
    )


PROBLEM = CostProblem(
    devices=(device(1, layer_ns=10), device(2, layer_ns=20), device(3, layer_ns=30, zone="far")),
    pools=tuple(Pool(pool_id=f"p{number}", room_bytes=1000) for number in (1, 2, 3)),
    links=Links(
        host=LinkCost(forward_ns=1, return_ns=1),
        zone=LinkCost(forward_ns=100, return_ns=50),
        cluster=LinkCost(forward_ns=1000, return_ns=500),
    ),
    model=Model(
        layers=tuple(Layer(weight_bytes=90, cache_bytes=10) for _ in range(6)),
        embedding_bytes=40,
        head_bytes=30,
        stage_bytes=3,
    ),
)


def stage(number: int, start: int, end: int) -> Stage:
    return Stage(device_id=f"d{number}", start_layer=start, end_layer=end)


def test_times_and_bytes_of_a_ring_are_added_up() -> None:
    found = assess(PROBLEM, [stage(1, 0, 3), stage(2, 3, 5), stage(3, 5, 6)])
    assert found.violations == ()
    assert found.stage_ns == (35, 45, 30 + 5 + 60)
    assert found.link_ns == (100, 1000, 500)
    assert found.stage_bytes == (343, 203, 133)
    assert found.latency_ns == 35 + 45 + 95 + 1600
    assert found.bottleneck_ns == 95
    assert found.round_ns == found.latency_ns


def test_a_single_stage_has_no_hops_and_holds_both_ends() -> None:
    found = assess(PROBLEM, [stage(2, 0, 6)])
    assert found.link_ns == (0,)
    assert found.latency_ns == 6 * 20 + 5 + 40
    assert found.stage_bytes == (3 + 600 + 40 + 30,)


def test_a_tied_head_is_copied_to_the_last_stage_only_of_several() -> None:
    tied = replace(PROBLEM, model=replace(PROBLEM.model, has_tied_head=True))
    assert assess(tied, [stage(1, 0, 3), stage(2, 3, 6)]).stage_bytes == (343, 373)
    assert assess(tied, [stage(1, 0, 6)]).stage_bytes == (673,)


def test_measured_links_take_the_place_of_their_class_in_their_direction() -> None:
    cost = LinkCost(forward_ns=7, return_ns=6)
    link = MeasuredLink(source_device_id="d1", target_device_id="d2", cost=cost)
    problem = replace(PROBLEM, links=replace(PROBLEM.links, measured=(link,)))
    assert assess(problem, [stage(1, 0, 3), stage(2, 3, 6)]).link_ns == (7, 50)
    assert assess(problem, [stage(2, 0, 3), stage(1, 3, 6)]).link_ns == (100, 6)


def test_a_round_waits_for_the_slowest_stage_once_per_micro_batch() -> None:
    problem = replace(PROBLEM, micro_batches=100, concurrency=200)
    found = assess(problem, [stage(1, 0, 3), stage(2, 3, 6)])
    assert found.round_ns == 100 * found.bottleneck_ns
    assert found.tokens_per_s == pytest.approx(200 * 1e9 / found.round_ns)


def test_uneven_layers_take_their_own_time() -> None:
    layers = tuple(Layer(weight_bytes=1, time_weight=weight) for weight in (500_000, 1_500_000, 1_050_000))
    problem = replace(PROBLEM, model=replace(PROBLEM.model, layers=layers))
    assert assess(problem, [stage(1, 0, 3)]).stage_ns == (5 + 15 + 10 + 5 + 20,)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "no stages"),
        ([stage(1, 0, 5)], "placed once"),
        ([stage(1, 0, 4), stage(2, 3, 6)], "placed once"),
        ([stage(1, 0, 3), stage(1, 3, 6)], "used twice"),
        ([stage(9, 0, 6)], "no device"),
        ([stage(1, 0, 6), stage(2, 6, 6)], "no layers"),
    ],
)
def test_what_is_no_plan_is_said(stages: list[Stage], words: str) -> None:
    assert any(words in one for one in assess(PROBLEM, stages).violations)


def test_devices_of_one_pool_overfill_it_together() -> None:
    shared = tuple(replace(one, pool_id="p1") for one in PROBLEM.devices)
    pools = (Pool(pool_id="p1", room_bytes=675),)
    problem = replace(PROBLEM, devices=shared, pools=pools)
    assert assess(problem, [stage(1, 0, 6)]).violations == ()
    assert "676 bytes of 675" in assess(problem, [stage(1, 0, 3), stage(2, 3, 6)]).violations[0]


def test_broken_wishes_are_said() -> None:
    rules = (AtMost(device_ids=("d1", "d2"), count=1), AtLeast(groups=(("d3",),), count=1))
    required = (replace(PROBLEM.devices[2], is_required=True),)
    problem = replace(PROBLEM, devices=PROBLEM.devices[:2] + required, rules=rules, min_stages=3)
    text = " ".join(assess(problem, [stage(1, 0, 3), stage(2, 3, 6)]).violations)
    for words in ("anti-affinity", "spread", "must be used", "fewer than 3"):
        assert words in text
