"""Water-filling: take devices in the order of their price per layer until the model is in. A good plan at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exo.master.placement.ladder.field import Field
from exo.master.placement.ladder.fill import Filler
from exo.master.placement.ladder.prices import Prices
from exo.master.placement.ladder.ring import hierarchical_order
from exo.master.placement.ladder.units import Units

_BASINS_MAX = 4


@dataclass(frozen=True, slots=True)
class Filled:
    """A ring with its layers and its time, hops included."""

    cost_ns: int
    ring: tuple[int, ...]
    layers: tuple[int, ...]


def water_filling(of: Field, prices: Prices, filler: Filler, units: Units) -> Filled | None:
    """Return the best plan of several stages found in the whole cluster and in its cheapest zones and hosts."""
    best: Filled | None = None
    basins, asked = _basins(of, prices, units)
    for basin in basins:
        found = _fill_basin(of, basin, filler, least=max(2, of.problem.min_stages, asked))
        if found is None or not units.allows(found.ring):
            continue
        if best is None or found.cost_ns < best.cost_ns:
            best = found
    return best


def _basins(of: Field, prices: Prices, units: Units) -> tuple[list[list[int]], int]:
    """Return the whole cluster, its zones and its hosts, each in the order of price, cheapest way to the model first.

    Also how many of the first ones are there because they are asked for.
    """
    order = np.argsort(np.where(of.is_required, -1.0, prices.unit_ns), kind="stable")
    order = order[of.most_layers[order] > 0]
    everything: list[int] = order.tolist()
    asked = _asked(of, everything, units)
    if asked:
        inside = set(asked)
        return [[*asked, *(index for index in everything if index not in inside)]], len(asked)
    basins = [everything]
    by_home: dict[tuple[str, ...], list[int]] = {}
    for index in everything:
        one = of.devices[index]
        by_home.setdefault((one.zone,), []).append(index)
        by_home.setdefault((one.zone, one.host), []).append(index)
    plain: list[int] = of.plain_layers.tolist()
    unit: list[float] = prices.unit_ns.tolist()
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
    return basins + [basin for _, _, basin in sorted(costs, key=lambda one: one[:2])[: _BASINS_MAX - 1]], 0


def _asked(of: Field, ranked: Sequence[int], units: Units) -> list[int]:
    """Return the devices that must be used, the cheapest of each demanded group, and of so many units as are asked."""
    asked: list[int] = [index for index in ranked if of.is_required[index]]
    for group in units.demanded:
        if not group & set(asked):
            asked.extend([index for index in ranked if index in group][:1])
    for unit, least in ((units.coarse, units.coarse_least), (units.unit, units.least)):
        seen = {unit[index] for index in asked} if unit else set[int]()
        for index in ranked:
            if not unit or len(seen) >= least:
                break
            if unit[index] not in seen:
                seen.add(unit[index])
                asked.append(index)
    return asked


def _fill_basin(of: Field, basin: Sequence[int], filler: Filler, *, least: int) -> Filled | None:
    """Take the least number of devices that hold the model, and one or two more, with the best ends."""
    held, count = 0, 0
    if len(basin) < least:
        return None
    pools: set[int] = set()
    for index in basin:
        pool = int(of.pool[index])
        if pool not in pools:
            held += int(of.plain_layers[index])
            pools.add(pool)
        count += 1
        if held >= of.layer_count and count >= least:
            break
    best: Filled | None = None
    for size in range(count, min(count + 2, len(basin), of.layer_count) + 1):
        found = best_ends(of, basin[:size], filler)
        if found is not None and (best is None or found.cost_ns < best.cost_ns):
            best = found
        if best is not None and size > count:
            break
    return best


def best_ends(of: Field, used: Sequence[int], filler: Filler) -> Filled | None:
    """Return the best of the rings over the used devices that begin and end on their fastest or slowest ones."""
    ranked = filler.rank(used)
    ends = ranked if len(ranked) <= 3 else [ranked[0], ranked[-2], ranked[-1]]
    whole_ring = ring_ns(of, ranked)
    best: tuple[int, int, int, dict[int, int]] | None = None
    for first in ends:
        for last in ends:
            if first == last:
                continue
            filled = filler.fill(ranked, first, last)
            if filled is None:
                continue
            closing = of.problem.links.between(of.devices[last], of.devices[first])
            cost = filled[0] + whole_ring - closing.forward_ns + closing.return_ns
            if best is None or cost < best[0]:
                best = (cost, first, last, filled[1])
    if best is None:
        return None
    ring = hierarchical_order(of, ranked, best[1], best[2])
    return Filled(best[0], tuple(ring), tuple(best[3][index] for index in ring))


def ring_ns(of: Field, used: Sequence[int]) -> int:
    """Return the forward cost of the cheapest closed ring through the used devices, by class."""
    links = of.problem.links
    zones = {of.devices[index].zone for index in used}
    hosts = {(of.devices[index].zone, of.devices[index].host) for index in used}
    if len(hosts) == 1:
        return len(used) * links.host.forward_ns
    inner = (len(used) - len(hosts)) * links.host.forward_ns
    if len(zones) == 1:
        return inner + len(hosts) * links.zone.forward_ns
    return inner + (len(hosts) - len(zones)) * links.zone.forward_ns + len(zones) * links.cluster.forward_ns
