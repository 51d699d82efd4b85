"""Plans of at least so many stages or units: a bonus for each that takes part first, counting them only where needed.

With a bonus b on each unit the programme need not count: its best value plus b times the number asked for bounds every
plan with as many (Lagrangian relaxation), and is reached where it happens to use just so many. Counting exactly costs
as many times more as units are asked for, twice over where large tables join. A second rule that asks for fewer is
counted meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from exo.master.placement.ladder.draft import Draft, draft_of
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.programme import INFINITE, LeafTable, leaf_tables, run
from exo.master.placement.ladder.tree import Joint, Tree
from exo.master.placement.ladder.units import Units

_EXACT_AT_ONCE = 2
"""Up to so many units the programme counts them from the start."""
_MEETINGS_MAX = 12
_EXACT_WORK_MAX = 3_000
"""Units times devices up to which they are counted where bonuses leave something open."""
_CLOSE_ENOUGH = 1e-4


@dataclass(frozen=True, slots=True)
class Counted:
    """The cheapest plan found with enough units, and what none of several stages can beat."""

    draft: Draft | None
    lower_bound_ns: int
    """`INFINITE`: there is none."""
    is_truncated: bool = False


def least_of(
    of: Field,
    tree: Tree,
    units: Units,
    *,
    upper_ns: int,
    should_stop: Callable[[], bool],
    leaf: Callable[[Field], LeafTable] = leaf_tables,
) -> Counted:
    """Return the best plan of several stages on a tree with at least `units.least` units.

    `upper_ns` is the cost of a plan at hand: what is not better is not worth a search.
    """
    if units.is_impossible:
        return Counted(None, INFINITE)
    search = _Search(of, tree, units, should_stop, leaf)
    try:
        if not units.coarse and units.least <= _EXACT_AT_ONCE:
            return search.exact()
        search.climb(upper_ns)
        is_open = search.best_ns - search.bound_ns > _CLOSE_ENOUGH * search.best_ns
        if (
            not units.coarse
            and search.bound_ns < upper_ns
            and is_open
            and units.least * of.size <= _EXACT_WORK_MAX
        ):
            return search.exact()
    except StoppedError:
        return Counted(search.best, search.bound_ns, is_truncated=True)
    return Counted(search.best, search.bound_ns)


class _Search:
    def __init__(
        self,
        of: Field,
        tree: Tree,
        units: Units,
        should_stop: Callable[[], bool],
        leaf: Callable[[Field], LeafTable],
    ) -> None:
        self.best: Draft | None = None
        self.best_ns = INFINITE
        self.bound_ns = 0
        self._of = of
        self._tree = tree
        self._units = units
        self._should_stop = should_stop
        self._leaf = leaf
        numbers = np.array(units.unit) if units.unit else np.arange(of.size)
        inside = np.bincount(numbers, minlength=int(numbers.max(initial=0)) + 1)
        self._is_alone = inside[numbers] == 1

    def exact(self) -> Counted:
        """Count units in the programme itself."""
        least, of = self._units.least, self._of
        sums = run(of, self._tree, self._leaf(of), min_stages=least, should_stop=self._should_stop)
        draft = draft_of(of, sums, min_stages=least)
        return Counted(draft, INFINITE if draft is None else draft.cost_ns)

    def climb(self, upper_ns: int) -> None:
        """Raise the bonus until enough units take part, then go where the cheapest with fewer and with more meet."""
        least = self._units.least
        few = self._with_bonus(0)
        if few is None or few[0] >= least or self.bound_ns >= upper_ns:
            return
        bonus = max(1, self.bound_ns // (8 * least))
        dearest = self._dearest_ns()
        while (many := self._with_bonus(bonus)) is not None and many[0] < least:
            if bonus > dearest:
                # Whoever adds a unit gains by it at any price: there are no more that fit together.
                self.bound_ns = INFINITE
                return
            few, bonus = many, bonus * 4
        for _ in range(_MEETINGS_MAX):
            if many is None or self.best_ns - self.bound_ns <= _CLOSE_ENOUGH * self.best_ns:
                return
            meeting = (many[1] - few[1]) // (many[0] - few[0])
            found = self._with_bonus(meeting)
            if found is None or self.bound_ns >= upper_ns or found[0] in (few[0], many[0]):
                return
            few, many = (few, found) if found[0] >= least else (found, many)

    def _dearest_ns(self) -> int:
        """Return more than any plan costs."""
        of = self._of
        hops = max((node.forward_ns for node in self._tree.nodes if isinstance(node, Joint)), default=0)
        stages = of.overhead_ns.sum() + of.head_ns.max() + of.layer_ns.max() * of.layer_count
        return int(stages) + hops * (of.size + 1)

    def _with_bonus(self, bonus_ns: int) -> tuple[int, int] | None:
        """Solve with a bonus, keep what it gives; return how many units took part at what cost; None: no plan."""
        of = self._of
        trial = replace(of, overhead_ns=of.overhead_ns - np.where(self._is_alone, bonus_ns, 0))
        sums = run(
            trial,
            self._tree,
            self._leaf(trial),
            min_stages=self._units.coarse_least,
            should_stop=self._should_stop,
            bonus_ns=bonus_ns,
        )
        draft = draft_of(trial, sums, min_stages=self._units.coarse_least)
        if draft is None:
            self.bound_ns = INFINITE
            return None
        self.bound_ns = max(self.bound_ns, draft.cost_ns + bonus_ns * self._units.least)
        count = self._units.count_of(list(draft.layers))
        cost = draft.cost_ns + bonus_ns * count
        if count >= self._units.least and cost < self.best_ns:
            self.best, self.best_ns = replace(draft, cost_ns=cost), cost
        return count, cost
