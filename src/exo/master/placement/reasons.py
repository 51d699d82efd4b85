"""A plan's reasons in numbers: where a stage's time comes from, what each device left out would cost, what binds."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from exo.master.placement.costs import Costs
from exo.master.placement.figures import Speed
from exo.master.placement.ladder.evaluate import Assessment
from exo.master.placement.ladder.problem import CostProblem
from exo.master.placement.ladder.tensor import waits_ns
from exo.master.placement.ladder.why import LeftOut, binding, left_out
from exo.master.placement.problem import Problem
from exo.master.placement.score import device_scores
from exo.master.placement.weigh import Weighed, stage_device_id
from exo.shared.types.instances import Binding, ExcludedDevice, StagePlan, StageShares

ShouldStop = Callable[[], bool]
_NS_PER_MS = 1e6
_UNEVEN_DEVICES_MAX = 4
"""Up to so many devices, plans of unequal layers for one request at a time are proven in milliseconds."""
_SOLVES_MAX = 16
_SOLVED_DEVICES_MAX = 1024
FEWER_HOLD_IT = "fewer devices hold the model"


class Reasons(msgspec.Struct, frozen=True, kw_only=True):
    """Why a plan is as it is."""

    stages: tuple[StagePlan, ...]
    """The plan's, with shares and scores."""
    unused: tuple[ExcludedDevice, ...]
    """Candidates that the plan leaves out, by id."""
    binding: Binding | None


def reasons_of(problem: Problem, costs: Costs, weighed: Weighed, *, should_stop: ShouldStop) -> Reasons:
    """Return the reasons of a plan. Each price of a device is a solve of its own, while there is time."""
    scores = {name: one.total for name, one in device_scores(problem, costs.speeds, costs.rounds[0]).items()}
    stages = tuple(
        replace(one, score=scores.get(one.device_ids[0]), shares=shares)
        for one, shares in zip(weighed.stages, _shares(problem, costs, weighed), strict=True)
    )
    return Reasons(
        stages=stages,
        unused=_unused(problem, weighed, scores, should_stop),
        binding=_binding(problem, costs, weighed, should_stop),
    )


def _shares(problem: Problem, costs: Costs, weighed: Weighed) -> Sequence[StageShares | None]:
    on = weighed.problem
    if on is None or weighed.assessment is None:
        return [None] * len(weighed.stages)
    overheads_ns = {one.device_id: one.overhead_ns for one in on.devices}
    batch = -(-on.concurrency // on.micro_batches)
    found: list[StageShares | None] = []
    for rank, stage in enumerate(weighed.stages):
        name = stage_device_id(stage)
        # A tensor group is as slow as its slowest member, and its members wait for each other.
        speed = min(
            (costs.speeds[one] for one in stage.device_ids),
            key=lambda one: one.bandwidth_bytes_per_s * one.load_share * one.heat_share,
        )
        group = costs.groups.get(name)
        wait_ns = 0
        if group is not None:
            layers = stage.end_layer - stage.start_layer
            wait_ns = layers * waits_ns(group, batch=batch, hidden_size=problem.model.hidden_size)
        found.append(
            shares_of(weighed.assessment, rank, overhead_ns=overheads_ns[name], wait_ns=wait_ns, speed=speed)
        )
    return found


def shares_of(
    told: Assessment, rank: int, *, overhead_ns: int, speed: Speed, wait_ns: int = 0
) -> StageShares:
    """Return where a stage's time comes from.

    Load and heat take a share of speed each, whether memory or arithmetic binds, so what they cost follows from the
    time that is left without the overhead. For `wait_ns` of it the members of a tensor group wait for each other.
    """
    work_ns = max(0, told.stage_ns[rank] - overhead_ns - wait_ns)
    loaded_ns = work_ns * speed.heat_share
    idle_ns = loaded_ns * speed.load_share
    return StageShares(
        memory_ms=idle_ns / _NS_PER_MS,
        utilization_ms=(loaded_ns - idle_ns) / _NS_PER_MS,
        thermal_ms=(work_ns - loaded_ns) / _NS_PER_MS,
        overhead_ms=overhead_ns / _NS_PER_MS,
        network_ms=(told.link_ns[rank] + wait_ns) / _NS_PER_MS,
    )


def _unused(
    problem: Problem, weighed: Weighed, scores: Mapping[str, float], should_stop: ShouldStop
) -> tuple[ExcludedDevice, ...]:
    used = {device for stage in weighed.stages for device in stage.device_ids}
    absent = [one.device.device_id for one in problem.candidates if one.device.device_id not in used]
    told: dict[str, LeftOut] = {}
    if absent and weighed.problem is not None and weighed.solution is not None:
        stops = should_stop if _has_time_to_ask_why(weighed) else lambda: True
        told = {
            one.device_id: one
            for one in left_out(
                weighed.problem, weighed.solution, should_stop=stops, forced_max=solves_max(weighed.problem)
            )
        }
    return tuple(
        ExcludedDevice(
            device_id=name,
            reason=FEWER_HOLD_IT if (why := told.get(name)) is None else why.reason,
            forcing_ms=None if why is None or why.forcing_ns is None else why.forcing_ns / _NS_PER_MS,
            score=scores.get(name),
        )
        for name in absent
    )


def _binding(problem: Problem, costs: Costs, weighed: Weighed, should_stop: ShouldStop) -> Binding | None:
    if not _has_time_to_ask_why(weighed) or weighed.problem is None or weighed.solution is None:
        return None
    found = binding(
        weighed.problem,
        weighed.solution,
        should_stop=should_stop,
        pools_max=solves_max(weighed.problem),
    )
    if found is None:
        return None
    group = costs.groups.get(found.pool_id)
    pools = group.device_ids if group is not None else (found.pool_id,)
    return Binding(
        device_ids=tuple(one.device.device_id for one in problem.candidates if one.pool in pools),
        more_bytes=found.more_bytes,
        saved_ms=found.saved_ns / _NS_PER_MS,
    )


def solves_max(problem: CostProblem) -> int:
    """Return how many further solves reasons may take: fewer of what takes long.

    Rules make a solve some four times as long, halving for throughput and measured links eight times.
    """
    weight = len(problem.devices) * (4 if problem.rules else 1)
    weight *= 8 if problem.micro_batches > 1 else 1
    weight *= 1 if problem.links.is_hierarchical else 8
    return max(1, min(_SOLVES_MAX, _SOLVED_DEVICES_MAX // max(1, weight)))


def _has_time_to_ask_why(weighed: Weighed) -> bool:
    """Say whether each further solve is quick: with unequal layers on more than a few devices it is not."""
    problem = weighed.problem
    return (
        problem is not None
        and not weighed.is_truncated
        and (
            problem.model.is_uniform
            or (problem.concurrency == 1 and len(problem.devices) <= _UNEVEN_DEVICES_MAX)
        )
    )
