"""Real nodes that decide through an etcd: one cluster, a master lost, etcd away, an etcd that is not there."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from benchmarks.nodes import NodeProcess

from support.etcd_server import EtcdServer, running_etcd
from support.nodes import answer, eventually, is_one_cluster, place

pytestmark = pytest.mark.slow


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
def two(tmp_path: Path, etcd: EtcdServer) -> Iterator[list[NodeProcess]]:
    with ExitStack() as stack:
        nodes = [
            NodeProcess(tmp_path / name, f"--coordinator=etcd://{etcd.address}", namespace="on-etcd")
            for name in ("a", "b")
        ]
        for node in nodes:
            node.launch()
            stack.callback(lambda one=node: one.process and one.process.poll() is None and one.terminate())
        for node in nodes:
            node.wait_ready()
        eventually(lambda: is_one_cluster(nodes), "two nodes are one cluster")
        yield nodes


def master_of(node: NodeProcess) -> Any:
    return node.get("/state")["master_node_id"]


def test_two_nodes_serve_a_pipeline_and_one_goes_on_alone(two: list[NodeProcess]) -> None:
    place(two[0], min_nodes=2)
    assert "42" in answer(two[1], "What is 12 + 30?")
    before = two[0].get("/state")
    killed = next(node for node in two if node.addresses["node_id"] == before["master_node_id"])
    other = next(node for node in two if node is not killed)
    killed.kill()
    eventually(lambda: master_of(other) == other.addresses["node_id"], "the other one leads")
    assert other.get("/state")["term"] > before["term"]
    alone = place(other, min_nodes=1)
    killed.start()
    eventually(lambda: is_one_cluster(two), "both are there again")
    assert alone["instance_id"] in killed.get("/state")["instances"]


def test_what_is_placed_goes_on_while_etcd_is_away(two: list[NodeProcess], etcd: EtcdServer) -> None:
    place(two[0], min_nodes=1)
    wanted = answer(two[0], "Count to 5.")
    etcd.kill()
    assert answer(two[0], "Count to 5.") == wanted
    eventually(lambda: master_of(two[1]) is None, "nobody claims to decide")
    status, problem = two[1].call("POST", "/instance", {"model_id": "exo-tiny"})
    assert status == 503, problem
    etcd.start()
    eventually(
        lambda: two[1].call("POST", "/instance", {"model_id": "exo-tiny"})[0] == 201, "decisions again"
    )


def test_a_node_says_that_etcd_is_not_there_and_waits_for_it(tmp_path: Path, etcd: EtcdServer) -> None:
    etcd.kill()
    node = NodeProcess(tmp_path / "a", f"--coordinator=etcd://{etcd.address}", namespace="on-etcd")
    node.launch()
    try:
        eventually(lambda: f"etcd at http://{etcd.address} cannot be reached" in node.log(), "it says so")
        etcd.start()
        node.wait_ready()
        assert "Traceback" not in node.log()
    finally:
        node.terminate()
