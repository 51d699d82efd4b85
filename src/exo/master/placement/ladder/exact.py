"""The best plan on hierarchical links, proven: price, rule out, programme over what is left."""

import numpy as np

from exo.master.placement.ladder.field import Field, Integers, narrowed
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.prices import entry_costs, price, survivors, without_twins
from exo.master.placement.ladder.programme import INFINITE, draft_of, leaf_tables, run
from exo.master.placement.ladder.ring import hierarchical_order
from exo.master.placement.ladder.tree import hierarchy
from exo.master.placement.ladder.water import Filled, water_filling

_SAMPLE = 32
"""Devices of the first, small programme, whose plan rules out most others."""
_SAMPLE_WORTH_FROM = 56


def best_single(of: Field) -> Filled | None:
    """Return the best plan of one stage."""
    if of.problem.min_stages > 1 or int(of.is_required.sum()) > 1:
        return None
    allowed = of.only_layers >= of.layer_count
    if of.is_required.any():
        allowed &= of.is_required
    if not allowed.any():
        return None
    times = of.layer_ns * of.layer_count + of.overhead_ns + of.head_ns
    index = int(np.argmin(np.where(allowed, times, INFINITE)))
    return Filled(int(times[index]), (index,), (of.layer_count,))


def best_hierarchical(of: Field, known: Filled | None = None) -> Filled | None:
    """Return a plan of least latency, or None where no plan exists. `known` is a plan to beat."""
    min_stages = of.problem.min_stages
    plans = [plan for plan in (known, best_single(of)) if plan is not None]
    is_lost = bool((of.is_required & (of.most_layers < 1)).any())
    if is_lost or int((of.most_layers > 0).sum()) < max(2, min_stages) or min_stages > of.layer_count:
        return min(plans, key=lambda plan: plan.cost_ns, default=None)
    prices = price(of, entry_costs(of), min_stages=min_stages)
    filled = water_filling(of, prices, Filler(of), min_stages=min_stages)
    if filled is not None:
        plans.append(filled)
    upper = min((plan.cost_ns for plan in plans), default=INFINITE)
    kept = survivors(of, prices, upper)
    if plans and len(kept) > _SAMPLE_WORTH_FROM:
        order = np.lexsort((kept, prices.unit_ns[kept], ~of.is_required[kept]))
        sample = np.sort(kept[order][: max(_SAMPLE, int(of.is_required.sum()))])
        found = programme_over(of, sample, min_stages=min_stages)
        if found is not None and found.cost_ns < upper:
            plans.append(found)
            upper = found.cost_ns
            kept = survivors(of, prices, upper)
        kept = without_twins(of, kept, prices, upper, min_stages=min_stages)
    if len(kept) >= 2:
        found = programme_over(of, kept, min_stages=min_stages)
        if found is not None and found.cost_ns < upper:
            plans.append(found)
    return min(plans, key=lambda plan: plan.cost_ns, default=None)


def programme_over(of: Field, kept: Integers, *, min_stages: int) -> Filled | None:
    """Return the best plan of several of these devices, as the programme finds it."""
    if len(kept) < 2:
        return None
    part = narrowed(of, kept)
    sums = run(part, hierarchy(part), leaf_tables(part), min_stages=min_stages)
    draft = draft_of(part, sums, min_stages=min_stages)
    if draft is None:
        return None
    ring = hierarchical_order(part, sorted(draft.layers), draft.first, draft.last)
    outside = kept.tolist()
    return Filled(
        draft.cost_ns,
        tuple(outside[index] for index in ring),
        tuple(draft.layers[index] for index in ring),
    )
