"""Problems with side constraints, as users put them."""

import random

from msgspec.structs import replace

from benchmarks.placement.clusters import random_problem
from exo.master.placement.ladder.problem import AtLeast, AtMost, CostProblem, Rule, device_groups


def ruled_problem(seed: int, devices: int) -> CostProblem:
    """A random cluster with a spread over zones or nodes, an anti-affinity, and perhaps one of a few devices asked."""
    chance = random.Random(seed)
    problem = random_problem(seed, devices)
    names = [device.device_id for device in problem.devices]
    rules: list[Rule] = []
    by = chance.choice(["zone", "node_id"])
    groups = device_groups(problem.devices, by=by)
    rules.append(
        AtLeast(groups=groups, count=min(len(groups), chance.randint(2, 3)), reason=f"a spread over {by}s")
    )
    apart = tuple(chance.sample(names, devices // 2))
    rules.append(AtMost(device_ids=apart, count=chance.randint(1, 2), reason="an anti-affinity rule"))
    if chance.random() < 0.5:
        rules.append(
            AtLeast(groups=(tuple(chance.sample(names, 3)),), count=1, reason="one of three devices")
        )
    return replace(problem, rules=tuple(rules))
