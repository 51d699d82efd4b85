"""What three nodes cost that have nothing to do: bare coordinators, and whole nodes with API and worker."""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.cluster.measuring import CannotMeasureError, Sheet
from benchmarks.cluster.processes import cluster, until
from benchmarks.nodes import NodeProcess
from benchmarks.results import Result


def run(*, quick: bool) -> list[Result]:
    """Shares of a core, of the node that costs most."""
    sheet = Sheet()
    seconds = 3.0 if quick else 20.0
    with cluster(3) as nodes:
        time.sleep(1.0)
        bare = _shares([node.cpu_s for node in nodes], seconds)
    sheet.add("idle cluster of 3: coordinator alone", max(bare), "% of a core")
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        whole = [NodeProcess(Path(folder) / f"node-{number}", "--quiet") for number in range(3)]
        try:
            for node in whole:
                node.launch()
            for node in whole:
                node.wait_ready()
            until(lambda: all(_is_whole(node) for node in whole), "three nodes do not become one cluster")
            # Each measures its devices once, some 20 s after its first start, and waits while others keep them busy.
            with suppress(CannotMeasureError):
                until(lambda: all(map(_knows_its_devices, whole)), "devices are not measured", timeout_s=120)
            time.sleep(2.0)
            shares = _shares([_family_cpu(node) for node in whole], seconds)
        finally:
            for node in whole:
                if node.process is not None:
                    node.terminate()
    sheet.add("idle cluster of 3: whole node", max(shares), "% of a core", at_most=2)
    return sheet.results


def _is_whole(node: NodeProcess) -> bool:
    state = node.get("/state")
    return len(state["topology"]["nodes"]) == 3 and state["master_node_id"] is not None


def _knows_its_devices(node: NodeProcess) -> bool:
    time.sleep(0.5)  # Asked without a pause, it would not be idle.
    state = node.get("/state")
    (own,) = (one for one in state["topology"]["nodes"] if one["node_id"] == state["node_id"])
    return all(device["measured_memory_bandwidth_bytes_per_s"] is not None for device in own["devices"])


def _family_cpu(node: NodeProcess) -> Callable[[], float]:
    assert node.process is not None
    root = psutil.Process(node.process.pid)
    family = [root, *root.children(recursive=True)]
    return lambda: sum(sum(one.cpu_times()[:2]) for one in family)


def _shares(clocks: Sequence[Callable[[], float]], seconds: float) -> list[float]:
    """Return what each used, in percent of a core."""
    before = [clock() for clock in clocks]
    started_s = time.monotonic()
    time.sleep(seconds)
    past_s = time.monotonic() - started_s
    return [(clock() - earlier) / past_s * 100 for clock, earlier in zip(clocks, before, strict=True)]
