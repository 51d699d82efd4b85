"""The dynamic programme: the best ring over any subset of devices, exactly, on a tree of links.

For each node of the tree it keeps the least cost of placing m layers on some of the devices below, with or
without the plan's first and last stage among them. Two tables join by a (min, +) product over the layers. On such
a tree the cheapest ring through a set of devices crosses each joint that has some on both sides once, and the
topmost one twice; the way from the last stage back to the first replaces one crossing at the joint where the two
part. So the best plan is found without ever naming an order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from exo.master.placement.ladder.errors import StoppedError
from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.tree import Joint, Tree

INFINITE = 2**60
"""No plan. Two of them still fit into 64 bits."""
PLAIN, FIRST, LAST, BOTH = 0, 1, 2, 3
"""Which ends of the pipeline lie within a table's devices."""
# Rows of the product of two tables: the part of the left one, of the right one, and of both together.
LEFT = np.array([PLAIN, PLAIN, FIRST, PLAIN, LAST, FIRST, LAST, BOTH, PLAIN])
RIGHT = np.array([PLAIN, FIRST, PLAIN, LAST, PLAIN, LAST, FIRST, PLAIN, BOTH])
_PLAIN_ROWS, _PLAIN_SOURCES = np.array([0, 2, 4, 7]), np.array([PLAIN, FIRST, LAST, BOTH])
_FIRST_ROWS, _FIRST_SOURCES = np.array([1, 6]), np.array([PLAIN, LAST])
_LAST_ROWS, _LAST_SOURCES = np.array([3, 5]), np.array([PLAIN, FIRST])
PART_OF = (PLAIN, FIRST, FIRST, LAST, LAST, BOTH, BOTH, BOTH, BOTH)

Table = Integers
"""[stages - 1, part, layers] -> ns; the last row means "so many stages or more" outside a shared pool."""
LeafTable = Callable[[int], Integers]
"""Device -> [part, layers] of its time as a stage, `BOTH` and zero layers left at `INFINITE`."""
_WINDOW_WORTH_FROM = 10


@dataclass(slots=True)
class Sums:
    """All tables of one run, and where its best plan closes."""

    tree: Tree
    tables: list[Table]
    raw: dict[int, Table]
    """Tables of pool tops before their stages were counted up to `min_stages` only."""
    closings_ns: list[int]
    """Per node, the best plan that uses both sides and closes there."""
    best_ns: int
    best_node: int
    bonus_ns: int = 0


def leaf_tables(of: Field) -> LeafTable:
    """Return the tables of devices whose layers are all alike."""
    counts = np.arange(of.layer_count + 1, dtype=np.int64)

    def table(device: int) -> Integers:
        parts = (of.plain_layers[device], of.first_layers[device], of.last_layers[device])
        top = int(max(parts))
        made = np.full((4, top + 1), INFINITE, dtype=np.int64)
        times = counts[: top + 1] * of.layer_ns[device] + of.overhead_ns[device]
        for part, most in enumerate(parts):
            made[part, 1 : most + 1] = times[1 : most + 1]
        made[LAST, 1 : parts[LAST] + 1] += of.head_ns[device]
        return made

    return table


def run(
    of: Field,
    tree: Tree,
    leaf: LeafTable,
    *,
    min_stages: int,
    should_stop: Callable[[], bool] = lambda: False,
    bonus_ns: int = 0,
) -> Sums:
    """Fill all tables. `best_ns` is the least cost of a plan of two or more stages, `INFINITE` without one.

    `min_stages` counts units where the tree has them. `bonus_ns` comes off the cost for each group of several devices
    that has it together and takes part.

    Raises:
        StoppedError: `should_stop` said so; it is asked at every joint.
    """
    rows = max(1, min_stages)
    total_required = tree.required[-1]
    tops = tree.tops if bonus_ns else []
    sums = Sums(tree, [], {}, [], INFINITE, -1, bonus_ns)
    for number, node in enumerate(tree.nodes):
        if not isinstance(node, Joint):
            sums.tables.append(leaf(node)[np.newaxis])
            sums.closings_ns.append(INFINITE)
            continue
        if should_stop():
            raise StoppedError
        rows_here = rows_at(tree, number, rows)
        joined = joined_table(of, tree, node, sums.tables[node.left], sums.tables[node.right], rows_here)
        closing = closing_ns(of, node, joined, rows_here, rows)
        if bonus_ns and closing < INFINITE and tree.is_one_valued(number):
            closing -= bonus_ns
        sums.closings_ns.append(closing)
        if tree.granted[number] == total_required and closing < sums.best_ns:
            sums.best_ns, sums.best_node = closing, number
        left = sums.tables[node.left] if not tree.required[node.right] else None
        right = sums.tables[node.right] if not tree.required[node.left] else None
        table = with_alone(joined, left, right)
        if node.is_pool_top:
            sums.raw[number] = table
            table = counted(table, rows_here)
        if bonus_ns and tops[number]:
            table = np.where(table < INFINITE, table - bonus_ns, INFINITE)
        sums.tables.append(table)
    return sums


def rows_at(tree: Tree, number: int, rows: int) -> int:
    """Return how many stages or units are told apart at a node: none within a unit."""
    return 1 if tree.is_one_unit(number) else rows


def closing_ns(of: Field, node: Joint, joined: Table, rows_here: int, rows: int) -> int:
    """Return the cost of the best whole ring that crosses a joint at its top."""
    if joined.shape[2] <= of.layer_count or rows_here < rows or joined.shape[0] < rows:
        return INFINITE
    return min(INFINITE, int(joined[rows - 1 :, BOTH, of.layer_count].min()) + node.forward_ns)


def joined_table(of: Field, tree: Tree, node: Joint, left: Table, right: Table, rows: int) -> Table:
    """Return the table of plans that use devices on both sides of a joint."""
    in_pool = node.pool >= 0
    most = _pool_rows(of, tree, node, rows) if in_pool else rows
    height = min(most, left.shape[0] + right.shape[0])
    width = min(left.shape[2] + right.shape[2] - 1, of.layer_count + 1)
    made = np.full((height, 4, width), INFINITE, dtype=np.int64)
    has_leaf = (isinstance(tree.nodes[node.left], int), isinstance(tree.nodes[node.right], int))
    combinations = 7 if all(has_leaf) else 8 if has_leaf[1] else 9
    is_even = has_leaf[1] and of.is_even
    costs = np.full((9, 1), node.forward_ns, dtype=np.int64)
    costs[5], costs[6] = node.to_left_ns, node.to_right_ns
    for one in range(left.shape[0]):
        for other in range(right.shape[0]):
            stages = one + other + 2
            if stages > most and in_pool:
                continue
            if is_even and right.shape[2] > _WINDOW_WORTH_FROM:
                product = _with_even_leaf(of, left[one], tree.nodes[node.right], width)
            else:
                product = min_plus(left[one][LEFT[:combinations]], right[other][RIGHT[:combinations]], width)
            product += costs[: len(product)]
            row = made[min(stages, height) - 1]
            np.minimum(row[PLAIN], product[0], out=row[PLAIN])
            np.minimum(row[FIRST], product[1:3].min(axis=0), out=row[FIRST])
            np.minimum(row[LAST], product[3:5].min(axis=0), out=row[LAST])
            np.minimum(row[BOTH], product[5:].min(axis=0), out=row[BOTH])
    if in_pool:
        _forbid_overfull(of, node.pool, made)
    # Far beyond every cost, and still so where a bonus was taken off.
    made[made > INFINITE // 2] = INFINITE
    return made


def min_plus(left: Integers, right: Integers, width: int) -> Integers:
    """Return `out[r, m] = min over n of left[r, m - n] + right[r, n]` for m below `width`; n = 0 is never used."""
    if right.shape[1] > left.shape[1]:
        left, right = right, left
    rows, reach = left.shape[0], right.shape[1] - 1
    if reach < 1:
        return np.full((rows, width), INFINITE, dtype=np.int64)
    padded = np.full((rows, reach + max(width, left.shape[1])), INFINITE, dtype=np.int64)
    padded[:, reach : reach + left.shape[1]] = left
    step_row, step = padded.strides
    # shifted[n - 1, r, m] = left[r, m - n], a view.
    shifted = np.lib.stride_tricks.as_strided(
        padded[:, reach - 1 :], shape=(reach, rows, width), strides=(-step, step_row, step)
    )
    return np.minimum.reduce(shifted + right.T[1:, :, np.newaxis], axis=0)


def _with_even_leaf(of: Field, left: Integers, device: int | Joint, width: int) -> Integers:
    """Return the first eight products of a table with a device whose every layer takes the same time.

    Then the least over n is the least over a window that slides along the table, found by doubling.
    """
    assert isinstance(device, int)
    slope, fixed = int(of.layer_ns[device]), int(of.overhead_ns[device])
    most = (int(of.plain_layers[device]), int(of.first_layers[device]), int(of.last_layers[device]))
    reach = max(most)
    ramp = slope * np.arange(width, dtype=np.int64)
    # Position m + reach holds left[m] - m * slope; a window of n layers before m ends at m + reach - 1.
    level = np.full((4, width + reach), INFINITE, dtype=np.int64)
    taken = min(width, left.shape[1])
    np.subtract(left[:, :taken], ramp[:taken], out=level[:, reach : reach + taken])
    windows: dict[int, Integers] = {1: level}
    size = 1
    while size * 2 <= reach:
        level = np.minimum(level[:, :-size], level[:, size:])
        size *= 2
        windows[size] = level
    made = np.full((8, width), INFINITE, dtype=np.int64)
    for rows, sources, count, extra in (
        (_PLAIN_ROWS, _PLAIN_SOURCES, most[PLAIN], fixed),
        (_FIRST_ROWS, _FIRST_SOURCES, most[FIRST], fixed),
        (_LAST_ROWS, _LAST_SOURCES, most[LAST], fixed + int(of.head_ns[device])),
    ):
        if count < 1:
            continue
        size = 1 << (count.bit_length() - 1)
        window = windows[size]
        begin = reach - count
        least = np.minimum(window[:, begin : begin + width], window[:, reach - size : reach - size + width])
        made[rows] = least[sources] + (ramp + extra)
    return made


def _pool_rows(of: Field, tree: Tree, node: Joint, rows: int) -> int:
    """Stages that may share a pool.

    All but the fastest are worth their place only as an end, or when asked for: their layers take the same
    memory on the fastest. That holds where a device's time grows evenly and is not limited.
    """
    leaves = tree.leaves[node.left] + tree.leaves[node.right]
    if of.limit_ns is not None or not of.is_even:
        return leaves
    return min(leaves, 3 + tree.required[node.left] + tree.required[node.right] + rows - 1)


def _forbid_overfull(of: Field, pool: int, table: Table) -> None:
    model = of.problem.model
    extras = (0, model.embedding_bytes, model.last_bytes - model.stage_bytes)
    for stages in range(1, table.shape[0] + 1):
        left_bytes = int(of.room_bytes[pool]) - stages * model.stage_bytes
        for part, extra in enumerate((*extras, extras[FIRST] + extras[LAST])):
            most = max(0, (left_bytes - extra) // of.layer_bytes)
            table[stages - 1, part, most + 1 :] = INFINITE


def with_alone(joined: Table | None, left: Table | None, right: Table | None) -> Table:
    """Add the plans that use one side only, of those sides that are given."""
    given = [table for table in (joined, left, right) if table is not None]
    if len(given) == 1:
        return given[0]
    height, width = max(table.shape[0] for table in given), max(table.shape[2] for table in given)
    made = np.full((height, 4, width), INFINITE, dtype=np.int64)
    for table in given:
        part = made[: table.shape[0], :, : table.shape[2]]
        np.minimum(part, table, out=part)
    return made


def counted(table: Table, rows: int) -> Table:
    """Count the stages of a pool's table only up to `rows`."""
    if table.shape[0] <= rows:
        return table
    made = table[:rows].copy()
    np.minimum(made[-1], table[rows:].min(axis=0), out=made[-1])
    return made
