"""Three real nodes become one cluster and serve one model together."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks.nodes import NodeProcess

from support.nodes import MODEL, answer, eventually, is_one_cluster, place

pytestmark = pytest.mark.slow

PROMPTS = ("What is 12 + 30?", "Count to 12.", "Who are you?", "What is 99 + 98?")


def decided(state: dict[str, Any]) -> dict[str, Any]:
    """The part of `/state` that must be equal on every node at equal index."""
    nodes = [
        {key: one[key] for key in ("node_id", "name", "is_connected", "boot_id") if key in one}
        for one in state["topology"]["nodes"]
    ]
    instances = {
        key: (one["plan"]["stages"], [stage["phase"] for stage in one["stages"]], one["generation"])
        for key, one in state["instances"].items()
    }
    return {
        "index": state["index"],
        "term": state["term"],
        "master": state["master_node_id"],
        "nodes": nodes,
        "instances": instances,
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
    """Three nodes started at the same moment, that find each other by multicast."""
    home = tmp_path_factory.mktemp("three")
    nodes = [NodeProcess(home / name, namespace=f"three-{os.getpid()}") for name in ("a", "b", "c")]
    with ExitStack() as stack:
        for node in nodes:
            node.launch()
            stack.callback(end, node)
        for node in nodes:
            node.wait_ready()
        yield nodes


@pytest.fixture(scope="module")
def single_answers(cluster: list[NodeProcess]) -> dict[str, str]:
    """What one process alone answers."""
    instance = place(cluster[0], min_nodes=1)
    assert len(instance["plan"]["stages"]) == 1
    answers = {prompt: answer(cluster[0], prompt) for prompt in PROMPTS}
    cluster[0].call("DELETE", f"/instance/{instance['instance_id']}")
    return answers


@pytest.fixture
def three(cluster: list[NodeProcess]) -> Iterator[list[NodeProcess]]:
    """The nodes, whole and without instances. What they print meanwhile is shown for a test that failed."""
    printed = [len(node.log()) for node in cluster]
    for node in cluster:
        if node.process is None or node.process.poll() is not None:
            node.start()
    eventually(lambda: is_one_cluster(cluster), "three nodes are one cluster")
    for instance in cluster[0].get("/instance")["instances"]:
        cluster[0].call("DELETE", f"/instance/{instance['instance_id']}")
    eventually(lambda: not any(node.get("/instance")["instances"] for node in cluster), "nothing is placed")
    yield cluster
    for node, before in zip(cluster, printed, strict=True):
        print(f"--- {node.home.name}\n{node.log()[before:][-8000:]}")


def end(node: NodeProcess) -> None:
    if node.process is not None and node.process.poll() is None:
        node.terminate()


def test_three_nodes_share_one_state_and_serve_a_pipeline_equal_to_one_process(
    three: list[NodeProcess], single_answers: dict[str, str]
) -> None:
    instance = place(three[1], min_nodes=3)
    stages = instance["plan"]["stages"]
    assert len({stage["node_id"] for stage in stages}) == 3
    assert [stage["start_layer"] for stage in stages] == [0, stages[0]["end_layer"], stages[1]["end_layer"]]
    for node in three:
        for prompt, wanted in single_answers.items():
            assert answer(node, prompt) == wanted
    eventually(
        lambda: len({str(decided(node.get("/state"))) for node in three}) == 1, "equal state at equal index"
    )
    states = [node.get("/state") for node in three]
    assert len({state["master_node_id"] for state in states}) == 1
    eventually(
        lambda: all(len(node.get("/state")["gpu_device_state"]) == 3 for node in three),
        "telemetry of every node is on every node",
    )


def test_a_killed_node_is_noticed_and_its_pipeline_serves_on_what_is_left_and_when_it_is_back(
    three: list[NodeProcess], single_answers: dict[str, str]
) -> None:
    instance = place(three[0], min_nodes=3)
    master = three[0].get("/state")["master_node_id"]
    victim = next(node for node in three if node.addresses["node_id"] != master)
    others = [node for node in three if node is not victim]
    victim.kill()
    (view,) = eventually(
        lambda: [one for one in others[0].get("/instance")["instances"] if one["status"] == "failed"],
        "the instance is known to be broken",
    )
    assert view["reason"]
    assert view["instance_id"] == instance["instance_id"], "a lost node must not delete instances"
    status, problem = others[0].call(
        "POST",
        "/v1/chat/completions",
        {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
        timeout_s=120,
    )
    assert status in {200, 409, 503}, problem
    victim.start()
    eventually(lambda: is_one_cluster(three), "the node is back")
    others[0].get(f"/instance/{instance['instance_id']}/wait?timeout_s=90", timeout_s=100)
    prompt = PROMPTS[0]
    assert answer(victim, prompt) == single_answers[prompt]
    assert [one["instance_id"] for one in victim.get("/instance")["instances"]] == [instance["instance_id"]]


def test_another_node_leads_when_the_master_is_killed_and_knows_everything_that_was_decided(
    three: list[NodeProcess], single_answers: dict[str, str]
) -> None:
    instance = place(three[2], min_nodes=3)
    eventually(lambda: len(three[0].get("/state")["voters"]["voters"]) == 3, "three nodes vote")
    before = three[0].get("/state")
    master = next(node for node in three if node.addresses["node_id"] == before["master_node_id"])
    others = [node for node in three if node is not master]
    master.kill()
    eventually(
        lambda: (
            {node.get("/state")["master_node_id"] for node in others}
            in [{node.addresses["node_id"]} for node in others]
        ),
        "another node leads",
    )
    state = others[0].get("/state")
    assert state["term"] > before["term"] and state["index"] > before["index"]
    assert state["instances"][instance["instance_id"]]["plan"] == instance["plan"]
    second = place(others[0], min_nodes=1)
    eventually(
        lambda: second["instance_id"] in others[1].get("/state")["instances"], "the two of them decide"
    )
    others[1].call("DELETE", f"/instance/{second['instance_id']}")
    master.start()
    eventually(lambda: is_one_cluster(three), "the same cluster again")
    assert others[0].get("/state")["cluster_id"] == before["cluster_id"]
    assert master.get("/state")["master_node_id"] != master.addresses["node_id"], "it follows now"
    others[0].get(f"/instance/{instance['instance_id']}/wait?timeout_s=90", timeout_s=100)
    assert answer(others[1], PROMPTS[1]) == single_answers[PROMPTS[1]]


def test_no_stage_process_outlives_three_nodes(three: list[NodeProcess]) -> None:
    place(three[0], min_nodes=3)
    family = [
        child
        for node in three
        if node.process is not None
        for child in psutil.Process(node.process.pid).children(recursive=True)
    ]
    assert len(family) >= 3
    assert [node.terminate() for node in three] == [0, 0, 0]
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_nodes_find_each_other_by_address_alone_and_another_namespace_stays_apart(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "a", "--no-discovery", namespace="red") as first:
        address = first.addresses["cluster_address"]
        peer = f"--peer={address['host']}:{address['port']}"
        second = NodeProcess(tmp_path / "b", "--no-discovery", peer, namespace="red")
        third = NodeProcess(tmp_path / "c", "--no-discovery", peer, namespace="blue")
        with ExitStack() as stack:
            for node in (second, third):
                node.launch()
                stack.callback(end, node)
            for node in (second, third):
                node.wait_ready()
            eventually(lambda: is_one_cluster([first, second]), "two nodes are one cluster")
            eventually(lambda: "belongs to the namespace 'red'" in third.log(), "it says why")
            assert not is_one_cluster([first, third])
