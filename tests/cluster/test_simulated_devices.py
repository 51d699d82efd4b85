"""Real nodes that play machines from files: their devices reach the state of every node, fail, go and come back."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.nodes import NodeProcess

from support.nodes import eventually, is_one_cluster

pytestmark = pytest.mark.slow

HEAT = {"capacity_joules_per_c": 200, "conductance_watts_per_c": 5, "throttle_c": 90}


def device(uuid: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": f"GPU {uuid}",
        "vendor": "nvidia",
        "uuid": uuid,
        "memory_kind": "vram",
        "memory_total_bytes": 8 * 2**30,
        "power": {"idle_watts": 20, "limit_watts": 300},
        "heat": HEAT,
        "load": [{"at_s": 0, "utilization_percent": 50, "memory_used_bytes": 2**30}],
        **changes,
    }


def write(file: Path, *devices: dict[str, Any]) -> str:
    file.write_text(json.dumps({"name": "test", "sources": ["made up"], "devices": devices}))
    return f"simulated:{file}"


def devices_of(node: NodeProcess) -> dict[str, dict[str, Any]]:
    """Return what a node says of every simulated device of its cluster, by UUID."""
    return {
        one["device"]["uuid"]: one
        for member in node.get("/gpu/info")["nodes"]
        for one in member["devices"]
        if one["device"]["is_simulated"]
    }


def test_devices_of_a_file_are_told_to_every_node_fail_go_and_come_back(tmp_path: Path) -> None:
    # It is lost while a node starts and after that; then it is gone; then it is back.
    faults = [
        {"kind": "lost", "at_s": 6, "until_s": 24},
        {"kind": "vanished", "at_s": 24, "until_s": 28},
    ]
    machine = write(tmp_path / "machine.json", device("steady"), device("flaky", faults=faults))
    interval = ("--telemetry-interval", "0.3")
    with (
        NodeProcess(tmp_path / "a", *interval, environment={"EXO_GPU_BACKEND": machine}) as playing,
        NodeProcess(tmp_path / "b", *interval) as watching,
    ):
        eventually(lambda: is_one_cluster([playing, watching]), "one cluster")
        # What a check at the start held on it is given back first.
        seen = eventually(
            lambda: (
                (found := devices_of(watching))
                and (found["steady"]["state"] or {}).get("memory_used_bytes") == 2**30
                and found
            ),
            "telemetry on the other node, of a device at rest",
        )
        state = seen["steady"]["state"]
        assert "(simulated)" in seen["steady"]["device"]["name"]
        assert state["power_watts"] == 160.0
        governed = seen["steady"]["thermal"]["governed"]
        assert governed == state["thermal"] and governed["limit_c"] == 90.0
        assert governed["power_source"] == "measured" and 0 < governed["work_fraction"] <= 1
        eventually(
            lambda: devices_of(watching).get("flaky", {}).get("health") == "failed", "the device is lost"
        )
        assert "is lost" in devices_of(watching)["flaky"]["health_reason"]
        eventually(lambda: set(devices_of(watching)) == {"steady"}, "the device is gone", 60)
        eventually(lambda: set(devices_of(watching)) == {"steady", "flaky"}, "the device is back", 60)
        assert devices_of(watching)["steady"]["health"] == "healthy"
        assert "GPU detected: GPU steady (simulated) (8.0 GiB)" in playing.log()
        assert "GPU gone: GPU flaky (simulated)" in playing.log()
    registry = json.loads((tmp_path / "a" / "gpu_registry.json").read_text())
    assert {one["uuid"] for one in registry["devices"]} >= {"steady"}


def test_a_file_that_cannot_be_played_stops_the_start_and_is_named_with_the_field(tmp_path: Path) -> None:
    machine = write(tmp_path / "machine.json", device("one", memory_total_bytes="much"))
    done = subprocess.run(
        [sys.executable, "-m", "exo", "--port=0", "--cluster-port=0", "--data-port=0", "--no-discovery"],
        env={**os.environ, "EXO_GPU_BACKEND": machine},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"{tmp_path / 'machine.json'} cannot be used: devices[0].memory_total_bytes: " in done.stderr
