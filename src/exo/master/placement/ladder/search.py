"""The ladder itself: each rung improves the plan at hand or its bound, and the plan is checked before it leaves."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from msgspec.structs import replace as with_fields

from exo.master.placement.ladder.answer import Infeasible, Method, Options, Solution
from exo.master.placement.ladder.bounding import tree_of
from exo.master.placement.ladder.branch import branch, improve_within_rules
from exo.master.placement.ladder.evaluate import Assessment, Stage, assess
from exo.master.placement.ladder.exact import best_hierarchical
from exo.master.placement.ladder.field import Field, field_of, limited
from exo.master.placement.ladder.greedy import memory_weighted_ring
from exo.master.placement.ladder.irregular import search_irregular
from exo.master.placement.ladder.outcome import Outcome
from exo.master.placement.ladder.prefix import PrefixProgramme
from exo.master.placement.ladder.problem import CostProblem
from exo.master.placement.ladder.programme import INFINITE
from exo.master.placement.ladder.rules import keeps_rules
from exo.master.placement.ladder.surcharges import price_rules, surcharged
from exo.master.placement.ladder.uneven import UnevenSearch, best_single_uneven
from exo.master.placement.ladder.uneven_bound import WindowBound, start_price_ns
from exo.master.placement.ladder.units import demanded_alone, units_of
from exo.master.placement.ladder.water import Filled

_FAIR = 3e-3
"""A gap of unequal layers that is not worth prices for each of them."""
_CLOSE_ENOUGH = 1e-4
"""A round this near to its bound is not worth another run of the programme."""
_LIMITED_SHARE = 4
"""By what fewer rings are weighed where halving asks many times."""
_BRANCHED_UP_TO = 16
"""Devices up to which the constraint layer closes what counting by bonuses leaves open."""
_AVERAGE_BRANCHES_MAX = 300
_SETS_FOR_ANY_MAX = 8_000
"""Subsets of one size that are looked at where any plan will do."""
_AVERAGE_SHARES = (1.0, 1.04, 1.12, 1.3)
_NONE = "No devices that may take part hold the layers, the ends and the stages that were asked for."
_UNDECIDED = (
    "The search was stopped before it found a plan or a proof that there is none; allow it more time."
)


class Search:
    """One solve: the plan at hand, its bound, and what is left to spend."""

    def __init__(self, problem: CostProblem, should_stop: Callable[[], bool], options: Options) -> None:
        self.problem = problem
        self.field = field_of(problem)
        self.should_stop = should_stop
        self.options: Options = options
        self.lower_bound_ns = 0
        self.is_truncated = False
        self.evaluations = 0
        self._stages: tuple[Stage, ...] | None = None
        self._assessment: Assessment | None = None
        self._method: Method = "memory-weighted ring"

    def run(self) -> Solution | Infeasible:
        """Climb the ladder."""
        ring = memory_weighted_ring(self.field)
        if ring is not None:
            self._offer_ring([index for index, _ in ring], [count for _, count in ring], self._method)
            if self._stages is None and not self.field.is_even:
                split = PrefixProgramme(self.field).split([index for index, _ in ring])
                if split is not None:
                    self._offer_ring([index for index, _ in ring], split[1], self._method)
        baseline = self._assessment
        outcome = self._latency(self.field)
        if outcome.plan is not None:
            self._offer_ring(outcome.plan.ring, outcome.plan.layers, outcome.method)
        self.lower_bound_ns = outcome.lower_bound_ns
        if self._stages is None or self._assessment is None:
            if self.is_truncated:
                return Infeasible(code="undecided", reasons=(_UNDECIDED,))
            return Infeasible(code="infeasible", reasons=(_NONE,))
        if self.problem.micro_batches > 1:
            self._shorten_rounds()
        return Solution(
            stages=self._stages,
            assessment=self._assessment,
            lower_bound_ns=min(self.lower_bound_ns, self._assessment.round_ns),
            method=self._method,
            is_truncated=self.is_truncated,
            evaluations=self.evaluations,
            baseline=baseline,
        )

    def _shorten_rounds(self) -> None:
        """Look for the shortest round between the bound on latency and the plan at hand, halving what is between.

        A plan with a round of at most R has no stage longer than R / micro-batches, and no latency above R.
        """
        low = self.lower_bound_ns
        is_proving = True
        while self._assessment is not None and not self._is_close(low):
            if self.should_stop():
                self.is_truncated = True
                break
            middle = (low + self._assessment.round_ns) // 2
            outcome = self._latency(limited(self.field, middle // self.problem.micro_batches))
            before = self._assessment.round_ns
            if outcome.plan is not None:
                self._offer_ring(outcome.plan.ring, outcome.plan.layers, outcome.method)
            is_none_shorter = outcome.lower_bound_ns > middle and not outcome.is_truncated
            if outcome.plan is None or is_none_shorter or self._assessment.round_ns == before:
                # Without a proof only the search goes on, not the bound.
                is_proving &= is_none_shorter
                low = middle + 1
                if is_proving:
                    self.lower_bound_ns = low

    def _is_close(self, low_ns: int) -> bool:
        assert self._assessment is not None
        return self._assessment.round_ns - low_ns <= self._assessment.round_ns * _CLOSE_ENOUGH

    def _latency(self, of: Field) -> Outcome:
        """Return a plan of least latency that keeps the rules, and its bound."""
        return self._even_latency(of) if of.is_even else self._uneven_latency(of)

    def _uneven_latency(self, of: Field) -> Outcome:
        """Plan with average layers, split with the true ones, and bound with the lightest."""
        search = UnevenSearch(of, self.should_stop)
        single = best_single_uneven(of, search)
        for ring in self._rings_at_hand(of):
            search.try_ring(ring)
        if self.options.wants_any and search.best is None and search.find_any(sets_max=_SETS_FOR_ANY_MAX):
            # Found, or none at all; else all orders have to say.
            bound = 0 if search.best is not None else INFINITE
            return Outcome(search.best, bound, "prefix programme", search.evaluations, is_truncated=False)
        if not self.options.wants_any or search.best is None:
            for ring in self._rings_on_average(of):
                search.try_ring(ring)
        is_proven = not (self.options.wants_any and search.best is not None) and search.try_all()
        is_decided = is_proven
        if search.best is None and not is_proven and not self.options.wants_any:
            is_decided = search.find_any()
        if self.options.wants_any and search.best is not None:
            return Outcome(search.best, 0, "prefix programme", search.evaluations, is_truncated=False)
        bound = single
        if not is_proven:
            bound = min(single, self._bounded(of, search))
        self.is_truncated |= search.is_truncated or (
            search.best is None and not is_decided and bound < INFINITE
        )
        self.evaluations += search.evaluations
        method: Method = "prefix programme"
        if search.best is not None:
            bound = search.best.cost_ns if is_proven else min(bound, search.best.cost_ns)
        return Outcome(search.best, bound, method, search.evaluations, is_truncated=search.is_truncated)

    def _bounded(self, of: Field, search: UnevenSearch) -> int:
        """Return what no plan of several stages can beat, and improve the plan at hand by what that comes upon."""

        def upper_ns() -> int:
            return search.best.cost_ns if search.best is not None else INFINITE

        charged, offset = self._charged(of, upper_ns())
        windows = WindowBound(charged)
        price = start_price_ns(of, search.best.ring if search.best is not None else ())
        found = windows.bound_ns(upper_ns() - offset, price, self.should_stop)
        bound = min(INFINITE, found + offset) if found < INFINITE else INFINITE
        search.descend(windows.drafts, least_ns=bound)
        if not self.options.wants_any and upper_ns() - bound > _FAIR * upper_ns():
            bound = max(bound, windows.refined_ns(upper_ns() - offset) + offset)
            search.descend(windows.drafts, least_ns=bound)
            search.wander()
        return bound

    def _charged(self, of: Field, upper_ns: int) -> tuple[Field, int]:
        """Return the field with what keeping rules costs in its fixed times, and what that adds to a bound."""
        if of.limit_ns is not None or len(units_of(of).kept) == len(of.problem.rules) or of.size < 2:
            return of, 0
        even = replace(of, is_even=True)
        relaxed = self._without_rules(even).plan
        if relaxed is None:
            return of, 0
        charges = price_rules(even, tree_of(even), relaxed.ring, upper_ns, self.should_stop)
        if charges.bound_ns >= INFINITE:
            return of, 0
        return surcharged(of, charges), charges.offset_ns

    def _rings_on_average(self, of: Field) -> Iterator[tuple[int, ...]]:
        """Plan as if all layers were the average one, and somewhat larger: what fits tightly then may not in truth.

        They are only where the search begins, so that rules are searched for no longer than it takes to keep them.
        """
        options, was_truncated = self.options, self.is_truncated
        self.options = with_fields(
            options,
            branches_max=min(options.branches_max, _AVERAGE_BRANCHES_MAX),
            evaluations_max=options.evaluations_max // _LIMITED_SHARE,
        )
        for share in _AVERAGE_SHARES:
            even = limited(replace(of, is_even=True, layer_bytes=int(of.layer_bytes * share)), of.limit_ns)
            found = self._even_latency(even)
            if found.plan is not None:
                yield found.plan.ring
            if self.should_stop():
                was_truncated = True
                break
        self.options, self.is_truncated = options, was_truncated

    def _rings_at_hand(self, of: Field) -> list[tuple[int, ...]]:
        if self._stages is None:
            return []
        index_of = {one.device_id: index for index, one in enumerate(of.devices)}
        return [tuple(index_of[stage.device_id] for stage in self._stages)]

    def _even_latency(self, of: Field) -> Outcome:
        outcome = self._without_rules(of)
        rules = of.problem.rules
        if outcome.plan is None or not rules:
            return outcome
        is_kept = keeps_rules([of.devices[index].device_id for index in outcome.plan.ring], rules)
        is_open = outcome.plan.cost_ns - outcome.lower_bound_ns > _CLOSE_ENOUGH * outcome.plan.cost_ns
        is_quick = of.size <= _BRANCHED_UP_TO and of.problem.links.is_hierarchical
        if is_kept and not (is_open and is_quick and self.options.has_constraint_layer):
            return outcome
        known = outcome.plan if is_kept else self._known(of)
        if known is not None and not is_kept and len(known.ring) > 1:
            near = improve_within_rules(
                of,
                known.ring,
                evaluations_max=self.options.evaluations_max // 3,
                should_stop=self.should_stop,
            )
            if near is not None and near.cost_ns < known.cost_ns:
                known = near
        if not self.options.has_constraint_layer:
            self.is_truncated |= known is None
            return replace(outcome, plan=known, method="memory-weighted ring")
        found = branch(
            of,
            relaxed=outcome.plan,
            relaxed_bound_ns=outcome.lower_bound_ns,
            known=known,
            branches_max=self.options.branches_max,
            should_stop=self.should_stop,
        )
        self.evaluations += found.branches
        self.is_truncated |= not found.is_whole
        return Outcome(
            found.plan,
            found.lower_bound_ns,
            "constraint layer",
            found.branches,
            is_truncated=not found.is_whole,
        )

    def _known(self, of: Field) -> Filled | None:
        """The plan at hand, as one to beat: it keeps the rules, but perhaps not the field's limit."""
        if self._stages is None or self._assessment is None or of.limit_ns is not None:
            return None
        if not self.field.is_even:
            return None
        index_of = {one.device_id: index for index, one in enumerate(of.devices)}
        return Filled(
            self._assessment.latency_ns,
            tuple(index_of[stage.device_id] for stage in self._stages),
            tuple(stage.end_layer - stage.start_layer for stage in self._stages),
        )

    def _without_rules(self, of: Field) -> Outcome:
        """Return a plan that keeps the rules which need no search, and its bound."""
        units = units_of(of)
        demanded = demanded_alone(of, units)
        if of.problem.links.is_hierarchical:
            outcome = best_hierarchical(demanded, units, self.should_stop)
        else:
            options = self.options
            if of.limit_ns is not None:
                # One of many such questions.
                options = with_fields(options, evaluations_max=options.evaluations_max // _LIMITED_SHARE)
            outcome = search_irregular(demanded, units, options, self.should_stop)
        self.evaluations += outcome.weighed
        self.is_truncated |= outcome.is_truncated
        return outcome

    def _offer_ring(self, ring: Sequence[int], layers: Sequence[int], method: Method) -> bool:
        return self.offer(_stages(self.field, ring, layers), method)

    def offer(self, stages: tuple[Stage, ...], method: Method) -> bool:
        """Take a plan if it is legal and better than the one at hand."""
        assessment = assess(self.problem, stages)
        if assessment.violations:
            return False
        if self._assessment is not None and assessment.round_ns >= self._assessment.round_ns:
            return False
        self._stages, self._assessment, self._method = stages, assessment, method
        return True


def _stages(of: Field, ring: Sequence[int], layers: Sequence[int]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    start = 0
    for index, count in zip(ring, layers, strict=True):
        stages.append(
            Stage(device_id=of.devices[index].device_id, start_layer=start, end_layer=start + count)
        )
        start += count
    return tuple(stages)
