"""Side constraints: how near the constraint layer is to the optimum when its time is up, and how punctual it is."""

import json
import time

from msgspec.structs import replace

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.record import FILE, ruled
from benchmarks.placement.ruled import ruled_problem
from benchmarks.placement.timing import deadline, timed_solve, warm_up
from benchmarks.results import Result
from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.problem import AtLeast, AtMost, CostProblem, Rule, device_groups
from exo.master.placement.ladder.solve import solve


def run(*, quick: bool) -> list[Result]:
    """16 devices with 250 ms, 32 with 2 s, 64 with 5 s; then a pigeonhole that nothing but the clock ends."""
    sheet = Sheet()
    rows = json.loads(FILE.read_text())["ruled"]
    warm_up(ruled(0))
    for devices, limit_ms in ((16, 250), (32, 2000)):
        worst = slowest = 0.0
        mine = [row for row in rows if row["best_ns"] and len(ruled(row["seed"]).devices) == devices]
        for row in mine[: 4 if quick else len(mine)]:
            found, took_ms = timed_solve(ruled(row["seed"]), deadline(limit_ms))
            excess = 100.0
            if isinstance(found, Solution):
                excess = 100 * (found.assessment.round_ns / row["best_ns"] - 1)
            worst, slowest = max(worst, excess), max(slowest, took_ms)
        sheet.add(f"rules, {devices} devices: furthest from the optimum", worst, "%", at_most=0.2)
        sheet.add(f"rules, {devices} devices: solve, slowest", slowest, "ms", at_most=limit_ms)
    gaps: list[float] = []
    for seed in range(2 if quick else 6):
        found, _ = timed_solve(ruled_problem(seed, 64), deadline(5000))
        if isinstance(found, Solution):
            gaps.append(100 * found.gap)
    sheet.add("rules, 64 devices: largest certified gap after 5 s at most", max(gaps), "%")
    _add_nodes(sheet, quick=quick)
    sheet.add(
        "pigeonhole of ten: overrun of the deadline", _overrun_ms(300 if quick else 1000), "ms", at_most=10
    )
    return sheet.results


def _add_nodes(sheet: Sheet, *, quick: bool) -> None:
    """Add what `min_nodes`, `must_use` and `min_zones` cost where every node has two devices."""
    gaps: dict[str, list[float]] = {"nodes": [], "nodes and zones": []}
    times_ms: list[float] = []
    for seed in range(1 if quick else 4):
        problem = pairs_of_devices(seed, 64)
        nodes = device_groups(problem.devices, by="node_id")
        zones = device_groups(problem.devices, by="zone")
        used = [AtLeast(groups=(one,), count=1, reason="a node to use") for one in nodes[3::20]]
        six = AtLeast(groups=nodes, count=6, reason="six nodes")
        two = AtLeast(groups=zones, count=min(2, len(zones)), reason="two zones")
        for kind, rules in (
            ("nodes", [AtLeast(groups=nodes, count=10, reason="ten nodes")]),
            ("nodes", used),
            ("nodes", [six, *used]),
            ("nodes and zones", [six, two]),
        ):
            found, took_ms = timed_solve(replace(problem, rules=tuple(rules)), deadline(5000))
            times_ms.append(took_ms)
            if isinstance(found, Solution):
                gaps[kind].append(100 * found.gap)
    name = "64 nodes of two devices"
    sheet.add(f"{name}, nodes asked for: certified gap, largest", max(gaps["nodes"]), "%", at_most=0.5)
    sheet.add(f"{name}, nodes and zones asked for: certified gap, largest", max(gaps["nodes and zones"]), "%")
    sheet.add(f"{name}, nodes and zones asked for: solve, slowest", max(times_ms), "ms", at_most=2000)


def pairs_of_devices(seed: int, nodes: int) -> CostProblem:
    """A random cluster in which two devices each make a node."""
    problem = random_problem(seed, nodes * 2)
    zones = [one.zone for one in problem.devices]
    devices = tuple(
        replace(one, node_id=f"node-{i // 2:03}", host=f"host-{i // 2:03}", zone=zones[i // 2 * 2])
        for i, one in enumerate(problem.devices)
    )
    return replace(problem, devices=devices)


def _overrun_ms(limit_ms: float) -> float:
    """Milliseconds between the moment at which the time was up and the answer."""
    problem = pigeonhole(10)
    end_s = time.process_time() + limit_ms / 1000
    solve(problem, should_stop=lambda: time.process_time() >= end_s)
    return (time.process_time() - end_s) * 1000


def pigeonhole(pigeons: int) -> CostProblem:
    """Each pigeon wants one of its devices, each hole takes one pigeon, and there is a hole too few."""
    holes = pigeons - 1
    problem = random_problem(0, pigeons * holes)
    names = [device.device_id for device in problem.devices]
    rows = [tuple(names[pigeon * holes : (pigeon + 1) * holes]) for pigeon in range(pigeons)]
    rules: list[Rule] = [AtLeast(groups=(row,), count=1, reason="a pigeon") for row in rows]
    rules += [AtMost(device_ids=hole, count=1, reason="a hole") for hole in zip(*rows, strict=True)]
    roomy = tuple(replace(pool, room_bytes=2**50) for pool in problem.pools)
    return replace(problem, pools=roomy, rules=tuple(rules))
