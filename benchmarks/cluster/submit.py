"""From `propose` on one node to the decision being folded in on all three, at 700 decisions a second."""

import time
from pathlib import Path

import msgspec

from benchmarks.cluster.assembly import WIRE
from benchmarks.cluster.measuring import CannotMeasureError, Sheet, percentile
from benchmarks.cluster.processes import Nodes, cluster
from benchmarks.results import Result

PER_S = 700


def run(*, quick: bool) -> list[Result]:
    """Each node proposes a third of them, one by one."""
    sheet = Sheet()
    seconds = 3.0 if quick else 20.0
    with cluster(3) as nodes:
        for node in nodes:
            node.ask("record", "recording")
        _submit(nodes, 1.0)  # Connections are open, code is warm.
        cpu_s, began_s = [node.cpu_s() for node in nodes], time.monotonic()
        times_ms = _submit(nodes, seconds)
        past_s = time.monotonic() - began_s
        shares = [(node.cpu_s() - before) / past_s * 100 for node, before in zip(nodes, cpu_s, strict=True)]
    sheet.add(f"submit to applied on all, {PER_S}/s, {WIRE}, p50", percentile(times_ms, 50), "ms", at_most=5)
    sheet.add(f"submit to applied on all, {PER_S}/s, {WIRE}, p99", percentile(times_ms, 99), "ms", at_most=25)
    sheet.add(f"submit at {PER_S}/s: the busiest node's processor", max(shares), "% of a core")
    return sheet.results


def _submit(nodes: Nodes, seconds: float) -> list[float]:
    """Return how long each took to be everywhere, in milliseconds."""
    began_s = time.monotonic()
    for node in nodes:
        node.tell("submit", rate=PER_S / len(nodes), seconds=seconds)
    for node in nodes:
        node.answer("submitted", timeout_s=seconds + 20)
    expected = int(PER_S / len(nodes) * seconds) * len(nodes)
    until_s = time.monotonic() + 10
    while True:
        submitted, applied = _times(nodes)
        mine = {tag: at_s for tag, at_s in submitted.items() if at_s >= began_s}
        if len(mine) == expected and all(tag in times for tag in mine for times in applied):
            return [(max(times[tag] for times in applied) - at_s) * 1000 for tag, at_s in mine.items()]
        if time.monotonic() > until_s:
            raise CannotMeasureError("not all that was committed was applied on all nodes")
        time.sleep(0.1)


def _times(nodes: Nodes) -> tuple[dict[str, float], list[dict[str, float]]]:
    submitted: dict[str, float] = {}
    applied: list[dict[str, float]] = []
    for node in nodes:
        file = Path(f"{node.place.home}.times")
        node.ask("times", "times", file=str(file))
        sent, received = msgspec.msgpack.decode(
            file.read_bytes(), type=tuple[dict[str, float], dict[str, float]]
        )
        submitted |= sent
        applied.append(received)
    return submitted, applied
