"""The named mixed clusters: predicted tokens/s against memory-weighted splits and water-filling in the same run."""

import math
import sys

from benchmarks.cluster.measuring import CannotMeasureError
from benchmarks.placement.clusters import NAMED, named_problem, random_problem
from benchmarks.placement.timing import timed_solve
from benchmarks.results import Result
from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.evaluate import Assessment, Stage, assess
from exo.master.placement.ladder.field import Field, field_of
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.greedy import split_by_memory
from exo.master.placement.ladder.prices import entry_costs, price
from exo.master.placement.ladder.problem import CostProblem, canonical
from exo.master.placement.ladder.units import units_of
from exo.master.placement.ladder.water import water_filling


def run(*, quick: bool) -> list[Result]:
    """Tokens/s of one user; each baseline as it would split, where its split fits at all."""
    results: list[Result] = []
    gains: list[float] = []
    for named in NAMED:
        problem = canonical(named_problem(named))
        found, _ = timed_solve(problem)
        if not isinstance(found, Solution):
            raise CannotMeasureError(f"{named.name} does not hold its model")
        tokens = found.assessment.tokens_per_s
        for baseline, plan in (
            ("memory-weighted over the fewest", found.baseline),
            ("memory-weighted over all", over_all(problem)),
            ("water-filling", filled(problem)),
        ):
            if plan is None:
                print(f"{named.name}: {baseline} finds no plan that fits", file=sys.stderr)
                continue
            results.append(
                Result(
                    name=f"{named.name} against {baseline}",
                    value=tokens,
                    unit="tokens/s",
                    baseline=plan.tokens_per_s,
                    bar=1.0 - 1e-9,
                )
            )
            if baseline == "memory-weighted over all":
                gains.append(tokens / plan.tokens_per_s)
    mean = math.exp(sum(math.log(gain) for gain in gains) / len(gains))
    results.append(
        Result(
            name="mixed clusters: geometric mean gain over memory-weighted over all",
            value=mean,
            unit="times",
            bar=1.2,
        )
    )
    worst = math.inf
    for seed in range(40 if quick else 300):
        problem = canonical(random_problem(seed, 2 + seed % 30))
        found, _ = timed_solve(problem)
        if isinstance(found, Solution):
            plans = [
                plan for plan in (found.baseline, over_all(problem), filled(problem)) if plan is not None
            ]
            worst = min(worst, *(found.assessment.tokens_per_s / plan.tokens_per_s for plan in plans))
    results.append(
        Result(
            name="random clusters: least gain over any baseline", value=worst, unit="times", bar=1.0 - 1e-9
        )
    )
    return results


def over_all(problem: CostProblem) -> Assessment | None:
    """The ring over all devices that can hold a layer, in proportion to their memory."""
    of = field_of(problem)
    usable = [index for index in range(of.size) if of.plain_layers[index] > 0]
    usable.sort(key=lambda index: (-int(of.room_bytes[of.pool[index]]), index))
    ring = split_by_memory(of, usable[: of.layer_count])
    return None if ring is None else _assessed(of, [index for index, _ in ring], [count for _, count in ring])


def filled(problem: CostProblem) -> Assessment | None:
    """Water-filling: the fastest devices, everything counted, until the model is in."""
    of = field_of(problem)
    if of.size < 2:
        return None
    found = water_filling(of, price(of, entry_costs(of)), Filler(of), units_of(of))
    return None if found is None else _assessed(of, found.ring, found.layers)


def _assessed(
    of: Field, ring: list[int] | tuple[int, ...], layers: list[int] | tuple[int, ...]
) -> Assessment | None:
    stages: list[Stage] = []
    for index, count in zip(ring, layers, strict=True):
        start = stages[-1].end_layer if stages else 0
        stages.append(
            Stage(device_id=of.devices[index].device_id, start_layer=start, end_layer=start + count)
        )
    found = assess(of.problem, stages)
    return None if found.violations else found
