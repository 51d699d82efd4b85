"""The plan at hand, predicted by itself: what stands where the deadline passed before the costs of all were made."""

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from exo.master.placement.costs import Costs, cost_rounds
from exo.master.placement.problem import Problem
from exo.master.placement.weigh import Weighed, weigh_given
from exo.shared.types.instances import Certificate, StagePlan
from exo.shared.types.state import State

_NS_PER_MS = 1e6


def weigh_at_hand(
    state: State,
    problem: Problem,
    stages: Sequence[StagePlan],
    method: str,
    *,
    tensor_engines: Collection[str],
    lower_bound_ns: int,
) -> tuple[Costs, Weighed]:
    """Return the costs of the nodes of a plan, and the plan weighed on them: some milliseconds, whatever the cluster.

    Args:
        state: The cluster.
        problem: What may take part.
        stages: The plan.
        method: How it was found.
        tensor_engines: Those that can run a stage on several GPUs.
        lower_bound_ns: What no plan can beat; 0: not known.
    """
    nodes = {stage.node_id for stage in stages}
    near = replace(
        problem, candidates=tuple(one for one in problem.candidates if one.node_id in nodes), spare=()
    )
    # How these few differ says nothing of the others.
    costs = replace(cost_rounds(state, near, tensor_engines), heterogeneity=())
    weighed = weigh_given(costs, stages, method)
    certificate = None
    if weighed.assessment is not None and lower_bound_ns > 0:
        round_ns = weighed.assessment.round_ns
        bound_ns = min(lower_bound_ns, round_ns)
        certificate = Certificate(
            lower_bound_ms=bound_ns / _NS_PER_MS, gap_percent=(round_ns - bound_ns) / round_ns * 100
        )
    return costs, replace(weighed, certificate=certificate, is_truncated=True)
