"""Whole nodes and a real model: its device fails, and it serves again elsewhere; where nowhere is left, it says so."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks.nodes import NodeProcess

from support.failing_processor import FailingNode
from support.nodes import MODEL, answer, eventually, is_one_cluster, place

pytestmark = pytest.mark.slow

INTERVAL = ("--telemetry-interval", "0.3")


def stages_of(node: NodeProcess) -> list[psutil.Process]:
    """Return the stage processes that a node runs."""
    assert node.process is not None
    return [
        child
        for child in psutil.Process(node.process.pid).children(recursive=True)
        if "exo.worker.runner.child" in " ".join(child.cmdline())
    ]


class Asking(threading.Thread):
    """Somebody who goes on asking while things change."""

    def __init__(self, node: NodeProcess) -> None:
        super().__init__()
        self._node = node
        self._is_over = threading.Event()
        self.replies: list[tuple[int, Any]] = []

    def run(self) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Count to 12."}],
            "temperature": 0,
        }
        while not self._is_over.wait(0.02):
            self.replies.append(self._node.call("POST", "/v1/chat/completions", body, timeout_s=60))

    def end(self) -> list[tuple[int, Any]]:
        self._is_over.set()
        self.join(90)
        assert not self.is_alive()
        return self.replies


def test_a_model_goes_on_elsewhere_when_its_device_fails_and_says_why(tmp_path: Path) -> None:
    with (
        FailingNode(tmp_path / "a", "--name", "left", *INTERVAL) as first,
        FailingNode(tmp_path / "b", "--name", "right", *INTERVAL) as second,
    ):
        eventually(lambda: is_one_cluster([first, second]), "one cluster")
        placed = place(first)
        instance_id = placed["instance_id"]
        had = placed["stages"][0]["node_id"]
        failing, other = (first, second) if first.addresses["node_id"] == had else (second, first)
        old_name, new_name = ("left", "right") if failing is first else ("right", "left")
        right = answer(other, "Count to 12.")
        assert len(stages_of(failing)) == 1 and stages_of(other) == []

        asking = Asking(other)
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
        replies = asking.end()
        # Nobody got half an answer as if it were a whole one.
        assert [body for status, body in replies if status == 200]
        for status, body in replies:
            if status == 200:
                assert body["choices"][0]["message"]["content"] == right
            else:
                assert status >= 500 and body["error"]["message"], body

        # What it had on the old device is given back, and the log and the table say what happened.
        eventually(lambda: stages_of(failing) == [], "the old stage is ended")
        assert len(stages_of(other)) == 1
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
