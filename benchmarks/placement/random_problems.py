"""Variations of random problems: told in another order, with unequal layers, with rules."""

import random
from collections.abc import Sequence
from typing import TypeVar

from msgspec.structs import replace

from exo.master.placement.ladder.problem import AtLeast, AtMost, CostProblem, Rule, device_groups

Item = TypeVar("Item")


def shuffled(problem: CostProblem, chance: random.Random) -> CostProblem:
    """The same problem in another order."""

    def mixed(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(chance.sample(items, len(items)))

    return replace(
        problem,
        devices=mixed(problem.devices),
        pools=mixed(problem.pools),
        links=replace(problem.links, measured=mixed(problem.links.measured)),
        rules=mixed(problem.rules),
    )


def uneven(problem: CostProblem, chance: random.Random) -> CostProblem:
    """A few dense layers in front, and sizes that vary a little, as mixed quantisation makes them."""
    layers = tuple(
        replace(
            layer,
            weight_bytes=int(layer.weight_bytes * (0.4 if number < 3 else chance.uniform(0.9, 1.1))),
            time_weight=int(layer.time_weight * (1.5 if number < 3 else chance.uniform(0.9, 1.1))),
        )
        for number, layer in enumerate(problem.model.layers)
    )
    return replace(problem, model=replace(problem.model, layers=layers))


def with_rules(problem: CostProblem, chance: random.Random) -> CostProblem:
    """Spread over zones, at most so many of some, one of some."""
    names = [device.device_id for device in problem.devices]
    zones = device_groups(problem.devices, by="zone")
    rules: list[Rule] = [AtLeast(groups=zones, count=min(len(zones), 2), reason="a spread over zones")]
    some = tuple(chance.sample(names, chance.randint(1, len(names))))
    if chance.random() < 0.5:
        rules.append(AtMost(device_ids=some, count=chance.randint(1, 3)))
    else:
        rules.append(AtLeast(groups=(some,), count=1, reason="one of some devices"))
    return replace(problem, rules=tuple(rules))
