"""Which GPUs of a node could run a stage together, and the cost problem in which such groups join or stand alone."""

from collections.abc import Mapping, Sequence
from itertools import permutations

from msgspec.structs import replace

from exo.master.placement.assumed import ASSUMED
from exo.master.placement.ladder.cost_model import is_usable
from exo.master.placement.ladder.problem import AtLeast, AtMost, CostProblem, Rule
from exo.master.placement.ladder.tensor import TensorGroup, tensor_degrees, with_tensor_groups
from exo.master.placement.problem import Candidate, Problem
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import Sharding
from exo.shared.types.state import State

GROUPED = {"auto", "tensor", "hybrid"}
"""Shardings that groups take part in."""


def tensor_groups(state: State, problem: Problem) -> tuple[TensorGroup, ...]:
    """Return groups of GPUs that are worth weighing: of each size that divides the heads, alike ones together.

    Only GPUs of one node with memory of their own make a group, for a stage is one process. GPUs of a node are taken
    in order, kind by kind and roomiest first, so that each size splits them once.
    """
    model = problem.model
    if model.attention_heads < 1 or model.kv_heads < 1:
        return ()
    by_node: dict[NodeId, list[Candidate]] = {}
    for one in problem.candidates:
        if one.device.backend != "cpu" and one.device.memory_kind == "vram":
            by_node.setdefault(one.node_id, []).append(one)
    groups: list[TensorGroup] = []
    for node_id, cards in by_node.items():
        ordered = sorted(
            cards, key=lambda one: (one.device.name, -one.memory_free_bytes, one.device.device_id)
        )
        for degree in tensor_degrees(model.attention_heads, model.kv_heads, len(ordered)):
            for start in range(0, len(ordered) - degree + 1, degree):
                groups.append(_group(state, node_id, ordered[start : start + degree]))
    return tuple(groups)


def _group(state: State, node_id: NodeId, cards: Sequence[Candidate]) -> TensorGroup:
    """Return a group with its worst way between two of its GPUs: as measured, else as of one host."""
    live = state.live.get(node_id)
    ways = live.device_links if live is not None else {}
    names = tuple(sorted(one.device.device_id for one in cards))
    latencies, bandwidths = list[float](), list[float]()
    for source, target in permutations(names, 2):
        way = ways.get(f"{source} {target}")
        if way is not None and is_usable(way.bandwidth_mbps) and is_usable(way.latency_ms):
            latencies.append(way.latency_ms / 1000)
            bandwidths.append(way.bandwidth_mbps * 1e6 / 8)
        else:
            latencies.append(ASSUMED.host_link.latency_s)
            bandwidths.append(ASSUMED.host_link.bandwidth_bytes_per_s)
    return TensorGroup(device_ids=names, latency_s=max(latencies), bandwidth_bytes_per_s=min(bandwidths))


def with_groups(
    costs: CostProblem, groups: Sequence[TensorGroup], sharding: Sharding, *, batch: int, hidden_size: int
) -> tuple[CostProblem, Mapping[str, tuple[str, ...]]]:
    """Return the cost problem with groups as devices of their own, and the members of each.

    `auto`: groups compete with their members on the same predicted time. `tensor`: one group is the whole plan.
    `hybrid`: a pipeline with at least one group.
    """
    grown, members = with_tensor_groups(costs, groups, batch=batch, hidden_size=hidden_size)
    if not members:
        return costs, {}
    grown = _with_rules_of_groups(grown, costs, members)
    if sharding == "hybrid":
        rule = AtLeast(groups=(tuple(members),), count=1, reason="the hybrid sharding asked for")
        grown = replace(grown, rules=(*grown.rules, rule), min_stages=max(2, grown.min_stages))
    if sharding == "tensor":
        kept = set(members)
        grown = replace(
            grown,
            devices=tuple(one for one in grown.devices if one.device_id in kept),
            links=replace(grown.links, measured=()),
            rules=(*_only(grown.rules, kept), AtMost(device_ids=tuple(members), count=1, reason="one group")),
        )
    return grown, members


def _with_rules_of_groups(
    grown: CostProblem, before: CostProblem, members: Mapping[str, tuple[str, ...]]
) -> CostProblem:
    """Let a group stand for its members where a rule asks for them, and where one of them must be used."""

    def widened(names: tuple[str, ...]) -> tuple[str, ...]:
        return (*names, *(group for group, inside in members.items() if set(inside) & set(names)))

    rules: list[Rule] = [
        replace(rule, groups=tuple(widened(names) for names in rule.groups))
        if isinstance(rule, AtLeast)
        else rule
        for rule in before.rules
    ]
    required = [one.device_id for one in before.devices if one.is_required]
    rules.extend(
        AtLeast(groups=(widened((name,)),), count=1, reason=f"the use of {name}") for name in required
    )
    own = grown.rules[len(before.rules) :]
    return replace(
        grown,
        devices=tuple(replace(one, is_required=False) for one in grown.devices),
        rules=(*rules, *own),
    )


def _only(rules: Sequence[Rule], kept: set[str]) -> list[Rule]:
    """Return the rules without the devices that are not there; a group of none is asked for in vain, as it should."""
    return [
        replace(rule, groups=tuple(tuple(one for one in names if one in kept) for names in rule.groups))
        for rule in rules
        if isinstance(rule, AtLeast)
    ]
