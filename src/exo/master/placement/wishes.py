"""What a request asks of a plan as a whole, as rules: nodes and zones to spread over, and what must be used."""

import msgspec

from exo.master.placement.ladder.problem import AtLeast, Rule
from exo.master.placement.problem import Candidate, Problem
from exo.shared.types.ids import DeviceId, NodeId


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """Rules for a set of candidates."""

    min_stages: int = 1
    required: frozenset[DeviceId] = frozenset()
    """Devices that every plan must use."""
    rules: tuple[Rule, ...] = ()


def wishes_of(problem: Problem) -> Wishes:
    """Return the rules that the request puts on its candidates.

    `min_nodes` counts nodes. Where each has one device that is the number of stages, which costs the ladder nothing.
    """
    request = problem.request
    by_node = devices_by_node(problem.candidates)
    rules: list[Rule] = []
    min_stages = 1
    if request.min_nodes > 1 and all(len(one) == 1 for one in by_node.values()):
        min_stages = request.min_nodes
    elif request.min_nodes > 1:
        groups = tuple(tuple(devices) for devices in by_node.values())
        reason = f"the {request.min_nodes} nodes asked for"
        rules.append(AtLeast(groups=groups, count=request.min_nodes, reason=reason))
    required: set[DeviceId] = set()
    for name in request.must_use:
        devices = by_node.get(NodeId(name), (DeviceId(name),))
        if len(devices) == 1:
            required.add(devices[0])
        else:
            rules.append(AtLeast(groups=(devices,), count=1, reason=f"the use of {name}"))
    if request.min_zones > 1:
        groups = tuple(tuple(devices) for devices in _devices_by_zone(problem.candidates).values())
        reason = f"the {request.min_zones} zones asked for"
        rules.append(AtLeast(groups=groups, count=request.min_zones, reason=reason))
    return Wishes(min_stages=min_stages, required=frozenset(required), rules=tuple(rules))


def in_turn(problem: Problem) -> tuple[list[Candidate], int]:
    """Return the candidates in the order in which a plan by memory alone takes them, and how many of them it must.

    That number is more than there are where what was asked for cannot be had.

    First what must be used, then the roomiest of so many zones and nodes as were asked for, then the others, roomiest
    first; processors that only join for want of VRAM come last.
    """
    request = problem.request
    roomiest = _roomiest_first(problem.candidates)
    must = set(request.must_use)
    head = [one for one in roomiest if one.device.device_id in must]

    def fill(key: str, least: int) -> None:
        seen = {getattr(one, key) for one in head}
        for one in roomiest:
            if len(seen) < least and getattr(one, key) not in seen:
                seen.add(getattr(one, key))
                head.append(one)

    met = {one.node_id for one in head}
    for one in roomiest:
        if one.node_id in must and one.node_id not in met:
            met.add(one.node_id)
            head.append(one)
    fill("zone", request.min_zones)
    fill("node_id", request.min_nodes)
    taken = {one.device.device_id for one in head}
    rest = [one for one in roomiest if one.device.device_id not in taken]
    # By room, as if nothing but room had been asked for, as far as the wishes leave it open.
    places = {one.device.device_id: place for place, one in enumerate(roomiest)}
    order = [*sorted(head, key=lambda one: places[one.device.device_id]), *rest]
    zones = {one.zone for one in head}
    nodes = {one.node_id for one in head}
    is_had = len(zones) >= request.min_zones and len(nodes) >= request.min_nodes
    return order, len(head) if is_had else len(order) + 1


def devices_by_node(candidates: tuple[Candidate, ...]) -> dict[NodeId, tuple[DeviceId, ...]]:
    """Return the devices that may take part, by node."""
    found: dict[NodeId, tuple[DeviceId, ...]] = {}
    for one in candidates:
        found[one.node_id] = (*found.get(one.node_id, ()), one.device.device_id)
    return found


def _devices_by_zone(candidates: tuple[Candidate, ...]) -> dict[str, tuple[DeviceId, ...]]:
    found: dict[str, tuple[DeviceId, ...]] = {}
    for one in candidates:
        found[one.zone] = (*found.get(one.zone, ()), one.device.device_id)
    return found


def _roomiest_first(candidates: tuple[Candidate, ...]) -> list[Candidate]:
    """Order candidates by free memory; a second one of a pool adds no memory, so it comes after all first ones."""
    ordered = sorted(
        candidates, key=lambda one: (one.is_offload, -one.memory_free_bytes, one.device.device_id)
    )
    seen: dict[str, int] = {}
    turns: list[tuple[bool, int, Candidate]] = []
    for one in ordered:
        seen[one.pool] = seen.get(one.pool, 0) + 1
        turns.append((one.is_offload, seen[one.pool], one))
    return [one for *_, one in sorted(turns, key=lambda turn: turn[:2])]
