"""Water-filling: take devices in the order of their price per layer until the model is in. A good plan at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.prices import Prices
from exo.master.placement.ladder.ring import hierarchical_order

_BASINS_MAX = 6


@dataclass(frozen=True, slots=True)
class Filled:
    """A ring with its layers and its time, hops included."""

    cost_ns: int
    ring: tuple[int, ...]
    layers: tuple[int, ...]


def water_filling(of: Field, prices: Prices, filler: Filler, *, min_stages: int) -> Filled | None:
    """Return the best plan of several stages found in the whole cluster and in its cheapest zones and hosts."""
    best: Filled | None = None
    for basin in _basins(of, prices):
        found = _fill_basin(of, basin, filler, min_stages=min_stages)
        if found is not None and (best is None or found.cost_ns < best.cost_ns):
            best = found
    return best


def _basins(of: Field, prices: Prices) -> list[list[int]]:
    """The whole cluster, its zones and its hosts, each in the order of price, cheapest way to the model first."""
    order = np.argsort(np.where(of.is_required, -1.0, prices.unit_ns), kind="stable")
    order = order[of.most_layers[order] > 0]
    everything = order.tolist()
    basins = [everything]
    if of.is_required.any():
        return basins
    by_home: dict[tuple[str, ...], list[int]] = {}
    for index in everything:
        one = of.devices[index]
        by_home.setdefault((one.zone,), []).append(index)
        by_home.setdefault((one.zone, one.host), []).append(index)
    plain, unit = of.plain_layers.tolist(), prices.unit_ns.tolist()
    costs: list[tuple[float, int, list[int]]] = []
    for number, basin in enumerate(by_home.values()):
        if 1 < len(basin) < len(everything):
            left, cost = of.layer_count, 0.0
            for index in basin:
                taken = min(left, plain[index])
                cost += taken * unit[index]
                left -= taken
                if left == 0:
                    break
            if left == 0:
                costs.append((cost, number, basin))
    return basins + [basin for _, _, basin in sorted(costs, key=lambda one: one[:2])[: _BASINS_MAX - 1]]


def _fill_basin(of: Field, basin: Sequence[int], filler: Filler, *, min_stages: int) -> Filled | None:
    """Take the least number of devices that hold the model, and one or two more, with the best ends."""
    held, count = 0, 0
    pools: set[int] = set()
    for index in basin:
        pool = int(of.pool[index])
        if pool not in pools:
            held += int(of.plain_layers[index])
            pools.add(pool)
        count += 1
        if held >= of.layer_count and count >= max(2, min_stages, int(of.is_required.sum())):
            break
    best: Filled | None = None
    for size in range(count, min(count + 3, len(basin), of.layer_count) + 1):
        found = best_ends(of, basin[:size], filler)
        if found is not None and (best is None or found.cost_ns < best.cost_ns):
            best = found
        if best is not None and size > count:
            break
    return best


def best_ends(of: Field, used: Sequence[int], filler: Filler) -> Filled | None:
    """Return the best of the rings over the used devices that begin and end on their fastest or slowest ones."""
    ranked = filler.rank(used)
    ends = ranked if len(ranked) <= 4 else [ranked[0], ranked[1], ranked[-2], ranked[-1]]
    best: Filled | None = None
    for first in ends:
        for last in ends:
            if first == last:
                continue
            filled = filler.fill(ranked, first, last)
            if filled is None or (best is not None and filled[0] >= best.cost_ns):
                continue
            ring = hierarchical_order(of, ranked, first, last)
            cost = filled[0] + hops_ns(of, ring)
            if best is None or cost < best.cost_ns:
                best = Filled(cost, tuple(ring), tuple(filled[1][index] for index in ring))
    return best


def hops_ns(of: Field, ring: Sequence[int]) -> int:
    """Return what the ring's hops cost by class."""
    if len(ring) < 2:
        return 0
    links, devices = of.problem.links, of.devices
    total = links.between(devices[ring[-1]], devices[ring[0]]).return_ns
    for source, target in zip(ring, ring[1:], strict=False):
        total += links.between(devices[source], devices[target]).forward_ns
    return total
