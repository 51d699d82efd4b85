"""Real nodes: once a model has answered for a while, predictions rest on what was measured, also after a restart."""

import os
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from benchmarks.nodes import NodeProcess
from benchmarks.stream_client import stream_chat

from support.nodes import MODEL, eventually, is_one_cluster, place

pytestmark = pytest.mark.slow


def preview(node: NodeProcess, **asked: int) -> dict[str, Any]:
    query = "".join(f"&{name}={value}" for name, value in asked.items())
    return node.get(f"/instance/previews?model_id={MODEL}{query}")["previews"][0]["plan"]


def is_calibrated(node: NodeProcess, **asked: int) -> dict[str, Any] | None:
    plan = preview(node, **asked)
    return plan if plan["prediction"]["is_calibrated"] else None


def chat(node: NodeProcess) -> None:
    for _ in range(2):
        stream_chat(node.url, model=MODEL, prompt="Count to 12.", tokens=100)


def test_two_nodes_learn_what_they_and_their_hops_take(tmp_path: Path) -> None:
    namespace = f"paces-{os.getpid()}"
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(NodeProcess(tmp_path / name, namespace=namespace)) for name in ("a", "b")
        ]
        eventually(lambda: is_one_cluster(nodes), "one cluster")
        before = preview(nodes[0], min_nodes=2)
        assert not before["prediction"]["is_calibrated"]
        assert "for what was not measured" in before["explanation"]
        instance = place(nodes[0], min_nodes=2)
        chat(nodes[0])
        plan = eventually(lambda: is_calibrated(nodes[0], min_nodes=2), "a calibrated prediction")
        assert "; from measured tokens/s" in plan["explanation"]
        # Both stages' times are known by now, and a round of this model takes a millisecond and more everywhere.
        assert plan["prediction"]["ms_per_token"] > 2 * before["prediction"]["ms_per_token"]
        with urllib.request.urlopen(f"{nodes[0].url}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        for name in ("predicted", "measured"):
            assert f'exo_instance_{name}_tokens_per_second{{instance="{instance["instance_id"]}"' in metrics
        nodes[0].call("DELETE", f"/instance/{instance['instance_id']}")


def test_a_node_that_starts_again_knows_what_it_had_learnt(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "a").start()
    try:
        instance = place(node)
        chat(node)
        eventually(lambda: is_calibrated(node), "a calibrated prediction")
        node.call("DELETE", f"/instance/{instance['instance_id']}")
        eventually((tmp_path / "a" / "paces.json").exists, "what was learnt is written down")
    finally:
        node.terminate()
    with NodeProcess(tmp_path / "a") as again:
        eventually(lambda: is_calibrated(again), "what was learnt before is told again")
