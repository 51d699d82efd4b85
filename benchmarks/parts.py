"""Runs a benchmark of several parts: one that fails does not keep the others from being measured."""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence

from benchmarks.results import CannotMeasureError, NotMeasured, Result


def run_parts(package: str, parts: Sequence[str], *, quick: bool) -> list[Result | NotMeasured]:
    """Measure each part in turn; each is a module of the package with a `run(*, quick: bool)`."""
    results: list[Result | NotMeasured] = []
    for part in parts:
        print(f"measuring {part}", file=sys.stderr, flush=True)
        try:
            measure: Callable[..., list[Result | NotMeasured]] = importlib.import_module(
                f"{package}.{part}"
            ).run
            results += measure(quick=quick)
        except CannotMeasureError as error:
            results.append(NotMeasured(name=part, reason=str(error)))
        except Exception as error:  # One part that fails must not cost the figures of the others.
            traceback.print_exc()
            results.append(NotMeasured(name=part, reason=f"{type(error).__name__}: {error}"))
    return results
