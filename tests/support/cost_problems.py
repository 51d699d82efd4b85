"""Random placement problems, a naive solver that tries everything, and the same as a CP-SAT model."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

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
    Rule,
    device_groups,
)

Item = TypeVar("Item")


def random_problem(
    chance: random.Random,
    *,
    devices: int,
    layers: int,
    zones: int = 2,
    irregular: bool = False,
    uneven: bool = False,
    shared_pools: bool = True,
    min_stages: int = 1,
    tightness: float = 2.0,
    required: float = 0.0,
    micro_batches: int = 1,
) -> CostProblem:
    """Draw a cluster: unlike devices on hosts of some zones, of which `tightness` models fit into all memory."""
    layer_bytes = chance.randint(50, 150)
    stack = tuple(
        Layer(
            weight_bytes=max(1, int(layer_bytes * (chance.uniform(0.5, 1.5) if uneven else 1))),
            cache_bytes=7,
            time_weight=int(1_000_000 * chance.uniform(0.6, 1.4)) if uneven else 1_000_000,
        )
        for _ in range(layers)
    )
    model = Model(
        layers=stack,
        embedding_bytes=chance.choice([0, layer_bytes // 2, layer_bytes * 2]),
        head_bytes=chance.choice([0, layer_bytes, layer_bytes * 2]),
        has_tied_head=chance.random() < 0.3,
        stage_bytes=chance.choice([0, 20]),
    )
    whole = sum(layer.size_bytes for layer in stack)
    made: list[Device] = []
    pools: dict[str, int] = {}
    for number in range(devices):
        zone = f"zone-{chance.randrange(zones)}"
        host = f"{zone}-host-{chance.randrange(max(1, devices // 2))}"
        pool = f"{host}/ram" if shared_pools and chance.random() < 0.3 else f"{host}/device-{number:03d}"
        pools.setdefault(pool, int(whole * tightness * chance.uniform(0.2, 1.8) / devices))
        layer_ns = int(10 ** chance.uniform(5, 7))
        made.append(
            Device(
                device_id=f"device-{number:03d}",
                node_id=f"node-{number:03d}",
                host=host,
                zone=zone,
                pool_id=pool,
                layer_ns=layer_ns,
                overhead_ns=chance.randint(10_000, 500_000),
                head_ns=layer_ns * 2,
                is_required=chance.random() < required,
            )
        )
    costs = sorted(chance.randint(1_000, 4_000_000) for _ in range(3))
    links = Links(
        host=LinkCost(forward_ns=costs[0], return_ns=costs[0] // 2),
        zone=LinkCost(forward_ns=costs[1], return_ns=costs[1] // 2),
        cluster=LinkCost(forward_ns=costs[2], return_ns=costs[2] // 2),
    )
    if irregular:
        measured = tuple(
            MeasuredLink(
                source_device_id=one.device_id,
                target_device_id=other.device_id,
                cost=LinkCost(forward_ns=(cost := int(10 ** chance.uniform(4, 6.8))), return_ns=cost // 2),
            )
            for one, other in itertools.permutations(made, 2)
        )
        links = Links(host=links.host, zone=links.zone, cluster=links.cluster, measured=measured)
    return CostProblem(
        devices=tuple(made),
        pools=tuple(Pool(pool_id=name, room_bytes=room) for name, room in pools.items()),
        links=links,
        model=model,
        min_stages=min_stages,
        micro_batches=micro_batches,
        concurrency=max(1, micro_batches),
    )


def all_plans(problem: CostProblem) -> Iterator[tuple[Stage, ...]]:
    """Every order of every subset of the devices with every split of the layers."""
    names = [device.device_id for device in problem.devices]
    layers = problem.layer_count
    for size in range(1, min(len(names), layers) + 1):
        for cuts in itertools.combinations(range(1, layers), size - 1):
            bounds = (0, *cuts, layers)
            for ring in itertools.permutations(names, size):
                yield tuple(
                    Stage(device_id=name, start_layer=bounds[rank], end_layer=bounds[rank + 1])
                    for rank, name in enumerate(ring)
                )


def naive_best_ns(problem: CostProblem) -> int | None:
    """The shortest round of any legal plan, by trying them all; None where there is none."""
    best: int | None = None
    for plan in all_plans(problem):
        found = assess(problem, plan)
        if not found.violations and (best is None or found.round_ns < best):
            best = found.round_ns
    return best


def shuffled(problem: CostProblem, chance: random.Random) -> CostProblem:
    """The same problem, told in another order."""

    def mixed(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(chance.sample(items, len(items)))

    links = problem.links
    return CostProblem(
        devices=mixed(problem.devices),
        pools=mixed(problem.pools),
        links=Links(host=links.host, zone=links.zone, cluster=links.cluster, measured=mixed(links.measured)),
        model=problem.model,
        min_stages=problem.min_stages,
        concurrency=problem.concurrency,
        micro_batches=problem.micro_batches,
        rules=mixed(problem.rules),
    )


def with_random_rules(problem: CostProblem, chance: random.Random) -> CostProblem:
    """Add rules of the kinds that users ask for: spread over zones, at most so many of some, one of some groups."""
    rules: list[Rule] = []
    names = [device.device_id for device in problem.devices]
    if chance.random() < 0.5:
        zones = device_groups(problem.devices, by="zone")
        rules.append(AtLeast(groups=zones, count=min(len(zones), chance.randint(1, 2)), reason="zone spread"))
    if chance.random() < 0.5:
        some = tuple(chance.sample(names, chance.randint(1, len(names))))
        rules.append(AtMost(device_ids=some, count=chance.randint(0, 2), reason="anti-affinity"))
    if chance.random() < 0.5:
        groups = tuple(tuple(chance.sample(names, chance.randint(1, len(names)))) for _ in range(2))
        rules.append(AtLeast(groups=groups, count=chance.randint(1, 2), reason="one of each"))
    return msgspec.structs.replace(problem, rules=tuple(rules))
