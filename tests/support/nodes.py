"""What tests with whole nodes ask of them."""

import http.client
import threading
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


def node_id(node: NodeProcess) -> str:
    return node.addresses["node_id"]


def master_of(nodes: list[NodeProcess]) -> NodeProcess:
    led_by = nodes[0].get("/state")["master_node_id"]
    return next(node for node in nodes if node_id(node) == led_by)


def stage_nodes(instance: dict[str, Any]) -> list[str]:
    return [stage["node_id"] for stage in instance["plan"]["stages"]]


class Asking(threading.Thread):
    """Somebody who goes on asking the same while things change."""

    def __init__(self, node: NodeProcess, text: str) -> None:
        super().__init__()
        self._node = node
        self._text = text
        self._is_over = threading.Event()
        self.replies: list[tuple[int, Any]] = []

    def run(self) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": self._text}], "temperature": 0}
        while not self._is_over.wait(0.02):
            self.replies.append(self._node.call("POST", "/v1/chat/completions", body, timeout_s=60))

    def end(self) -> list[tuple[int, Any]]:
        self._is_over.set()
        self.join(90)
        assert not self.is_alive()
        return self.replies


def check_replies(replies: list[tuple[int, Any]], right: str) -> None:
    """Nobody got half an answer as if it were a whole one; who got none was told, and can ask again."""
    assert [body for status, body in replies if status == 200]
    for status, body in replies:
        if status == 200:
            assert body["choices"][0]["message"]["content"] == right
        else:
            assert status >= 500 and body["error"]["message"], body


def in_flight(node: NodeProcess) -> float:
    """Return how many requests a node is answering."""
    connection = http.client.HTTPConnection(
        node.addresses["api_address"]["host"], node.addresses["api_address"]["port"], timeout=10
    )
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("exo_requests_active")
    )
