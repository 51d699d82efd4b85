"""From a device being read to `GET /state` on every node of a cluster of three: whole nodes, each with a device."""

import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.cluster.measuring import CannotMeasureError, Sheet, percentile
from benchmarks.cluster.processes import until
from benchmarks.nodes import NodeProcess
from benchmarks.results import Result
from benchmarks.telemetry.memory import play

NODES = 3
INTERVAL_S = 0.4
"""Between two readings, so that there are enough of them: a node waits 2 s."""
SETTLE_S = 90.0
"""Nodes that have met measure the ways between them once: half a minute that does not come again for half an hour."""
LOOK_S = 0.02
"""Between two looks at a node; what a look finds may have been there for as long."""
Times = Mapping[str, Sequence[tuple[float, float]]]
"""By device: when it was read, and when one node first showed that."""


@dataclass
class Viewer:
    """Asks one node again and again, and notes when it shows a reading for the first time."""

    url: str
    seen: dict[str, list[tuple[float, float]]] = field(default_factory=dict[str, list[tuple[float, float]]])
    late_s: list[float] = field(default_factory=list[float])
    """How much longer its pauses were than they should have been: what the machine itself has others wait."""
    error: Exception | None = None

    def look_until(self, is_over: Callable[[], bool]) -> None:
        """Look until told otherwise. For a thread of its own."""
        try:
            parts = urlsplit(self.url)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
            while not is_over():
                connection.request("GET", "/state")
                states = json.loads(connection.getresponse().read())["gpu_device_state"]
                self.note(states, time.time())
                started_s = time.perf_counter()
                time.sleep(LOOK_S)
                self.late_s.append(time.perf_counter() - started_s - LOOK_S)
            connection.close()
        except Exception as error:
            self.error = error

    def note(self, states: Mapping[str, Mapping[str, str]], at_s: float) -> None:
        """Take in what a node showed at a time."""
        for device_id, state in states.items():
            if "/simulated" not in device_id:
                continue
            read_s = datetime.fromisoformat(state["last_update"]).timestamp()
            known = self.seen.setdefault(device_id, [])
            if not known or known[-1][0] < read_s:
                known.append((read_s, at_s))


def run(*, quick: bool) -> list[Result]:
    """Every device's news counts, so that the master and the others all take their turn at having some."""
    sheet = Sheet()
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        options = ("--quiet", f"--telemetry-interval={INTERVAL_S}")
        playing = play(Path(folder), 1)
        nodes = [
            NodeProcess(Path(folder) / f"node-{number}", *options, environment=playing)
            for number in range(NODES)
        ]
        try:
            for node in nodes:
                node.launch()
            for node in nodes:
                node.wait_ready()
            until(lambda: all(_shows_all(node) for node in nodes), "three nodes do not show three devices")
            until(lambda: _has_measured(nodes[0]), "the ways between three nodes are not measured", SETTLE_S)
            viewers = _watch(nodes, 6.0 if quick else 40.0)
        finally:
            for node in nodes:
                if node.process is not None:
                    node.terminate()
    times_ms = [one * 1000 for one in everywhere_s([viewer.seen for viewer in viewers])]
    late_ms = [one * 1000 for viewer in viewers for one in viewer.late_s]
    expected = NODES * (3 if quick else 40)
    if len(times_ms) < expected:
        raise CannotMeasureError(f"only {len(times_ms)} readings were seen on all nodes, not {expected}")
    name = "a reading to /state of all three nodes"
    sheet.add(f"{name}: p50", statistics.median(times_ms), "ms")
    sheet.add(f"{name}: p99", percentile(times_ms, 99), "ms", at_most=100)
    sheet.add(f"{name}: readings", len(times_ms), "")
    sheet.add("meanwhile a sleep was too long by: p99", percentile(late_ms, 99), "ms")
    return sheet.results


def everywhere_s(viewers: Sequence[Times]) -> list[float]:
    """Return of each reading how long it took until the last of the nodes showed it, or a later one. Pure.

    What was read when somebody had not begun to look, or ceased to, does not count.
    """
    found: list[float] = []
    for device_id in set[str]().union(*viewers):
        by_node = [viewer.get(device_id, ()) for viewer in viewers]
        if not all(by_node):
            continue
        # What a node shows first may have been there for long.
        first_s = max(times[0][0] for times in by_node)
        last_s = min(times[-1][0] for times in by_node)
        for read_s in sorted({read_s for times in by_node for read_s, _ in times}):
            if first_s < read_s <= last_s:
                shown_s = [next(at_s for read, at_s in times if read >= read_s) for times in by_node]
                found.append(max(shown_s) - read_s)
    return found


def _watch(nodes: Sequence[NodeProcess], seconds: float) -> list[Viewer]:
    viewers = [Viewer(node.url) for node in nodes]
    until_s = time.monotonic() + seconds
    threads = [
        threading.Thread(target=viewer.look_until, args=(lambda: time.monotonic() > until_s,))
        for viewer in viewers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for viewer in viewers:
        if viewer.error is not None:
            raise CannotMeasureError(f"a node could not be asked: {viewer.error}")
    return viewers


def _shows_all(node: NodeProcess) -> bool:
    return sum("/simulated" in device_id for device_id in node.get("/state")["gpu_device_state"]) == NODES


def _has_measured(node: NodeProcess) -> bool:
    """Say whether the ways from each node to the others are known, and on each to its device and back."""
    topology = node.get("/state")["topology"]
    links = [link for link in topology["links"] if link["bandwidth_mbps"] is not None]
    return len(links) == NODES * (NODES - 1) and len(topology["device_links"]) >= 2 * NODES
