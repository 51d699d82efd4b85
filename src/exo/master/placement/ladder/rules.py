"""What a rule says of a set of devices: of names, of many sets at once, and of a choice half made."""

from collections.abc import Callable, Sequence

import numpy as np

from exo.master.placement.ladder.field import Field, Flags
from exo.master.placement.ladder.problem import AtMost, Rule


def keeps_rules(names: Sequence[str], rules: Sequence[Rule]) -> bool:
    """Say whether the devices that take part keep all rules."""
    used = set(names)
    for rule in rules:
        if isinstance(rule, AtMost):
            if len(used & set(rule.device_ids)) > rule.count:
                return False
        elif sum(1 for group in rule.groups if used & set(group)) < rule.count:
            return False
    return True


def rule_masks(of: Field) -> Callable[[Flags], Flags]:
    """Return a function that says of sets of devices, one a row, which keep the rules."""
    index_of = {one.device_id: index for index, one in enumerate(of.devices)}
    rules = [
        (rule.count, [[index_of[one] for one in rule.device_ids if one in index_of]], True)
        if isinstance(rule, AtMost)
        else (
            rule.count,
            [[index_of[one] for one in group if one in index_of] for group in rule.groups],
            False,
        )
        for rule in of.problem.rules
    ]

    def keep(masks: Flags) -> Flags:
        kept = np.ones(len(masks), dtype=np.bool_)
        for count, groups, is_at_most in rules:
            if is_at_most:
                kept &= masks[:, groups[0]].sum(axis=1) <= count
            else:
                kept &= np.sum([masks[:, group].any(axis=1) for group in groups], axis=0) >= count
        return kept

    return keep


def rule_check(rule: Rule, index_of: dict[str, int]) -> tuple[Callable[..., bool], list[int]]:
    """Return a function over the values of the rule's devices, and those. Undecided ones are neither 0 nor 1."""
    if isinstance(rule, AtMost):
        names = [index_of[one] for one in rule.device_ids if one in index_of]

        def at_most(*values: object) -> bool:
            return sum(1 for value in values if value == 1) <= rule.count

        return at_most, names
    flat = [index_of[one] for group in rule.groups for one in group if one in index_of]
    names = list(dict.fromkeys(flat))
    place = {index: position for position, index in enumerate(names)}
    groups = [[place[index_of[one]] for one in group if one in index_of] for group in rule.groups]

    def at_least(*values: object) -> bool:
        return sum(1 for group in groups if any(values[one] != 0 for one in group)) >= rule.count

    return at_least, names
