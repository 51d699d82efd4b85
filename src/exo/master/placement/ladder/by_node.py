"""Hops that were measured between nodes: kept once for all pairs of their devices, and looked up by these.

A thousand devices have a million pairs, and a hundred nodes of ten devices the same million of ten thousand values.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import msgspec
import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class LinkCost(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a hop costs per step: activations forward, and the sampled token back to the first stage."""

    forward_ns: int
    return_ns: int


class MeasuredLink(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A hop between two devices that was measured; it takes the place of its class's cost, in this direction."""

    source_device_id: str
    target_device_id: str
    cost: LinkCost


@dataclass(frozen=True, slots=True, eq=False)
class NodePairs:
    """Ordered pairs of nodes by their numbers, sorted; none is there twice, and none is of a node with itself."""

    devices: tuple[tuple[str, ...], ...]
    """The devices of each node, by the node's number; each device is of one node."""
    sources: Integers
    targets: Integers
    number_of: dict[str, int] = field(init=False)
    """The number of each device's node."""
    _keys: Integers = field(init=False)
    _ends: Integers = field(init=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, inside in enumerate(self.devices) for name in inside}
        sizes = np.array([len(inside) for inside in self.devices], dtype=np.int64)
        object.__setattr__(self, "number_of", numbers)
        object.__setattr__(self, "_keys", self.sources * len(self.devices) + self.targets)
        object.__setattr__(self, "_ends", np.cumsum(sizes[self.sources] * sizes[self.targets]))

    @property
    def device_pair_count(self) -> int:
        """How many pairs of devices these are."""
        return int(self._ends[-1]) if self._ends.size else 0

    def row(self, source_id: str, target_id: str) -> int | None:
        """Return the row of two devices' nodes; None where there is none."""
        source, target = self.number_of.get(source_id), self.number_of.get(target_id)
        if source is None or target is None:
            return None
        key = source * len(self.devices) + target
        row = bisect_left(self._keys, key)
        return row if row < len(self._keys) and int(self._keys[row]) == key else None

    def device_pairs(self, rows: Sequence[int] | None = None) -> Iterator[tuple[int, str, str]]:
        """Yield the pairs of devices of some rows, or all, each with its row."""
        for row in range(len(self._keys)) if rows is None else rows:
            source, target = self.devices[int(self.sources[row])], self.devices[int(self.targets[row])]
            for one in source:
                for other in target:
                    yield row, one, other

    def device_pair(self, place: int) -> tuple[int, str, str]:
        """Return the pair of devices at a place among them all, with its row."""
        row = bisect_right(self._ends, place)
        source, target = self.devices[int(self.sources[row])], self.devices[int(self.targets[row])]
        within = place - (int(self._ends[row - 1]) if row else 0)
        return row, source[within // len(target)], target[within % len(target)]

    def only(self, kept: Collection[str]) -> tuple["NodePairs", Integers]:
        """Return the pairs that are left with only these devices, and the rows that they were."""
        devices = tuple(tuple(name for name in inside if name in kept) for inside in self.devices)
        if devices == self.devices:
            return self, np.arange(len(self._keys))
        is_there = np.array([bool(inside) for inside in devices], dtype=np.bool_)
        rows = np.flatnonzero(is_there[self.sources] & is_there[self.targets])
        return replace(self, devices=devices, sources=self.sources[rows], targets=self.targets[rows]), rows

    def at(self, rows: Integers | Flags) -> "NodePairs":
        """Return only these rows, given in order."""
        return replace(self, sources=self.sources[rows], targets=self.targets[rows])


@dataclass(frozen=True, slots=True, eq=False)
class NodeLinks(Sequence[MeasuredLink]):
    """What hops between nodes cost, as a sequence of links between their devices."""

    pairs: NodePairs
    forward_ns: Integers
    return_ns: Integers

    @classmethod
    def of(cls, links: Sequence[MeasuredLink]) -> "NodeLinks":
        """Return the same with each device as a node of its own; of several between two devices the last counts."""
        if isinstance(links, NodeLinks):
            return links
        costs = {(one.source_device_id, one.target_device_id): one.cost for one in links}
        told = sorted(pair for pair in costs if pair[0] != pair[1])
        names = sorted({name for pair in told for name in pair})
        number = {name: place for place, name in enumerate(names)}
        pairs = NodePairs(
            devices=tuple((name,) for name in names),
            sources=np.array([number[source] for source, _ in told], dtype=np.int64),
            targets=np.array([number[target] for _, target in told], dtype=np.int64),
        )
        return cls(
            pairs,
            np.array([costs[pair].forward_ns for pair in told], dtype=np.int64),
            np.array([costs[pair].return_ns for pair in told], dtype=np.int64),
        )

    @overload
    def __getitem__(self, index: int) -> MeasuredLink: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[MeasuredLink]: ...
    def __getitem__(self, index: int | slice) -> MeasuredLink | Sequence[MeasuredLink]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"link {index} of {len(self)}")
        return self._link(*self.pairs.device_pair(place))

    def __iter__(self) -> Iterator[MeasuredLink]:
        return (self._link(*one) for one in self.pairs.device_pairs())

    def __len__(self) -> int:
        return self.pairs.device_pair_count

    def __eq__(self, other: object) -> bool:
        """Say whether both are the same links, whichever way they are kept."""
        return isinstance(other, NodeLinks) and len(self) == len(other) and set(self) == set(other)

    def __hash__(self) -> int:
        return hash(len(self))

    def cost(self, source_id: str, target_id: str) -> LinkCost | None:
        """Return what a hop between two devices costs; None: it was not measured."""
        row = self.pairs.row(source_id, target_id)
        return None if row is None else self._cost(row)

    def nearest_ns(self) -> dict[str, int]:
        """Return the least that a hop from each device costs forward."""
        if not self.forward_ns.size:
            return {}
        unique, firsts = np.unique(self.pairs.sources, return_index=True)
        numbers: list[int] = unique.tolist()
        least: list[int] = np.minimum.reduceat(self.forward_ns, firsts).tolist()
        return {
            name: cost
            for number, cost in zip(numbers, least, strict=True)
            for name in self.pairs.devices[number]
        }

    def is_within(self, device_ids: Collection[str], time_ns_max: int) -> bool:
        """Say whether all are between these devices, and cost neither less than nothing nor more than that."""
        costs = (self.forward_ns, self.return_ns)
        return self.pairs.number_of.keys() <= set(device_ids) and all(
            int(one.min(initial=0)) >= 0 and int(one.max(initial=0)) <= time_ns_max for one in costs
        )

    def _link(self, row: int, source_id: str, target_id: str) -> MeasuredLink:
        return MeasuredLink(source_device_id=source_id, target_device_id=target_id, cost=self._cost(row))

    def _cost(self, row: int) -> LinkCost:
        return LinkCost(forward_ns=int(self.forward_ns[row]), return_ns=int(self.return_ns[row]))
