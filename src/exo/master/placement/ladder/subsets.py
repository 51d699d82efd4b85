"""Every subset of a few devices in its best order: exact on any links, for about a dozen of them.

Shortest paths through all subsets by dynamic programming (Held and Karp, "A dynamic programming approach to
sequencing problems", 1962).
"""

from collections.abc import Callable, Sequence

import numpy as np

from exo.master.placement.ladder.field import Integers
from exo.master.placement.ladder.rings import RingScale
from exo.master.placement.ladder.water import Filled

SUBSETS_OF_MAX = 12
_FAR = 2**60


def best_of_subsets(
    scale: RingScale,
    forward_ns: Integers,
    return_ns: Integers,
    *,
    required: frozenset[int],
    min_stages: int,
    most_stages: int,
    below_ns: int,
    should_stop: Callable[[], bool],
    allows: Callable[[Sequence[int]], bool] | None = None,
) -> tuple[Filled | None, bool]:
    """Return the best ring that costs less than `below_ns`, if any, and whether all subsets were weighed.

    `allows` says which sets may be; without it all may.
    """
    size = len(forward_ns)
    needed = sum(1 << index for index in required)
    candidates: list[tuple[int, int, tuple[int, ...]]] = []
    least_in = np.where(np.eye(size, dtype=np.bool_), _FAR, forward_ns).min(axis=0).tolist()
    saving = int((forward_ns - return_ns).max(initial=0))
    for mask in range(1 << size):
        if mask & needed != needed or not max(2, min_stages) <= mask.bit_count() <= most_stages:
            continue
        used = tuple(index for index in range(size) if mask >> index & 1)
        if allows is not None and not allows(used):
            continue
        floor = scale.floor_ns(used)
        if floor is not None and floor + sum(least_in[index] for index in used) - saving < below_ns:
            candidates.append((floor, mask, used))
    best: Filled | None = None
    if not candidates:
        return None, True
    paths = _paths(forward_ns, max(len(used) for _, _, used in candidates))
    back = return_ns.T
    for floor, mask, used in sorted(candidates):
        if should_stop():
            return best, False
        hops = paths[:, mask, :] + back
        order = np.argsort(hops, axis=None, kind="stable").tolist()
        for flat in order:
            first, last = divmod(flat, size)
            cost = int(hops[first, last])
            if cost + floor >= below_ns:
                break
            filled = scale.fill(used, first, last)
            scale.weighed += 1
            if filled is not None and filled[0] + cost < below_ns:
                below_ns = filled[0] + cost
                ring = _walk_back(paths, forward_ns, mask, first, last)
                best = Filled(below_ns, ring, tuple(filled[1][index] for index in ring))
    return best, True


def _paths(forward_ns: Integers, longest: int) -> Integers:
    """Return the shortest way [first, subset, last] through every device of each subset, up to `longest` of them."""
    size = len(forward_ns)
    masks = np.arange(1 << size)
    counts = np.array([mask.bit_count() for mask in range(1 << size)])
    paths = np.full((size, 1 << size, size), _FAR, dtype=np.int64)
    for index in range(size):
        paths[index, 1 << index, index] = 0
    for count in range(1, longest):
        for target in range(size):
            sources = masks[(counts == count) & (masks >> target & 1 == 0)]
            if sources.size:
                reached = (paths[:, sources, :] + forward_ns[:, target]).min(axis=2)
                paths[:, sources | 1 << target, target] = np.minimum(reached, _FAR)
    return paths


def _walk_back(paths: Integers, forward_ns: Integers, mask: int, first: int, last: int) -> tuple[int, ...]:
    ring = [last]
    while ring[-1] != first or mask.bit_count() > 1:
        target = ring[-1]
        rest = mask & ~(1 << target)
        ways = paths[first, rest, :] + forward_ns[:, target]
        ring.append(int(np.argmin(ways)))
        mask = rest
    return tuple(reversed(ring))
