"""Two rules that count, such as nodes and zones: all plans are parted by the zones that they use.

Of the groups of which fewer are asked for, each plan has a first, a second and so on in their order. For each choice
of these the plans that have just them first are a problem of their own: these groups are demanded, those before and
between them are left out, and one rule remains, which the programme counts without a gap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
from msgspec.structs import replace as with_fields

from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.problem import AtLeast
from exo.master.placement.ladder.units import Units, units_of

_PARTS_MAX = 64


def parts_of(of: Field, units: Units) -> Iterator[tuple[Field, Integers]] | None:
    """Return the parts as fields, each with the devices that it keeps; None where there is no such second rule.

    None also where there would be too many parts, or the programme cannot demand such groups.
    """
    rule = _coarse_rule(of, units)
    if rule is None:
        return None
    names = {one.device_id for one in of.devices}
    groups = [
        group for group in (tuple(one for one in group if one in names) for group in rule.groups) if group
    ]
    if comb(len(groups), rule.count) > _PARTS_MAX:
        return None
    others = tuple(one for one in of.problem.rules if one is not rule)
    first = _part(of, others, groups, tuple(range(rule.count)))
    if len(units_of(first[0]).kept) < len(units.kept) - 1 + rule.count:
        return None
    return (_part(of, others, groups, chosen) for chosen in combinations(range(len(groups)), rule.count))


def _coarse_rule(of: Field, units: Units) -> AtLeast | None:
    """Return the rule that is counted while the other has its bonus."""
    for rule in units.kept:
        if units.coarse and isinstance(rule, AtLeast) and rule.count == units.coarse_least:
            numbers = {name: number for number, group in enumerate(rule.groups) for name in group}
            if tuple(numbers.get(one.device_id, -1) for one in of.devices) == units.coarse:
                return rule
    return None


def _part(
    of: Field, others: tuple[object, ...], groups: Sequence[tuple[str, ...]], chosen: tuple[int, ...]
) -> tuple[Field, Integers]:
    out = {name for number in range(chosen[-1]) if number not in chosen for name in groups[number]}
    demanded = tuple(
        AtLeast(groups=(groups[number],), count=1, reason="the groups of this part") for number in chosen
    )
    kept = np.array(
        [index for index, one in enumerate(of.devices) if one.device_id not in out], dtype=np.int64
    )
    return replace(of, problem=with_fields(of.problem, rules=(*others, *demanded))), kept
