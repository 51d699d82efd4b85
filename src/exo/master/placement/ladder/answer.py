"""What the ladder answers: a plan with its certificate, or why there is none."""

from typing import Literal

import msgspec

from exo.master.placement.ladder.evaluate import Assessment, Stage

Method = Literal[
    "memory-weighted ring",
    "single device",
    "water-filling",
    "dynamic programme",
    "order search",
    "subset enumeration",
    "constraint layer",
    "prefix programme",
]


class Solution(msgspec.Struct, frozen=True, kw_only=True):
    """A legal plan, the proof of how far from the best it can be, and what the simple split would have given."""

    stages: tuple[Stage, ...]
    assessment: Assessment
    lower_bound_ns: int
    """No legal plan has a shorter round than this."""
    method: Method
    """What found the plan."""
    is_truncated: bool
    """Whether a limit of time or evaluations ended the search before it was done."""
    evaluations: int
    """Orders and branches that were weighed."""
    baseline: Assessment | None
    """The memory-weighted ring; None where that finds no plan."""

    @property
    def gap(self) -> float:
        """How much shorter a round could be at most, as a share of this plan's: 0 is proven best."""
        cost = self.assessment.round_ns
        return 0.0 if cost == 0 else max(0.0, (cost - self.lower_bound_ns) / cost)


class Relaxation(msgspec.Struct, frozen=True, kw_only=True):
    """A single constraint that stands in the way: without it, or with less of it, there would be a plan."""

    constraint: str
    message: str
    missing_bytes: int | None = None
    pool_id: str | None = None
    """Where the missing bytes would have to be."""


class Infeasible(msgspec.Struct, frozen=True, kw_only=True):
    """There is no legal plan, or the problem is no problem."""

    code: Literal["invalid", "infeasible", "undecided"]
    """`undecided`: the search ended, or was stopped, without a plan and without a proof that there is none."""
    reasons: tuple[str, ...]
    relaxations: tuple[Relaxation, ...] = ()


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the search. They count work, not time, so that equal input gives the equal plan."""

    evaluations_max: int = 60_000
    """Rings that the order search may weigh."""
    branches_max: int = 20_000
    """Assignments that the constraint layer may try."""
    wants_any: bool = False
    """Whether any plan will do: then no work goes into better ones and bounds where that is dear."""
    has_constraint_layer: bool = True
    """Whether side constraints are handed to the constraint layer; without it the ring that keeps them is taken."""
