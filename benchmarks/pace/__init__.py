"""Predicted tokens/s against those that real nodes then reach: one file a measurement, each alone or all in turn."""

from collections.abc import Sequence

from benchmarks.parts import run_parts
from benchmarks.results import NotMeasured, Result

PARTS = ("slowed", "tiny")
"""Each a module here with a `run(*, quick: bool) -> list[Result]`."""


def run(*, quick: bool, parts: Sequence[str] = ()) -> list[Result | NotMeasured]:
    """Measure all of it, or only the parts named."""
    chosen = [part for part in PARTS if not parts or part in parts]
    return run_parts("benchmarks.pace", chosen, quick=quick)
