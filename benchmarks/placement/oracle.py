"""The same problem as a CP-SAT model of OR-tools: slow, and written on its own, to judge the ladder by.

Latency objective and layers alike. Without OR-tools importing this module works; asking it does not.
"""

from dataclasses import dataclass
from typing import Any

from exo.master.placement.ladder.problem import AtMost, CostProblem


@dataclass(frozen=True, slots=True)
class Optimum:
    """What CP-SAT found in its time: the best latency, and what it could not get below."""

    best_ns: int | None
    bound_ns: int
    is_proven: bool


class OracleMissingError(Exception):
    """Raised when OR-tools is not installed."""


def cp_sat(problem: CostProblem, *, timeout_s: float = 20.0) -> Optimum:
    """Solve a problem of micro_batches 1 and layers alike.

    Raises:
        OracleMissingError: OR-tools is not installed.
    """
    singles = [_alone_ns(problem, number) for number in range(len(problem.devices))]
    allowed = [cost for cost in singles if cost is not None]
    alone = min(allowed, default=None)
    several = _several(problem, timeout_s) if len(problem.devices) > 1 and problem.layer_count > 1 else None
    if several is None:
        return Optimum(alone, alone or 0, is_proven=True)
    found = [cost for cost in (alone, several.best_ns) if cost is not None]
    best = min(found, default=None)
    bound = several.bound_ns if alone is None else min(alone, several.bound_ns)
    return Optimum(best, bound, several.is_proven or (best is not None and bound >= best))


def _alone_ns(problem: CostProblem, number: int) -> int | None:
    device = problem.devices[number]
    model = problem.model
    room = next(pool.room_bytes for pool in problem.pools if pool.pool_id == device.pool_id)
    if problem.min_stages > 1 or any(one.is_required and one is not device for one in problem.devices):
        return None
    for rule in problem.rules:
        if isinstance(rule, AtMost):
            if device.device_id in rule.device_ids and rule.count < 1:
                return None
        elif sum(1 for group in rule.groups if device.device_id in group) < rule.count:
            return None
    if model.only_bytes + sum(layer.size_bytes for layer in model.layers) > room:
        return None
    return problem.layer_count * device.layer_ns + device.overhead_ns + device.head_ns


def _several(problem: CostProblem, timeout_s: float) -> Optimum | None:
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise OracleMissingError("OR-tools is not installed (`uv sync --group oracle`)") from error
    model: Any = cp_model.CpModel()
    devices, layers = problem.devices, problem.layer_count
    size = problem.model.layers[0].size_bytes
    count = len(devices)
    used = [model.new_bool_var(f"used {i}") for i in range(count)]
    first = [model.new_bool_var(f"first {i}") for i in range(count)]
    last = [model.new_bool_var(f"last {i}") for i in range(count)]
    held = [model.new_int_var(0, layers, f"layers {i}") for i in range(count)]
    model.add_exactly_one(first)
    model.add_exactly_one(last)
    model.add(sum(held) == layers)
    model.add(sum(used) >= max(2, problem.min_stages))
    for i in range(count):
        model.add(held[i] >= used[i])
        model.add(held[i] <= layers * used[i])
        model.add(first[i] + last[i] <= used[i])
        if devices[i].is_required:
            model.add(used[i] == 1)
    for pool in problem.pools:
        inside = [i for i in range(count) if devices[i].pool_id == pool.pool_id]
        if inside:
            # In whole layers and rests, so that the numbers stay small.
            model.add(
                sum(
                    size * held[i]
                    + problem.model.stage_bytes * used[i]
                    + (problem.model.first_bytes - problem.model.stage_bytes) * first[i]
                    + (problem.model.last_bytes - problem.model.stage_bytes) * last[i]
                    for i in inside
                )
                <= pool.room_bytes
            )
    index_of = {device.device_id: i for i, device in enumerate(devices)}
    for rule in problem.rules:
        if isinstance(rule, AtMost):
            model.add(sum(used[index_of[one]] for one in rule.device_ids) <= rule.count)
        else:
            hit: list[Any] = []
            for group in rule.groups:
                is_hit = model.new_bool_var("group")
                model.add(is_hit <= sum(used[index_of[one]] for one in group))
                hit.append(is_hit)
            model.add(sum(hit) >= rule.count)
    hops = (
        _by_class(model, problem, used, first, last)
        if problem.links.is_hierarchical
        else _by_arc(model, problem, used, first, last)
    )
    model.minimize(
        sum(
            devices[i].layer_ns * held[i] + devices[i].overhead_ns * used[i] + devices[i].head_ns * last[i]
            for i in range(count)
        )
        + hops
    )
    solver: Any = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = timeout_s
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None
    has_plan = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return Optimum(
        round(solver.objective_value) if has_plan else None,
        int(solver.best_objective_bound) if status != cp_model.OPTIMAL else round(solver.objective_value),
        is_proven=status == cp_model.OPTIMAL,
    )


def _by_class(model: Any, problem: CostProblem, used: list[Any], first: list[Any], last: list[Any]) -> Any:
    """Hops of the cheapest closed ring, with the hop from last to first exchanged for the way back."""
    devices, links = problem.devices, problem.links
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, device in enumerate(devices):
        groups.setdefault((device.zone,), []).append(i)
        groups.setdefault((device.zone, device.host), []).append(i)
    is_in: dict[tuple[str, ...], Any] = {}
    holds_both: dict[tuple[str, ...], Any] = {}
    for key, inside in groups.items():
        is_in[key] = model.new_bool_var(f"in {key}")
        model.add_max_equality(is_in[key], [used[i] for i in inside])
        both = model.new_bool_var(f"ends in {key}")
        model.add(both <= sum(first[i] for i in inside))
        model.add(both <= sum(last[i] for i in inside))
        model.add(both >= sum(first[i] + last[i] for i in inside) - 1)
        holds_both[key] = both
    zones = sum(value for key, value in is_in.items() if len(key) == 1)
    hosts = sum(value for key, value in is_in.items() if len(key) == 2)
    is_wide, is_broad = model.new_bool_var("several zones"), model.new_bool_var("several hosts")
    count = len(devices)
    model.add(zones <= 1 + count * is_wide)
    model.add(hosts <= 1 + count * is_broad)
    # A ring within a zone closes with one more hop of its hosts, one across zones with one more of its zones.
    closed = (
        links.host.forward_ns * (sum(used) - hosts)
        + links.zone.forward_ns * (hosts - zones)
        + links.cluster.forward_ns * (zones - 1)
        + links.host.forward_ns
        + (links.zone.forward_ns - links.host.forward_ns) * is_broad
        + (links.cluster.forward_ns - links.zone.forward_ns) * is_wide
    )
    same_zone = sum(value for key, value in holds_both.items() if len(key) == 1)
    same_host = sum(value for key, value in holds_both.items() if len(key) == 2)
    saved = [cost.forward_ns - cost.return_ns for cost in (links.host, links.zone, links.cluster)]
    return closed - saved[2] - (saved[1] - saved[2]) * same_zone - (saved[0] - saved[1]) * same_host


def _by_arc(model: Any, problem: CostProblem, used: list[Any], first: list[Any], last: list[Any]) -> Any:
    """Hops of a circuit through the used devices and a depot that stands between last and first."""
    devices = problem.devices
    measured = {(link.source_device_id, link.target_device_id): link.cost for link in problem.links.measured}
    arcs: list[tuple[int, int, Any]] = []
    terms: list[Any] = []
    for i, source in enumerate(devices):
        arcs.append((0, i + 1, first[i]))
        arcs.append((i + 1, 0, last[i]))
        arcs.append((i + 1, i + 1, used[i].negated()))
        for j, target in enumerate(devices):
            if i == j:
                continue
            cost = measured.get((source.device_id, target.device_id)) or problem.links.between(source, target)
            hop, back = model.new_bool_var("hop"), model.new_bool_var("back")
            arcs.append((i + 1, j + 1, hop))
            model.add(back >= last[i] + first[j] - 1)
            terms.append(cost.forward_ns * hop + cost.return_ns * back)
    model.add_circuit(arcs)
    return sum(terms)
