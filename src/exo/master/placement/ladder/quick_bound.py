"""What no plan can beat whatever its hops cost: a bound in a moment, for when there is no time to read the links."""

from msgspec.structs import replace

from exo.master.placement.ladder.check import complaints
from exo.master.placement.ladder.field import field_of
from exo.master.placement.ladder.prices import entry_costs, price
from exo.master.placement.ladder.problem import CostProblem, LinkCost, Links, canonical
from exo.master.placement.ladder.programme import INFINITE

_FREE = LinkCost(forward_ns=0, return_ns=0)


def bound_without_links_ns(problem: CostProblem) -> int:
    """Return a time that no round is shorter than, hops and rules left aside; 0 where nothing quick can be said.

    With micro-batches a round is no shorter than the latency of one, so that it holds for them too.
    """
    if complaints(problem) or not problem.model.is_uniform:
        return 0
    of = field_of(canonical(replace(problem, links=Links(host=_FREE, zone=_FREE, cluster=_FREE), rules=())))
    alone_ns = of.layer_ns * of.layer_count + of.overhead_ns + of.head_ns
    single_ns = int(alone_ns[of.only_layers >= of.layer_count].min(initial=INFINITE))
    if of.size < 2:
        return 0 if single_ns >= INFINITE else single_ns
    several_ns = price(of, entry_costs(of), min_stages=problem.min_stages).lower_bound_ns
    return max(0, min(single_ns, several_ns))
