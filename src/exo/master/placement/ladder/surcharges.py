"""Prices on side constraints: what keeping a rule costs is put on its devices, so that the programme's bound knows it.

Lagrangian relaxation (Held and Karp, "The traveling-salesman problem and minimum spanning trees", 1970; steps after
Polyak 1969). Each rule becomes one linear inequality over the devices that take part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from exo.master.placement.ladder.draft import draft_of
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.problem import AtMost
from exo.master.placement.ladder.programme import INFINITE, leaf_tables, run
from exo.master.placement.ladder.tree import Tree

_STEPS = 12


@dataclass(frozen=True, slots=True)
class Surcharges:
    """What to add to each device's fixed time and then to the bound, to get a bound that knows the rules."""

    extra_ns: Integers
    offset_ns: int
    bound_ns: int


def surcharged(of: Field, charges: Surcharges) -> Field:
    """Return the field with the surcharges in its fixed times."""
    return replace(of, overhead_ns=of.overhead_ns + charges.extra_ns)


def price_rules(
    of: Field, tree: Tree, relaxed: Sequence[int], upper_ns: int, should_stop: Callable[[], bool]
) -> Surcharges:
    """Return the surcharges with the best bound on plans of several stages, found in a few runs of the programme.

    `relaxed` is a plan without the rules; `upper_ns` the cost of one with them, if there is one.
    """
    members, limits = _inequalities(of, relaxed)
    weights = np.zeros(len(limits))
    best = Surcharges(np.zeros(of.size, dtype=np.int64), 0, 0)
    scale = 1.0
    for _ in range(_STEPS):
        prices = np.floor(weights).astype(np.int64)
        charges = Surcharges(prices @ members, -int(prices @ limits), 0)
        trial = surcharged(of, charges)
        try:
            sums = run(
                trial, tree, leaf_tables(trial), min_stages=of.problem.min_stages, should_stop=should_stop
            )
        except StoppedError:
            return best
        if sums.best_ns >= INFINITE:
            return replace(best, bound_ns=INFINITE)
        bound = sums.best_ns + charges.offset_ns
        if bound > best.bound_ns:
            best = replace(charges, bound_ns=bound)
        else:
            scale /= 2
        draft = draft_of(trial, sums, min_stages=of.problem.min_stages)
        assert draft is not None
        used = np.zeros(of.size, dtype=np.int64)
        used[list(draft.layers)] = 1
        broken = members @ used - limits
        broken = np.where((broken < 0) & (weights <= 0), 0, broken)
        length = int((broken * broken).sum())
        if not length or bound >= upper_ns:
            break
        aim = min(upper_ns, max(bound, best.bound_ns) * 2) - bound
        weights = np.maximum(0.0, weights + scale * aim / length * broken)
    return best


def _inequalities(of: Field, relaxed: Sequence[int]) -> tuple[Integers, Integers]:
    """Return rows and limits: of each row's devices (negative ones count down), together at most its limit take part.

    To have devices of k groups, where the relaxed plan has some of h, takes k - h devices outside of those h at least.
    """
    index_of = {one.device_id: index for index, one in enumerate(of.devices)}
    rows: list[Integers] = []
    limits: list[int] = []
    for rule in of.problem.rules:
        row = np.zeros(of.size, dtype=np.int64)
        if isinstance(rule, AtMost):
            row[[index_of[one] for one in rule.device_ids if one in index_of]] = 1
            rows.append(row)
            limits.append(rule.count)
            continue
        groups = [[index_of[one] for one in group if one in index_of] for group in rule.groups]
        missed = [group for group in groups if not set(group) & set(relaxed)]
        need = rule.count - (len(groups) - len(missed))
        if need > 0:
            for group in missed:
                row[group] -= 1
            rows.append(row)
            limits.append(-need)
    return np.array(rows, dtype=np.int64).reshape(-1, of.size), np.array(limits, dtype=np.int64)
