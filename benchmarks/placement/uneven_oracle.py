# OR-tools has no types.
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownMemberType=false
"""The best plan of unequal layers by CP-SAT, layer by layer: slow, and written apart from the solvers.

Links are hierarchical, micro-batches 1, and there are no rules. In the order of the layers each change of device, host
and zone is paid for.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.placement.oracle import Optimum, OracleMissingError
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT, CostProblem, Device


def cp_sat_uneven(problem: CostProblem, *, timeout_s: float = 20.0) -> Optimum:
    """Solve for plans of two or more stages; a plan of one is the caller's to compare.

    Raises:
        OracleMissingError: OR-tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise OracleMissingError("OR-tools is not installed (`uv sync --group oracle`)") from error
    model: Any = cp_model.CpModel()
    devices, layers, links = problem.devices, problem.model.layers, problem.links
    count, size = len(layers), len(devices)
    runs = [[model.new_bool_var(f"{i} runs {n}") for n in range(count)] for i in range(size)]
    begins = [[model.new_bool_var(f"{i} begins at {n}") for n in range(count)] for i in range(size)]
    used = [model.new_bool_var(f"used {i}") for i in range(size)]
    for n in range(count):
        model.add_exactly_one(runs[i][n] for i in range(size))
    for i in range(size):
        model.add(begins[i][0] == runs[i][0])
        for n in range(1, count):
            model.add(begins[i][n] >= runs[i][n] - runs[i][n - 1])
            model.add(begins[i][n] <= runs[i][n])
            model.add(begins[i][n] + runs[i][n - 1] <= 1)
        model.add(sum(begins[i]) == used[i])
        if devices[i].is_required:
            model.add(used[i] == 1)
    model.add(sum(used) >= max(2, problem.min_stages))
    told = problem.model
    for pool in problem.pools:
        inside = [i for i in range(size) if devices[i].pool_id == pool.pool_id]
        taken = [
            sum(layers[n].size_bytes * runs[i][n] for n in range(count))
            + told.stage_bytes * used[i]
            + (told.first_bytes - told.stage_bytes) * runs[i][0]
            + (told.last_bytes - told.stage_bytes) * runs[i][-1]
            for i in inside
        ]
        model.add(sum(taken) <= pool.room_bytes)

    def changes(key: Callable[[Device], tuple[str, ...]]) -> tuple[Any, Any]:
        """How often the ring changes groups between layers, and whether both its ends are in one."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, device in enumerate(devices):
            groups.setdefault(key(device), []).append(i)
        changed: list[Any] = []
        both: list[Any] = []
        for inside in groups.values():
            for n in range(1, count):
                one = model.new_bool_var("change")
                model.add(one >= sum(runs[i][n] - runs[i][n - 1] for i in inside))
                changed.append(one)
            ends = model.new_bool_var("both ends")
            model.add(ends <= sum(runs[i][0] for i in inside))
            model.add(ends <= sum(runs[i][-1] for i in inside))
            model.add(ends >= sum(runs[i][0] + runs[i][-1] for i in inside) - 1)
            both.append(ends)
        return sum(changed), sum(both)

    hosts, same_host = changes(lambda one: (one.zone, one.host))
    zones, same_zone = changes(lambda one: (one.zone,))
    stages = sum(
        devices[i].layer_ns * layers[n].time_weight // AVERAGE_TIME_WEIGHT * runs[i][n]
        for i in range(size)
        for n in range(count)
    ) + sum(devices[i].overhead_ns * used[i] + devices[i].head_ns * runs[i][-1] for i in range(size))
    hops = (
        links.host.forward_ns * (sum(used) - 1)
        + (links.zone.forward_ns - links.host.forward_ns) * hosts
        + (links.cluster.forward_ns - links.zone.forward_ns) * zones
        + links.cluster.return_ns
        + (links.zone.return_ns - links.cluster.return_ns) * same_zone
        + (links.host.return_ns - links.zone.return_ns) * same_host
    )
    model.minimize(stages + hops)
    solver: Any = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = timeout_s
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Optimum(None, 0, is_proven=True)
    has_plan = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    best = round(solver.objective_value) if has_plan else None
    return Optimum(best, int(solver.best_objective_bound), is_proven=status == cp_model.OPTIMAL)
