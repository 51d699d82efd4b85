"""Links kept by node are the links of all their devices: whatever reads them finds the same."""

import random
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Solution
from exo.master.placement.ladder.by_node import NodeLinks, NodePairs
from exo.master.placement.ladder.check import complaints
from exo.master.placement.ladder.cost_model import LinkFigures, link_cost
from exo.master.placement.ladder.evaluate import Stage, assess
from exo.master.placement.ladder.field import field_of, narrowed
from exo.master.placement.ladder.prices import entry_costs
from exo.master.placement.ladder.problem import CostProblem, LinkCost, Links, canonical
from exo.master.placement.ladder.quick_bound import bound_without_links_ns
from exo.master.placement.ladder.ring import hops_of, link_matrices
from exo.master.placement.ladder.solve import solve
from exo.master.placement.ladder.ways import NodeWays, usable_links
from support.cost_problems import naive_best_ns, random_problem


def by_node(
    problem: CostProblem, chance: random.Random, *, share: float = 0.6, spans_hosts: bool = False
) -> CostProblem:
    """The problem with devices dealt out to nodes, of one host each or of several, and some links measured."""
    nodes: dict[tuple[str, str], list[str]] = {}
    for one in problem.devices:
        name = (str(chance.randrange(3)) if spans_hosts else one.host, f"node-{chance.randrange(2)}")
        nodes.setdefault(name, []).append(one.device_id)
    devices = tuple(tuple(inside) for inside in nodes.values())
    hosts = [host for host, _ in nodes]
    pairs = [
        (one, other)
        for one, other in permutations(range(len(devices)), 2)
        if hosts[one] != hosts[other] and chance.random() < share
    ]
    if not pairs:
        return problem
    costs = np.array([(int(10 ** chance.uniform(4, 6.8)), chance.randint(1, 10**6)) for _ in pairs])
    told = NodeLinks(
        NodePairs(
            devices=devices,
            sources=np.array([one for one, _ in pairs], dtype=np.int64),
            targets=np.array([other for _, other in pairs], dtype=np.int64),
        ),
        costs[:, 0],
        costs[:, 1],
    )
    return replace(problem, links=replace(problem.links, measured=told))


def one_by_one(problem: CostProblem) -> CostProblem:
    """The same with a link for each pair of devices."""
    return replace(problem, links=replace(problem.links, measured=tuple(problem.links.measured)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), devices=st.integers(2, 9), spans_hosts=st.booleans())
def test_hops_are_those_of_links_told_one_by_one(seed: int, devices: int, spans_hosts: bool) -> None:
    chance = random.Random(seed)
    problem = by_node(random_problem(chance, devices=devices, layers=9), chance, spans_hosts=spans_hosts)
    plain = one_by_one(problem)
    assert canonical(problem) == canonical(plain)
    # What the links say of each pair, by plain looking up.
    told = {(one.source_device_id, one.target_device_id): one.cost for one in plain.links.measured}
    of = field_of(canonical(problem))
    forward, back = link_matrices(of)
    for i, j in permutations(range(devices), 2):
        source, target = of.devices[i], of.devices[j]
        cost = told.get((source.device_id, target.device_id)) or problem.links.between(source, target)
        assert (forward[i, j], back[i, j]) == (cost.forward_ns, cost.return_ns)
    part = narrowed(of, np.arange(1, devices))
    for whole, cut in zip((forward, back), link_matrices(part), strict=True):
        assert (whole[1:, 1:] == cut).all()
    least = entry_costs(of)
    if told:
        np.fill_diagonal(forward, 2**60)
        np.fill_diagonal(back, 2**60)
        assert (least[0] == forward.min(axis=0)).all() and (least[1] == back.min(axis=0)).all()
    names = chance.sample([one.device_id for one in problem.devices], min(devices, 9))
    stages = [Stage(device_id=name, start_layer=at, end_layer=at + 1) for at, name in enumerate(names)]
    assert assess(problem, stages) == assess(plain, stages)
    assert complaints(problem) == complaints(plain) == []


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**9), min_stages=st.integers(1, 3))
def test_plans_and_certificates_are_the_same_however_links_are_told(seed: int, min_stages: int) -> None:
    chance = random.Random(seed)
    drawn = random_problem(chance, devices=7, layers=8, tightness=3, min_stages=min_stages)
    problem = by_node(drawn, chance)
    assert solve(problem) == solve(one_by_one(problem))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**9),
    is_irregular=st.booleans(),
    min_stages=st.integers(1, 3),
    micro_batches=st.integers(1, 3),
)
def test_no_plan_beats_the_bound_without_links(
    seed: int, is_irregular: bool, min_stages: int, micro_batches: int
) -> None:
    problem = random_problem(
        random.Random(seed),
        devices=4,
        layers=4,
        irregular=is_irregular,
        min_stages=min_stages,
        micro_batches=micro_batches,
        required=0.1,
        tightness=3,
    )
    best = naive_best_ns(problem)
    bound = bound_without_links_ns(problem)
    assert best is None or 0 <= bound <= best


def test_the_bound_without_links_is_near_the_best_plan_of_many_devices() -> None:
    problem = random_problem(random.Random(1), devices=150, layers=80, tightness=20)
    free = LinkCost(forward_ns=0, return_ns=0)
    best = solve(replace(problem, links=Links(host=free, zone=free, cluster=free)))
    assert isinstance(best, Solution)
    assert 0.8 * best.assessment.round_ns < bound_without_links_ns(problem) <= best.assessment.round_ns


def test_nothing_is_said_without_links_of_unequal_layers_or_of_what_cannot_be() -> None:
    chance = random.Random(3)
    assert bound_without_links_ns(random_problem(chance, devices=3, layers=4, uneven=True)) == 0
    assert bound_without_links_ns(replace(random_problem(chance, devices=3, layers=4), devices=())) == 0


def test_links_are_a_sequence_of_those_of_their_devices() -> None:
    pairs = NodePairs(
        devices=(("a0", "a1"), ("b0",), ("c0", "c1", "c2")),
        sources=np.array([0, 0, 2]),
        targets=np.array([1, 2, 0]),
    )
    links = NodeLinks(pairs, np.array([5, 7, 9]), np.array([1, 2, 3]))
    names = [(one.source_device_id, one.target_device_id, one.cost.forward_ns) for one in links]
    assert names[:3] == [("a0", "b0", 5), ("a1", "b0", 5), ("a0", "c0", 7)]
    assert len(links) == len(names) == 2 + 6 + 6
    assert [links[place] for place in range(len(links))] == list(links) == list(links[:])
    assert links[-1] == links[len(links) - 1]
    with pytest.raises(IndexError, match="link 14 of 14"):
        _ = links[14]
    cost = links.cost("c2", "a1")
    assert cost is not None and (cost.forward_ns, cost.return_ns) == (9, 3)
    assert links.cost("b0", "a0") is None and links.cost("a0", "gone") is None
    assert links.nearest_ns() == {"a0": 5, "a1": 5, "c0": 9, "c1": 9, "c2": 9}
    left, rows = pairs.only({"a1", "c0"})
    assert [(one, other) for _, one, other in left.device_pairs()] == [("a1", "c0"), ("c0", "a1")]
    assert rows.tolist() == [1, 2]


def test_a_link_by_node_to_nobody_or_of_absurd_cost_is_refused() -> None:
    problem = by_node(random_problem(random.Random(5), devices=6, layers=4), random.Random(5), share=1.0)
    links = problem.links.measured
    assert isinstance(links, NodeLinks)
    fewer = replace(problem, devices=problem.devices[1:])
    assert any("is no device of the problem" in one for one in complaints(fewer))
    absurd = NodeLinks(links.pairs, links.forward_ns + 10**13, links.return_ns)
    found = solve(replace(problem, links=replace(problem.links, measured=absurd)))
    assert (
        isinstance(found, Infeasible) and found.code == "invalid" and "The link device-" in found.reasons[0]
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_of_links_by_node_every_one_of_absurd_cost_is_named(seed: int) -> None:
    chance = random.Random(seed)
    problem = by_node(random_problem(chance, devices=6, layers=4), chance, share=1.0)
    links = problem.links.measured
    if not isinstance(links, NodeLinks):
        return
    costs = [np.array([chance.choice([100, 2000, -5, 10**13]) for _ in links.forward_ns]) for _ in range(2)]
    problem = replace(
        problem, links=replace(problem.links, measured=NodeLinks(links.pairs, costs[0], costs[1]))
    )
    assert complaints(problem) == complaints(one_by_one(problem))


def test_all_ways_at_once_cost_what_each_costs_by_itself() -> None:
    chance = random.Random(7)
    figures = {
        (f"d{one}", f"d{other}"): LinkFigures(
            latency_s=chance.choice([0.0, 10 ** chance.uniform(-6, 4)]),
            bandwidth_bytes_per_s=10 ** chance.uniform(-320, 12),
        )
        for one, other in permutations(range(30), 2)
    }
    ways = NodeWays.of(figures)
    assert dict(ways.items()) == figures
    told = list(permutations(range(30), 2))
    chance.shuffle(told)
    ends = np.array(told, dtype=np.int64)
    mixed = [figures[f"d{one}", f"d{other}"] for one, other in told]
    shuffled = NodeWays.told(
        tuple((f"d{one}",) for one in range(30)),
        ends[:, 0],
        ends[:, 1],
        np.array([one.latency_s for one in mixed]),
        np.array([one.bandwidth_bytes_per_s for one in mixed]),
    )
    assert dict(shuffled.items()) == figures
    kept = frozenset(f"d{one}" for one in range(30))
    links, useless = usable_links(ways, kept, batch=3, hidden_size=4096)
    assert links is not None and not useless and len(links) == len(figures)
    for one in links:
        told = figures[one.source_device_id, one.target_device_id]
        assert one.cost == link_cost(told, batch=3, hidden_size=4096)


def test_hops_are_made_once_for_solves_of_the_same_devices_and_links() -> None:
    problem = canonical(by_node(random_problem(random.Random(9), devices=6, layers=4), random.Random(9)))
    forced = replace(problem, devices=(replace(problem.devices[0], is_required=True), *problem.devices[1:]))
    assert hops_of(field_of(problem)) is hops_of(field_of(forced))
    moved = replace(problem, devices=(replace(problem.devices[0], zone="far"), *problem.devices[1:]))
    assert hops_of(field_of(moved)) is not hops_of(field_of(problem))
