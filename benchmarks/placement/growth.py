"""How the time of a solve grows with devices and layers; printed as a table as well."""

import statistics
import sys

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.clusters import random_problem
from benchmarks.placement.timing import timed_solve, warm_up
from benchmarks.results import Result
from exo.master.placement.ladder.answer import Solution

DEVICES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
LAYERS = (16, 32, 64, 126)


def run(*, quick: bool) -> list[Result]:
    """Medians over a few clusters of each size."""
    sheet = Sheet()
    warm_up(random_problem(0, 16))
    lines = ["devices | " + " | ".join(f"{layers} layers" for layers in LAYERS)]
    for devices in DEVICES[::3] if quick else DEVICES:
        cells: list[str] = []
        for layers in LAYERS[::3] if quick else LAYERS:
            times_ms: list[float] = []
            for seed in range(3 if quick else 9):
                found, took_ms = timed_solve(random_problem(seed, devices, layers))
                if isinstance(found, Solution):
                    times_ms.append(took_ms)
            if times_ms:
                median = statistics.median(times_ms)
                cells.append(f"{median:.2f} ms")
                sheet.add(f"growth: {devices} devices, {layers} layers", median, "ms")
            else:
                cells.append("-")
        lines.append(f"{devices} | " + " | ".join(cells))
    print("\n".join(lines), file=sys.stderr)
    return sheet.results
