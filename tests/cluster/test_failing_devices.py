"""Whole nodes and a real model: its device fails, and it serves again elsewhere; where nowhere is left, it says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.nodes import MODEL, Asking, answer, check_replies, eventually, is_one_cluster, place
from support.played_processor import PlayedNode

pytestmark = pytest.mark.slow

INTERVAL = ("--telemetry-interval", "0.3")


def test_a_model_goes_on_elsewhere_when_its_device_fails_and_says_why(tmp_path: Path) -> None:
    with (
        PlayedNode(tmp_path / "a", "--name", "left", *INTERVAL) as first,
        PlayedNode(tmp_path / "b", "--name", "right", *INTERVAL) as second,
    ):
        eventually(lambda: is_one_cluster([first, second]), "one cluster")
        placed = place(first)
        instance_id = placed["instance_id"]
        had = placed["stages"][0]["node_id"]
        failing, other = (first, second) if first.addresses["node_id"] == had else (second, first)
        old_name, new_name = ("left", "right") if failing is first else ("right", "left")
        right = answer(other, "Count to 12.")
        assert len(failing.stages()) == 1 and other.stages() == []

        asking = Asking(other, "Count to 12.")
        asking.start()
        failing.fail()
        moved = eventually(
            lambda: (
                (one := other.get(f"/instance/{instance_id}"))["generation"] == 2
                and one["status"] == "ready"
                and one
            ),
            "the model is ready elsewhere",
            60,
        )
        assert moved["stages"][0]["node_id"] == other.addresses["node_id"]
        assert f"cpu:0 of {old_name} has failed: uncorrectable memory errors" in moved["moved_reason"]
        assert f"it now runs on cpu:0 of {new_name}" in moved["moved_reason"]
        assert answer(other, "Count to 12.") == right == answer(failing, "Count to 12.")
        check_replies(asking.end(), right)

        # What it had on the old device is given back, and the log and the table say what happened.
        eventually(lambda: failing.stages() == [], "the old stage is ended")
        assert len(other.stages()) == 1
        assert sum(f"it now runs on cpu:0 of {new_name}" in node.log() for node in (first, second)) == 1
        status = subprocess.run(
            [sys.executable, "-m", "exo", "status", "--json", "--url", other.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert json.loads(status.stdout)["instances"][instance_id]["moved_reason"] == moved["moved_reason"]

        # Its new device fails as well, while the old one is not trusted yet: there is nowhere to go.
        other.fail()
        stranded = eventually(
            lambda: (
                (one := first.get(f"/instance/{instance_id}"))["status"] == "failed"
                and "cannot go on elsewhere" in (one["reason"] or "")
                and one
            ),
            "it says that there is nowhere to go",
            30,
        )
        assert stranded["generation"] == 2
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        code, problem = first.call("POST", "/v1/chat/completions", body)
        assert code == 503 and "cannot go on elsewhere" in problem["error"]["message"]
