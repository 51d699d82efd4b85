"""What watching devices costs and how fast it is: one file a measurement, each on its own or all in this order."""

from collections.abc import Sequence

from benchmarks.parts import run_parts
from benchmarks.results import NotMeasured, Result

PARTS = ("collection", "own_cost", "inference", "spread", "memory", "fold")
"""Each a module here with a `run(*, quick: bool) -> list[Result]`."""


def run(*, quick: bool, parts: Sequence[str] = ()) -> list[Result | NotMeasured]:
    """Measure all of it, or only the parts named."""
    chosen = [part for part in PARTS if not parts or part in parts]
    return run_parts("benchmarks.telemetry", chosen, quick=quick)
