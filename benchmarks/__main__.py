"""Runs one benchmark by name and prints its results, as a table or as one JSON object."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable

from benchmarks.results import Result, table

BENCHMARKS = {"serve": "benchmarks.serve"}
"""Name -> module with a `run(*, quick: bool) -> list[Result]`."""


def main() -> int:
    """Return 0 when every bar holds, 1 when one does not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    arguments = parser.parse_args()
    run: Callable[..., list[Result]] = importlib.import_module(BENCHMARKS[arguments.name]).run
    results = run(quick=arguments.quick)
    if arguments.json:
        print(json.dumps({"results": [result.as_json() for result in results]}))
    else:
        print(table(results))
    return 0 if all(result.holds is not False for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
