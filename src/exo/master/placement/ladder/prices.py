"""What a layer is worth: the dual price of the layers, the bound that it gives, and which devices it rules out.

Relaxed to fractions, the choice of devices is a knapsack: each offers up to n layers at a time per layer and a
fixed time for taking part. The price of the last layer bought (Dantzig, "Discrete-variable extremum problems",
1957) bounds every plan from below, and a device whose reduced cost exceeds the distance between that bound and the
plan at hand cannot be in a better plan.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exo.master.placement.ladder.field import Field, Flags, Integers
from exo.master.placement.ladder.ring import hops_of


@dataclass(frozen=True, slots=True)
class Prices:
    """Bound and reduced costs of plans with at least two stages."""

    lower_bound_ns: int
    reduced_ns: Integers
    """What each device adds to the bound when it is forced in; at most zero for those that pay."""
    unit_ns: npt.NDArray[np.float64]
    """Time per layer of a device filled to the brim, everything included: the order in which to take them."""


def entry_costs(of: Field) -> tuple[Integers, Integers]:
    """Return the least that a hop to each device can cost, forward and as the way back."""
    if of.size < 2:
        return np.zeros(of.size, dtype=np.int64), np.zeros(of.size, dtype=np.int64)
    if not of.problem.links.is_hierarchical:
        hops = hops_of(of)
        return hops.least_forward_ns, hops.least_return_ns
    links = of.problem.links
    in_zone: dict[str, int] = {}
    on_host: dict[tuple[str, str], int] = {}
    for one in of.devices:
        in_zone[one.zone] = in_zone.get(one.zone, 0) + 1
        on_host[one.zone, one.host] = on_host.get((one.zone, one.host), 0) + 1
    classes = [
        0 if on_host[one.zone, one.host] > 1 else 1 if in_zone[one.zone] > 1 else 2 for one in of.devices
    ]
    costs = (links.host, links.zone, links.cluster)
    # The way back may cost less over a longer way; what counts is the least of the classes that are there.
    back = [min(cost.return_ns for cost in costs[low:]) for low in range(3)]
    return (
        np.array([costs[low].forward_ns for low in classes], dtype=np.int64),
        np.array([back[low] for low in classes], dtype=np.int64),
    )


def price(of: Field, entries: tuple[Integers, Integers], *, min_stages: int = 1) -> Prices:
    """Return the best bound over a few layer prices; with `min_stages` also a price on taking part."""
    forward, back = entries
    most = of.most_layers
    is_usable = most > 0
    fixed = of.overhead_ns + forward
    ends = int((back - forward)[is_usable].min(initial=0) + of.head_ns[is_usable].min(initial=0))
    best: Prices | None = None
    bonus = 0
    for _ in range(1 if min_stages <= 2 else 4):
        unit = of.layer_ns + np.maximum(0, fixed - bonus) / np.maximum(1, most)
        layer_price = _critical(of, unit, most, is_usable)
        step = of.layer_ns - layer_price
        reduced = fixed - bonus + np.minimum(step, most * step)
        reduced = np.where(is_usable, reduced, 2**60)
        chosen = np.where(of.is_required, reduced, np.minimum(0, reduced))
        bound = layer_price * of.layer_count + int(chosen.sum()) + ends + bonus * min_stages
        found = Prices(bound, reduced, unit)
        if best is None or found.lower_bound_ns > best.lower_bound_ns:
            best = found
        if min_stages > 2 and of.size >= min_stages:
            bonus += max(0, int(np.partition(reduced, min_stages - 1)[min_stages - 1]))
    assert best is not None
    return best


def _critical(of: Field, unit: npt.NDArray[np.float64], most: Integers, is_usable: Flags) -> int:
    """The price of the last layer bought when devices are taken in the order of their unit time."""
    order = np.argsort(np.where(of.is_required, -1.0, np.where(is_usable, unit, np.inf)), kind="stable")
    reached = np.cumsum(most[order])
    critical = min(int(np.searchsorted(reached, of.layer_count)), of.size - 1)
    return int(np.ceil(unit[order[critical]]))


def survivors(of: Field, prices: Prices, upper_ns: int) -> Integers:
    """Return the devices that can be in a plan better than `upper_ns`, ascending."""
    is_kept = (prices.lower_bound_ns + np.maximum(0, prices.reduced_ns) < upper_ns) & (of.most_layers > 0)
    return np.flatnonzero(is_kept | of.is_required)


def without_twins(of: Field, kept: Integers, prices: Prices, upper_ns: int) -> Integers:
    """Drop devices that are exact twins of enough others: alike in every figure, alone on hosts of one zone.

    No better plan uses more of a kind than the distance between bound and plan at hand pays for, where at most two
    stages are asked for and no group is.
    """
    if len(kept) < 64 or not of.problem.links.is_hierarchical:
        return kept
    least_fixed = int((of.overhead_ns + entry_costs(of)[0])[kept].min())
    slack = upper_ns - int(of.layer_ns[kept].min()) * of.layer_count
    stages = of.layer_count if least_fixed < 1 else max(2, min(of.layer_count, slack // least_fixed + 1))
    on_host: dict[tuple[str, str], int] = {}
    for one in of.devices:
        on_host[one.zone, one.host] = on_host.get((one.zone, one.host), 0) + 1
    seen: dict[tuple[object, ...], int] = {}
    left: list[int] = []
    candidates: list[int] = kept.tolist()
    for index in candidates:
        one = of.devices[index]
        if on_host[one.zone, one.host] > 1 or of.is_required[index]:
            left.append(index)
            continue
        room = int(of.room_bytes[of.pool[index]])
        kind = (one.zone, one.layer_ns, one.overhead_ns, one.head_ns, room)
        paid = int(prices.reduced_ns[index])
        most = stages if paid < 1 else min(stages, (upper_ns - prices.lower_bound_ns) // paid + 1)
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= most:
            left.append(index)
    return np.array(left, dtype=np.int64)
