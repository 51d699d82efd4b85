"""What a plan costs and whether it is legal, by plain counting: written apart from the solvers, and slow on purpose.

Nothing here shares code with the solvers beyond the problem's own structs, so that a mistake there shows here.
"""

from collections.abc import Sequence

import msgspec

from exo.master.placement.ladder.by_node import NodeLinks
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT, AtMost, CostProblem, Device, LinkCost


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """A device and its layers, `start_layer` to `end_layer - 1`."""

    device_id: str
    start_layer: int
    end_layer: int


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's figures. They are only worth something where there are no violations."""

    violations: tuple[str, ...]
    stage_ns: tuple[int, ...]
    link_ns: tuple[int, ...]
    """Hop after each stage; the last is the way back to the first. Zero for a single stage."""
    stage_bytes: tuple[int, ...]
    pool_bytes: dict[str, int]
    latency_ns: int
    bottleneck_ns: int
    round_ns: int
    """Time in which each sequence gets a token: max(latency, micro-batches * bottleneck)."""
    tokens_per_s: float
    """At the problem's concurrency."""


def assess(problem: CostProblem, stages: Sequence[Stage]) -> Assessment:
    """Count a plan's times and bytes, and say in sentences what is wrong with it."""
    devices = {device.device_id: device for device in problem.devices}
    known = [stage for stage in stages if stage.device_id in devices]
    wrong = [
        f"{stage.device_id} is no device of the problem" for stage in stages if stage.device_id not in devices
    ]
    wrong.extend(_shape_violations(problem, stages))
    times: list[int] = []
    sizes: list[int] = []
    taken: dict[str, int] = {}
    for position, stage in enumerate(known):
        device = devices[stage.device_id]
        is_first, is_last = position == 0, position == len(known) - 1
        times.append(_stage_ns(problem, device, stage, is_last=is_last))
        sizes.append(_stage_bytes(problem, stage, is_first=is_first, is_last=is_last))
        taken[device.pool_id] = taken.get(device.pool_id, 0) + sizes[-1]
    room = {pool.pool_id: pool.room_bytes for pool in problem.pools}
    wrong.extend(
        f"the stages on {pool} take {size} bytes of {room.get(pool, 0)}"
        for pool, size in sorted(taken.items())
        if size > room.get(pool, 0)
    )
    hops = _hops_ns(problem, [devices[stage.device_id] for stage in known])
    latency = sum(times) + sum(hops)
    bottleneck = max(times, default=0)
    round_ns = max(latency, problem.micro_batches * bottleneck)
    return Assessment(
        violations=tuple(wrong),
        stage_ns=tuple(times),
        link_ns=tuple(hops),
        stage_bytes=tuple(sizes),
        pool_bytes=taken,
        latency_ns=latency,
        bottleneck_ns=bottleneck,
        round_ns=round_ns,
        tokens_per_s=problem.concurrency * 1e9 / round_ns if round_ns else 0.0,
    )


def _shape_violations(problem: CostProblem, stages: Sequence[Stage]) -> list[str]:
    wrong: list[str] = []
    used = [stage.device_id for stage in stages]
    if not stages:
        wrong.append("there are no stages")
    wrong.extend(f"{one} is used twice" for one in sorted({one for one in used if used.count(one) > 1}))
    placed = [layer for stage in stages for layer in range(stage.start_layer, stage.end_layer)]
    if placed != list(range(problem.layer_count)):
        wrong.append(f"not every one of {problem.layer_count} layers is placed once and in order")
    wrong.extend(f"{one.device_id} has no layers" for one in stages if one.end_layer <= one.start_layer)
    if len(stages) < problem.min_stages:
        wrong.append(f"{len(stages)} stages are fewer than {problem.min_stages}")
    wrong.extend(
        f"{device.device_id} must be used"
        for device in problem.devices
        if device.is_required and device.device_id not in used
    )
    for rule in problem.rules:
        if isinstance(rule, AtMost):
            if len(set(rule.device_ids) & set(used)) > rule.count:
                wrong.append(
                    f"{rule.reason} is broken: more than {rule.count} of {', '.join(rule.device_ids)}"
                )
        elif sum(1 for group in rule.groups if set(group) & set(used)) < rule.count:
            wrong.append(f"{rule.reason} is broken: fewer than {rule.count} groups take part")
    return wrong


def _stage_ns(problem: CostProblem, device: Device, stage: Stage, *, is_last: bool) -> int:
    layers = problem.model.layers[max(0, stage.start_layer) : max(0, stage.end_layer)]
    time = sum([device.layer_ns * layer.time_weight // AVERAGE_TIME_WEIGHT for layer in layers])
    return time + device.overhead_ns + (device.head_ns if is_last else 0)


def _stage_bytes(problem: CostProblem, stage: Stage, *, is_first: bool, is_last: bool) -> int:
    model = problem.model
    layers = model.layers[max(0, stage.start_layer) : max(0, stage.end_layer)]
    size = model.stage_bytes + sum([layer.weight_bytes + layer.cache_bytes for layer in layers])
    if is_last:
        size += model.head_bytes
    if is_first or (is_last and model.has_tied_head):
        size += model.embedding_bytes
    return size


def _hops_ns(problem: CostProblem, ring: Sequence[Device]) -> list[int]:
    if len(ring) < 2:
        return [0] * len(ring)
    measured = _measured(problem, ring)
    hops: list[int] = []
    for position, source in enumerate(ring):
        target = ring[(position + 1) % len(ring)]
        cost = measured.get((source.device_id, target.device_id)) or problem.links.between(source, target)
        hops.append(cost.return_ns if position == len(ring) - 1 else cost.forward_ns)
    return hops


def _measured(problem: CostProblem, ring: Sequence[Device]) -> dict[tuple[str, str], LinkCost]:
    """Return the measured hops of a ring."""
    told = problem.links.measured
    pairs = [(one.device_id, other.device_id) for one, other in zip(ring, (*ring[1:], ring[0]), strict=True)]
    if isinstance(told, NodeLinks):
        return {pair: cost for pair in pairs if (cost := told.cost(*pair)) is not None}
    wanted = set(pairs)
    return {
        pair: link.cost for link in told if (pair := (link.source_device_id, link.target_device_id)) in wanted
    }
