"""Tensor-parallel groups as virtual devices: they compete with their members on the same predicted time.

A group is one more device with a memory pool of its own, and rules keep it from taking part beside its members, so
that pipelines, groups and mixtures of both are one problem.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from exo.master.placement.ladder.problem import AtMost, CostProblem, Device, Pool

_ALL_REDUCES_PER_LAYER = 2
"""After attention and after the feed-forward part (Shoeybi et al., "Megatron-LM", 2019)."""
_VALUE_BYTES = 2
_NS_PER_S = 1e9


class TensorGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Devices of one host that run each layer together."""

    device_ids: tuple[str, ...]
    latency_s: float
    """Of one step of an all-reduce between them."""
    bandwidth_bytes_per_s: float
    """Between neighbours of the group."""

    @property
    def group_id(self) -> str:
        """The id of the virtual device."""
        return "+".join(self.device_ids)


def tensor_degrees(attention_heads: int, kv_heads: int, devices: int) -> tuple[int, ...]:
    """Return the group sizes, above one, that divide the heads evenly."""
    return tuple(
        degree for degree in range(2, devices + 1) if attention_heads % degree == 0 and kv_heads % degree == 0
    )


def all_reduce_s(group: TensorGroup, *, batch: int, hidden_size: int) -> float:
    """Return the time of one ring all-reduce of a step's activations.

    Each of 2 (n - 1) steps moves one n-th (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009).
    """
    count = len(group.device_ids)
    steps = 2 * (count - 1)
    size_bytes = _VALUE_BYTES * batch * hidden_size
    return steps * (group.latency_s + size_bytes / count / group.bandwidth_bytes_per_s)


def waits_ns(group: TensorGroup, *, batch: int, hidden_size: int) -> int:
    """Return for how long the members wait for each other in each layer, in nanoseconds."""
    reduce_s = all_reduce_s(group, batch=batch, hidden_size=hidden_size)
    return round(_ALL_REDUCES_PER_LAYER * reduce_s * _NS_PER_S)


def with_tensor_groups(
    problem: CostProblem, groups: Iterable[TensorGroup], *, batch: int, hidden_size: int
) -> tuple[CostProblem, Mapping[str, tuple[str, ...]]]:
    """Return the problem with a virtual device for each group that can be one, and the members of each by its id.

    A group's members are on one host and each has a pool of its own; its layer takes an n-th of the slowest member's
    time and two all-reduces, and it holds n times what the fullest member can beside its own process. Other groups
    are left out.
    """
    by_id = {device.device_id: device for device in problem.devices}
    rooms = {pool.pool_id: pool.room_bytes for pool in problem.pools}
    sharers: dict[str, int] = {}
    for device in problem.devices:
        sharers[device.pool_id] = sharers.get(device.pool_id, 0) + 1
    made: list[Device] = []
    pools: list[Pool] = []
    members: dict[str, tuple[str, ...]] = {}
    for group in sorted(groups, key=lambda one: one.device_ids):
        inside = [by_id[name] for name in group.device_ids if name in by_id]
        is_whole = len(inside) == len(set(group.device_ids)) == len(group.device_ids) > 1
        is_apart = all(sharers[one.pool_id] == 1 for one in inside)
        if not is_whole or not is_apart or len({(one.zone, one.host) for one in inside}) > 1:
            continue
        made.append(_virtual(group, inside, batch=batch, hidden_size=hidden_size))
        # Each member has a process of its own; one of them is counted as every stage's.
        more = (len(inside) - 1) * problem.model.stage_bytes
        room = max(0, len(inside) * min(rooms[one.pool_id] for one in inside) - more)
        pools.append(Pool(pool_id=group.group_id, room_bytes=room))
        members[group.group_id] = group.device_ids
    rules: list[AtMost] = []
    for name in sorted({name for inside in members.values() for name in inside}):
        rivals = sorted(group for group, inside in members.items() if name in inside)
        reason = f"the use of {name} alone or in one group"
        rules.append(AtMost(device_ids=(name, *rivals), count=1, reason=reason))
    grown = replace(
        problem,
        devices=(*problem.devices, *made),
        pools=(*problem.pools, *pools),
        rules=(*problem.rules, *rules),
    )
    return grown, members


def _virtual(group: TensorGroup, inside: Sequence[Device], *, batch: int, hidden_size: int) -> Device:
    slowest = max(inside, key=lambda one: one.layer_ns)
    wait_ns = waits_ns(group, batch=batch, hidden_size=hidden_size)
    count = len(inside)
    return replace(
        slowest,
        device_id=group.group_id,
        pool_id=group.group_id,
        layer_ns=max(1, -(-slowest.layer_ns // count) + wait_ns),
        overhead_ns=max(one.overhead_ns for one in inside),
        head_ns=-(-max(one.head_ns for one in inside) // count),
        is_required=False,
    )
