"""The constraint layer: branch and bound over which devices take part, for rules that the programme cannot hold.

Built on python-constraint: one 0/1 variable per device, in the order of the tree's leaves; the value that the
relaxed optimum gives it is tried first; user rules are ordinary function constraints; one bounding constraint
prunes with the programme's tables (what is decided, joined with the best of what is free), and one reads the
clock, for the library itself never stops.
"""
# python-constraint has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import constraint
import numpy as np

from exo.master.placement.ladder.bounding import PrefixBound, tree_of
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field, narrowed
from exo.master.placement.ladder.order_search import OrderSearch
from exo.master.placement.ladder.prices import entry_costs, price, survivors
from exo.master.placement.ladder.ring import link_matrices
from exo.master.placement.ladder.rings import RingScale
from exo.master.placement.ladder.rule_prices import RulePrices
from exo.master.placement.ladder.rules import rule_check, rule_masks
from exo.master.placement.ladder.subsets import best_of_subsets
from exo.master.placement.ladder.surcharges import Surcharges, price_rules
from exo.master.placement.ladder.water import Filled

_EXACT_UP_TO = 8
"""Devices whose best order is found by trying all."""
_CLIMBS, _CLIMB_EVALUATIONS = 3, 20_000
"""How often a plan that the search comes upon is improved by moves, and by how many at most."""


@dataclass(frozen=True, slots=True)
class Branched:
    """The best plan that keeps the rules, if any was found, with a bound, and whether the search came to its end."""

    plan: Filled | None
    lower_bound_ns: int
    branches: int
    is_whole: bool


def improve_within_rules(
    of: Field, ring: Sequence[int], *, evaluations_max: int, should_stop: Callable[[], bool]
) -> Filled | None:
    """Return the best plan of several stages near a ring that keeps the rules, on links of any shape."""
    search = OrderSearch(
        RingScale(of, *link_matrices(of)),
        of.size,
        required=frozenset(np.flatnonzero(of.is_required).tolist()),
        min_stages=of.problem.min_stages,
        most_stages=of.layer_count,
        evaluations_max=evaluations_max,
        should_stop=should_stop,
        keeps_rules=rule_masks(of),
    )
    search.start(ring)
    search.iterate(0)
    return search.best


def branch(
    of: Field,
    *,
    relaxed: Filled,
    relaxed_bound_ns: int,
    known: Filled | None,
    branches_max: int,
    should_stop: Callable[[], bool],
) -> Branched:
    """Search all sets of devices that keep the rules for one that is better than `known`.

    `relaxed` is a plan without the rules, `relaxed_bound_ns` what no such plan can beat.
    """
    upper = 2**60 if known is None else known.cost_ns
    prices = price(of, entry_costs(of), min_stages=of.problem.min_stages)
    alone = (of.only_layers >= of.layer_count) & (of.problem.min_stages <= 1)
    kept = np.union1d(survivors(of, prices, upper), np.flatnonzero(alone))
    part = narrowed(of, kept)
    inside = {index: position for position, index in enumerate(kept.tolist())}
    hint = [inside[index] for index in relaxed.ring if index in inside]
    if part.size < 2:
        charges = Surcharges(np.zeros(part.size, dtype=np.int64), 0, 0)
    else:
        charges = price_rules(part, tree_of(part), hint, upper, should_stop)
    if part.size < 1:
        return Branched(known, upper, 0, is_whole=True)
    try:
        search = ConstraintSatisfactionPlacement(part, charges, upper, branches_max, should_stop)
    except StoppedError:
        return Branched(known, relaxed_bound_ns, 0, is_whole=False)
    is_whole = search.run(set(hint))
    best = known
    if search.best is not None:
        outside: list[int] = kept.tolist()
        best = Filled(
            search.best.cost_ns, tuple(outside[one] for one in search.best.ring), search.best.layers
        )
    if is_whole:
        least = min(search.open_ns, search.limit_ns)
    else:
        singles = (of.layer_ns * of.layer_count + of.overhead_ns + of.head_ns)[alone]
        least = min(charges.bound_ns, search.limit_ns, int(singles.min(initial=2**60)))
    return Branched(best, max(relaxed_bound_ns, least), search.branches, is_whole)


class ConstraintSatisfactionPlacement:
    """One search with python-constraint; `branch` narrows the problem for it and reads its outcome.

    Args:
        of: The devices that are left, and the rules.
        charges: What keeping the rules costs each device, for the bound.
        limit_ns: Only plans with a shorter round than this are looked for.
        branches_max: Assignments to try at most.
        should_stop: Asked in the leaves: the library itself never stops.
    """

    def __init__(
        self,
        of: Field,
        charges: Surcharges,
        limit_ns: int,
        branches_max: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self.best: Filled | None = None
        self.limit_ns = limit_ns
        self.open_ns = 2**60
        """Least bound of a set whose best order is not proven."""
        self.branches = 0
        self._climbs_left = _CLIMBS
        self._of = of
        self._branches_max = branches_max
        self._should_stop = should_stop
        self._bound = PrefixBound(of, charges, should_stop)
        self._prices = RulePrices(of)

    def run(self, relaxed: set[int]) -> bool:
        """Search; return whether everything was seen."""
        solver = _InOrder(self._bound.order)
        problem = constraint.Problem(solver)
        for device in self._bound.order:
            problem.addVariable(device, [0, 1] if device in relaxed else [1, 0])
        problem.addConstraint(_Clock(self._tick), self._bound.order)
        index_of = {one.device_id: index for index, one in enumerate(self._of.devices)}
        for rule in self._of.problem.rules:
            check, names = rule_check(rule, index_of)
            problem.addConstraint(constraint.FunctionConstraint(check, assigned=False), names)
        problem.addConstraint(_Bounding(self._is_worth_it), self._bound.order)
        try:
            for assignment in problem.getSolutionIter():
                self._take([index for index, value in assignment.items() if value])
        except StoppedError:
            return False
        return True

    def _tick(self) -> None:
        self.branches += 1
        if self.branches > self._branches_max or self._should_stop():
            raise StoppedError

    def _is_worth_it(self, decisions: Sequence[int]) -> bool:
        if self._bound.alone_ns(decisions) < self.limit_ns:
            return True
        if self._prices.several_ns(decisions, self._bound.order) >= self.limit_ns:
            return False
        return self._bound.several_ns(decisions) < self.limit_ns

    def _take(self, used: list[int]) -> None:
        found, bound = self._bound.plan_of(used)
        if found is None:
            return
        plan: Filled | None = found
        if not self._of.problem.links.is_hierarchical and len(found.ring) > 1:
            plan, is_proven = self._ordered(found)
            if not is_proven:
                self.open_ns = min(self.open_ns, bound)
        if plan is None or plan.cost_ns >= self.limit_ns:
            return
        self.best, self.limit_ns = plan, plan.cost_ns
        if self._climbs_left and len(plan.ring) > 1:
            # A first plan may be far from good; what is near it rules out much of what is left.
            self._climbs_left -= 1
            near = improve_within_rules(
                self._of, plan.ring, evaluations_max=_CLIMB_EVALUATIONS, should_stop=self._should_stop
            )
            if near is not None and near.cost_ns < self.limit_ns:
                self.best, self.limit_ns = near, near.cost_ns

    def _ordered(self, found: Filled) -> tuple[Filled | None, bool]:
        """Return the best order of a set on irregular links, and whether it is proven."""
        kept = sorted(found.ring)
        part = narrowed(self._of, np.array(kept, dtype=np.int64))
        forward, back = link_matrices(part)
        scale = RingScale(part, forward, back)
        everybody = frozenset(range(len(kept)))
        if len(kept) <= _EXACT_UP_TO:
            plan, is_proven = best_of_subsets(
                scale,
                forward,
                back,
                required=everybody,
                min_stages=len(kept),
                most_stages=len(kept),
                below_ns=self.limit_ns,
                should_stop=self._should_stop,
            )
        else:
            search = OrderSearch(
                scale,
                len(kept),
                required=everybody,
                min_stages=len(kept),
                most_stages=len(kept),
                evaluations_max=5_000,
                should_stop=self._should_stop,
            )
            search.start([kept.index(index) for index in found.ring])
            plan, is_proven = search.best, False
        if plan is None:
            return None, is_proven
        return Filled(plan.cost_ns, tuple(kept[index] for index in plan.ring), plan.layers), is_proven


class _InOrder(constraint.OptimizedBacktrackingSolver):
    """Assigns the variables in the order of the tree's leaves, as the bound needs it."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__(forwardcheck=False)
        self._order = list(order)

    def getSortedVariables(self, domains: object, vconstraints: object) -> list[int]:
        """Return the variables in the given order."""
        return self._order


class _Clock(constraint.Constraint):
    """Ends the search from within: the library has no deadline, and an unsolvable problem yields nothing."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick

    def __call__(
        self, variables: object, domains: object, assignments: object, forwardcheck: object = False
    ) -> bool:
        """Count a branch; raises to stop."""
        self._tick()
        return True


class _Bounding(constraint.Constraint):
    """Prunes what cannot be better than the plan at hand."""

    def __init__(self, is_worth_it: Callable[[Sequence[int]], bool]) -> None:
        self._is_worth_it = is_worth_it

    def __call__(
        self,
        variables: Sequence[int],
        domains: object,
        assignments: dict[int, int],
        forwardcheck: object = False,
    ) -> bool:
        """Say whether the assigned prefix can still lead to a better plan."""
        return self._is_worth_it([assignments[one] for one in variables if one in assignments])
