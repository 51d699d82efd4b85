"""Which devices could make a known plan faster if they joined: a bound for each, without a solve.

Every plan that uses a device takes at least what the knapsack of the layers (`prices.py`) takes with it forced in.
Where that is no less than the known plan, the device need not be asked.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from exo.master.placement.ladder.field import Field, Integers, field_of
from exo.master.placement.ladder.prices import entry_costs, price
from exo.master.placement.ladder.problem import CostProblem, canonical


def worth_joining(problem: CostProblem, device_ids: Collection[str], upper_ns: int) -> frozenset[str]:
    """Return those of the devices that a plan with a round shorter than `upper_ns` might use.

    Args:
        problem: The problem with the devices in it. Its rules are left aside, which only lowers the bound.
        device_ids: The devices that are asked for.
        upper_ns: The round of the plan that is known.
    """
    of = _generous(field_of(canonical(problem)))
    prices = price(of, entry_costs(of), min_stages=problem.min_stages if of.is_even else 1)
    rounding_ns = 0
    reduced_ns = prices.reduced_ns
    if not of.is_even:
        # A stage may be one light layer, where prices count whole average ones; times are rounded layer by layer.
        weights = [layer.time_weight for layer in problem.model.layers]
        lightest = min(1.0, min(weights) * len(weights) / max(1, sum(weights)))
        reduced_ns = reduced_ns - np.ceil(of.layer_ns * (1 - lightest)).astype(np.int64)
        rounding_ns = 2 * of.layer_count
    # Devices that must be used are in the bound already.
    forced_ns = np.where(of.is_required, 0, np.maximum(0, reduced_ns))
    bound_ns = prices.lower_bound_ns + forced_ns - rounding_ns
    alone_ns = of.overhead_ns + of.head_ns + of.layer_ns * of.layer_count - rounding_ns
    can_be_faster = (bound_ns < upper_ns) & (of.most_layers > 0)
    can_be_faster |= (alone_ns < upper_ns) & (of.only_layers >= of.layer_count)
    wanted = set(device_ids)
    kept: list[int] = np.flatnonzero(can_be_faster).tolist()
    return frozenset(name for index in kept if (name := of.devices[index].device_id) in wanted)


def _generous(of: Field) -> Field:
    """Return the field with room for the average layers that the best run of unequal ones is worth, rounded up.

    Nothing need be used then: the price of using it would be that of a whole layer.
    """
    if of.is_even:
        return of
    model = of.problem.model
    sizes = np.concatenate(([0], np.cumsum([layer.size_bytes for layer in model.layers])))
    weights = np.concatenate(([0], np.cumsum([layer.time_weight for layer in model.layers])))
    rooms, place = np.unique(of.room_bytes[of.pool] - model.stage_bytes, return_inverse=True)

    def most(room_bytes: int) -> int:
        if room_bytes < 0:
            return 0
        ends = np.searchsorted(sizes, sizes + room_bytes, side="right") - 1
        weight = int((weights[ends] - weights).max())
        return min(of.layer_count, -(-weight * of.layer_count // max(1, int(weights[-1]))))

    worth: Integers = np.array([most(int(room)) for room in rooms], dtype=np.int64)[place.reshape(-1)]
    return replace(
        of,
        plain_layers=worth,
        first_layers=worth,
        last_layers=worth,
        only_layers=worth,
        is_required=np.zeros_like(of.is_required),
    )
