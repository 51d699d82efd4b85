"""Random problems of every kind, each answer looked at for what must never be: 10,000 of them with `many`.

`python -m benchmarks.placement.faults [COUNT]` runs so many (10,000 unless told otherwise).
"""

import random
import sys
from collections import Counter

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.random_problems import shuffled, uneven, with_rules
from benchmarks.results import Result
from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.evaluate import Stage, assess
from exo.master.placement.ladder.problem import CostProblem
from exo.master.placement.ladder.solve import solve

KINDS = (
    "over-committed, layers missing or doubled",
    "plan differs on permuted input",
    "false infeasible",
    "false bound",
)


def run(*, quick: bool) -> list[Result]:
    """300 of them; `python -m benchmarks.placement.faults` runs 10,000."""
    sheet = Sheet()
    count = 60 if quick else 300
    found = faults(count)
    for kind in KINDS:
        sheet.add(f"{count} random problems: {kind}", found[kind], "", at_most=0)
    return sheet.results


def faults(count: int, *, first: int = 0) -> Counter[str]:
    """Solve so many problems, each also told in another order, and count what is wrong."""
    found: Counter[str] = Counter()
    for seed in range(first, first + count):
        chance = random.Random(seed)
        problem = _problem(chance, seed)
        answer, again = solve(problem), solve(shuffled(problem, chance))
        found["plans" if isinstance(answer, Solution) else "refusals"] += 1
        found[KINDS[1]] += answer != again
        if isinstance(answer, Solution):
            looked = assess(problem, answer.stages)
            found[KINDS[0]] += bool(looked.violations)
            found[KINDS[3]] += answer.lower_bound_ns > looked.round_ns
        elif answer.code == "infeasible":
            found[KINDS[2]] += _has_plan(problem, chance)
        else:
            found[answer.code] += 1
    return found


def _problem(chance: random.Random, seed: int) -> CostProblem:
    problem = random_problem(
        seed,
        chance.randint(1, 14),
        chance.randint(1, 60),
        irregular=chance.random() < 0.25,
        min_stages=chance.choice([1, 1, 1, 2, 4]),
    )
    if chance.random() < 0.25:
        problem = uneven(problem, chance)
    if chance.random() < 0.25:
        problem = with_rules(problem, chance)
    return problem


def _has_plan(problem: CostProblem, chance: random.Random) -> bool:
    """Look for a legal plan where none is said to be: random rings, filled to the brim one after the other."""
    room = {pool.pool_id: pool.room_bytes for pool in problem.pools}
    model = problem.model
    for _ in range(60):
        ring = chance.sample(problem.devices, chance.randint(1, len(problem.devices)))
        left = dict(room)
        stages: list[Stage] = []
        start = 0
        for rank, device in enumerate(ring):
            is_last = rank == len(ring) - 1
            held = (
                model.only_bytes
                if is_last and rank == 0
                else model.last_bytes
                if is_last
                else model.stage_bytes
            )
            held = model.first_bytes if rank == 0 and not is_last else held
            left[device.pool_id] -= held
            end = start
            spare = problem.layer_count - (len(ring) - rank - 1)
            while end < spare and model.layers[end].size_bytes <= left[device.pool_id]:
                left[device.pool_id] -= model.layers[end].size_bytes
                end += 1
            stages.append(Stage(device_id=device.device_id, start_layer=start, end_layer=end))
            start = end
        if not assess(problem, stages).violations:
            return True
    return False


def main() -> None:
    """Print the counts; end with 1 when something is wrong."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    total: Counter[str] = Counter()
    for first in range(0, count, 500):
        total += faults(min(500, count - first), first=first)
        print(first + min(500, count - first), dict(total), flush=True)
    sys.exit(1 if any(total[kind] for kind in KINDS) else 0)


if __name__ == "__main__":
    main()
