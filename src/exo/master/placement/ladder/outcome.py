"""What one rung of the ladder hands to the next."""

from collections.abc import Callable
from dataclasses import dataclass

from exo.master.placement.ladder.answer import Method
from exo.master.placement.ladder.water import Filled

ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan, if any, with a bound on all plans, and how it was found."""

    plan: Filled | None
    lower_bound_ns: int
    method: Method
    weighed: int
    is_truncated: bool
