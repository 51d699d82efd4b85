"""Plans, what-if and why on real nodes, asked through one that does not lead, and after the master was killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.nodes import NodeProcess

from support.nodes import MODEL, eventually, is_one_cluster, place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    """Three nodes; the first leads."""
    home: Path = tmp_path_factory.mktemp("planning")
    with NodeProcess(home / "a", "--no-discovery", "--name", "oak") as first:
        address = first.addresses["cluster_address"]
        peer = f"--peer={address['host']}:{address['port']}"
        with (
            NodeProcess(home / "b", "--no-discovery", "--name", "pine", peer) as second,
            NodeProcess(home / "c", "--no-discovery", "--name", "reed", peer) as third,
        ):
            nodes = [first, second, third]
            eventually(lambda: is_one_cluster(nodes), "one cluster of three")
            eventually(lambda: len(first.get("/state")["voters"]["voters"]) == 3, "three voters")
            yield nodes


def test_plans_and_what_if_through_a_node_that_does_not_lead(cluster: list[NodeProcess]) -> None:
    asked = cluster[1]
    before = asked.get("/state")["index"]
    status, found = asked.call("POST", "/instance/plan", {"model_id": MODEL, "min_nodes": 2})
    assert status == 200, found
    assert len({one["node_id"] for one in found["answer"]["plan"]["stages"]}) == 2
    card = {"name": "used PC", "devices": [{"name": "RTX 3090"}]}
    status, found = asked.call("POST", "/instance/plan", {"model_id": MODEL, "machines": [card]})
    assert status == 200, found
    assert found["verdict"].startswith("With used PC: ")
    previews = asked.get(f"/instance/previews?model_id={MODEL}", timeout_s=60)["previews"]
    assert previews[0]["title"].startswith("Fastest")
    # Stages may report nothing meanwhile, since nothing is placed.
    state = asked.get("/state")
    assert state["instances"] == {} and state["index"] == before


def is_away(node: NodeProcess, name: str) -> bool:
    """Say whether there is a master, and it holds that this node is not connected."""
    state = node.get("/state")
    there = {one["name"]: one["is_connected"] for one in state["topology"]["nodes"]}
    return state["master_node_id"] is not None and not there[name]


def test_why_outlives_the_master_and_the_instance(cluster: list[NodeProcess]) -> None:
    first, second, third = cluster
    nodes = [node.get("/state")["node_id"] for node in (second, third)]
    instance = place(second, min_nodes=2, node_ids=nodes)
    path = f"/instance/{instance['instance_id']}/why"
    told = second.get(path, timeout_s=60)
    (decision,) = told["decisions"]
    assert (decision["kind"], told["explained"]["is_identical"]) == ("placed", True), told["explained"]
    assert told["explained"]["request"]["min_nodes"] == 2
    assert len(told["explained"]["alternatives"]) >= 2 and told["today"]["plan"] is not None

    first.kill()
    eventually(lambda: is_away(second, "oak"), "the next master noticing that oak is away")
    again = second.get(path, timeout_s=60)
    assert again["explained"]["is_identical"] is True and again["decisions"] == told["decisions"]
    assert any(one.startswith("oak is not connected") for one in again["changes"]), again["changes"]

    status, _ = second.call("DELETE", f"/instance/{instance['instance_id']}")
    assert status == 200
    gone = second.get(path, timeout_s=60)
    assert gone["deleted_at"] is not None and gone["today"] is None
    assert gone["explained"]["is_identical"] is True
