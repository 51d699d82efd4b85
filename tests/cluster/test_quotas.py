"""Two real nodes count one key together."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from benchmarks.nodes import NodeProcess

from support.nodes import MODEL, eventually, is_one_cluster

pytestmark = pytest.mark.slow


@pytest.fixture
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    home = tmp_path_factory.mktemp("two")
    nodes = [NodeProcess(home / name, namespace=f"quotas-{os.getpid()}") for name in ("a", "b")]
    with ExitStack() as stack:
        for node in nodes:
            node.launch()
            stack.callback(node.terminate)
        for node in nodes:
            node.wait_ready()
        eventually(lambda: is_one_cluster(nodes), "two nodes are one cluster")
        yield nodes


def test_what_one_node_let_through_counts_on_the_other(two: list[NodeProcess]) -> None:
    first, second = two
    limited = httpx.post(f"{first.url}/keys", json={"scopes": ["infer"], "tokens_per_day": 10}).json()
    eventually(lambda: second.get("/keys")["keys"], "both know the key")
    headers = {"Authorization": f"Bearer {limited['key']}"}
    body = {"model": MODEL, "prompt": "Count to 12.", "max_tokens": 12, "ignore_eos": True}
    answer = httpx.post(f"{first.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["total_tokens"] > 10

    def refused() -> bool:
        asked = {**body, "model": "no-such-model"}
        told = httpx.post(f"{second.url}/v1/completions", json=asked, headers=headers, timeout=60)
        return told.status_code == 429 and told.json()["error"]["code"] == "tokens_per_day_used_up"

    eventually(refused, "the other node counts these tokens, too")
