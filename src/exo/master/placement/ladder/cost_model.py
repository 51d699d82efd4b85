"""From what machines can do to what a plan costs: device figures, model and request become integer costs.

Each assumption is a field of `Assumptions`, so that calibration from measured tokens/s replaces it. The model is
that of a decoding step: each stage reads its weights and the KV cache once per step (Williams, Waterman and
Patterson, "Roofline: an insightful visual performance model", 2009), so a layer takes the longer of its memory
time and its compute time.
"""

import math
from collections.abc import Mapping, Sequence

import msgspec

from exo.master.placement.ladder.problem import (
    AVERAGE_TIME_WEIGHT,
    CostProblem,
    Device,
    Layer,
    LinkCost,
    Links,
    MeasuredLink,
    Model,
    Pool,
    Rule,
)
from exo.master.placement.ladder.ways import (
    TIME_NS_MAX,
    TOKEN_BYTES,
    VALUE_BYTES,
    LinkFigures,
    NodeWays,
    usable_links,
)

_NS_PER_S = 1e9


class Assumptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken for granted until it is measured."""

    bandwidth_share: float = 0.7
    """Eta: the part of a device's memory bandwidth that reading weights reaches. A starting value, not measured."""
    compute_share: float = 0.5
    """The part of a device's FLOP/s that a decoding step reaches. A starting value, not measured."""
    stage_overhead_s: float = 0.0003
    """Time a stage takes besides its layers: launches, framing, waking up. A starting value, not measured."""
    memory_share: float = 0.95
    """Mu: the part of free memory that may be promised."""
    headroom_full_c: float = 15.0
    """From so many degrees below the throttle threshold on, a device runs at full speed."""
    headroom_least_share: float = 0.5
    """What is left of its speed when there is no headroom."""
    reserve_bytes: int = 128 * 1024 * 1024
    """Taken by a stage's process beside weights, cache and activations."""
    activation_values_per_hidden: int = 16
    """Values that a stage holds at once per sequence and hidden dimension: input, output and between layers."""
    host_link: LinkFigures = LinkFigures(latency_s=30e-6, bandwidth_bytes_per_s=10e9)
    zone_link: LinkFigures = LinkFigures(latency_s=300e-6, bandwidth_bytes_per_s=1.25e9)
    cluster_link: LinkFigures = LinkFigures(latency_s=5e-3, bandwidth_bytes_per_s=12.5e6)
    """Links by class where none was measured: loopback, 10 Gbit/s Ethernet, 100 Mbit/s over some way."""
    bandwidth_share_by_device: Mapping[str, float] = {}
    """Calibrated eta, by device id."""
    stage_overhead_s_by_device: Mapping[str, float] = {}
    """Calibrated overhead, by device id."""


class DeviceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A device as it is read."""

    device_id: str
    node_id: str
    host: str
    zone: str
    pool_id: str
    memory_bandwidth_bytes_per_s: float
    flops_per_s: float | None = None
    """None: not known, so memory alone counts."""
    utilization_percent: float | None = None
    """By others. None: idle."""
    thermal_headroom_c: float | None = None
    """Degrees below the throttle threshold. None: not known, so full speed."""
    is_required: bool = False


class LayerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of a model."""

    weight_bytes: int
    active_bytes: int | None = None
    """Read per token: fewer than all for a mixture of experts. None: all."""
    kv_bytes_per_token: int = 0
    flops_per_token: float = 0.0


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A model as its headers say."""

    layers: tuple[LayerFigures, ...]
    hidden_size: int
    embedding_bytes: int = 0
    head_bytes: int = 0
    has_tied_head: bool = False


class RequestShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan is for."""

    context_length: int
    concurrency: int = 1
    micro_batches: int = 1
    min_stages: int = 1


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """The problem, and what was left out or replaced on the way."""

    problem: CostProblem
    left_out: tuple[tuple[str, str], ...]
    """Devices that cannot be weighed, each with the reason."""
    notes: tuple[str, ...]
    """Measurements that were no use, and what took their place."""


def is_usable(value: float | None) -> bool:
    """Whether a figure is a number above zero: not missing, NaN, infinite, zero or negative."""
    return value is not None and math.isfinite(value) and value > 0


def thermal_share(headroom_c: float | None, assumed: Assumptions) -> float:
    """Return theta: full speed from `headroom_full_c` up, falling evenly to `headroom_least_share` at none."""
    if headroom_c is None or not math.isfinite(headroom_c) or headroom_c >= assumed.headroom_full_c:
        return 1.0
    least = assumed.headroom_least_share
    return least + (1 - least) * max(0.0, headroom_c) / assumed.headroom_full_c


def free_share(device: DeviceFigures, assumed: Assumptions) -> float:
    """Return the part of a device's speed that others and heat leave; never nothing."""
    used = device.utilization_percent
    used_share = min(0.99, max(0.0, used / 100)) if used is not None and math.isfinite(used) else 0.0
    return (1 - used_share) * thermal_share(device.thermal_headroom_c, assumed)


def effective_bandwidth_bytes_per_s(device: DeviceFigures, assumed: Assumptions) -> float:
    """Return B * eta * (1 - u) * theta."""
    eta = assumed.bandwidth_share_by_device.get(device.device_id, assumed.bandwidth_share)
    return device.memory_bandwidth_bytes_per_s * eta * free_share(device, assumed)


def roofline_s(read_bytes: float, flops: float, device: DeviceFigures, assumed: Assumptions) -> float:
    """Return the longer of memory time and compute time, in seconds."""
    memory_s = read_bytes / effective_bandwidth_bytes_per_s(device, assumed)
    if device.flops_per_s is None or not is_usable(device.flops_per_s):
        return memory_s
    return max(memory_s, flops / (device.flops_per_s * assumed.compute_share * free_share(device, assumed)))


def link_cost(link: LinkFigures, *, batch: int, hidden_size: int) -> LinkCost:
    """Return the cost of a hop: activations of the batch forward, one token per sequence back.

    Latency and bandwidth must be usable figures.
    """
    forward_s = link.latency_s + VALUE_BYTES * batch * hidden_size / link.bandwidth_bytes_per_s
    back_s = link.latency_s + TOKEN_BYTES * batch / link.bandwidth_bytes_per_s
    return LinkCost(forward_ns=_ns(forward_s), return_ns=_ns(back_s))


def build_problem(
    devices: Sequence[DeviceFigures],
    pool_free_bytes: Mapping[str, int],
    model: ModelFigures,
    request: RequestShape,
    *,
    measured: Mapping[tuple[str, str], LinkFigures] | None = None,
    rules: Sequence[Rule] = (),
    assumed: Assumptions | None = None,
) -> Built:
    """Return the cost problem of a request. Times are those of one micro-batch.

    Layers of unlike size are weighed by the bytes that they read; a device's time is that of the average layer, so
    that a device limited by compute is taken to be so in all layers alike.
    """
    assumed = assumed or Assumptions()
    batch = max(1, -(-request.concurrency // max(1, request.micro_batches)))
    left_out: list[tuple[str, str]] = []
    notes: list[str] = []
    reads = [
        (layer.weight_bytes if layer.active_bytes is None else layer.active_bytes)
        + batch * request.context_length * layer.kv_bytes_per_token
        for layer in model.layers
    ]
    count = max(1, len(reads))
    mean_read, mean_flops = sum(reads) / count, sum(layer.flops_per_token for layer in model.layers) / count
    made: list[Device] = []
    for device in devices:
        if not is_usable(device.memory_bandwidth_bytes_per_s):
            left_out.append((device.device_id, "its memory bandwidth is not known; measure it"))
            continue
        overhead_s = assumed.stage_overhead_s_by_device.get(device.device_id, assumed.stage_overhead_s)
        made.append(
            Device(
                device_id=device.device_id,
                node_id=device.node_id,
                host=device.host,
                zone=device.zone,
                pool_id=device.pool_id,
                layer_ns=max(1, _ns(roofline_s(mean_read, batch * mean_flops, device, assumed))),
                overhead_ns=_ns(overhead_s),
                head_ns=_ns(roofline_s(model.head_bytes + _tied_bytes(model), 0.0, device, assumed)),
                is_required=device.is_required,
            )
        )
    kept = frozenset(device.device_id for device in made)
    links = Links(
        host=link_cost(assumed.host_link, batch=batch, hidden_size=model.hidden_size),
        zone=link_cost(assumed.zone_link, batch=batch, hidden_size=model.hidden_size),
        cluster=link_cost(assumed.cluster_link, batch=batch, hidden_size=model.hidden_size),
        measured=_measured(measured or {}, kept, batch, model.hidden_size, notes),
    )
    activations = VALUE_BYTES * assumed.activation_values_per_hidden * model.hidden_size * request.concurrency
    problem = CostProblem(
        devices=tuple(made),
        pools=tuple(
            Pool(pool_id=name, room_bytes=max(0, int(free * assumed.memory_share)))
            for name, free in sorted(pool_free_bytes.items())
        ),
        links=links,
        model=Model(
            layers=tuple(
                Layer(
                    weight_bytes=layer.weight_bytes,
                    cache_bytes=request.concurrency * request.context_length * layer.kv_bytes_per_token,
                    time_weight=round(read * AVERAGE_TIME_WEIGHT / mean_read)
                    if mean_read
                    else AVERAGE_TIME_WEIGHT,
                )
                for layer, read in zip(model.layers, reads, strict=True)
            ),
            embedding_bytes=model.embedding_bytes,
            head_bytes=model.head_bytes,
            has_tied_head=model.has_tied_head,
            stage_bytes=assumed.reserve_bytes + activations,
        ),
        min_stages=request.min_stages,
        concurrency=request.concurrency,
        micro_batches=request.micro_batches,
        rules=tuple(rules),
    )
    return Built(problem=problem, left_out=tuple(left_out), notes=tuple(notes))


def _measured(
    measured: Mapping[tuple[str, str], LinkFigures],
    kept: frozenset[str],
    batch: int,
    hidden_size: int,
    notes: list[str],
) -> Sequence[MeasuredLink]:
    links, useless = usable_links(NodeWays.of(measured), kept, batch=batch, hidden_size=hidden_size)
    notes.extend(
        f"The measured link {source} to {target} ({figures.latency_s} s, {figures.bandwidth_bytes_per_s} "
        "bytes/s) is no use; what its class assumes takes its place."
        for source, target, figures in useless
    )
    return links if links is not None else ()


def _tied_bytes(model: ModelFigures) -> int:
    return model.embedding_bytes if model.has_tied_head else 0


def _ns(seconds: float) -> int:
    """Round to nanoseconds, and cut off what is absurdly slow, so that it stays a number."""
    return round(min(float(TIME_NS_MAX), max(0.0, seconds * _NS_PER_S)))
