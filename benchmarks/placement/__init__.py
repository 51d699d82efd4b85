"""What placement promises of its plans and its speed: one file a measurement, each on its own or all in this order."""

from collections.abc import Sequence

from benchmarks.parts import run_parts
from benchmarks.results import NotMeasured, Result

PARTS = (
    "optimum",
    "large",
    "irregular",
    "rules",
    "uneven",
    "greedy",
    "mixed",
    "front",
    "faults",
    "front_faults",
    "growth",
)
"""Each a module here with a `run(*, quick: bool) -> list[Result | NotMeasured]`."""


def run(*, quick: bool, parts: Sequence[str] = ()) -> list[Result | NotMeasured]:
    """Measure all of it, or only the parts named."""
    chosen = [part for part in PARTS if not parts or part in parts]
    return run_parts("benchmarks.placement", chosen, quick=quick)
