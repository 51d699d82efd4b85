"""What the cluster's core promises of its speed: one file a measurement, each on its own or all in this order."""

from collections.abc import Sequence

from benchmarks.parts import run_parts
from benchmarks.results import NotMeasured, Result

PARTS = (
    "fold",
    "snapshot",
    "state_route",
    "log",
    "failover",
    "submit",
    "throughput",
    "newcomer",
    "healed_link",
    "observers",
    "lost_node",
    "idle",
)
"""Each a module here with a `run(*, quick: bool) -> list[Result]`."""


def run(*, quick: bool, parts: Sequence[str] = ()) -> list[Result | NotMeasured]:
    """Measure all of it, or only the parts named."""
    chosen = [part for part in PARTS if not parts or part in parts]
    return run_parts("benchmarks.cluster", chosen, quick=quick)
