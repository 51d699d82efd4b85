"""The best layer counts for a ring whose devices and ends are given: the fastest are filled first.

Rooms of devices and of the pools that they share are nested limits, on which filling in the order of speed is
optimal (a polymatroid; Edmonds, "Submodular functions, matroids, and certain polyhedra", 1970).
"""

from collections.abc import Sequence

from exo.master.placement.ladder.field import Field


class Filler:
    """Layer counts for one field; keeps the arrays as lists, for it is asked thousands of times."""

    def __init__(self, of: Field) -> None:
        model = of.problem.model
        self._layer_count = of.layer_count
        self._layer_bytes = of.layer_bytes
        self._stage_bytes = model.stage_bytes
        self._first_extra = model.embedding_bytes
        self._last_extra = model.last_bytes - model.stage_bytes
        self._only_extra = model.only_bytes - model.stage_bytes
        self.layer_ns: list[int] = of.layer_ns.tolist()
        self._overhead: list[int] = of.overhead_ns.tolist()
        self._head: list[int] = of.head_ns.tolist()
        self._plain: list[int] = of.plain_layers.tolist()
        self._first: list[int] = of.first_layers.tolist()
        self._last: list[int] = of.last_layers.tolist()
        self._only: list[int] = of.only_layers.tolist()
        self._pool: list[int] = of.pool.tolist()
        self._room: list[int] = of.room_bytes.tolist()
        members = [0] * len(self._room)
        for pool in self._pool:
            members[pool] += 1
        self._is_shared = [members[pool] > 1 for pool in self._pool]

    def rank(self, used: Sequence[int]) -> list[int]:
        """Sort devices by speed, as `fill` wants them."""
        return sorted(used, key=lambda index: (self.layer_ns[index], index))

    def fill(self, ranked: Sequence[int], first: int, last: int) -> tuple[int, dict[int, int]] | None:
        """Return the stages' time in ns without hops, and the layers of each device; None where they do not fit."""
        left = self._layer_count - len(ranked)
        if left < 0:
            return None
        shared: dict[int, int] = {}
        total = self._head[last]
        layers: dict[int, int] = {}
        for index in ranked:
            if self._is_shared[index]:
                extra = (self._first_extra if index == first else 0) + (
                    self._last_extra if index == last else 0
                )
                pool = self._pool[index]
                rest = shared.get(pool, self._room[pool])
                shared[pool] = rest - extra - self._stage_bytes - self._layer_bytes
        for index in ranked:
            if index == first:
                most = self._only[index] if index == last else self._first[index]
            else:
                most = self._last[index] if index == last else self._plain[index]
            if most < 1:
                return None
            more = min(most - 1, left)
            if self._is_shared[index]:
                pool = self._pool[index]
                if shared[pool] < 0:
                    return None
                more = min(more, shared[pool] // self._layer_bytes)
                shared[pool] -= more * self._layer_bytes
            left -= more
            layers[index] = more + 1
            total += (more + 1) * self.layer_ns[index] + self._overhead[index]
        return None if left else (total, layers)

    def _extra(self, index: int, first: int, last: int) -> int:
        if index == first:
            return self._only_extra if index == last else self._first_extra
        return self._last_extra if index == last else 0
