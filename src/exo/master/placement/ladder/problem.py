"""The placement problem as the solvers see it: integer nanoseconds and bytes, nothing of states or events."""

from collections.abc import Sequence

import msgspec

from exo.master.placement.ladder.by_node import LinkCost, MeasuredLink, NodeLinks

__all__ = [
    "AVERAGE_TIME_WEIGHT",
    "AtLeast",
    "AtMost",
    "CostProblem",
    "Device",
    "Layer",
    "LinkCost",
    "Links",
    "MeasuredLink",
    "Model",
    "Pool",
    "Rule",
    "canonical",
    "device_groups",
]

AVERAGE_TIME_WEIGHT = 1_000_000
"""The `time_weight` of a layer that takes a device exactly its `layer_ns`."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that one or more devices take from; together they never take more than its room."""

    pool_id: str
    room_bytes: int


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device that may become a stage. What may not take part is left out before."""

    device_id: str
    node_id: str
    host: str
    zone: str
    pool_id: str
    layer_ns: int
    """Time of one average layer for one step of the whole batch; at least 1."""
    overhead_ns: int = 0
    """Time that a stage takes once per step, whatever its layers."""
    head_ns: int = 0
    """Time of the head, paid by the last stage."""
    is_required: bool = False
    """Whether every plan must use it."""


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """Hops by class (same host, same zone, anything further), and measured ones on top."""

    host: LinkCost
    zone: LinkCost
    cluster: LinkCost
    measured: Sequence[MeasuredLink] = ()
    """A `NodeLinks` where there are many: it has each once for all devices of two nodes."""

    @property
    def is_hierarchical(self) -> bool:
        """Whether forward costs only grow with distance: the case that the dynamic programme solves exactly."""
        return (
            not self.measured
            and self.host.forward_ns <= self.zone.forward_ns
            and self.zone.forward_ns <= self.cluster.forward_ns
        )

    def between(self, source: Device, target: Device) -> LinkCost:
        """The class cost of a hop, measurements left aside."""
        if source.zone != target.zone:
            return self.cluster
        return self.host if source.host == target.host else self.zone


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of the model."""

    weight_bytes: int
    cache_bytes: int = 0
    """KV cache for the asked context and concurrency."""
    time_weight: int = AVERAGE_TIME_WEIGHT
    """Millionths of the average layer's time."""

    @property
    def size_bytes(self) -> int:
        """What the layer takes of a pool."""
        return self.weight_bytes + self.cache_bytes


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The layers and what the ends of the pipeline hold besides."""

    layers: tuple[Layer, ...]
    embedding_bytes: int = 0
    """Held by the first stage."""
    head_bytes: int = 0
    """Held by the last stage."""
    has_tied_head: bool = False
    """Whether the head is the embedding again: the last stage then holds a copy, unless it is also the first."""
    stage_bytes: int = 0
    """Held by every stage: activations and the process itself."""

    @property
    def first_bytes(self) -> int:
        """Held by the first of several stages, beside its layers."""
        return self.stage_bytes + self.embedding_bytes

    @property
    def last_bytes(self) -> int:
        """Held by the last of several stages, beside its layers."""
        return self.stage_bytes + self.head_bytes + (self.embedding_bytes if self.has_tied_head else 0)

    @property
    def only_bytes(self) -> int:
        """Held by a stage that is first and last, beside its layers."""
        return self.stage_bytes + self.embedding_bytes + self.head_bytes

    @property
    def is_uniform(self) -> bool:
        """Whether all layers are alike in size and time."""
        return len({(layer.size_bytes, layer.time_weight) for layer in self.layers}) <= 1


class AtMost(msgspec.Struct, frozen=True, kw_only=True, tag="at_most"):
    """A rule: of these devices, at most so many take part (anti-affinity)."""

    device_ids: tuple[str, ...]
    count: int
    reason: str = "an anti-affinity rule"


class AtLeast(msgspec.Struct, frozen=True, kw_only=True, tag="at_least"):
    """A rule: of these groups of devices, at least so many have one that takes part (spread, must-use)."""

    groups: tuple[tuple[str, ...], ...]
    count: int
    reason: str = "a spread rule"


Rule = AtMost | AtLeast


class CostProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Which devices, in which ring order, run which contiguous layers, so that a round takes the least time.

    A round gives each of `concurrency` sequences one token. With T the sum of all stages and hops and b the
    slowest stage, `micro_batches` m of them in flight take max(T, m * b): the token latency for m = 1.
    All costs are those of one micro-batch.
    """

    devices: tuple[Device, ...]
    pools: tuple[Pool, ...]
    links: Links
    model: Model
    min_stages: int = 1
    concurrency: int = 1
    micro_batches: int = 1
    rules: tuple[Rule, ...] = ()

    @property
    def layer_count(self) -> int:
        """Layers to place."""
        return len(self.model.layers)


def canonical(problem: CostProblem) -> CostProblem:
    """Return the problem with everything sorted by id, so that equal input gives the equal plan in any order."""
    return msgspec.structs.replace(
        problem,
        devices=tuple(sorted(problem.devices, key=lambda one: one.device_id)),
        pools=tuple(sorted(problem.pools, key=lambda one: one.pool_id)),
        links=msgspec.structs.replace(
            problem.links,
            measured=NodeLinks.of(problem.links.measured) if problem.links.measured else (),
        ),
        rules=tuple(sorted((_sorted_rule(rule) for rule in problem.rules), key=repr)),
    )


def _sorted_rule(rule: Rule) -> Rule:
    if isinstance(rule, AtMost):
        return msgspec.structs.replace(rule, device_ids=tuple(sorted(set(rule.device_ids))))
    groups = tuple(sorted(tuple(sorted(set(group))) for group in rule.groups))
    return msgspec.structs.replace(rule, groups=groups)


def device_groups(devices: Sequence[Device], *, by: str) -> tuple[tuple[str, ...], ...]:
    """Group device ids by `zone`, `host` or `node_id`, for a rule that spreads a plan over them."""
    groups: dict[str, list[str]] = {}
    for device in devices:
        groups.setdefault(getattr(device, by), []).append(device.device_id)
    return tuple(tuple(group) for _, group in sorted(groups.items()))
