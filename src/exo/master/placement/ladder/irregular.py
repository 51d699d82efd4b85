"""Plans on measured, irregular links: a bound from the tree under them, all subsets of few devices, else search."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from exo.master.placement.ladder.answer import Method, Options
from exo.master.placement.ladder.counting import least_of
from exo.master.placement.ladder.exact import best_single
from exo.master.placement.ladder.field import Field, Integers, narrowed
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.order_search import OrderSearch
from exo.master.placement.ladder.outcome import Outcome
from exo.master.placement.ladder.prices import Prices, entry_costs, price, survivors
from exo.master.placement.ladder.programme import INFINITE
from exo.master.placement.ladder.ring import Hops, hops_of
from exo.master.placement.ladder.rings import RingScale
from exo.master.placement.ladder.subsets import SUBSETS_OF_MAX, best_of_subsets
from exo.master.placement.ladder.tree import single_linkage
from exo.master.placement.ladder.units import Units, demanded_alone, units_of
from exo.master.placement.ladder.water import Filled, water_filling

_SAMPLE, _SAMPLE_WORTH_FROM, _SAMPLE_EVALUATIONS = 40, 96, 6_000
"""Cheapest devices of a large cluster whose best ring rules out most of the others."""


def search_irregular(of: Field, units: Units, options: Options, should_stop: Callable[[], bool]) -> Outcome:
    """Return the best plan of least latency found on links of any shape that keeps what `units` asks for.

    Where the plan is None and nothing was truncated there is none at all.
    """
    least = max(2, of.problem.min_stages, units.least)
    single = best_single(of, units)
    upper = single.cost_ns if single is not None else INFINITE
    usable = np.flatnonzero(of.most_layers > 0)
    is_lost = units.is_impossible or bool((of.is_required & (of.most_layers < 1)).any())
    if is_lost or len(usable) < least or least > of.layer_count:
        return Outcome(single, upper, "single device", 0, is_truncated=False)
    prices = price(of, entry_costs(of), min_stages=max(of.problem.min_stages, units.least))
    hops = hops_of(of)
    bests: list[tuple[Filled, Method]] = [] if single is None else [(single, "single device")]
    filled = _water_filling(of, prices, units, hops)
    if filled is not None and filled.cost_ns < upper:
        upper = filled.cost_ns
        bests.append((filled, "water-filling"))
    kept = survivors(of, prices, upper)
    if filled is not None and len(kept) > _SAMPLE_WORTH_FROM:
        near = _near(of, filled, kept, prices, hops, units, should_stop)
        if near is not None and near.cost_ns < upper:
            upper = near.cost_ns
            bests.append((near, "order search"))
            kept = survivors(of, prices, upper)
    bound = min(upper, prices.lower_bound_ns)
    weighed = 0
    for share in (2, 1):
        # The second time round, the first plan has ruled out more devices.
        if len(kept) < least:
            bound = upper
            break
        if should_stop():
            return _outcome(bests, min(bound, upper), weighed, is_truncated=True)
        part = narrowed(of, kept)
        inner = units_of(part)
        part = demanded_alone(part, inner)
        ahead, home = hops.between(kept)
        tree = single_linkage(part, ahead, home, units=inner)
        # No rule ever asks for fewer than two stages here: one alone was weighed above.
        counted = least_of(part, tree, inner, upper_ns=upper, should_stop=should_stop)
        if counted.is_truncated:
            return _outcome(bests, min(bound, upper), weighed, is_truncated=True)
        if counted.lower_bound_ns >= upper:
            bound = upper
            break
        bound = max(bound, counted.lower_bound_ns)
        scale = RingScale(part, ahead, home)
        search = OrderSearch(
            scale,
            part.size,
            required=frozenset(np.flatnonzero(part.is_required).tolist()),
            min_stages=least,
            most_stages=of.layer_count,
            evaluations_max=(options.evaluations_max - weighed) // share,
            should_stop=should_stop,
            keeps_rules=inner.masks if inner.kept else None,
        )
        draft = counted.draft
        if draft is not None:
            middle = [index for index in sorted(draft.layers) if index not in (draft.first, draft.last)]
            search.start([draft.first, *middle, draft.last])
        is_small = len(kept) <= SUBSETS_OF_MAX
        if bests and set(bests[-1][0].ring) <= set(kept.tolist()):
            inside = {index: position for position, index in enumerate(kept.tolist())}
            search.start([inside[index] for index in bests[-1][0].ring])
        if not is_small:
            search.iterate(bound)
        weighed += scale.weighed
        if search.best is not None and search.best.cost_ns < upper:
            upper = search.best.cost_ns
            bests.append((_outside(search.best, kept.tolist()), "order search"))
        if is_small:
            found, is_whole = best_of_subsets(
                scale,
                ahead,
                home,
                required=frozenset(np.flatnonzero(part.is_required).tolist()),
                min_stages=least,
                most_stages=of.layer_count,
                below_ns=upper,
                should_stop=should_stop,
                allows=inner.allows if inner.kept else None,
            )
            if found is not None:
                upper = found.cost_ns
                bests.append((_outside(found, kept.tolist()), "subset enumeration"))
            if is_whole:
                bound = upper
            return _outcome(bests, bound, weighed, is_truncated=not is_whole)
        if search.is_truncated or bound >= upper:
            return _outcome(bests, min(bound, upper), weighed, is_truncated=search.is_truncated)
        fewer = survivors(of, prices, upper)
        if len(fewer) == len(kept):
            break
        kept = fewer
    return _outcome(bests, min(bound, upper), weighed, is_truncated=False)


def _water_filling(of: Field, prices: Prices, units: Units, hops: Hops) -> Filled | None:
    """Return the plan that water-filling finds by the classes of the links, at the cost of the links as they are."""
    found = water_filling(of, prices, Filler(of), units)
    if found is None:
        return None
    ring = list(found.ring)
    stages = sum(
        int(of.layer_ns[index]) * count + int(of.overhead_ns[index])
        for index, count in zip(ring, found.layers, strict=True)
    )
    forward, back = hops.between(ring)
    between = int(forward.diagonal(1).sum()) + int(back[-1, 0])
    return replace(found, cost_ns=stages + int(of.head_ns[ring[-1]]) + between)


def _near(
    of: Field,
    filled: Filled,
    kept: Integers,
    prices: Prices,
    hops: Hops,
    units: Units,
    should_stop: Callable[[], bool],
) -> Filled | None:
    """Return the best ring found near a plan with its devices and the cheapest others, to rule out many at once."""
    order = kept[np.lexsort((kept, prices.unit_ns[kept]))][:_SAMPLE]
    sample = np.union1d(order, np.array(filled.ring, dtype=np.int64))
    part = narrowed(of, sample)
    inner = units_of(part)
    part = demanded_alone(part, inner)
    search = OrderSearch(
        RingScale(part, *hops.between(sample)),
        part.size,
        required=frozenset(np.flatnonzero(part.is_required).tolist()),
        min_stages=max(2, of.problem.min_stages, units.least),
        most_stages=of.layer_count,
        evaluations_max=_SAMPLE_EVALUATIONS,
        should_stop=should_stop,
        keeps_rules=inner.masks if inner.kept else None,
    )
    inside = {index: position for position, index in enumerate(sample.tolist())}
    search.start([inside[index] for index in filled.ring])
    search.iterate(prices.lower_bound_ns)
    return None if search.best is None else _outside(search.best, sample.tolist())


def _outcome(bests: list[tuple[Filled, Method]], bound: int, weighed: int, *, is_truncated: bool) -> Outcome:
    if not bests:
        return Outcome(None, bound, "order search", weighed, is_truncated or bound < INFINITE)
    plan, method = min(bests, key=lambda one: one[0].cost_ns)
    return Outcome(plan, min(bound, plan.cost_ns), method, weighed, is_truncated)


def _outside(plan: Filled, kept: list[int]) -> Filled:
    return Filled(plan.cost_ns, tuple(kept[index] for index in plan.ring), plan.layers)
