"""The best plan on hierarchical links, proven: price, rule out, programme over what is left."""

from dataclasses import replace

import numpy as np

from exo.master.placement.ladder.answer import Method
from exo.master.placement.ladder.counting import least_of
from exo.master.placement.ladder.field import Field, Integers, narrowed
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.outcome import Outcome, ShouldStop
from exo.master.placement.ladder.parts import parts_of
from exo.master.placement.ladder.prices import entry_costs, price, survivors, without_twins
from exo.master.placement.ladder.programme import INFINITE
from exo.master.placement.ladder.ring import hierarchical_order
from exo.master.placement.ladder.tree import hierarchy
from exo.master.placement.ladder.units import Units, demanded_alone, units_of
from exo.master.placement.ladder.water import Filled, water_filling

_CLOSE_ENOUGH = 1e-4
_SAMPLE = 32
"""Devices of the first, small programme, whose plan rules out most others."""
_SAMPLE_WORTH_FROM = 56


def best_single(of: Field, units: Units) -> Filled | None:
    """Return the best plan of one stage."""
    if max(of.problem.min_stages, units.least) > 1 or units.is_impossible or int(of.is_required.sum()) > 1:
        return None
    allowed = of.only_layers >= of.layer_count
    for group in units.demanded:
        allowed &= np.isin(np.arange(of.size), list(group))
    if of.is_required.any():
        allowed &= of.is_required
    if not allowed.any():
        return None
    times = of.layer_ns * of.layer_count + of.overhead_ns + of.head_ns
    index = int(np.argmin(np.where(allowed, times, INFINITE)))
    return Filled(int(times[index]), (index,), (of.layer_count,))


def best_hierarchical(of: Field, units: Units, should_stop: ShouldStop) -> Outcome:
    """Return a plan of least latency that keeps what `units` asks for, proven, or none where no plan exists.

    Where many units are asked for, the proof may leave a gap. Stopped early it is the best so far, with the bound of
    the prices, and `is_truncated`.
    """
    least = max(of.problem.min_stages, units.least)
    single = best_single(of, units)
    plans: list[tuple[Filled, Method]] = [] if single is None else [(single, "single device")]
    is_lost = units.is_impossible or bool((of.is_required & (of.most_layers < 1)).any())
    if is_lost or int((of.most_layers > 0).sum()) < max(2, least) or least > of.layer_count:
        return _outcome(plans, INFINITE, is_truncated=False)
    prices = price(of, entry_costs(of), min_stages=least)
    filled = water_filling(of, prices, Filler(of), units)
    if filled is not None:
        plans.append((filled, "water-filling"))
    upper = min((plan.cost_ns for plan, _ in plans), default=INFINITE)
    kept = survivors(of, prices, upper)
    if plans and len(kept) > _SAMPLE_WORTH_FROM:
        first = np.isin(kept, filled.ring) if filled is not None else of.is_required[kept]
        order = np.lexsort((kept, prices.unit_ns[kept], ~first))
        sample = np.sort(kept[order][: max(_SAMPLE, int(first.sum()))])
        found = programme_over(of, sample, upper_ns=upper, should_stop=should_stop)
        if found.plan is not None and found.plan.cost_ns < upper:
            plans.append((found.plan, "dynamic programme"))
            upper = found.plan.cost_ns
            kept = survivors(of, prices, upper)
        if least <= 2 and not units.demanded and not units.coarse:
            kept = without_twins(of, kept, prices, upper)
    proven = INFINITE
    if len(kept) >= 2:
        if should_stop():
            # Its tree alone takes a while.
            return _outcome(plans, prices.lower_bound_ns, is_truncated=True)
        found = programme_over(of, kept, upper_ns=upper, should_stop=should_stop)
        proven = found.lower_bound_ns
        if found.plan is not None and found.plan.cost_ns < upper:
            plans.append((found.plan, "dynamic programme"))
        if found.is_truncated:
            return _outcome(plans, max(prices.lower_bound_ns, proven), is_truncated=True)
    return _outcome(plans, proven, is_truncated=not plans and proven < INFINITE)


def _outcome(plans: list[tuple[Filled, Method]], bound_ns: int, *, is_truncated: bool) -> Outcome:
    """Return the best plan; without truncation it is its own bound."""
    if not plans:
        return Outcome(None, bound_ns, "dynamic programme", 0, is_truncated)
    plan, method = min(plans, key=lambda one: one[0].cost_ns)
    return Outcome(plan, min(bound_ns, plan.cost_ns), method, 0, is_truncated)


def programme_over(of: Field, kept: Integers, *, upper_ns: int, should_stop: ShouldStop) -> Outcome:
    """Return the best plan of several of these devices as the programme finds it, with what none of them can beat."""
    whole = narrowed(of, kept)
    units = units_of(whole)
    part = demanded_alone(whole, units)
    if part.size < 2:
        return Outcome(None, INFINITE, "dynamic programme", 0, is_truncated=False)
    found = least_of(part, hierarchy(part, units=units), units, upper_ns=upper_ns, should_stop=should_stop)
    plan = None
    if found.draft is not None:
        ring = hierarchical_order(part, sorted(found.draft.layers), found.draft.first, found.draft.last)
        outside = kept.tolist()
        plan = Filled(
            found.draft.cost_ns,
            tuple(outside[index] for index in ring),
            tuple(found.draft.layers[index] for index in ring),
        )
    outcome = Outcome(plan, found.lower_bound_ns, "dynamic programme", 0, found.is_truncated)
    least = upper_ns if plan is None else min(upper_ns, plan.cost_ns)
    if found.is_truncated or least - found.lower_bound_ns <= _CLOSE_ENOUGH * least:
        return outcome
    return _in_parts(whole, kept, units, outcome, upper_ns=upper_ns, should_stop=should_stop)


def _in_parts(
    whole: Field,
    kept: Integers,
    units: Units,
    outcome: Outcome,
    *,
    upper_ns: int,
    should_stop: ShouldStop,
) -> Outcome:
    """Close what two rules that count leave open: each choice of the fewer groups by itself."""
    parts = parts_of(whole, units)
    if parts is None:
        return outcome
    best, bound = outcome.plan, INFINITE
    for field, inside in parts:
        least = upper_ns if best is None else min(upper_ns, best.cost_ns)
        found = programme_over(field, inside, upper_ns=least, should_stop=should_stop)
        if found.is_truncated:
            return replace(outcome, plan=best, is_truncated=True)
        bound = min(bound, found.lower_bound_ns)
        if found.plan is not None and (best is None or found.plan.cost_ns < best.cost_ns):
            best = replace(found.plan, ring=tuple(int(kept[index]) for index in found.plan.ring))
    return replace(outcome, plan=best, lower_bound_ns=max(outcome.lower_bound_ns, bound))
