"""Tensor-parallel groups beside pipelines, and why a plan is as it is."""

import random

import pytest
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.problem import CostProblem, Device, Layer, LinkCost, Links, Model, Pool
from exo.master.placement.ladder.solve import solve
from exo.master.placement.ladder.tensor import TensorGroup, all_reduce_s, tensor_degrees, with_tensor_groups
from exo.master.placement.ladder.why import binding, left_out
from support.cost_problems import naive_best_ns, random_problem


def hosts(*layer_ns: int, room_bytes: int = 1000) -> CostProblem:
    """Hosts `a`, `b`, ... of two like devices each."""
    devices = tuple(
        Device(
            device_id=f"{name}{number}",
            node_id=name,
            host=name,
            zone="z",
            pool_id=f"{name}{number}",
            layer_ns=time,
            overhead_ns=10,
            head_ns=time,
        )
        for name, time in zip("abcd", layer_ns, strict=False)
        for number in (0, 1)
    )
    hop = LinkCost(forward_ns=50, return_ns=40)
    return CostProblem(
        devices=devices,
        pools=tuple(Pool(pool_id=one.pool_id, room_bytes=room_bytes) for one in devices),
        links=Links(host=LinkCost(forward_ns=5, return_ns=5), zone=hop, cluster=hop),
        model=Model(layers=tuple(Layer(weight_bytes=100) for _ in range(16))),
    )


def pair(host: str, latency_s: float = 0.0) -> TensorGroup:
    return TensorGroup(device_ids=(f"{host}0", f"{host}1"), latency_s=latency_s, bandwidth_bytes_per_s=1e12)


def test_degrees_divide_all_heads() -> None:
    assert tensor_degrees(32, 8, 8) == (2, 4, 8)
    assert tensor_degrees(12, 6, 8) == (2, 3, 6)
    assert tensor_degrees(7, 7, 4) == ()


def test_an_all_reduce_goes_round_twice_less_one() -> None:
    group = TensorGroup(device_ids=("a", "b", "c", "d"), latency_s=1e-6, bandwidth_bytes_per_s=1e6)
    # Six steps, each of a quarter of 2 * 3 * 500 bytes.
    assert all_reduce_s(group, batch=3, hidden_size=500) == pytest.approx(6 * (1e-6 + 750 / 1e6))


def test_a_group_that_is_worth_it_takes_its_members_place() -> None:
    problem, members = with_tensor_groups(hosts(1000), [pair("a")], batch=1, hidden_size=1)
    assert members == {"a0+a1": ("a0", "a1")}
    found = solve(problem)
    assert isinstance(found, Solution)
    assert [stage.device_id for stage in found.stages] == ["a0+a1"]
    assert found.assessment.round_ns == naive_best_ns(problem)


def test_a_group_that_talks_too_slowly_is_left() -> None:
    problem, _ = with_tensor_groups(hosts(1000), [pair("a", latency_s=1e-3)], batch=1, hidden_size=1)
    found = solve(problem)
    assert isinstance(found, Solution)
    assert {stage.device_id for stage in found.stages} == {"a0", "a1"}


def test_a_mixture_of_group_and_pipeline_is_found_where_it_is_best() -> None:
    # Fast devices gain from being a group; the slow ones would lose more by talking than they gain.
    base = hosts(1000, 3000, room_bytes=500)
    groups = [pair("a"), pair("b", latency_s=5e-6)]
    problem, _ = with_tensor_groups(base, groups, batch=1, hidden_size=1)
    found = solve(problem)
    assert isinstance(found, Solution)
    assert found.gap == 0
    assert {stage.device_id for stage in found.stages} == {"a0+a1", "b0", "b1"}
    for stage in found.stages:
        assert stage.end_layer > stage.start_layer


def test_what_cannot_be_a_group_is_left_out() -> None:
    base = hosts(1000, 1000)
    mixed = TensorGroup(device_ids=("a0", "b0"), latency_s=0, bandwidth_bytes_per_s=1e9)
    unknown = TensorGroup(device_ids=("a0", "x"), latency_s=0, bandwidth_bytes_per_s=1e9)
    shared = replace(base, devices=tuple(replace(one, pool_id=f"{one.host}0") for one in base.devices))
    assert with_tensor_groups(base, [mixed, unknown], batch=1, hidden_size=1)[1] == {}
    assert with_tensor_groups(shared, [pair("a")], batch=1, hidden_size=1)[1] == {}


@pytest.mark.parametrize("seed", range(6))
def test_forcing_a_device_in_costs_what_the_best_plan_with_it_costs(seed: int) -> None:
    problem = random_problem(random.Random(seed), devices=4, layers=5, tightness=6)
    found = solve(problem)
    assert isinstance(found, Solution)
    for one in left_out(problem, found):
        assert one.reason
        devices = tuple(
            replace(device, is_required=device.device_id == one.device_id) for device in problem.devices
        )
        forced = naive_best_ns(replace(problem, devices=devices))
        if one.forcing_ns is None:
            assert forced is None
        else:
            assert forced == found.assessment.round_ns + one.forcing_ns


def test_the_memory_that_binds_is_named_with_what_more_of_it_saves() -> None:
    problem = hosts(1000, 3000, room_bytes=1050)
    found = solve(problem)
    assert isinstance(found, Solution)
    # Two devices of ten layers each hold the sixteen: more room saves the second one's part only when it holds all.
    assert binding(problem, found) is None
    tight = hosts(1000, 3000, room_bytes=550)
    found = solve(tight)
    assert isinstance(found, Solution)
    held = binding(tight, found)
    assert held is not None
    assert held.pool_id in {"a0", "a1"}
    assert held.more_bytes == 50
    # One layer goes from a slow device to a fast one, and was the last on its own: its overhead and hop go too.
    assert held.saved_ns == 2000 + 10 + 5


def test_a_device_without_room_for_a_layer_says_so() -> None:
    problem = hosts(1000, 900, room_bytes=2000)
    pools = tuple(replace(pool, room_bytes=99) if pool.pool_id == "b1" else pool for pool in problem.pools)
    problem = replace(problem, pools=pools)
    found = solve(problem)
    assert isinstance(found, Solution)
    reasons = {one.device_id: one.reason for one in left_out(problem, found)}
    assert "one layer takes 100 bytes on it; it has 99" in reasons["b1"]
