"""The order of a ring on hierarchical links, and what the hops of any ring cost."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exo.master.placement.ladder.by_node import NodeLinks
from exo.master.placement.ladder.field import Field, Flags, Integers
from exo.master.placement.ladder.problem import Device, Links

_FAR = 2**60


@dataclass(frozen=True, slots=True)
class Hops:
    """What hops between the devices of a field cost. Devices of one node are in one place, and share its hops."""

    place: Integers
    """The place of each device."""
    forward_ns: Integers
    """Between places, [source, target]; the diagonal is between two devices of one place."""
    return_ns: Integers
    least_forward_ns: Integers
    """The least that a hop to each device costs; far beyond any cost where it is alone."""
    least_return_ns: Integers

    def between(self, devices: Sequence[int] | Integers) -> tuple[Integers, Integers]:
        """Return forward and return costs between some devices, [source, target]; the diagonals are zero."""
        places = self.place[devices]
        found = self.forward_ns[np.ix_(places, places)], self.return_ns[np.ix_(places, places)]
        for one in found:
            np.fill_diagonal(one, 0)
        return found


def hops_of(of: Field) -> Hops:
    """Return what hops between all devices cost.

    Nobody writes into it: those of the last fields are kept, for one solve asks again and again, and the solves that
    give a plan's reasons ask for the same devices on the same links.
    """
    links = of.problem.links
    for known, devices, found in _last:
        if _is_same(known, links) and _are_same(devices, of.devices):
            return found
    found = _hops_of(of)
    _last.appendleft((links, of.devices, found))
    return found


_last: deque[tuple[Links, tuple[Device, ...], Hops]] = deque(maxlen=4)


def _is_same(known: Links, links: Links) -> bool:
    classes = (links.host, links.zone, links.cluster)
    return known.measured is links.measured and (known.host, known.zone, known.cluster) == classes


def _are_same(known: Sequence[Device], devices: Sequence[Device]) -> bool:
    """Say whether devices are the same, or at least in the same places."""
    return len(known) == len(devices) and all(
        one is other
        or (one.device_id == other.device_id and one.zone == other.zone and one.host == other.host)
        for one, other in zip(known, devices, strict=True)
    )


def link_matrices(of: Field) -> tuple[Integers, Integers]:
    """Return forward and return costs between all devices, [source, target]; the diagonals are zero."""
    return hops_of(of).between(np.arange(of.size))


def _hops_of(of: Field) -> Hops:
    links = of.problem.links
    measured = NodeLinks.of(links.measured)
    number_of = measured.pairs.number_of
    places: dict[tuple[int, str, str], int] = {}
    place = np.array(
        [
            places.setdefault((number_of.get(one.device_id, -1), one.zone, one.host), len(places))
            for one in of.devices
        ],
        dtype=np.int64,
    )
    zones: dict[str, list[int]] = {}
    hosts: dict[tuple[str, str], list[int]] = {}
    for (_, zone, host), number in places.items():
        zones.setdefault(zone, []).append(number)
        hosts.setdefault((zone, host), []).append(number)

    def spread(host: int, zone: int, cluster: int) -> Integers:
        costs = np.full((len(places), len(places)), zone if len(zones) == 1 else cluster, dtype=np.int64)
        for inside in zones.values() if len(zones) > 1 else ():
            costs[np.ix_(inside, inside)] = zone
        for inside in hosts.values():
            if len(inside) > 1:
                costs[np.ix_(inside, inside)] = host
        np.fill_diagonal(costs, host)
        return costs

    forward = spread(links.host.forward_ns, links.zone.forward_ns, links.cluster.forward_ns)
    back = spread(links.host.return_ns, links.zone.return_ns, links.cluster.return_ns)
    turns = _places_by_turn(list(places), len(measured.pairs.devices))
    for ours in turns:
        for theirs in turns:
            sources, targets = ours[measured.pairs.sources], theirs[measured.pairs.targets]
            rows = np.flatnonzero((sources >= 0) & (targets >= 0))
            forward[sources[rows], targets[rows]] = measured.forward_ns[rows]
            back[sources[rows], targets[rows]] = measured.return_ns[rows]
    is_alone = np.bincount(place, minlength=len(places)) < 2
    least = [_least_to(costs, is_alone)[place] for costs in (forward, back)]
    for one in (forward, back, *least):
        one.flags.writeable = False
    return Hops(place, forward, back, least[0], least[1])


def _least_to(costs: Integers, is_alone: Flags) -> Integers:
    """Return the least of each column; the diagonal counts where a place has several devices."""
    own = costs.diagonal().copy()
    np.fill_diagonal(costs, np.where(is_alone, _FAR, own))
    least = costs.min(axis=0)
    np.fill_diagonal(costs, own)
    return least


def _places_by_turn(places: Sequence[tuple[int, str, str]], count: int) -> list[Integers]:
    """Return the place of each measured node, or -1; as many such rows as one has places, which mostly is one."""
    turns: list[Integers] = []
    seen: dict[int, int] = {}
    for place, (number, _, _) in enumerate(places):
        if number < 0:
            continue
        turn = seen[number] = seen.get(number, -1) + 1
        if turn == len(turns):
            turns.append(np.full(count, -1, dtype=np.int64))
        turns[turn][number] = place
    return turns


def hierarchical_order(of: Field, used: Sequence[int], first: int, last: int) -> list[int]:
    """Return the used devices as a ring of least cost that begins and ends as asked.

    Hosts stay together within zones and zones within the cluster, except that what holds both ends is opened
    between them, and the rest of the ring goes in there.
    """
    if len(used) < 2:
        return list(used)
    head, tail = _arranged(of, sorted(used), first, last, depth=0)
    return head + tail


def _arranged(
    of: Field, used: list[int], first: int, last: int, *, depth: int
) -> tuple[list[int], list[int]]:
    """Return the ring in two parts, between which others may be put: one begins with `first`, one ends with `last`.

    An end that is not among the devices is -1; then its part is empty or begins anywhere.
    """
    if depth == 2:
        middle = [index for index in used if index not in (first, last)]
        head = [first] if first in used else []
        return head + middle, [last] if last in used else []
    groups: dict[str, list[int]] = {}
    for index in used:
        one = of.devices[index]
        groups.setdefault(one.zone if depth == 0 else one.host, []).append(index)
    head: list[int] = []
    tail: list[int] = []
    middle: list[int] = []
    for _, group in sorted(groups.items()):
        begins, ends = first in group, last in group
        front, back = _arranged(of, group, first if begins else -1, last if ends else -1, depth=depth + 1)
        if begins and ends:
            head, tail = front, back
        elif begins:
            head = front + back
        elif ends:
            tail = front + back
        else:
            middle += front + back
    return head + middle, tail
