"""What a device costs a node in memory: a node that plays 200 devices against one that plays none."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cluster.measuring import Sheet
from benchmarks.cluster.processes import until
from benchmarks.nodes import NodeProcess
from benchmarks.results import Result

DEVICES = 200


def run(*, quick: bool) -> list[Result]:
    """Whole nodes, alone, after every device was read and told several times."""
    sheet = Sheet()
    count = 40 if quick else DEVICES
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder:
        without = _node_mb(Path(folder), 0, quick=quick)
        with_all = _node_mb(Path(folder), count, quick=quick)
    sheet.add("node without devices: memory", without, "MB")
    sheet.add(f"node with {count} devices: memory", with_all, "MB")
    sheet.add("memory for each device", (with_all - without) / count, "MB", at_most=10)
    return sheet.results


def machine(count: int) -> dict[str, Any]:
    """Describe a machine of so many busy devices, each of which has other memory in use ten times a second."""
    gib = 2**30
    steps = [
        {"at_s": step / 10, "utilization_percent": step, "memory_used_bytes": step * gib}
        for step in range(100)
    ]
    device: dict[str, Any] = {
        "name": "benchmark GPU",
        "vendor": "nvidia",
        "memory_kind": "vram",
        "memory_total_bytes": 128 * gib,
        "power": {"idle_watts": 20, "limit_watts": 300},
        "load": steps,
        "load_period_s": 10,
    }
    devices = [{**device, "uuid": f"GPU-{number:08x}-0000-4000-8000-000000000000"} for number in range(count)]
    return {"name": "benchmark", "sources": ["made up"], "devices": devices}


def play(folder: Path, count: int) -> dict[str, str]:
    """Write such a machine down; return the variable that has a node play it."""
    file = folder / f"machine-{count}.json"
    file.write_text(json.dumps(machine(count)))
    return {"EXO_GPU_BACKEND": f"simulated:{file}"}


def _node_mb(folder: Path, count: int, *, quick: bool) -> float:
    """Start a node; return what it holds for itself alone, in megabytes, at the most."""
    home = folder / f"node-{count}"
    with NodeProcess(home, "--quiet", "--no-discovery", environment=play(folder, count)) as node:
        until(lambda: _told(node) == count, f"{count} devices are not all told")
        assert node.process is not None
        root = psutil.Process(node.process.pid)
        most = 0.0
        for _ in range(3 if quick else 6):
            time.sleep(2.0)
            family = [root, *root.children(recursive=True)]
            most = max(most, sum(one.memory_full_info().uss for one in family) / 1e6)
        assert _told(node) == count
    return most


def _told(node: NodeProcess) -> int:
    return sum("/simulated" in key for key in node.get("/state")["gpu_device_state"])
