"""A quick bound on partial choices under rules: what the layers' price says the rules' cheapest way out costs."""

from collections.abc import Sequence

import numpy as np

from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.prices import entry_costs, price
from exo.master.placement.ladder.problem import AtMost

_FAR = 2**60


class RulePrices:
    """Bounds plans of several stages. Rules only ever add to what devices cost at the price of the layers."""

    def __init__(self, of: Field) -> None:
        prices = price(of, entry_costs(of), min_stages=of.problem.min_stages)
        chosen = np.where(of.is_required, prices.reduced_ns, np.minimum(0, prices.reduced_ns))
        self._base_ns = prices.lower_bound_ns - int(chosen.sum())
        self._reduced: list[int] = prices.reduced_ns.tolist()
        index_of = {one.device_id: index for index, one in enumerate(of.devices)}
        self._most: list[tuple[list[int], int]] = []
        self._least: list[tuple[list[list[int]], int, bool]] = []
        for rule in of.problem.rules:
            if isinstance(rule, AtMost):
                self._most.append(([index_of[one] for one in rule.device_ids if one in index_of], rule.count))
            else:
                groups = [[index_of[one] for one in group if one in index_of] for group in rule.groups]
                flat = [one for group in groups for one in group]
                self._least.append((groups, rule.count, len(flat) == len(set(flat))))

    def several_ns(self, decisions: Sequence[int], order: Sequence[int]) -> int:
        """Return a cost that no plan of several stages with these first decisions can beat."""
        decided = dict(zip(order, decisions, strict=False))
        reduced = self._reduced
        total = self._base_ns
        for device, cost in enumerate(reduced):
            value = decided.get(device)
            total += cost if value else 0 if value == 0 else min(0, cost)
        most = max((self._beyond_ns(group, count, decided) for group, count in self._most), default=0)
        least = max((self._missing_ns(*rule, decided) for rule in self._least), default=0)
        return min(_FAR, total + most + least)

    def _beyond_ns(self, group: Sequence[int], count: int, decided: dict[int, int]) -> int:
        """What is lost by not taking more of a group than allowed."""
        left = count - sum(1 for one in group if decided.get(one) == 1)
        if left < 0:
            return _FAR
        gains = sorted(self._reduced[one] for one in group if one not in decided and self._reduced[one] < 0)
        return -sum(gains[left:])

    def _missing_ns(
        self, groups: Sequence[Sequence[int]], count: int, is_disjoint: bool, decided: dict[int, int]
    ) -> int:
        """What it costs at least to have devices of enough groups."""
        missing = count
        cheapest: list[int] = []
        for group in groups:
            if any(decided.get(one) == 1 for one in group):
                missing -= 1
                continue
            free = [max(0, self._reduced[one]) for one in group if one not in decided]
            if free:
                cheapest.append(min(free))
        if missing <= 0:
            return 0
        if len(cheapest) < missing:
            return _FAR
        paid = sorted(cheapest)[:missing]
        return sum(paid) if is_disjoint else paid[0]
