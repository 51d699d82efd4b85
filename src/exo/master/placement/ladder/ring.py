"""The order of a ring on hierarchical links, and what the hops of any ring cost."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.problem import Device, Links


def link_matrices(of: Field) -> tuple[Integers, Integers]:
    """Return forward and return costs between all devices, [source, target]; the diagonals are zero.

    Nobody writes into them: those of the last fields are kept, for one solve asks again and again.
    """
    key = (id(of.problem.links), id(of.devices))
    for links, devices, found in _last:
        if (id(links), id(devices)) == key:
            return found
    found = _link_matrices(of)
    _last.appendleft((of.problem.links, of.devices, found))
    return found


_last: deque[tuple[Links, tuple[Device, ...], tuple[Integers, Integers]]] = deque(maxlen=4)
"""With what they are of, so that their ids stay theirs."""


def _link_matrices(of: Field) -> tuple[Integers, Integers]:
    links = of.problem.links
    zones = np.unique([one.zone for one in of.devices], return_inverse=True)[1]
    hosts = np.unique([f"{one.zone}\0{one.host}" for one in of.devices], return_inverse=True)[1]
    same_zone = zones[:, np.newaxis] == zones[np.newaxis]
    same_host = hosts[:, np.newaxis] == hosts[np.newaxis]

    def spread(host: int, zone: int, cluster: int) -> Integers:
        costs = np.where(same_host, host, np.where(same_zone, zone, cluster)).astype(np.int64)
        np.fill_diagonal(costs, 0)
        return costs

    forward = spread(links.host.forward_ns, links.zone.forward_ns, links.cluster.forward_ns)
    back = spread(links.host.return_ns, links.zone.return_ns, links.cluster.return_ns)
    index_of = {one.device_id: index for index, one in enumerate(of.devices)}
    for link in links.measured:
        source, target = index_of.get(link.source_device_id), index_of.get(link.target_device_id)
        if source is not None and target is not None and source != target:
            forward[source, target] = link.cost.forward_ns
            back[source, target] = link.cost.return_ns
    forward.flags.writeable = back.flags.writeable = False
    return forward, back


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
