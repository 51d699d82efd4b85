"""What tests with whole nodes ask of them."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from benchmarks.nodes import NodeProcess

MODEL = "exo-tiny"


def eventually(wanted: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
    """Return what `wanted` gives as soon as it is true."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        found = wanted()
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {timeout_s} s: {what}")


def is_one_cluster(nodes: list[NodeProcess]) -> bool:
    states = [node.get("/state") for node in nodes]
    return (
        len({state["cluster_id"] for state in states}) == 1
        and len({state["index"] for state in states}) == 1
        and all(
            len([one for one in state["topology"]["nodes"] if one["is_connected"]]) == len(nodes)
            for state in states
        )
    )


def answer(node: NodeProcess, text: str) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0}
    status, reply = node.call("POST", "/v1/chat/completions", body, timeout_s=120)
    assert status == 200, reply
    return reply["choices"][0]["message"]["content"]


def place(node: NodeProcess, **request: Any) -> dict[str, Any]:
    status, instance = node.call("POST", "/instance", {"model_id": MODEL, **request})
    assert status == 201, instance
    node.get(f"/instance/{instance['instance_id']}/wait?timeout_s=90", timeout_s=100)
    return node.get(f"/instance/{instance['instance_id']}")
