"""What placement promises of its plans and its speed: one file a measurement, each on its own or all in this order."""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence

from benchmarks.cluster.measuring import CannotMeasureError
from benchmarks.results import NotMeasured, Result

PARTS = ("optimum", "large", "irregular", "rules", "uneven", "greedy", "mixed", "faults", "growth")
"""Each a module here with a `run(*, quick: bool) -> list[Result | NotMeasured]`."""


def run(*, quick: bool, parts: Sequence[str] = ()) -> list[Result | NotMeasured]:
    """Measure all of it, or only the parts named. One that fails does not keep the others from being measured."""
    results: list[Result | NotMeasured] = []
    for part in PARTS:
        if parts and part not in parts:
            continue
        print(f"measuring {part}", file=sys.stderr, flush=True)
        try:
            measure: Callable[..., list[Result | NotMeasured]] = importlib.import_module(
                f"benchmarks.placement.{part}"
            ).run
            results += measure(quick=quick)
        except CannotMeasureError as error:
            results.append(NotMeasured(name=part, reason=str(error)))
        except Exception as error:
            traceback.print_exc()
            results.append(NotMeasured(name=part, reason=f"{type(error).__name__}: {error}"))
    return results
