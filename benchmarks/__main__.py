"""Runs one benchmark by name and prints its results, as a table or as one JSON object."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.results import NotMeasured, Result, table

BENCHMARKS = {
    "serve": "benchmarks.serve",
    "cluster": "benchmarks.cluster",
    "data_plane": "benchmarks.data_plane",
    "telemetry": "benchmarks.telemetry",
    "placement": "benchmarks.placement",
    "thermal": "benchmarks.thermal",
    "calibration": "benchmarks.pace",
    "replacement": "benchmarks.replacement",
}
"""Name -> module with a `run(*, quick: bool) -> list[Result | NotMeasured]`. One of several parts names them in
`PARTS`, and its `run` takes `parts` as well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when every bar holds, 1 when one does not or a figure is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument(
        "parts", nargs="*", help="of one of several parts, such as `cluster`: measure only these"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="print one JSON object and nothing else; with FILE write it there beside the table",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    chosen = parser.parse_args(arguments)
    module = importlib.import_module(BENCHMARKS[chosen.name])
    known: Sequence[str] = getattr(module, "PARTS", ())
    unknown = [part for part in chosen.parts if part not in known]
    if unknown:
        parser.error(f"no part {unknown[0]!r} of {chosen.name}; choose from: {', '.join(known) or 'none'}")
    run: Callable[..., list[Result | NotMeasured]] = module.run
    results = run(quick=chosen.quick, parts=chosen.parts) if known else run(quick=chosen.quick)
    data = json.dumps({"results": [result.as_json() for result in results]})
    if chosen.json == "-":
        print(data)
    else:
        if chosen.json is not None:
            Path(chosen.json).write_text(data + "\n")
        print(table(results))
    return 0 if all(result.holds is not False for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
