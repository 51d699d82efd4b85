"""Records what CP-SAT finds for the benchmark's clusters: `python -m benchmarks.placement.record [COUNT]`.

Takes some minutes to an hour; the benchmark compares with what this wrote, and solves a few again on the spot.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.placement.clusters import random_problem
from benchmarks.placement.oracle import cp_sat
from benchmarks.placement.ruled import ruled_problem
from exo.master.placement.ladder.problem import CostProblem

FILE = Path(__file__).parent / "optima.json"
HIERARCHICAL, IRREGULAR, RULED = 500, 24, 24


def hierarchical(seed: int) -> CostProblem:
    """One of the 500: 2 to 16 devices."""
    return random_problem(seed, 2 + seed % 15)


def irregular(seed: int) -> CostProblem:
    """8 to 24 devices on measured links."""
    return random_problem(seed, 8 + seed % 17, irregular=True)


def ruled(seed: int) -> CostProblem:
    """16 and 32 devices with side constraints."""
    return ruled_problem(seed, 16 if seed % 2 == 0 else 32)


SETS: dict[str, tuple[Callable[[int], CostProblem], int, float]] = {
    "hierarchical": (hierarchical, HIERARCHICAL, 30.0),
    "irregular": (irregular, IRREGULAR, 45.0),
    "ruled": (ruled, RULED, 45.0),
}
"""Name -> problems by seed, how many, and the seconds that CP-SAT has for each."""


def main() -> None:
    """Write the file anew after each problem, and go on where an earlier run ended."""
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 10**6
    known: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name, (make, count, timeout_s) in SETS.items():
        rows = known.setdefault(name, [])
        for seed in range(len(rows), min(count, most)):
            started_s = time.perf_counter()
            found = cp_sat(make(seed), timeout_s=timeout_s)
            rows.append(
                {
                    "seed": seed,
                    "best_ns": found.best_ns,
                    "bound_ns": found.bound_ns,
                    "is_proven": found.is_proven,
                    "took_s": round(time.perf_counter() - started_s, 2),
                }
            )
            print(name, rows[-1], flush=True)
            FILE.write_text(_text(known))


def _text(known: dict[str, list[dict[str, Any]]]) -> str:
    parts = [
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
        for name, rows in known.items()
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
