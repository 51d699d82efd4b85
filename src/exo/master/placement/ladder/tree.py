"""Devices as the leaves of a tree whose joints say what a hop across them costs: the order of the programme.

Links that form a hierarchy (host < zone < cluster) are such a tree exactly. For measured, irregular links the
single-linkage clustering gives the greatest tree (ultrametric) under the true costs (Gower and Ross, "Minimum
spanning trees and single linkage cluster analysis", 1969), so that a best plan on it bounds every real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from exo.master.placement.ladder.field import Field, Integers


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
    """How many required devices lie below each node."""
    leaves: list[int] = field(default_factory=list)
    """How many devices lie below each node."""

    def add_leaf(self, device: int, *, is_required: bool) -> int:
        """Add a device; return its node."""
        self.nodes.append(device)
        self.required.append(int(is_required))
        self.leaves.append(1)
        return len(self.nodes) - 1

    def add_joint(self, joint: Joint) -> int:
        """Join two nodes; return the new one."""
        self.nodes.append(joint)
        self.required.append(self.required[joint.left] + self.required[joint.right])
        self.leaves.append(self.leaves[joint.left] + self.leaves[joint.right])
        return len(self.nodes) - 1


def hierarchy(of: Field, *, is_balanced: bool = False) -> Tree:
    """Return the exact tree of hierarchical links: zones of hosts of pools of devices, each sorted by name.

    What is alike hangs in a chain, or balanced, with short ways to the root.
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

    def leaf(index: int) -> int:
        return tree.add_leaf(index, is_required=bool(of.is_required[index]))

    by_host = (links.host.forward_ns, links.host.return_ns)
    by_zone = (links.zone.forward_ns, links.zone.return_ns)
    by_cluster = (links.cluster.forward_ns, links.cluster.return_ns)
    tops: list[int] = []
    for _, hosts in sorted(zones.items()):
        host_nodes: list[int] = []
        for _, pools in sorted(hosts.items()):
            pool_nodes = [chain([leaf(i) for i in members], by_host, pool) for pool, members in pools.items()]
            host_nodes.append(chain(pool_nodes, by_host))
        tops.append(chain(host_nodes, by_zone))
    chain(tops, by_cluster)
    return tree


def single_linkage(of: Field, forward_ns: Integers, return_ns: Integers) -> Tree:
    """Return the greatest tree that costs no pair more than `forward_ns[source, target]`, either way round.

    Devices that share a pool are joined first, at the cheapest link that touches any of them, which keeps the
    tree under the true costs.
    """
    tree = Tree()
    near = np.minimum(forward_ns, forward_ns.T)
    members = {index: [index] for index in range(of.size)}
    node_of = {
        index: tree.add_leaf(index, is_required=bool(of.is_required[index])) for index in range(of.size)
    }
    leader = list(range(of.size))

    def join(left: int, right: int, height: int, pool: int, *, is_pool_top: bool) -> None:
        ours, theirs = members[left], members.pop(right)
        to_left = int(return_ns[np.ix_(theirs, ours)].min())
        to_right = int(return_ns[np.ix_(ours, theirs)].min())
        joint = Joint(node_of[left], node_of.pop(right), height, to_left, to_right, pool, is_pool_top)
        node_of[left] = tree.add_joint(joint)
        members[left] = ours + theirs
        for index in theirs:
            leader[index] = left

    pools: dict[int, list[int]] = {}
    for index in range(of.size):
        pools.setdefault(int(of.pool[index]), []).append(index)
    for pool, group in pools.items():
        for index in group[1:]:
            height = min(int(np.delete(near[one], one).min()) for one in group)
            join(group[0], index, height, pool, is_pool_top=index == group[-1])
    sources, targets = np.triu_indices(of.size, 1)
    heights = near[sources, targets]
    order = np.lexsort((targets, sources, heights))
    pairs: list[list[int]] = np.stack((heights[order], sources[order], targets[order]), axis=1).tolist()
    for height, source, target in pairs:
        left, right = sorted((leader[source], leader[target]))
        if left != right:
            join(left, right, height, -1, is_pool_top=False)
            if len(members) == 1:
                break
    return tree
