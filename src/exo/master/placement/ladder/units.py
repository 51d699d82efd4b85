"""Which rules the programme keeps by itself: so many nodes or zones at least, and one device of each of some nodes.

A rule over groups that hang together in the tree of links is counted or demanded there exactly, so that nothing has
to be searched for it. What cannot be told so stays with the constraint layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from exo.master.placement.ladder.field import Field, Flags
from exo.master.placement.ladder.problem import AtLeast, Rule

Group = frozenset[int]
"""Devices by index."""


@dataclass(frozen=True, slots=True)
class Units:
    """What is counted and demanded of the devices of one field."""

    least: int
    """So many units take part at least."""
    unit: tuple[int, ...]
    """The unit of each device: of one number for those that count once together. Empty: each counts by itself."""
    blocks: tuple[Group, ...]
    """Groups of several devices within a host that are to hang together in the tree; none overlaps another."""
    demanded: tuple[Group, ...]
    """Groups of which each plan uses a device. Those of several devices are blocks, or zones."""
    kept: tuple[Rule, ...]
    """Rules that every plan with these units keeps."""
    coarse: tuple[int, ...] = ()
    """As `unit`, for a second rule, of which fewer are asked for, such as zones beside nodes; empty: there is none."""
    coarse_least: int = 1
    is_impossible: bool = False
    """Whether a rule asks for more groups than there are."""

    def count_of(self, used: Sequence[int]) -> int:
        """Return how many units a set of devices makes."""
        return len({self.unit[index] for index in used}) if self.unit else len(set(used))

    def allows(self, used: Sequence[int]) -> bool:
        """Say whether a set of devices keeps all this."""
        if self.is_impossible or self.count_of(used) < self.least:
            return False
        if self.coarse and len({self.coarse[index] for index in used}) < self.coarse_least:
            return False
        return all(group & set(used) for group in self.demanded)

    def masks(self, masks: Flags) -> Flags:
        """Say the same of many sets at once, one a row."""
        kept = np.full(len(masks), not self.is_impossible)
        for group in self.demanded:
            kept &= masks[:, list(group)].any(axis=1)
        for unit, least in ((self.unit, self.least), (self.coarse, self.coarse_least)):
            if unit:
                numbers = np.array(unit)
                hits = [masks[:, numbers == one].any(axis=1) for one in np.unique(numbers)]
                kept &= np.sum(hits, axis=0) >= least
        return kept if self.unit else kept & (masks.sum(axis=1) >= self.least)


def units_of(of: Field) -> Units:
    """Read a field's rules, and its least number of stages where no rule asks for as many."""
    index_of = {one.device_id: index for index, one in enumerate(of.devices)}
    told = [
        (rule, [frozenset(index_of[one] for one in group if one in index_of) for group in rule.groups])
        for rule in of.problem.rules
        if isinstance(rule, AtLeast)
    ]
    lost = any(sum(1 for group in groups if group) < rule.count for rule, groups in told)
    shapes = _Shapes(of)
    counted = [
        (rule, groups) for rule, groups in told if 1 < rule.count < len(groups) and shapes.can_count(groups)
    ]
    counted.sort(key=lambda one: -one[0].count)
    least = max(1, of.problem.min_stages)
    unit: tuple[int, ...] = ()
    kept: list[Rule] = []
    blocks: list[Group] = []
    if counted and counted[0][0].count >= least:
        rule, groups = counted.pop(0)
        least, unit = rule.count, _numbers(groups, of.size)
        blocks = [group for group in groups if len(group) > 1 and shapes.is_block(group)]
        kept.append(rule)
    coarse: tuple[int, ...] = ()
    coarse_least = 1
    for rule, groups in counted:
        inner = [group for group in groups if len(group) > 1 and shapes.is_block(group)]
        if all(shapes.fits(group, blocks) for group in inner):
            coarse, coarse_least = _numbers(groups, of.size), rule.count
            blocks.extend(group for group in inner if group not in blocks)
            kept.append(rule)
            break
    demanded: list[Group] = []
    forced: list[int] = np.flatnonzero(of.is_required).tolist()
    for rule, groups in told:
        if rule.count <= 0 or (rule.count == 1 and any(len(group) == of.size for group in groups)):
            kept.append(rule)
        elif rule.count == len(groups):
            wanted = [group for group in groups if not group & set(forced)]
            if all(shapes.is_zone(group) or shapes.fits(group, blocks) for group in wanted):
                kept.append(rule)
                demanded.extend(wanted)
                blocks.extend(
                    group
                    for group in set(wanted)
                    if len(group) > 1 and group not in blocks and shapes.is_block(group)
                )
    if lost:
        # Nothing keeps such rules: what is counted or hangs together is all the same.
        return Units(least, (), (), (), tuple(one for one, _ in told), is_impossible=True)
    wanted = tuple(sorted(set(demanded), key=sorted))
    return Units(least, unit, tuple(blocks), wanted, tuple(kept), coarse, coarse_least)


def _numbers(groups: Sequence[Group], size: int) -> tuple[int, ...]:
    numbers = [-1] * size
    for number, group in enumerate(groups):
        for index in group:
            numbers[index] = number
    return tuple(numbers)


def demanded_alone(of: Field, units: Units) -> Field:
    """Return the field with the devices required that are demanded by themselves."""
    alone = [next(iter(group)) for group in units.demanded if len(group) == 1]
    if not alone:
        return of
    required = of.is_required.copy()
    required[alone] = True
    return replace(of, is_required=required)


class _Shapes:
    """Says which groups of devices hang together in every tree of a field."""

    def __init__(self, of: Field) -> None:
        self._of = of
        self._is_hierarchical = of.problem.links.is_hierarchical
        self._pools: dict[int, set[int]] = {}
        zones: dict[str, set[int]] = {}
        for index, pool in enumerate(of.pool.tolist()):
            self._pools.setdefault(pool, set()).add(index)
            zones.setdefault(of.devices[index].zone, set()).add(index)
        self._zones = {name: frozenset(inside) for name, inside in zones.items()}

    def is_block(self, group: Group) -> bool:
        """Whether it is a device, or some whole pools of one host."""
        if len(group) < 2:
            return True
        homes = {(self._of.devices[index].zone, self._of.devices[index].host) for index in group}
        return len(homes) == 1 and all(self._pools[int(self._of.pool[index])] <= group for index in group)

    def can_count(self, groups: Sequence[Group]) -> bool:
        """Whether the groups part all devices, and are blocks, or zones on links that know zones."""
        together: set[int] = set()
        for group in groups:
            if together & group:
                return False
            together |= group
        if len(together) < self._of.size:
            return False
        return all(self.is_zone(group) for group in groups if group) or all(map(self.is_block, groups))

    def is_zone(self, group: Group) -> bool:
        """Whether it is all of a zone, on links that know zones."""
        return (
            bool(group) and self._is_hierarchical and group == self._zones[self._of.devices[min(group)].zone]
        )

    def fits(self, group: Group, blocks: Sequence[Group]) -> bool:
        """Whether a group can be demanded beside the blocks that there are."""
        return self.is_block(group) and all(group == block or not group & block for block in blocks)
