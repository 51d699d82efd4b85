"""From measured paces to the figures of a placement: what devices and hops really do, where stages were timed. Pure.

A pace gives each layer a time: its overhead and its bytes. The cost model knows a bandwidth only, so that of a model
is the one at which an average layer takes just that time. What was measured contains what others took of the device
meanwhile, so only load beyond that counts, and where the load is this cluster's own it counts for nothing.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from exo.master.placement.assumed import ASSUMED
from exo.master.placement.figures import Speed, used_by_others_percent
from exo.master.placement.ladder.cost_model import (
    Assumptions,
    DeviceFigures,
    LinkFigures,
    ModelFigures,
    RequestShape,
    is_usable,
)
from exo.master.placement.ladder.ways import NodeWays
from exo.master.placement.problem import Problem
from exo.shared.step_reads import step_reads
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.instances import StagePlan
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.pace import DevicePace, pace_key
from exo.shared.types.state import State

STEPS_MIN = 8
"""Steps from which on what was measured counts for more than what is assumed."""
MEASUREMENTS_MIN = 32
"""Steps from which on a device counts as calibrated."""
ERROR_MAX_PERCENT = 15.0
"""A pace that is further from its own measurements says that something else is at work."""
REACH = 8.0
"""How many times smaller or larger than those measured a stage may be for its prediction to count as calibrated."""
ROUNDS_MIN = 16
"""Tokens from which on a ring's hops count as measured."""

Ways = Mapping[tuple[str, str], LinkFigures]


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured that is of use for one request."""

    model: ModelCard
    context_length: int
    concurrency: int
    paces: dict[DeviceId, DevicePace]
    host_hop_s: float | None = None
    """What hops within a host take besides what is assumed or measured of their links; None: not measured."""
    far_hop_s: float | None = None
    """The same of hops between hosts."""

    def confirms(self, stages: Sequence[StagePlan]) -> bool:
        """Say whether a plan's prediction rests on measurements: of every device, at about this size, and of hops.

        Stages run one sequence in a step; what several in one step would take was never measured.
        """
        if self.concurrency > 1 or (len(stages) > 1 and self.host_hop_s is None and self.far_hop_s is None):
            return False
        return all(self._confirms_stage(one) for one in stages)

    def _confirms_stage(self, stage: StagePlan) -> bool:
        pace = self.paces.get(stage.device_ids[0]) if len(stage.device_ids) == 1 else None
        if pace is None or pace.measurement_count < MEASUREMENTS_MIN:
            return False
        if not pace.error_percent <= ERROR_MAX_PERCENT:
            return False
        read = step_reads(self.model, stage.start_layer, stage.end_layer, self.context_length).total_bytes
        return pace.reads_min_bytes / REACH <= read <= pace.reads_max_bytes * REACH


class Calibrated(msgspec.Struct, frozen=True, kw_only=True):
    """Devices in which what was measured has taken the place of what was assumed."""

    figures: tuple[DeviceFigures, ...]
    speeds: dict[str, Speed]
    assumed: Assumptions


def calibration_of(state: State, problem: Problem) -> Calibration:
    """Return what was measured of the candidates with the request's engine and type of weights, and of hops.

    Args:
        state: The cluster.
        problem: What is to be placed.
    """
    paces: dict[DeviceId, DevicePace] = {}
    for one in problem.candidates:
        live = state.live.get(one.node_id)
        key = pace_key(one.device.device_id, problem.engine, problem.model.dtype)
        pace = live.paces.get(key) if live is not None else None
        if pace is not None and _is_sound(pace):
            paces[one.device.device_id] = pace
    within: list[tuple[float, int]] = []
    between: list[tuple[float, int]] = []
    for node_id in sorted(state.live):
        for _, pace in sorted(state.live[node_id].paces.items()):
            _add_hop(state, pace, within, between)
    return Calibration(
        model=problem.model,
        context_length=problem.context_length,
        concurrency=problem.request.concurrency,
        paces=paces,
        host_hop_s=_middle(within),
        far_hop_s=_middle(between),
    )


def calibrated(
    calibration: Calibration,
    devices: Sequence[DeviceFigures],
    speeds: Mapping[str, Speed],
    model: ModelFigures,
    shape: RequestShape,
    assumed: Assumptions,
) -> Calibrated:
    """Return the devices as they were measured; those that were not stay as they are. See `Calibrated`."""
    batch = max(1, -(-shape.concurrency // max(1, shape.micro_batches)))
    read_bytes, single_bytes = (_mean_read_bytes(model, shape.context_length, count) for count in (batch, 1))
    flops = sum(one.flops_per_token for one in model.layers) / max(1, len(model.layers))
    figures: list[DeviceFigures] = []
    told = dict(speeds)
    shares, overheads = dict(assumed.bandwidth_share_by_device), dict(assumed.stage_overhead_s_by_device)
    for one in devices:
        pace = calibration.paces.get(DeviceId(one.device_id))
        if pace is None or read_bytes <= 0:
            figures.append(one)
            continue
        speed = _measured_speed(one, speeds[one.device_id], pace, read_bytes)
        free = speed.load_share * speed.heat_share
        # Arithmetic was in what was measured, so that it cannot have taken longer.
        least_flops = flops / (assumed.compute_share * _layer_s(pace, single_bytes))
        figures.append(
            replace(
                one,
                memory_bandwidth_bytes_per_s=speed.bandwidth_bytes_per_s * free,
                flops_per_s=max(speed.flops_per_s * free, least_flops),
                utilization_percent=None,
                thermal_headroom_c=None,
            )
        )
        told[one.device_id] = speed
        shares[one.device_id] = 1.0
        overheads[one.device_id] = pace.step_overhead_s
    return Calibrated(
        figures=tuple(figures),
        speeds=told,
        assumed=replace(
            assumed,
            bandwidth_share_by_device=shares,
            stage_overhead_s_by_device=overheads,
            host_link=_slower(assumed.host_link, calibration.host_hop_s, calibration.far_hop_s),
            zone_link=_slower(assumed.zone_link, calibration.far_hop_s, calibration.host_hop_s),
            cluster_link=_slower(assumed.cluster_link, calibration.far_hop_s, calibration.host_hop_s),
        ),
    )


def calibrated_ways(calibration: Calibration, ways: Ways) -> Ways:
    """Return the measured links with what software takes of each hop besides."""
    more_s = calibration.far_hop_s if calibration.far_hop_s is not None else calibration.host_hop_s
    return ways if more_s is None else NodeWays.of(ways).slower(more_s)


def _is_sound(pace: DevicePace) -> bool:
    """Say whether a pace is better than nothing: whether it rests on something, and can be."""
    return (
        pace.measurement_count >= STEPS_MIN
        and is_usable(pace.bandwidth_bytes_per_s)
        and _is_time(pace.step_overhead_s)
        and _is_time(pace.layer_overhead_s)
    )


def _is_time(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds >= 0


def _layer_s(pace: DevicePace, read_bytes: float) -> float:
    return pace.layer_overhead_s + read_bytes / pace.bandwidth_bytes_per_s


def _mean_read_bytes(model: ModelFigures, context_length: int, batch: int) -> float:
    """Return what an average layer reads in a step, as the cost model counts it."""
    reads = [
        (one.weight_bytes if one.active_bytes is None else one.active_bytes)
        + batch * context_length * one.kv_bytes_per_token
        for one in model.layers
    ]
    return sum(reads) / max(1, len(reads))


def _measured_speed(one: DeviceFigures, speed: Speed, pace: DevicePace, read_bytes: float) -> Speed:
    """Return a device's speed as it was measured, less what load and heat take now and did not take then.

    Where there is less load now, it stays as measured until it is measured again: nodes of one host take each other's
    loading of a model for load.
    """
    load_then = 1 - (used_by_others_percent(pace.used_by_others_percent) or 0.0) / 100
    load_now = load_then if speed.load_percent is None else min(load_then, speed.load_share)
    # Heat that is foreseen for good counts. Degrees to the limit do not: it was as hot when it was measured.
    heat_share = one.memory_bandwidth_bytes_per_s / speed.bandwidth_bytes_per_s
    return replace(
        speed,
        bandwidth_bytes_per_s=read_bytes / _layer_s(pace, read_bytes) / load_then,
        load_share=load_now,
        heat_share=min(1.0, heat_share),
    )


def _add_hop(
    state: State,
    pace: DevicePace,
    within: list[tuple[float, int]],
    between: list[tuple[float, int]],
) -> None:
    """Add what a ring's hops took more than its links are thought to take, to those within or between hosts."""
    ring = pace.hop_device_ids
    if pace.hop_s is None or pace.hop_count < ROUNDS_MIN or len(ring) < 2 or not _is_time(pace.hop_s):
        return
    nodes = [state.nodes.get(NodeId(name.split("/", 1)[0])) for name in ring]
    expected_s = 0.0
    hosts: set[str] = set()
    for node, after in zip(nodes, (*nodes[1:], nodes[0]), strict=True):
        if node is None or after is None:
            return
        hosts.add(node.identity.host_id)
        expected_s += _link_s(state, node.identity, after.identity)
    excess_s = max(0.0, pace.hop_s - expected_s / len(ring))
    (within if len(hosts) == 1 else between).append((excess_s, pace.hop_count))


def _link_s(state: State, node: NodeIdentity, after: NodeIdentity) -> float:
    """Return what a link takes, also of nodes that are no candidates: their rings ran over what they have."""
    if node.host_id == after.host_id:
        return ASSUMED.host_link.latency_s
    live = state.live.get(node.node_id)
    link = live.links.get(after.node_id) if live is not None else None
    if link is None or link.link_type == "loopback" or link.latency_ms is None:
        return ASSUMED.zone_link.latency_s
    return link.latency_ms / 1000


def _middle(told: Sequence[tuple[float, int]]) -> float | None:
    """Return the median by weight."""
    if not told:
        return None
    half = sum(count for _, count in told) / 2
    passed = 0
    for value, count in sorted(told):
        passed += count
        if passed >= half:
            return value
    return max(value for value, _ in told)


def _slower(link: LinkFigures, more_s: float | None, or_else_s: float | None) -> LinkFigures:
    """Return a link with what software takes besides: where that was not measured, as on the other kind of hops."""
    more_s = more_s if more_s is not None else or_else_s
    return link if more_s is None else replace(link, latency_s=link.latency_s + more_s)
