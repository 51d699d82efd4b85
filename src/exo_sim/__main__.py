"""`python -m exo_sim`: replay one seed and print its story, run many and print what they came to, play scenarios."""

import argparse
import sys
from collections.abc import Sequence
from difflib import unified_diff
from pathlib import Path

import msgspec

from exo_sim.many import run_many
from exo_sim.report import lines, report_on
from exo_sim.scenario import play
from exo_sim.schedule import MODES, Outcome, run_schedule


def _many(arguments: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    cpu_s = 0.0
    seeds = range(arguments.first, arguments.first + arguments.schedules)
    for done, took_s in run_many(seeds, arguments.nodes, arguments.jobs):
        outcomes += done
        cpu_s += took_s
        if sys.stderr.isatty():
            print(f"\r{len(outcomes)} of {len(seeds)}", end="", file=sys.stderr, flush=True)
    report = report_on(outcomes, cpu_s)
    print("\n".join(lines(report)))
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    return 1 if report.failures or report.too_quiet else 0


def _one(arguments: argparse.Namespace) -> int:
    outcome = run_schedule(arguments.seed, arguments.nodes, is_telling=True)
    for line in outcome.story:
        print(line)
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.faults.items()))
    print(f"\nseed {outcome.seed}, {outcome.mode} nodes, {outcome.virtual_s:.1f} virtual seconds; {faults}")
    if outcome.broken is None:
        print(f"no promise was broken; one cluster again {outcome.healed_s:.1f} s after the repair")
    return 0 if outcome.broken is None else 1


def _scenarios(arguments: argparse.Namespace) -> int:
    is_right = True
    for path in arguments.scenario:
        text = path.read_text()
        played = play(text)
        if played == text:
            continue
        if arguments.rewrite:
            path.write_text(played)
            print(f"{path} was rewritten; read the difference before you commit it")
            continue
        is_right = False
        difference = unified_diff(
            text.splitlines(), played.splitlines(), str(path), "what comes of it", lineterm=""
        )
        print("\n".join(difference))
    return 0 if is_right else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 when every promise was kept."""
    parser = argparse.ArgumentParser(
        prog="python -m exo_sim",
        description="Simulate clusters of agreement cores in virtual time, with faults.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="replay one run and print its story")
    what.add_argument("--schedules", type=int, metavar="N", help="run N seeds and print what they came to")
    what.add_argument("--scenario", type=Path, nargs="+", metavar="FILE", help="play scenario files")
    parser.add_argument("--rewrite", action="store_true", help="write into scenario files what comes of them")
    parser.add_argument("--nodes", choices=sorted(set(MODES)), help="kind of cluster; by the seed otherwise")
    parser.add_argument(
        "--first", type=int, default=0, metavar="SEED", help="the first seed of many; default 0"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes to run them in; default 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report of many there as well")
    arguments = parser.parse_args(argv)
    if arguments.scenario is not None:
        return _scenarios(arguments)
    return _many(arguments) if arguments.seed is None else _one(arguments)


if __name__ == "__main__":
    sys.exit(main())
