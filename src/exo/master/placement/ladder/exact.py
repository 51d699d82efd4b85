"""The best plan on hierarchical links, proven: price, rule out, programme over what is left."""

import numpy as np

from exo.master.placement.ladder.answer import Method
from exo.master.placement.ladder.draft import draft_of
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field, Integers, narrowed
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.outcome import Outcome, ShouldStop
from exo.master.placement.ladder.prices import entry_costs, price, survivors, without_twins
from exo.master.placement.ladder.programme import INFINITE, leaf_tables, run
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


def best_hierarchical(of: Field, should_stop: ShouldStop) -> Outcome:
    """Return a plan of least latency, proven, or none where no plan exists.

    Stopped early it is the best so far, with the bound of the prices, and `is_truncated`.
    """
    min_stages = of.problem.min_stages
    single = best_single(of)
    plans: list[tuple[Filled, Method]] = [] if single is None else [(single, "single device")]
    is_lost = bool((of.is_required & (of.most_layers < 1)).any())
    if is_lost or int((of.most_layers > 0).sum()) < max(2, min_stages) or min_stages > of.layer_count:
        return _outcome(plans, INFINITE, is_truncated=False)
    prices = price(of, entry_costs(of), min_stages=min_stages)
    filled = water_filling(of, prices, Filler(of), min_stages=min_stages)
    if filled is not None:
        plans.append((filled, "water-filling"))
    upper = min((plan.cost_ns for plan, _ in plans), default=INFINITE)
    kept = survivors(of, prices, upper)
    try:
        if plans and len(kept) > _SAMPLE_WORTH_FROM:
            order = np.lexsort((kept, prices.unit_ns[kept], ~of.is_required[kept]))
            sample = np.sort(kept[order][: max(_SAMPLE, int(of.is_required.sum()))])
            found = programme_over(of, sample, min_stages=min_stages, should_stop=should_stop)
            if found is not None and found.cost_ns < upper:
                plans.append((found, "dynamic programme"))
                upper = found.cost_ns
                kept = survivors(of, prices, upper)
            kept = without_twins(of, kept, prices, upper, min_stages=min_stages)
        if len(kept) >= 2:
            found = programme_over(of, kept, min_stages=min_stages, should_stop=should_stop)
            if found is not None and found.cost_ns < upper:
                plans.append((found, "dynamic programme"))
    except StoppedError:
        return _outcome(plans, prices.lower_bound_ns, is_truncated=True)
    return _outcome(plans, INFINITE, is_truncated=False)


def _outcome(plans: list[tuple[Filled, Method]], bound_ns: int, *, is_truncated: bool) -> Outcome:
    """Return the best plan; without truncation it is its own bound."""
    if not plans:
        return Outcome(None, bound_ns, "dynamic programme", 0, is_truncated)
    plan, method = min(plans, key=lambda one: one[0].cost_ns)
    return Outcome(plan, min(bound_ns, plan.cost_ns), method, 0, is_truncated)


def programme_over(of: Field, kept: Integers, *, min_stages: int, should_stop: ShouldStop) -> Filled | None:
    """Return the best plan of several of these devices, as the programme finds it.

    Raises:
        StoppedError: `should_stop` said so.
    """
    if len(kept) < 2:
        return None
    part = narrowed(of, kept)
    sums = run(part, hierarchy(part), leaf_tables(part), min_stages=min_stages, should_stop=should_stop)
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
