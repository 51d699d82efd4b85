"""Weighs rings on any links: hops by matrix, layers by filling, and the best place to begin."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.water import Filled

_FAR = 2**60


class RingScale:
    """Weighs closed rings. Fillings are remembered, for most moves of a search change only the order."""

    def __init__(self, of: Field, forward_ns: Integers, return_ns: Integers) -> None:
        self.filler = Filler(of)
        self._forward_ns = forward_ns
        self._saved_ns = return_ns - forward_ns
        self._rank = np.lexsort((np.arange(of.size), of.layer_ns))
        self._place_in_rank = np.empty_like(self._rank)
        self._place_in_rank[self._rank] = np.arange(of.size)
        self._ranked_layer_ns = of.layer_ns[self._rank]
        self._ranked_stage_ns = (of.overhead_ns + of.layer_ns)[self._rank]
        self._ranked_more = of.most_layers[self._rank] - 1
        self.forward: list[list[int]] = forward_ns.tolist()
        self.back: list[list[int]] = return_ns.tolist()
        self.weighed = 0
        """Rings that were weighed."""
        self._filled: dict[tuple[tuple[int, ...], int, int], tuple[int, dict[int, int]] | None] = {}
        self._floors: dict[tuple[int, ...], int | None] = {}
        self._least_head = int(of.head_ns.min(initial=0))
        self._stage_ns: list[int] = (of.overhead_ns + of.layer_ns).tolist()
        self._layer_ns: list[int] = of.layer_ns.tolist()
        self._most: list[int] = of.most_layers.tolist()
        self._layer_count = of.layer_count

    def floor_ns(self, used: tuple[int, ...]) -> int | None:
        """Return a bound on the stages' time of the used devices (sorted); None where they cannot hold the model."""
        if used in self._floors:
            return self._floors[used]
        left = self._layer_count - len(used)
        total = self._least_head
        for index in self.filler.rank(used):
            more = min(left, self._most[index] - 1)
            left -= more
            total += self._stage_ns[index] + more * self._layer_ns[index]
        found = None if left else total
        self._floors[used] = found
        return found

    def floors_ns(self, sets: Integers) -> Integers:
        """Return `floor_ns` of many sets at once, one per row; far beyond any cost where they cannot hold the model."""
        ranked = np.sort(self._place_in_rank[sets], axis=1)
        more = self._ranked_more[ranked]
        left = self._layer_count - sets.shape[1]
        before = np.cumsum(more, axis=1) - more
        taken = np.minimum(np.maximum(left - before, 0), more)
        total = (taken * self._ranked_layer_ns[ranked]).sum(axis=1) + self._ranked_stage_ns[ranked].sum(
            axis=1
        )
        return np.where((left >= 0) & (taken.sum(axis=1) == left), total + self._least_head, _FAR)

    def least_hops_ns(self, orders: Integers) -> Integers:
        """Return the hops of many rings of one length, each begun where its hops cost least."""
        targets = np.roll(orders, -1, axis=1)
        return self._forward_ns[orders, targets].sum(axis=1) + self._saved_ns[orders, targets].min(axis=1)

    def closed_ns(self, ring: Sequence[int]) -> int:
        """Return the forward cost all the way round."""
        forward = self.forward
        total = forward[ring[-1]][ring[0]]
        for source, target in pairwise(ring):
            total += forward[source][target]
        return total

    def fill(self, used: tuple[int, ...], first: int, last: int) -> tuple[int, dict[int, int]] | None:
        """Fill the used devices (sorted), remembering the answer."""
        key = (used, first, last)
        if key not in self._filled:
            self._filled[key] = self.filler.fill(self.filler.rank(used), first, last)
        return self._filled[key]

    def weigh(self, ring: Sequence[int], limit_ns: int) -> Filled | None:
        """Return the ring begun where it costs least, or None where it costs `limit_ns` or more."""
        self.weighed += 1
        used = tuple(sorted(ring))
        floor = self.floor_ns(used)
        if floor is None:
            return None
        closed = self.closed_ns(ring)
        forward, back = self.forward, self.back
        starts = sorted(
            (
                closed
                - forward[ring[position - 1]][ring[position]]
                + back[ring[position - 1]][ring[position]],
                position,
            )
            for position in range(len(ring))
        )
        best: tuple[int, int, dict[int, int]] | None = None
        for hops, position in starts:
            if hops + floor >= limit_ns:
                break
            filled = self.fill(used, ring[position], ring[position - 1])
            if filled is not None and filled[0] + hops < limit_ns:
                limit_ns = filled[0] + hops
                best = (limit_ns, position, filled[1])
        if best is None:
            return None
        cost, position, layers = best
        turned = (*ring[position:], *ring[:position])
        return Filled(cost, turned, tuple(layers[index] for index in turned))
