"""Bounds partial choices of devices: the programme's tables of what is decided, joined with those of what is free."""

from collections.abc import Callable, Sequence

import numpy as np

from exo.master.placement.ladder.draft import draft_of
from exo.master.placement.ladder.field import Field, narrowed
from exo.master.placement.ladder.programme import (
    INFINITE,
    Table,
    closing_ns,
    counted,
    joined_table,
    leaf_tables,
    run,
    with_alone,
)
from exo.master.placement.ladder.ring import hierarchical_order, link_matrices
from exo.master.placement.ladder.surcharges import Surcharges, surcharged
from exo.master.placement.ladder.tree import Joint, Tree, hierarchy, single_linkage
from exo.master.placement.ladder.water import Filled

_REMEMBERED_MAX = 20_000


class PrefixBound:
    """Bounds plans of which the first devices, in the order of the tree's leaves, are decided."""

    def __init__(self, of: Field, charges: Surcharges, should_stop: Callable[[], bool]) -> None:
        self._plain = of
        self._of = of = surcharged(of, charges)
        self._offset_ns = charges.offset_ns
        self._rows = max(1, of.problem.min_stages)
        self._tree = tree_of(of)
        self.order: list[int] = [node for node in self._tree.nodes if isinstance(node, int)]
        """Devices in the order of the leaves, left to right."""
        self._sums = run(of, self._tree, leaf_tables(of), min_stages=self._rows, should_stop=should_stop)
        plain = self._plain
        times = plain.layer_ns * plain.layer_count + plain.overhead_ns + plain.head_ns
        can_alone = (of.only_layers >= of.layer_count) & (self._rows <= 1)
        self._alone: list[int] = np.where(can_alone, times, INFINITE).tolist()
        self._remembered: dict[tuple[int, tuple[int, ...]], tuple[Table | None, int, int]] = {}
        self._required = np.flatnonzero(of.is_required).tolist()
        self._begins: list[int] = []
        self._free_ns: list[int] = []
        """Best plan that closes below each node with all required ones below it, nothing decided."""
        required, seen = self._tree.required, 0
        for number, node in enumerate(self._tree.nodes):
            best = self._sums.closings_ns[number]
            if isinstance(node, Joint):
                self._begins.append(self._begins[node.left])
                for side in (node.left, node.right):
                    if required[side] == required[number]:
                        best = min(best, self._free_ns[side])
            else:
                self._begins.append(seen)
                seen += 1
            self._free_ns.append(best)

    def alone_ns(self, decisions: Sequence[int]) -> int:
        """Return the cost of the best plan of one stage with these first decisions."""
        forced = {device for device, value in zip(self.order, decisions, strict=False) if value}
        forced.update(self._required)
        if len(forced) > 1:
            return INFINITE
        barred = {device for device, value in zip(self.order, decisions, strict=False) if not value}
        return min(
            (self._alone[device] for device in (forced or self.order) if device not in barred),
            default=INFINITE,
        )

    def several_ns(self, decisions: Sequence[int]) -> int:
        """Return a cost that no plan of several stages with these first decisions can beat."""
        found = self._table(len(self._tree.nodes) - 1, tuple(decisions))[2]
        return INFINITE if found >= INFINITE else found + self._offset_ns

    def _table(self, number: int, given: tuple[int, ...]) -> tuple[Table | None, int, int]:
        """Return a node's table under the decisions (None: nobody may take part), how many below are forced, and
        the best plan that closes below with all of those."""
        node, begin = self._tree.nodes[number], self._begins[number]
        if begin >= len(given):
            return self._sums.tables[number], self._tree.required[number], self._free_ns[number]
        if not isinstance(node, Joint):
            if given[begin]:
                return self._sums.tables[number], 1, INFINITE
            # A required device that is left out: nothing closes with it.
            return None, self._tree.required[number], INFINITE
        end = begin + self._tree.leaves[number]
        key = (number, given[begin:end])
        if end <= len(given) and key in self._remembered:
            return self._remembered[key]
        left, forced_left, closing_left = self._table(node.left, given)
        right, forced_right, closing_right = self._table(node.right, given)
        joined, closing = None, INFINITE
        if left is not None and right is not None:
            joined = joined_table(self._of, self._tree, node, left, right, self._rows)
            closing = closing_ns(self._of, node, joined, self._rows, self._rows)
        if not forced_right:
            closing = min(closing, closing_left)
        if not forced_left:
            closing = min(closing, closing_right)
        alone_left = left if not forced_right else None
        alone_right = right if not forced_left else None
        table = None
        if joined is not None or alone_left is not None or alone_right is not None:
            table = with_alone(joined, alone_left, alone_right)
            if node.is_pool_top:
                table = counted(table, self._rows)
        found = (table, forced_left + forced_right, closing)
        if end <= len(given) and len(self._remembered) < _REMEMBERED_MAX:
            self._remembered[key] = found
        return found

    def plan_of(self, used: Sequence[int]) -> tuple[Filled | None, int]:
        """Return the best plan of exactly these devices on the tree, and what it bounds their true cost by."""
        kept = sorted(used)
        if not kept:
            return None, INFINITE
        if len(kept) == 1:
            cost = self._alone[kept[0]]
            if cost >= INFINITE:
                return None, INFINITE
            return Filled(cost, (kept[0],), (self._of.layer_count,)), cost
        part = narrowed(self._plain, np.array(kept, dtype=np.int64))
        part.is_required[:] = True
        sums = run(part, tree_of(part), leaf_tables(part), min_stages=self._rows)
        draft = draft_of(part, sums, min_stages=self._rows)
        if draft is None:
            return None, INFINITE
        ring = hierarchical_order(part, sorted(draft.layers), draft.first, draft.last)
        return (
            Filled(
                draft.cost_ns,
                tuple(kept[index] for index in ring),
                tuple(draft.layers[index] for index in ring),
            ),
            draft.cost_ns,
        )


def tree_of(of: Field) -> Tree:
    """Return the tree of a field's links, with short ways to the root where it is exact."""
    if of.problem.links.is_hierarchical:
        return hierarchy(of, is_balanced=True)
    return single_linkage(of, *link_matrices(of))
