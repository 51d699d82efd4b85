"""Splits unequal layers over a ring with their true sizes: a programme over prefixes of the layers.

The least time in which the first i stages run the first j layers follows from that of one stage less; which starts
a stage may have for an end is a window that only moves forward, so its least value is kept in a queue.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate

from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT

_FAR = 2**60
_SHARINGS_MAX = 3
Hops = Callable[[Sequence[int]], int]
"""What the hops of a ring cost, the way back included."""


class PrefixProgramme:
    """Splits for one field; its rings are begun where they are told to begin."""

    def __init__(self, of: Field) -> None:
        model = of.problem.model
        self._of = of
        self._sizes = [0, *accumulate(layer.size_bytes for layer in model.layers)]
        self._weights = [layer.time_weight for layer in model.layers]
        self._rooms: list[int] = of.room_bytes.tolist()
        self._pools: list[int] = of.pool.tolist()
        self._times: dict[int, list[int]] = {}
        self._held = (model.stage_bytes, model.first_bytes, model.last_bytes, model.only_bytes)

    def split(self, ring: Sequence[int]) -> tuple[int, list[int]] | None:
        """Return the least time of the stages, hops left out, and the layers of each; None where they do not fit.

        Devices of one pool that would overfill it share its room in proportion to what they took, or else in the
        best of some other proportions.
        """
        if not self.is_roomy(ring):
            return None
        rooms = [self._rooms[self._pools[index]] for index in ring]
        found: tuple[int, list[int]] | None = None
        for _ in range(_SHARINGS_MAX):
            found = self._split(ring, rooms)
            if found is None:
                break
            taken = self._taken(found[1])
            overfull = self._overfull(ring, taken)
            if not overfull:
                return found
            for pool, places in overfull.items():
                whole = sum(taken[place] for place in places)
                for place in places:
                    rooms[place] = self._rooms[pool] * taken[place] // whole
        return self._split_shares(ring)

    def is_roomy(self, ring: Sequence[int]) -> bool:
        """Say whether all pools together hold the layers, whichever way they are cut."""
        room = sum(self._rooms[pool] for pool in {self._pools[index] for index in ring})
        held = self._held[3] if len(ring) == 1 else self._held[1] + self._held[2]
        return self._sizes[-1] + held + max(0, len(ring) - 2) * self._held[0] <= room

    def _overfull(self, ring: Sequence[int], taken: Sequence[int]) -> dict[int, list[int]]:
        """Return the pools that hold too much, with the places in the ring that take from them."""
        pools: dict[int, list[int]] = {}
        for place, index in enumerate(ring):
            pools.setdefault(self._pools[index], []).append(place)
        return {
            pool: places
            for pool, places in pools.items()
            if sum(taken[place] for place in places) > self._rooms[pool]
        }

    def _split_shares(self, ring: Sequence[int]) -> tuple[int, list[int]] | None:
        """Give the first device of each shared pool some sixteenths of it, and the others like parts of the rest."""
        places: dict[int, list[int]] = {}
        for place, index in enumerate(ring):
            places.setdefault(self._pools[index], []).append(place)
        if all(len(sharers) == 1 for sharers in places.values()):
            return None
        best: tuple[int, list[int]] | None = None
        for sixteenths in range(1, 16):
            rooms = [self._rooms[self._pools[index]] for index in ring]
            for pool, sharers in places.items():
                if len(sharers) > 1:
                    rooms[sharers[0]] = self._rooms[pool] * sixteenths // 16
                    for place in sharers[1:]:
                        rooms[place] = (self._rooms[pool] - rooms[sharers[0]]) // (len(sharers) - 1)
            found = self._split(ring, rooms)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best

    def _taken(self, counts: Sequence[int]) -> list[int]:
        ends = list(accumulate(counts))
        return [
            self._sizes[end] - self._sizes[end - count] + self._held_at(place, len(counts))
            for place, (end, count) in enumerate(zip(ends, counts, strict=True))
        ]

    def _held_at(self, place: int, stages: int) -> int:
        if stages == 1:
            return self._held[3]
        return self._held[1] if place == 0 else self._held[2] if place == stages - 1 else self._held[0]

    def _time_of(self, index: int) -> list[int]:
        """Time of the layers before each on a device."""
        if index not in self._times:
            layer_ns = self._of.devices[index].layer_ns
            self._times[index] = [
                0,
                *accumulate(layer_ns * weight // AVERAGE_TIME_WEIGHT for weight in self._weights),
            ]
        return self._times[index]

    def _split(self, ring: Sequence[int], rooms: Sequence[int]) -> tuple[int, list[int]] | None:
        count, stages = self._of.layer_count, len(ring)
        if not 1 <= stages <= count:
            return None
        least = [0] + [_FAR] * count
        starts: list[list[int]] = []
        sizes = self._sizes
        for place, index in enumerate(ring):
            room = rooms[place] - self._held_at(place, stages)
            fixed = int(self._of.overhead_ns[index]) + (
                int(self._of.head_ns[index]) if place == stages - 1 else 0
            )
            longest = _FAR if self._of.limit_ns is None else self._of.limit_ns - fixed
            times = self._time_of(index)
            reached = [_FAR] * (count + 1)
            begun = [-1] * (count + 1)
            window: deque[int] = deque()
            for end in range(place + 1, count + 1):
                start = end - 1
                if least[start] < _FAR:
                    value = least[start] - times[start]
                    while window and least[window[-1]] - times[window[-1]] > value:
                        window.pop()
                    window.append(start)
                while window and (
                    sizes[end] - sizes[window[0]] > room or times[end] - times[window[0]] > longest
                ):
                    window.popleft()
                if window:
                    begin = window[0]
                    reached[end] = least[begin] - times[begin] + times[end] + fixed
                    begun[end] = begin
            least = reached
            starts.append(begun)
        if least[count] >= _FAR:
            return None
        counts: list[int] = []
        end = count
        for begun in reversed(starts):
            counts.append(end - begun[end])
            end = begun[end]
        return least[count], counts[::-1]

    def reach(self, start: int, index: int, *, is_first: bool) -> int:
        """Return how far a device gets from a start, as a first or a middle stage."""
        room = self._rooms[self._pools[index]] - self._held[1 if is_first else 0]
        fixed = int(self._of.overhead_ns[index])
        longest = _FAR if self._of.limit_ns is None else self._of.limit_ns - fixed
        end = bisect_right(self._sizes, self._sizes[start] + room) - 1 if room >= 0 else start
        if longest < _FAR:
            times = self._time_of(index)
            end = min(end, bisect_right(times, times[start] + longest) - 1 if longest >= 0 else start)
        return max(start, end)

    def reaches_end(self, start: int, index: int, *, is_first: bool) -> bool:
        """Say whether a device holds all layers from a start, and the head."""
        room = self._rooms[self._pools[index]] - self._held[3 if is_first else 2]
        fixed = int(self._of.overhead_ns[index] + self._of.head_ns[index])
        longest = _FAR if self._of.limit_ns is None else self._of.limit_ns - fixed
        times, sizes = self._time_of(index), self._sizes
        return (
            start < self._of.layer_count
            and sizes[-1] - sizes[start] <= room
            and times[-1] - times[start] <= longest
        )
