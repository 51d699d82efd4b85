"""From a state and its hard filters to the ladder's cost problems: what candidates can do now, and the ways between.

Memory is counted exactly as `Problem.stage_memory_bytes` does, so that ladder and evaluator never disagree. What
changes from one second to the next (load, heat) counts in coarse steps, so that plans do not flutter.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from exo.master.placement.ladder.cost_model import (
    Assumptions,
    Built,
    DeviceFigures,
    LayerFigures,
    LinkFigures,
    ModelFigures,
    RequestShape,
    is_usable,
)
from exo.master.placement.ladder.cost_model import build_problem as build_costs
from exo.master.placement.ladder.problem import CostProblem
from exo.master.placement.ladder.solve import micro_batch_choices
from exo.master.placement.problem import RESERVE_BYTES, Candidate, Problem, pool_of
from exo.master.placement.wishes import wishes_of
from exo.shared.device_figures import figures_for
from exo.shared.topology import links
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Link, Node
from exo.shared.types.state import State

ASSUMED = Assumptions(memory_share=1.0, reserve_bytes=RESERVE_BYTES, activation_values_per_hidden=0)
"""The ladder's starting values, with memory as the evaluator counts it."""
UTILIZATION_STEP_PERCENT = 20
UTILIZATION_MAX_PERCENT = 80
"""However busy others keep a device, it is shared with them: a fifth of it is ours."""
HEAT_STEP_C = 5
HEAT_SHARE_STEP = 0.05
_BITS = {"float64": 64.0, "float32": 32.0, "float16": 16.0, "bfloat16": 16.0}
_SCALE_BITS = 0.5
"""What scales take of each quantised weight: 32 bits for each group of 64."""
_ROUNDING = 1e-9


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """One request as cost problems."""

    rounds: tuple[CostProblem, ...]
    """The same request, cut into different numbers of micro-batches; the shortest round decides."""
    notes: tuple[str, ...]
    """Devices that cannot be weighed, and measurements that were no use, each with the reason."""


class _Twins(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one piece of hardware by all nodes that tell of it: nodes of a host share its processor."""

    bandwidth_bytes_per_s: float | None
    flops_per_s: float | None
    utilization_percent: float | None
    heat_share: float
    headroom_c: float | None


def cost_rounds(state: State, problem: Problem) -> Costs:
    """Return what the candidates of a problem cost on this state. Pure."""
    twins = _twins(state, problem)
    devices: list[DeviceFigures] = []
    shares: dict[str, float] = {}
    seen: set[tuple[str, str, str]] = set()
    first_of_kind: list[Candidate] = []
    for one in problem.candidates:
        node = state.nodes[one.node_id]
        key = _twin_key(node, one.device)
        figures, is_measured = _device(one, node, twins[key])
        devices.append(figures)
        if is_measured:
            shares[figures.device_id] = 1.0
        if key not in seen:
            first_of_kind.append(one)
        seen.add(key)
    request = problem.request
    assumed = replace(ASSUMED, bandwidth_share_by_device=shares)
    # Several stages on one processor, as several nodes of a host have them, take turns: they can share the latency
    # of one micro-batch, but not work on several at a time.
    apart = (
        problem if len(first_of_kind) == len(devices) else replace(problem, candidates=tuple(first_of_kind))
    )
    has_rounds = request.objective != "latency" and request.concurrency > 1
    counts = micro_batch_choices(request.concurrency) if has_rounds else (1,)
    if not _is_open(apart):
        counts = (1,)
    measured = _ways(state, problem.candidates)
    built = [
        _built(problem if count == 1 else apart, devices, assumed, measured, micro_batches=count)
        for count in counts
    ]
    left_out = (f"{device_id} takes no part: {reason}" for device_id, reason in built[0].left_out)
    return Costs(rounds=tuple(one.problem for one in built), notes=(*left_out, *built[0].notes))


def _built(
    problem: Problem,
    devices: Sequence[DeviceFigures],
    assumed: Assumptions,
    measured: Mapping[tuple[str, str], LinkFigures],
    *,
    micro_batches: int,
) -> Built:
    wishes = wishes_of(problem)
    there = {one.device.device_id for one in problem.candidates}
    return build_costs(
        [
            replace(one, is_required=one.device_id in wishes.required)
            for one in devices
            if one.device_id in there
        ],
        problem.free_bytes_by_pool,
        model_figures(problem.model),
        RequestShape(
            context_length=problem.context_length,
            concurrency=problem.request.concurrency,
            micro_batches=micro_batches,
            min_stages=wishes.min_stages,
        ),
        measured=measured,
        rules=wishes.rules,
        assumed=assumed,
    )


def _is_open(problem: Problem) -> bool:
    """Say whether candidates can have what the request asks of a plan as a whole."""
    request = problem.request
    names = {name for one in problem.candidates for name in (one.node_id, one.device.device_id)}
    return (
        problem.node_count >= request.min_nodes
        and len({one.zone for one in problem.candidates}) >= request.min_zones
        and names.issuperset(request.must_use)
    )


def model_figures(model: ModelCard) -> ModelFigures:
    """Return a model's figures. Every weight counts as read for each token: cards do not tell of experts."""
    weight_bits = bits_per_weight(model.dtype)
    return ModelFigures(
        layers=tuple(
            LayerFigures(
                weight_bytes=size,
                kv_bytes_per_token=model.kv_bytes_per_token_and_layer,
                # A multiplication and an addition for each weight.
                flops_per_token=2 * size * 8 / weight_bits,
            )
            for size in model.layer_bytes
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


def used_by_others_percent(told: float | None) -> float | None:
    """Return a device's load in whole steps, rounded down, and never all of it; None where it is not known."""
    if told is None or not math.isfinite(told):
        return None
    steps = max(0.0, told) // UTILIZATION_STEP_PERCENT
    return min(float(UTILIZATION_MAX_PERCENT), steps * UTILIZATION_STEP_PERCENT)


def heat_of(reading: DeviceGPUState) -> tuple[float, float | None]:
    """Return the share of full work that heat leaves for good, and the degrees to the limit that the device tells.

    Where the share is foreseen, it says more than degrees do, and these are None.
    """
    thermal = reading.thermal
    if thermal is not None and is_usable(thermal.sustained_fraction):
        share = min(1.0, thermal.sustained_fraction or 0.0)
        steps = math.floor(share / HEAT_SHARE_STEP + _ROUNDING)
        return max(HEAT_SHARE_STEP, round(steps * HEAT_SHARE_STEP, 2)), None
    limit_c = reading.thermal_throttle_threshold_c
    if limit_c is None and thermal is not None and not thermal.is_limit_assumed:
        limit_c = thermal.limit_c
    now_c = reading.thermal_temperature_c
    if limit_c is None or now_c is None or not math.isfinite(limit_c - now_c):
        return 1.0, None
    return 1.0, float((limit_c - now_c) // HEAT_STEP_C * HEAT_STEP_C)


def _device(one: Candidate, node: Node, twins: _Twins) -> tuple[DeviceFigures, bool]:
    """Return a candidate's figures, and whether its bandwidth was measured: what was measured is reached already."""
    known = figures_for(
        replace(
            one.device,
            measured_memory_bandwidth_bytes_per_s=twins.bandwidth_bytes_per_s,
            measured_flops_per_s=twins.flops_per_s,
        )
    )
    bandwidth = known.memory_bandwidth_bytes_per_s
    compute = known.compute_in("float32" if one.device.backend == "cpu" else "float16")
    figures = DeviceFigures(
        device_id=one.device.device_id,
        node_id=one.node_id,
        host=node.identity.host_id,
        zone=one.zone,
        pool_id=one.pool,
        memory_bandwidth_bytes_per_s=bandwidth.value * twins.heat_share,
        flops_per_s=compute.value * twins.heat_share,
        utilization_percent=twins.utilization_percent,
        thermal_headroom_c=twins.headroom_c,
    )
    return figures, bandwidth.basis == "measured"


def _twin_key(node: Node, device: GPUDevice) -> tuple[str, str, str]:
    """Name the hardware: processors and chips that share a host's memory are told of by each node of that host."""
    return pool_of(node, device), device.backend, device.uuid or device.name


def _twins(state: State, problem: Problem) -> dict[tuple[str, str, str], _Twins]:
    """Put together what the nodes tell of the same hardware, so that they are alike where they are the same."""
    told: dict[tuple[str, str, str], list[tuple[GPUDevice, DeviceGPUState | None]]] = {}
    ours: set[tuple[str, str, str]] = set()
    placed = _placed(state)
    nodes = {one.node_id for one in problem.candidates}
    hosts = {state.nodes[node_id].identity.host_id for node_id in nodes}
    for node_id, node in sorted(state.nodes.items()):
        if not node.is_connected or node.identity.host_id not in hosts:
            continue
        live = state.live.get(node_id)
        for device in node.identity.devices:
            key = _twin_key(node, device)
            reading = live.devices.get(device.device_id) if live is not None else None
            told.setdefault(key, []).append((device, reading))
            if device.device_id in placed:
                ours.add(key)
    return {key: _together(rows, is_ours=key in ours) for key, rows in told.items()}


def _together(rows: Sequence[tuple[GPUDevice, DeviceGPUState | None]], *, is_ours: bool) -> _Twins:
    readings = [reading for _, reading in rows if reading is not None]
    loads = [used_by_others_percent(one.compute_utilization_percent) for one in readings]
    heats = [heat_of(one) for one in readings]
    return _Twins(
        bandwidth_bytes_per_s=_most(device.measured_memory_bandwidth_bytes_per_s for device, _ in rows),
        flops_per_s=_most(device.measured_flops_per_s for device, _ in rows),
        # A device that works for this cluster shows its own work as load.
        utilization_percent=None if is_ours else min((one for one in loads if one is not None), default=None),
        heat_share=min((share for share, _ in heats), default=1.0),
        headroom_c=min((one for _, one in heats if one is not None), default=None),
    )


def _most(values: Iterable[float | None]) -> float | None:
    return max((one for one in values if one is not None and is_usable(one)), default=None)


def _placed(state: State) -> set[DeviceId]:
    return {
        device_id
        for instance in state.instances.values()
        for plan, stage in zip(instance.plan.stages, instance.stages, strict=True)
        if stage.phase != "failed"
        for device_id in plan.device_ids
    }


def _ways(state: State, candidates: Sequence[Candidate]) -> Mapping[tuple[str, str], LinkFigures]:
    """Return the measured links between candidates of different hosts; what is missing is assumed by class."""
    by_node: dict[NodeId, list[DeviceId]] = {}
    for one in candidates:
        by_node.setdefault(one.node_id, []).append(one.device.device_id)
    found: dict[tuple[str, str], LinkFigures] = {}
    for link in links(state):
        sources, targets = by_node.get(link.source_node_id), by_node.get(link.dest_node_id)
        if sources is None or targets is None or not _is_between_hosts(state, link):
            continue
        latency_s = ASSUMED.zone_link.latency_s if link.latency_ms is None else link.latency_ms / 1000
        bandwidth = (
            ASSUMED.zone_link.bandwidth_bytes_per_s
            if link.bandwidth_mbps is None
            else link.bandwidth_mbps * 1e6 / 8
        )
        if link.latency_ms is not None or link.bandwidth_mbps is not None:
            figures = LinkFigures(latency_s=latency_s, bandwidth_bytes_per_s=bandwidth)
            found.update({(source, target): figures for source in sources for target in targets})
    return found


def _is_between_hosts(state: State, link: Link) -> bool:
    return link.link_type != "loopback" and _host(state, link.source_node_id) != _host(
        state, link.dest_node_id
    )


def _host(state: State, node_id: NodeId) -> str:
    return state.nodes[node_id].identity.host_id
