"""Walks the programme's tables back to the plan that its best value stands for."""

from dataclasses import dataclass

import numpy as np

from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.programme import (
    BOTH,
    FIRST,
    LAST,
    LEFT,
    PART_OF,
    RIGHT,
    Sums,
    joined_table,
    rows_at,
)
from exo.master.placement.ladder.tree import Joint


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan without an order: layers per device, the two ends, and what the programme says it costs."""

    cost_ns: int
    layers: dict[int, int]
    first: int
    last: int


def draft_of(of: Field, sums: Sums, *, min_stages: int) -> Draft | None:
    """Walk the tables back to the plan that `best_ns` stands for."""
    if sums.best_node < 0:
        return None
    rows = max(1, min_stages)
    top = sums.tree.nodes[sums.best_node]
    assert isinstance(top, Joint)
    layers: dict[int, int] = {}
    ends = {FIRST: -1, LAST: -1}
    rows_here = rows_at(sums.tree, sums.best_node, rows)
    joined = joined_table(of, sums.tree, top, sums.tables[top.left], sums.tables[top.right], rows_here)
    closing = joined[rows - 1 :, BOTH, of.layer_count]
    stages = rows - 1 + int(np.argmin(closing))
    todo = _part(sums, top, stages, BOTH, of.layer_count, int(closing.min()), rows_here)
    tops = sums.tree.tops if sums.bonus_ns else []
    while todo:
        number, stages, part, count = todo.pop()
        node = sums.tree.nodes[number]
        table = sums.tables[number]
        if not isinstance(node, Joint):
            layers[node] = count
            if part in ends:
                ends[part] = node
            continue
        value = int(table[stages, part, count])
        if sums.bonus_ns and tops[number]:
            value += sums.bonus_ns
        rows_here = rows_at(sums.tree, number, rows)
        if number in sums.raw:
            table = sums.raw[number]
            if stages == rows_here - 1:
                stages += int(np.argmax(table[stages:, part, count] == value))
        for side, other in ((node.left, node.right), (node.right, node.left)):
            beside = sums.tables[side]
            if (
                not sums.tree.required[other]
                and stages < beside.shape[0]
                and count < beside.shape[2]
                and int(beside[stages, part, count]) == value
            ):
                todo.append((side, stages, part, count))
                break
        else:
            todo.extend(_part(sums, node, stages, part, count, value, rows_here))
    return Draft(sums.best_ns, layers, ends[FIRST], ends[LAST])


def _part(
    sums: Sums, node: Joint, stages: int, part: int, count: int, value: int, rows: int
) -> list[tuple[int, int, int, int]]:
    """Find how a joined value came about: (node, stages, part, layers) of both sides."""
    left, right = sums.tables[node.left], sums.tables[node.right]
    for one in range(left.shape[0]):
        for other in range(right.shape[0]):
            if (one + other + 1 if node.pool >= 0 else min(one + other + 2, rows) - 1) != stages:
                continue
            for number, role in enumerate(PART_OF):
                if role != part:
                    continue
                hop = (node.to_left_ns, node.to_right_ns)[number - 5] if number in {5, 6} else node.forward_ns
                ours, theirs = left[one, LEFT[number]], right[other, RIGHT[number]]
                low, high = max(0, count - len(theirs) + 1), min(count, len(ours) - 1)
                if low > high:
                    continue
                sums_ns = ours[low : high + 1] + theirs[count - high : count - low + 1][::-1]
                hits = np.flatnonzero(sums_ns == value - hop)
                if hits.size:
                    split = low + int(hits[0])
                    return [
                        (node.left, one, int(LEFT[number]), split),
                        (node.right, other, int(RIGHT[number]), count - split),
                    ]
    raise AssertionError("the programme's tables do not add up")
