"""From a state and its hard filters to the ladder's cost problems: what candidates can do now, and the ways between.

Memory is counted exactly as `Problem.stage_memory_bytes` does, so that ladder and evaluator never disagree. What
changes from one second to the next (load, heat) counts in coarse steps, so that plans do not flutter.
"""

import re
from collections.abc import Callable, Collection, Mapping

import msgspec
from msgspec.structs import replace

from exo.master.placement.assumed import assumed_for
from exo.master.placement.calibration import Calibration, Ways, calibrated, calibrated_ways, calibration_of
from exo.master.placement.figures import Candidates, Speed, figures_of
from exo.master.placement.ladder.cost_model import (
    Assumptions,
    Built,
    LayerFigures,
    ModelFigures,
    RequestShape,
)
from exo.master.placement.ladder.cost_model import build_problem as build_costs
from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.problem import CostProblem
from exo.master.placement.ladder.quick_bound import bound_without_links_ns
from exo.master.placement.ladder.solve import micro_batch_choices
from exo.master.placement.ladder.tensor import TensorGroup
from exo.master.placement.links import measured_ways
from exo.master.placement.problem import Problem
from exo.master.placement.tensor_groups import GROUPED, tensor_groups, with_groups
from exo.master.placement.variety import heterogeneity
from exo.master.placement.wishes import wishes_of
from exo.shared.types.models import TENSOR_ENGINES, ModelCard
from exo.shared.types.state import State

ShouldStop = Callable[[], bool]
QUICK_DEVICES_MAX = 64
"""Up to so many devices, costs are made in some milliseconds: what a plan that is weighed on them is worth."""
_BITS = {"float64": 64.0, "float32": 32.0, "float16": 16.0, "bfloat16": 16.0}
_SCALE_BITS = 0.5
"""What scales take of each quantised weight: 32 bits for each group of 64."""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """One request as cost problems."""

    rounds: tuple[CostProblem, ...]
    """The same request, cut into different numbers of micro-batches; the shortest round decides."""
    notes: tuple[str, ...]
    """Devices that cannot be weighed, and measurements that were no use, each with the reason."""
    speeds: Mapping[str, Speed] = {}
    """What each candidate does, and what keeps it from more."""
    groups: Mapping[str, TensorGroup] = {}
    """Tensor groups that are devices of the cost problems, by their ids there."""
    calibration: Calibration | None = None
    """What was measured of the candidates."""
    heterogeneity: tuple[str, ...] = ()
    """How the candidates differ, in words; empty: they are alike."""


def cost_rounds(
    state: State,
    problem: Problem,
    tensor_engines: Collection[str] = TENSOR_ENGINES,
    *,
    should_stop: ShouldStop = lambda: False,
    has_links: bool = True,
) -> Costs:
    """Return what the candidates of a problem cost on this state. Pure.

    Args:
        state: The cluster.
        problem: What may take part.
        tensor_engines: Those that can run a stage on several GPUs.
        should_stop: Asked every few milliseconds, for thousands of devices and a million links take half a second. Of
            few devices all is made in the time between two such questions, and it is not asked.
        has_links: Without them all links are as their classes assume, whatever was measured.

    Raises:
        StoppedError: `should_stop` said so. It has a bound on all plans where the devices were known by then.
    """
    if len(problem.candidates) <= QUICK_DEVICES_MAX:
        should_stop = _never
    told = figures_of(state, problem, should_stop=should_stop)
    assumed = replace(
        assumed_for(problem.model), bandwidth_share_by_device=dict.fromkeys(sorted(told.measured), 1.0)
    )
    counts, apart = _cuts(problem, told)
    has_groups = problem.engine in tensor_engines and problem.request.sharding in GROUPED
    try:
        measured: Ways = measured_ways(state, problem.candidates, should_stop) if has_links else {}
    except StoppedError:
        # Groups, and processors that may join, could be faster than any single one of these devices.
        is_bound = (
            len(counts) == 1 and not problem.spare and not (has_groups and tensor_groups(state, problem))
        )
        calibration = calibration_of(state, problem)
        bare = _built(problem, told, calibration, assumed, {}, micro_batches=1)[0] if is_bound else None
        raise StoppedError(0 if bare is None else bound_without_links_ns(bare.problem)) from None
    calibration = calibration_of(state, problem)
    measured = calibrated_ways(calibration, measured)
    rounds: list[tuple[Built, Mapping[str, Speed]]] = []
    for count in counts:
        _ask(should_stop)
        at = problem if count == 1 else apart
        rounds.append(_built(at, told, calibration, assumed, measured, micro_batches=count))
    built = [one for one, _ in rounds]
    left_out = (f"{device_id} takes no part: {reason}" for device_id, reason in built[0].left_out)
    problems = [one.problem for one in built]
    groups: dict[str, TensorGroup] = {}
    found = tensor_groups(state, problem) if has_groups else ()
    for place, one in enumerate(problems) if found else ():
        _ask(should_stop)
        problems[place], members = with_groups(
            one,
            found,
            problem.request.sharding,
            batch=-(-problem.request.concurrency // one.micro_batches),
            hidden_size=problem.model.hidden_size,
        )
        groups = {group.group_id: group for group in found if group.group_id in members}
    return Costs(
        rounds=tuple(problems),
        groups=groups,
        notes=(*left_out, *built[0].notes),
        speeds=rounds[0][1],
        calibration=calibration,
        heterogeneity=heterogeneity(problem.candidates, told.speeds),
    )


def _cuts(problem: Problem, told: Candidates) -> tuple[tuple[int, ...], Problem]:
    """Return the numbers of micro-batches to weigh, and the problem of those with more than one.

    Several stages on one processor, as several nodes of a host have them, take turns: they can share the latency of
    one micro-batch, but not work on several at a time.
    """
    request = problem.request
    is_alone = len(told.first_of_kind) == len(problem.candidates)
    apart = problem if is_alone else replace(problem, candidates=told.first_of_kind)
    has_rounds = request.objective != "latency" and request.concurrency > 1
    counts = micro_batch_choices(request.concurrency) if has_rounds and _is_open(apart) else (1,)
    return counts, apart


def _never() -> bool:
    return False


def _ask(should_stop: ShouldStop) -> None:
    if should_stop():
        raise StoppedError


def _built(
    problem: Problem,
    told: Candidates,
    calibration: Calibration,
    assumed: Assumptions,
    measured: Ways,
    *,
    micro_batches: int,
) -> tuple[Built, Mapping[str, Speed]]:
    wishes = wishes_of(problem)
    there = {one.device.device_id for one in problem.candidates}
    concurrency = problem.request.concurrency
    model = model_figures(problem.model, problem.context_length, batch=-(-concurrency // micro_batches))
    shape = RequestShape(
        context_length=1,  # The figures are those of the whole context.
        concurrency=concurrency,
        micro_batches=micro_batches,
        min_stages=wishes.min_stages,
    )
    known = calibrated(calibration, told.figures, told.speeds, model, shape, assumed)
    built = build_costs(
        [
            replace(one, is_required=one.device_id in wishes.required)
            for one in known.figures
            if one.device_id in there
        ],
        problem.free_bytes_by_pool,
        model,
        shape,
        measured=measured,
        rules=wishes.rules,
        assumed=known.assumed,
    )
    return built, known.speeds


def _is_open(problem: Problem) -> bool:
    """Say whether candidates can have what the request asks of a plan as a whole."""
    request = problem.request
    names = {name for one in problem.candidates for name in (one.node_id, one.device.device_id)}
    return (
        problem.node_count >= request.min_nodes
        and len({one.zone for one in problem.candidates}) >= request.min_zones
        and names.issuperset(request.must_use)
    )


def model_figures(model: ModelCard, context_length: int, *, batch: int = 1) -> ModelFigures:
    """Return a model's figures for sequences of so many tokens: each has one token, which is the whole context.

    Caches differ from layer to layer, and with windows they do not grow with the context. Of a mixture of experts a
    step reads what one token does, times the batch, for each token may choose others; never more than there is.
    """
    weight_bits = bits_per_weight(model.dtype)
    active = model.layer_active_bytes or model.layer_bytes
    return ModelFigures(
        layers=tuple(
            LayerFigures(
                weight_bytes=size,
                active_bytes=min(size, read * batch),
                kv_bytes_per_token=model.cache_bytes(layer, context_length),
                # A multiplication and an addition for each weight.
                flops_per_token=2 * read * 8 / weight_bits,
            )
            for layer, (size, read) in enumerate(zip(model.layer_bytes, active, strict=True))
        ),
        hidden_size=model.hidden_size,
        embedding_bytes=model.embedding_bytes,
        head_bytes=model.head_bytes,
        has_tied_head=model.has_tied_head,
    )


def bits_per_weight(dtype: str) -> float:
    """Return what one weight takes, its part of the scales included; 16 for a type that is not known."""
    quantised = re.match(r"(\d{1,2})-bit", dtype)
    if quantised is not None and int(quantised[1]) > 0:
        return int(quantised[1]) + _SCALE_BITS
    return _BITS.get(dtype, 16.0)
