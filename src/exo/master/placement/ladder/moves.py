"""Templates of moves within a ring, as arrays of positions: made once per length."""

from functools import cache

import numpy as np

from exo.master.placement.ladder.field import Integers

_PART_MAX = 3


@cache
def reorderings(count: int) -> Integers:
    """Return every ring of `count` positions with one part reversed, or one of up to three moved elsewhere."""
    whole = tuple(range(count))
    found: dict[tuple[int, ...], None] = {}
    for begin in range(count - 1):
        for end in range(begin + 2, count + 1):
            found[whole[:begin] + whole[begin:end][::-1] + whole[end:]] = None
    for length in range(1, min(_PART_MAX, count - 2) + 1):
        for begin in range(count):
            turned = whole[begin:] + whole[:begin]
            part, rest = turned[:length], turned[length:]
            for place in range(1, len(rest)):
                found[rest[:place] + part + rest[place:]] = None
    return np.array(list(found), dtype=np.int64).reshape(-1, count)


@cache
def drops(count: int) -> Integers:
    """Return every ring of `count` positions without one of them; row i lacks position i."""
    return np.array(
        [[position for position in range(count) if position != left_out] for left_out in range(count)],
        dtype=np.int64,
    ).reshape(count, count - 1)


@cache
def insertions(count: int) -> Integers:
    """Return every way to put position `count` into the ring of the `count` before it."""
    return np.array(
        [[*range(place), count, *range(place, count)] for place in range(1, count + 1)], dtype=np.int64
    )
