"""Weighs all small changes of a ring at once, with the true sizes of its layers.

What the stages before a change take for the first layers, and those behind it for the rest, is known once for the
ring; so a change costs as many steps as it has devices that are not where they were. A step is the least over a window
of starts, found by doubling, for many rings together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT
from exo.master.placement.ladder.ring import link_matrices

FAR = 2**60
_PLAIN, _FIRST, _LAST = 0, 1, 2
_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True)
class Change:
    """A ring that keeps the first devices of another and those from a place on, with these in between."""

    kept_before: int
    between: tuple[int, ...]
    kept_from: int


@dataclass(frozen=True, slots=True)
class _Way:
    """Steps in one direction through the layers, by [part, device, layer]."""

    times: Integers
    """Time of the layers before each, by device."""
    least: Integers
    """The first start from which a stage may end here."""
    fixed: Integers


class RingMoves:
    """Changes of rings of one field. Memory that devices share counts as if each had all of it."""

    def __init__(self, of: Field) -> None:
        model = of.problem.model
        weights = np.array([layer.time_weight for layer in model.layers], dtype=np.int64)
        sizes = np.array([layer.size_bytes for layer in model.layers], dtype=np.int64)
        layer_ns = np.array([one.layer_ns for one in of.devices], dtype=np.int64)
        times = layer_ns[:, np.newaxis] * weights // AVERAGE_TIME_WEIGHT
        room = of.room_bytes[of.pool]
        held = (model.stage_bytes, model.first_bytes, model.last_bytes)
        self.weighed = 0
        """Rings that were weighed."""
        self._count = of.layer_count
        self._fixed = np.array([of.overhead_ns, of.overhead_ns, of.overhead_ns + of.head_ns])
        self._rooms = np.array([room - one for one in held])
        self._limit_ns = of.limit_ns
        self._onward = self._way(times, sizes)
        self._backward = self._way(times[:, ::-1], sizes[::-1])
        self._forward_ns, self._return_ns = link_matrices(of)
        lengths = np.arange(of.layer_count + 2)
        self._level = np.array([max(0, int(length).bit_length() - 1) for length in lengths])

    def _way(self, times: Integers, sizes: Integers) -> _Way:
        before: Integers = np.zeros(self._count + 1, dtype=np.int64)
        took: Integers = np.zeros((len(times), self._count + 1), dtype=np.int64)
        np.cumsum(sizes, out=before[1:])
        np.cumsum(times, axis=1, out=took[:, 1:])
        least = np.empty((3, len(times), self._count + 1), dtype=np.int64)
        for part in range(3):
            for device in range(len(times)):
                starts: Integers = np.searchsorted(
                    before, before - int(self._rooms[part, device]), side="left"
                )
                if self._limit_ns is not None:
                    longest = self._limit_ns - int(self._fixed[part, device])
                    passed: Integers = took[device]
                    by_time: Integers = np.searchsorted(passed, passed - longest, side="left")
                    starts = np.maximum(starts, by_time)
                least[part, device] = starts
        return _Way(took, least, self._fixed)

    def costs_ns(self, ring: Sequence[int], changes: Sequence[Change], *, hops_max_ns: int = FAR) -> Integers:
        """Return what each changed ring of several stages costs, its hops included.

        `FAR` where it does not fit, or has hops of more than `hops_max_ns`.
        """
        hops = self._hops_ns([changed(ring, one) for one in changes])
        costs = np.full(len(changes), FAR, dtype=np.int64)
        near: list[int] = np.flatnonzero(hops <= hops_max_ns).tolist()
        if not near:
            return costs
        before = self._tables(self._onward, ring, starts_first=True)
        behind = [table[::-1] for table in self._tables(self._backward, ring[::-1], starts_first=False)][::-1]
        order = sorted(near, key=lambda one: -len(changes[one].between))
        for first in range(0, len(order), _AT_ONCE):
            some = order[first : first + _AT_ONCE]
            costs[some] = self._stages_ns([changes[one] for one in some], before, behind, len(ring))
        self.weighed += len(near)
        return np.where(costs < FAR, costs + hops, FAR)

    def _hops_ns(self, rings: Sequence[tuple[int, ...]]) -> Integers:
        hops = np.zeros(len(rings), dtype=np.int64)
        by_length: dict[int, list[int]] = {}
        for one, ring in enumerate(rings):
            by_length.setdefault(len(ring), []).append(one)
        for some in by_length.values():
            orders = np.array([rings[one] for one in some])
            hops[some] = self._forward_ns[orders[:, :-1], orders[:, 1:]].sum(axis=1)
            hops[some] += self._return_ns[orders[:, -1], orders[:, 0]]
        return hops

    def _tables(self, way: _Way, ring: Sequence[int], *, starts_first: bool) -> list[Integers]:
        """Return the least time of the first i stages for the first layers, i from 0; the last stage is left out."""
        table = np.full((1, self._count + 1), FAR, dtype=np.int64)
        table[0, 0] = 0
        tables = [table[0]]
        for place, device in enumerate(ring[:-1]):
            part = _PLAIN if place else _FIRST if starts_first else _LAST
            table = self._step(way, table, np.array([device]), np.array([part]))
            tables.append(table[0])
        return tables

    def _stages_ns(
        self, changes: Sequence[Change], before: list[Integers], behind: list[Integers], size: int
    ) -> Integers:
        """Weigh changes, those with most devices first; `behind[i]` is of the stages from i + 1 on."""
        lengths = [len(one.between) for one in changes]
        table = np.array([before[one.kept_before] for one in changes])
        for step in range(max(lengths, default=0)):
            active = sum(1 for length in lengths if length > step)
            devices = np.array([one.between[step] for one in changes[:active]])
            parts = np.array(
                [
                    _FIRST
                    if one.kept_before + step == 0
                    else _LAST
                    if one.kept_from == size and step == len(one.between) - 1
                    else _PLAIN
                    for one in changes[:active]
                ]
            )
            table[:active] = self._step(self._onward, table[:active], devices, parts)
        rest = np.array([behind[one.kept_from - 1] for one in changes])
        return np.minimum(FAR, (table + rest).min(axis=1))

    def _step(self, way: _Way, table: Integers, devices: Integers, parts: Integers) -> Integers:
        """Add a stage to each row."""
        times = way.times[devices]
        least = way.least[parts, devices]
        ends = np.arange(self._count + 1)
        lengths = ends - least
        height = max(1, int(lengths.max(initial=1)).bit_length())
        # Least values of windows of 1, 2, 4 ... starts, by the first of them.
        stacked = np.empty((height, *table.shape), dtype=np.int64)
        np.subtract(table, times, out=stacked[0])
        for one in range(1, height):
            half = 1 << (one - 1)
            np.minimum(stacked[one - 1, :, :-half], stacked[one - 1, :, half:], out=stacked[one, :, :-half])
            stacked[one, :, -half:] = FAR
        level = self._level[np.maximum(lengths, 0)]
        rows = np.arange(len(table))[:, np.newaxis]
        found = np.minimum(
            stacked[level, rows, np.minimum(least, self._count)],
            stacked[level, rows, np.maximum(ends - (1 << level), 0)],
        )
        found += times + way.fixed[parts, devices][:, np.newaxis]
        found[(lengths < 1) | (found > FAR // 2)] = FAR
        return found


def changed(ring: Sequence[int], change: Change) -> tuple[int, ...]:
    """Return the ring that a change makes."""
    return (*ring[: change.kept_before], *change.between, *ring[change.kept_from :])


def joined(ring: Sequence[int], changes: Sequence[Change]) -> list[tuple[int, ...]]:
    """Return rings with several changes that do not touch each other, the first ones preferred: all, and half."""
    taken: list[Change] = []
    for one in changes:
        new = set(one.between) - set(ring)
        if all(
            (one.kept_from <= other.kept_before or other.kept_from <= one.kept_before)
            and not new & set(other.between)
            for other in taken
        ):
            taken.append(one)
    rings: list[tuple[int, ...]] = []
    for count in dict.fromkeys((len(taken), len(taken) // 2)):
        if count > 1:
            at = tuple(ring)
            for one in sorted(taken[:count], key=lambda change: (-change.kept_before, -change.kept_from)):
                at = changed(at, one)
            rings.append(at)
    return rings


def changes_of(ring: Sequence[int], absent: Sequence[int], *, span_max: int) -> list[Change]:
    """Return all rings that drop, exchange or add a device, or swap or move some over at most so many places."""
    size = len(ring)
    found: list[Change] = []

    def add(begin: int, between: tuple[int, ...], end: int) -> None:
        """The devices from `begin` up to `end` make place for others; ends of the ring are always weighed anew."""
        if begin == 0 and not between and end < size:
            between, end = (ring[end],), end + 1
        elif end == size and not between and begin:
            begin, between = begin - 1, (ring[begin - 1],)
        if begin == 0 and end == 0:
            between, end = (*between, ring[0]), 1
        if begin == size:
            begin, between = size - 1, (ring[-1], *between)
        if begin + len(between) + size - end > 1:
            found.append(Change(begin, between, end))

    for place in range(size):
        add(place, (), place + 1)
        for device in absent:
            add(place, (device,), place + 1)
    for place in range(size + 1):
        for device in absent:
            add(place, (device,), place)
    for one in range(size):
        for other in range(one + 1, min(size, one + span_max + 1)):
            inner = tuple(ring[one + 1 : other])
            add(one, (ring[other], *inner, ring[one]), other + 1)
            if inner:
                add(one, (*inner, ring[other], ring[one]), other + 1)
                add(one, (ring[other], ring[one], *inner), other + 1)
            if len(inner) > 1:
                add(one, (ring[other], *inner[::-1], ring[one]), other + 1)
    return found
