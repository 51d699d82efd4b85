"""Devices as the leaves of a tree whose joints say what a hop across them costs: the order of the programme.

Links that form a hierarchy (host < zone < cluster) are such a tree exactly. For measured, irregular links the
single-linkage clustering gives the greatest tree (ultrametric) under the true costs (Gower and Ross, "Minimum
spanning trees and single linkage cluster analysis", 1969), so that a best plan on it bounds every real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from exo.master.placement.ladder.field import Field, Integers
from exo.master.placement.ladder.units import Units

_PAIRS_AT_ONCE = 4_096


@dataclass(frozen=True, slots=True)
class Joint:
    """Two subtrees, `left` and `right` by node index, and what hops between them cost."""

    left: int
    right: int
    forward_ns: int
    to_left_ns: int
    """Return of the token from a last stage in `right` to a first stage in `left`."""
    to_right_ns: int
    pool: int
    """The memory pool that all devices below share, or -1."""
    is_pool_top: bool
    """Whether no more of that pool lies outside."""


@dataclass(slots=True)
class Tree:
    """Nodes in post-order: children before parents, the root last. A leaf is the index of its device."""

    nodes: list[int | Joint] = field(default_factory=list)
    required: list[int] = field(default_factory=list)
    """How many required devices and demanded groups lie below each node."""
    granted: list[int] = field(default_factory=list)
    """The same, and one more within a demanded group: what a plan that closes there has of them."""
    unit: list[int] = field(default_factory=list)
    """What all devices below each node belong to of that which is counted, or -1."""
    valued: list[int] = field(default_factory=list)
    """The same of that which has a bonus."""
    leaves: list[int] = field(default_factory=list)
    """How many devices lie below each node."""

    def add_leaf(self, device: int, *, is_required: bool, unit: int = -1, valued: int = -1) -> int:
        """Add a device; return its node."""
        self.nodes.append(device)
        self.required.append(int(is_required))
        self.granted.append(int(is_required))
        self.unit.append(unit)
        self.valued.append(valued)
        self.leaves.append(1)
        return len(self.nodes) - 1

    def add_joint(self, joint: Joint) -> int:
        """Join two nodes; return the new one."""
        self.nodes.append(joint)
        self.required.append(self.required[joint.left] + self.required[joint.right])
        self.granted.append(self.required[-1])
        for names in (self.unit, self.valued):
            names.append(names[joint.left] if names[joint.left] == names[joint.right] else -1)
        self.leaves.append(self.leaves[joint.left] + self.leaves[joint.right])
        return len(self.nodes) - 1

    def demand(self, first: int, top: int) -> None:
        """Demand a device of the group whose nodes are these, `top` the last of them."""
        for number in range(first, top):
            self.granted[number] += 1
        self.required[top] += 1
        self.granted[top] += 1

    def is_one_unit(self, number: int) -> bool:
        """Whether what a joint holds counts once, however many devices of it take part."""
        return self.unit[number] >= 0

    def is_one_valued(self, number: int) -> bool:
        """Whether what a joint holds has its bonus once."""
        return self.valued[number] >= 0

    @property
    def tops(self) -> list[bool]:
        """Of each node, whether it holds the whole of several devices that have a bonus together."""
        found = [isinstance(node, Joint) and self.is_one_valued(i) for i, node in enumerate(self.nodes)]
        for number, node in enumerate(self.nodes):
            if isinstance(node, Joint) and self.is_one_valued(number):
                found[node.left] = found[node.right] = False
        return found


def _leaf(tree: Tree, of: Field, units: Units | None, index: int) -> int:
    valued = units.unit[index] if units is not None and units.unit else -1
    unit = units.coarse[index] if units is not None and units.coarse else valued
    return tree.add_leaf(index, is_required=bool(of.is_required[index]), unit=unit, valued=valued)


def hierarchy(of: Field, *, units: Units | None = None, is_balanced: bool = False) -> Tree:
    """Return the exact tree of hierarchical links: zones of hosts of pools of devices, each sorted by name.

    What is alike hangs in a chain, or balanced, with short ways to the root. The pools of a block of `units` hang
    together within their host.
    """
    links = of.problem.links
    tree = Tree()
    zones: dict[str, dict[str, dict[int, list[int]]]] = {}
    for index in sorted(range(of.size), key=lambda i: (of.devices[i].zone, of.devices[i].host)):
        one = of.devices[index]
        pools = zones.setdefault(one.zone, {}).setdefault(one.host, {})
        pools.setdefault(int(of.pool[index]), []).append(index)

    def chain(nodes: Sequence[int], cost: tuple[int, int], pool: int = -1) -> int:
        if is_balanced and pool < 0 and len(nodes) > 2:
            half = len(nodes) // 2
            nodes = [chain(nodes[:half], cost), chain(nodes[half:], cost)]
        acc = nodes[0]
        for position, node in enumerate(nodes[1:], start=2):
            acc = tree.add_joint(
                Joint(acc, node, cost[0], cost[1], cost[1], pool, pool >= 0 and position == len(nodes))
            )
        return acc

    block_of = {
        index: number for number, block in enumerate(units.blocks if units else ()) for index in block
    }

    def leaf(index: int) -> int:
        return _leaf(tree, of, units, index)

    def within_host(pools: dict[int, list[int]]) -> list[int]:
        """Chain the devices of each pool, and then the pools of each block."""
        blocks: dict[int, list[tuple[int, list[int]]]] = {}
        for pool, members in pools.items():
            blocks.setdefault(block_of.get(members[0], -1 - pool), []).append((pool, members))
        tops: list[int] = []
        for number, inside in blocks.items():
            first = len(tree.nodes)
            top = chain(
                [chain([leaf(i) for i in members], by_host, pool) for pool, members in inside], by_host
            )
            if number >= 0 and units is not None and units.blocks[number] in units.demanded:
                tree.demand(first, top)
            tops.append(top)
        return tops

    by_host = (links.host.forward_ns, links.host.return_ns)
    by_zone = (links.zone.forward_ns, links.zone.return_ns)
    by_cluster = (links.cluster.forward_ns, links.cluster.return_ns)
    tops: list[int] = []
    for zone, hosts in sorted(zones.items()):
        first = len(tree.nodes)
        host_nodes: list[int] = []
        for _, pools in sorted(hosts.items()):
            host_nodes.append(chain(within_host(pools), by_host))
        tops.append(chain(host_nodes, by_zone))
        if units is not None and len(tree.nodes) - first > 1:
            inside = frozenset(index for index in range(of.size) if of.devices[index].zone == zone)
            if inside in units.demanded and inside not in units.blocks:
                tree.demand(first, tops[-1])
    chain(tops, by_cluster)
    return tree


def single_linkage(
    of: Field, forward_ns: Integers, return_ns: Integers, *, units: Units | None = None
) -> Tree:
    """Return the greatest tree that costs no pair more than `forward_ns[source, target]`, either way round.

    Devices that share a pool, and those of a block of `units`, are joined first, at the cheapest link that touches
    any of them, which keeps the tree under the true costs.
    """
    tree = Tree()
    near = np.minimum(forward_ns, forward_ns.T)
    # The least return between what is joined to each leader, kept up to date for leaders only.
    least_ns = return_ns.copy()
    members: dict[int, list[int]] = {}
    node_of: dict[int, int] = {}
    leader = list(range(of.size))

    def join(left: int, right: int, height: int, pool: int, *, is_pool_top: bool) -> None:
        ours, theirs = members[left], members.pop(right)
        to_left, to_right = int(least_ns[right, left]), int(least_ns[left, right])
        np.minimum(least_ns[left], least_ns[right], out=least_ns[left])
        np.minimum(least_ns[:, left], least_ns[:, right], out=least_ns[:, left])
        joint = Joint(node_of[left], node_of.pop(right), height, to_left, to_right, pool, is_pool_top)
        node_of[left] = tree.add_joint(joint)
        members[left] = ours + theirs
        for index in theirs:
            leader[index] = left

    for group in _together(of, units):
        first = len(tree.nodes)
        for index in group:
            members[index] = [index]
            node_of[index] = _leaf(tree, of, units, index)
        height = min(int(np.delete(near[one], one).min()) for one in group) if len(group) > 1 else 0
        pools: dict[int, list[int]] = {}
        for index in group:
            pools.setdefault(int(of.pool[index]), []).append(index)
        for pool, inside in pools.items():
            for index in inside[1:]:
                join(inside[0], index, height, pool, is_pool_top=index == inside[-1])
        firsts = [inside[0] for inside in pools.values()]
        for index in firsts[1:]:
            join(firsts[0], index, height, -1, is_pool_top=False)
        if units is not None and len(group) > 1 and frozenset(group) in units.demanded:
            tree.demand(first, len(tree.nodes) - 1)
    sources, targets = np.triu_indices(of.size, 1)
    heights = near[sources, targets]
    # Of equal heights those of the first source and target come first, as they were made.
    order = np.argsort(heights, kind="stable")
    for first in range(0, len(order), _PAIRS_AT_ONCE):
        part = order[first : first + _PAIRS_AT_ONCE]
        pairs: list[list[int]] = np.stack((heights[part], sources[part], targets[part]), axis=1).tolist()
        for height, source, target in pairs:
            left, right = sorted((leader[source], leader[target]))
            if left != right:
                join(left, right, height, -1, is_pool_top=False)
        if len(members) == 1:
            break
    return tree


def _together(of: Field, units: Units | None) -> list[list[int]]:
    """Return the blocks, and what is in none of them by its pools."""
    blocks = [sorted(block) for block in units.blocks] if units is not None else []
    inside = {index for block in blocks for index in block}
    pools: dict[int, list[int]] = {}
    for index in range(of.size):
        if index not in inside:
            pools.setdefault(int(of.pool[index]), []).append(index)
    return [*blocks, *pools.values()]
