"""Chooses devices for tensor, pipeline and hybrid parallelism. Pure.

Of all ways to form the groups it takes one that uses the fewest degraded devices; of those, one whose smallest device
is the roomiest, since that is what limits an even split; of those, one with the most room in all, where a tensor group
is as roomy as its smallest member; of those, one with the fewest kinds of devices, and the lowest numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from exo.gpu.numbering import with_numbers
from exo.shared.types.devices import DeviceGPUState, GPUDevice, Health
from exo.shared.types.ids import DeviceId

ROOM_STEP_BYTES = 256 * 1024**2
"""Smaller differences of free memory are no reason to tear neighbours apart."""
_NAMED_MAX = 8
_GIB = 1024**3


class Parallelism(msgspec.Struct, frozen=True, order=True):
    """How a model is spread: `pipeline` stages, each on `tensor` devices that share every layer."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def device_count(self) -> int:
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        if self.tensor == 1:
            return f"{self.pipeline} GPU{'' if self.pipeline == 1 else 's'} in a pipeline"
        tensor = f"{self.tensor} GPUs in tensor parallel"
        return tensor if self.pipeline == 1 else f"{self.pipeline} stages of {tensor}"


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes.

    Attributes:
        memory_bytes: Of all its devices together; 0: not known.
        is_mixed_allowed: Its engine runs stages on different kinds of devices.
    """

    memory_bytes: int = 0
    is_mixed_allowed: bool = True


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A device that may be chosen.

    Attributes:
        index: Its number within the node.
        kind: Devices of one tensor group are of one kind: vendor and backend.
        memory_free_bytes: None: unknown. Such a device is taken last, and not at all where room is asked for.
        memory_total_bytes: What all who share it can be promised; None: unknown.
        obstacle: Why it cannot be used now, for people; None: it can.
    """

    index: int
    name: str
    kind: str
    memory_free_bytes: int | None
    memory_total_bytes: int | None = None
    health: Health = "healthy"
    obstacle: str | None = None


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """Devices by stage. `rooms_bytes` is what each stage can hold when its devices share it evenly."""

    groups: tuple[tuple[int, ...], ...]
    rooms_bytes: tuple[int, ...]


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """There are too few devices; `message` says what was wanted, what there is and why the rest cannot be used."""

    message: str
    wanted_count: int
    usable_count: int


class _Kind(NamedTuple):
    """The devices of one kind that may be chosen, each list roomiest first."""

    name: str
    healthy: list[Candidate]
    degraded: list[Candidate]


class _Score(NamedTuple):
    """Of groups taken so far; the smaller the better. Every part of it adds up over kinds."""

    degraded_count: int
    room: int
    """Negative."""
    kind_count: int


def candidates_of(
    devices: Sequence[GPUDevice],
    states: Mapping[DeviceId, DeviceGPUState],
    obstacles: Mapping[int, str] | None = None,
) -> list[Candidate]:
    """Return a node's GPUs as candidates, by their numbers. Its processor is none.

    Args:
        devices: All of the node's devices.
        states: Their last telemetry.
        obstacles: By number, why a device cannot be used.
    """
    return [
        _candidate(index, device, states.get(device.device_id), (obstacles or {}).get(index))
        for index, device in with_numbers(device for device in devices if device.backend != "cpu")
    ]


def _candidate(
    index: int, device: GPUDevice, state: DeviceGPUState | None, obstacle: str | None
) -> Candidate:
    if obstacle is None and state is not None and state.health == "failed":
        obstacle = f"it has failed: {state.health_reason or 'no reason known'}"
    return Candidate(
        index=index,
        name=device.local_alias,
        kind=f"{device.vendor} {device.backend}",
        memory_free_bytes=state.memory_free_bytes if state is not None else None,
        memory_total_bytes=device.memory_total_bytes,
        health=state.health if state is not None else "healthy",
        obstacle=obstacle,
    )


def choose(
    candidates: Sequence[Candidate],
    wanted: Parallelism,
    *,
    memory_bytes: int = 0,
    is_mixed_allowed: bool = True,
) -> Allocation | Shortage:
    """Choose devices, or say why that cannot be.

    Args:
        candidates: What there is.
        wanted: How many, and how they work together.
        memory_bytes: What each device must have free.
        is_mixed_allowed: Stages may be of different kinds; most engines cannot do that.

    Raises:
        ValueError: Less than one device is wanted.
    """
    if wanted.tensor < 1 or wanted.pipeline < 1:
        raise ValueError(f"tensor={wanted.tensor} and pipeline={wanted.pipeline} must both be 1 or more")
    usable = [one for one in candidates if obstacle_of(one, memory_bytes) is None]
    chosen = [one for kinds in _ways(usable, is_mixed_allowed) for one in _best(kinds, wanted)]
    if not chosen:
        return _shortage(candidates, wanted, memory_bytes, is_mixed_allowed)
    groups, _ = min(chosen, key=lambda one: one[1])
    return arranged(groups)


def arranged(groups: Sequence[Sequence[Candidate]]) -> Allocation:
    """Return groups in the order of their numbers."""
    ordered = sorted(sorted(one.index for one in group) for group in groups)
    rooms = {min(one.index for one in group): _group_room_bytes(group) for group in groups}
    return Allocation(
        groups=tuple(tuple(group) for group in ordered),
        rooms_bytes=tuple(rooms[group[0]] for group in ordered),
    )


def obstacle_of(one: Candidate, memory_bytes: int) -> str | None:
    """Return why a device cannot be chosen, for people; None: it can."""
    if one.obstacle is not None:
        return one.obstacle
    if one.health == "failed":
        return "it has failed"
    if memory_bytes > 0 and one.memory_free_bytes is None:
        return "how much memory it has free is not known"
    if one.memory_free_bytes is not None and one.memory_free_bytes < memory_bytes:
        return f"it has {_gib(one.memory_free_bytes)} free, {_gib(memory_bytes)} are needed"
    return None


def preference(one: Candidate) -> tuple[bool, int, int]:
    """Return a key that sorts the better device first: healthy, then roomy, then its number."""
    return one.health != "healthy", -_room(one), one.index


# --- choosing --------------------------------------------------------------------------------------------------------

_Taken = tuple[_Score, list[list[Candidate]]]
_Chosen = tuple[list[list[Candidate]], tuple[int, int, int, int, list[int]]]


def _ways(usable: Sequence[Candidate], is_mixed_allowed: bool) -> list[list[_Kind]]:
    """Return the devices by kind: all kinds together, or each alone."""
    ordered = sorted(usable, key=preference)
    kinds: list[_Kind] = []
    for name in sorted({one.kind for one in ordered}):
        own = [one for one in ordered if one.kind == name]
        healthy = [one for one in own if one.health == "healthy"]
        kinds.append(_Kind(name, healthy, [one for one in own if one.health != "healthy"]))
    return [kinds] if is_mixed_allowed else [[kind] for kind in kinds]


def _best(kinds: Sequence[_Kind], wanted: Parallelism) -> list[_Chosen]:
    """Return the best groups of these devices with their score, or nothing where there are too few."""
    fewest = _degraded_min(kinds, wanted)
    if fewest is None:
        return []
    rooms = sorted({_room(one) for kind in kinds for one in (*kind.healthy, *kind.degraded)})
    # The more room every device has to have, the more degraded ones it takes: look for the last that takes no more.
    low, high = 0, len(rooms) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _degraded_min(_roomy(kinds, rooms[middle]), wanted) == fewest:
            low = middle
        else:
            high = middle - 1
    groups, score = _spread(_roomy(kinds, rooms[low]), wanted)
    key = (score.degraded_count, -rooms[low], score.room, score.kind_count, _numbers(groups))
    return [(groups, key)]


def _roomy(kinds: Sequence[_Kind], room: int) -> list[_Kind]:
    return [
        _Kind(
            kind.name,
            [one for one in kind.healthy if _room(one) >= room],
            [one for one in kind.degraded if _room(one) >= room],
        )
        for kind in kinds
    ]


def _degraded_min(kinds: Sequence[_Kind], wanted: Parallelism) -> int | None:
    """Return how few degraded devices the groups can do with; None: there are too few devices at all."""
    # Every further group of a kind takes as many as the one before it, or more: the cheapest ones are the best.
    costs = sorted(
        min(wanted.tensor, max(0, wanted.tensor * (count + 1) - len(kind.healthy)))
        for kind in kinds
        for count in range((len(kind.healthy) + len(kind.degraded)) // wanted.tensor)
    )
    return sum(costs[: wanted.pipeline]) if len(costs) >= wanted.pipeline else None


def _spread(kinds: Sequence[_Kind], wanted: Parallelism) -> tuple[list[list[Candidate]], _Score]:
    """Return the best number of groups for each kind, and the groups: dynamic programming over kinds."""
    best: dict[int, _Taken] = {0: (_Score(0, 0, 0), [])}
    for kind in kinds:
        grown = dict(best)
        count_max = min(wanted.pipeline, (len(kind.healthy) + len(kind.degraded)) // wanted.tensor)
        for count in range(1, count_max + 1):
            own = _groups(kind, wanted.tensor, count)
            room = sum(min(_room(one) for one in group) for group in own)
            degraded_count = sum(one.health != "healthy" for group in own for one in group)
            for before, (score, groups) in best.items():
                total = before + count
                if total > wanted.pipeline:
                    continue
                now = _Score(score.degraded_count + degraded_count, score.room - room, score.kind_count + 1)
                offer = now, [*groups, *own]
                if total not in grown or _is_better(offer, grown[total]):
                    grown[total] = offer
        best = grown
    score, groups = best[wanted.pipeline]
    return groups, score


def _is_better(one: _Taken, other: _Taken) -> bool:
    return one[0] < other[0] or (one[0] == other[0] and _numbers(one[1]) < _numbers(other[1]))


def _numbers(groups: Sequence[Sequence[Candidate]]) -> list[int]:
    return sorted(one.index for group in groups for one in group)


def _groups(kind: _Kind, tensor: int, count: int) -> list[list[Candidate]]:
    """Return so many groups of one kind: the best devices, neighbours in room together."""
    needed = tensor * count
    taken = [*kind.healthy[:needed], *kind.degraded[: max(0, needed - len(kind.healthy))]]
    taken.sort(key=lambda one: (-_room(one), one.index))
    return [taken[start : start + tensor] for start in range(0, needed, tensor)]


def _room(one: Candidate) -> int:
    return 0 if one.memory_free_bytes is None else max(0, one.memory_free_bytes) // ROOM_STEP_BYTES


def _group_room_bytes(group: Sequence[Candidate]) -> int:
    return len(group) * min(one.memory_free_bytes or 0 for one in group)


# --- refusing --------------------------------------------------------------------------------------------------------


def _shortage(
    candidates: Sequence[Candidate], wanted: Parallelism, memory_bytes: int, is_mixed_allowed: bool
) -> Shortage:
    obstacles = {one.index: obstacle_of(one, memory_bytes) for one in candidates}
    usable = [one for one in candidates if obstacles[one.index] is None]
    message = f"{wanted} wanted"
    if not candidates:
        return Shortage(
            message=f"{message}, and this node has no GPU; `exo doctor` says what is missing",
            wanted_count=wanted.device_count,
            usable_count=0,
        )
    if len(usable) < wanted.device_count:
        message += f": {wanted.device_count} in all, and {len(usable)} of {len(candidates)} can be used"
    else:
        whose = "all" if not is_mixed_allowed else f"each {wanted.tensor} in tensor parallel"
        counts = ", ".join(
            f"{sum(one.kind == kind for one in usable)} of {kind}"
            for kind in sorted({one.kind for one in usable})
        )
        message += f", {whose} of one kind, and there are {counts}"
    refused = [
        f"{one.name}: {obstacles[one.index]}" for one in candidates if obstacles[one.index] is not None
    ]
    more = len(refused) - _NAMED_MAX
    if refused:
        message += f" ({'; '.join(refused[:_NAMED_MAX])}{f'; and {more} more' if more > 0 else ''})"
    return Shortage(
        message=f"{message}; ask for less parallelism, or free GPUs first",
        wanted_count=wanted.device_count,
        usable_count=len(usable),
    )


def _gib(size_bytes: int) -> str:
    return f"{math.floor(10 * size_bytes / _GIB) / 10:.1f} GiB"
