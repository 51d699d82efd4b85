"""One node with 1,000 observers: 20 and 200 decisions a second to each, and telemetry from each every 2 s.

Two processes, one for each side, over the real transport and messages. Decisions go out together every 25 ms, each
message encoded once; telemetry is folded and made into ticks. It is not passed on to all 1,000: that would be 1,000
times what 1,000 nodes publish. The lag is heard by one observer in twenty (see `observer_crowd`).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cluster.assembly import WIRE, admit
from benchmarks.cluster.measuring import CannotMeasureError, Sheet
from benchmarks.cluster.observer_crowd import LISTENING_EVERY
from benchmarks.results import Result

OBSERVERS = 1000
EVENTS_PER_S = (20, 200)
"""Decisions are seldom: a stage is ready, a model is placed. The bars are for far more of them than there are, and the
second rate for a storm: then what one node writes to 1,000 others is the limit, some 15 us a write."""
CROWD_PERCENT_MAX = 90


def run(*, quick: bool) -> list[Result]:
    """The hub's share of a core, its memory, and the lag of decisions until an observer has them decoded."""
    sheet = Sheet()
    for events_per_s in EVENTS_PER_S:
        _measure(sheet, 4.0 if quick else 20.0, events_per_s)
    return sheet.results


def _measure(sheet: Sheet, seconds: float, events_per_s: int) -> None:
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        homes = [Path(folder) / name for name in ("hub", "crowd")]
        for home in homes:
            admit(home)
        with _child("observer_hub", str(homes[0])) as hub:
            address = _line(hub, "address")
            with _child("observer_crowd", str(homes[1]), address, str(OBSERVERS)) as crowd:
                _line(crowd, "connected")
                _tell(hub, f"{seconds} {events_per_s}")
                used = _line(hub, "used")
                heard = _line(crowd, "heard")
    enough = (
        used["frames"] > OBSERVERS * seconds / 4
        and heard["messages"] > OBSERVERS / LISTENING_EVERY * seconds * min(EVENTS_PER_S) / 2
    )
    if used["observers"] < OBSERVERS or heard["cpu_percent"] > CROWD_PERCENT_MAX or not enough:
        raise CannotMeasureError(
            f"the process that plays all {OBSERVERS} observers could not keep up, so their lag would be its own "
            f"({used['observers']} of them left, {heard['cpu_percent']:.0f} % of a core used, {heard['messages']} "
            f"messages heard, p99 {heard['p99_ms']:.0f} ms); measure while two cores are idle"
        )
    name = f"{OBSERVERS} observers, {WIRE}, {events_per_s}/s"
    has_bar = events_per_s == min(EVENTS_PER_S)
    at_most = {"at_most": 50} if has_bar else {}
    sheet.add(f"{name}: the node's processor", used["cpu_percent"], "% of a core", **at_most)
    sheet.add(f"{name}: lag p50", heard["p50_ms"], "ms")
    sheet.add(f"{name}: lag p99", heard["p99_ms"], "ms", **at_most)
    sheet.add(f"{name}: the node's memory", used["memory_mb"], "MB")


def _child(module: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.cluster.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _tell(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _line(process: "subprocess.Popen[str]", key: str) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise CannotMeasureError(f"one side of the observers ended before it said {key}")
    return json.loads(line)[key]
