"""Whole nodes and a real model that serves: a better place appears, and it goes on there; once, with nobody misled."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks.nodes import NodeProcess

from support.nodes import (
    Asking,
    answer,
    check_replies,
    eventually,
    is_one_cluster,
    master_of,
    node_id,
    place,
    stage_nodes,
)
from support.played_processor import PlayedNode

pytestmark = pytest.mark.slow

PROMPT = "Count to 12."
SOON: Mapping[str, str] = {
    "EXO_MIGRATION_STANDS": "1",
    "EXO_MIGRATION_QUIET_WAIT": "0",
    # Of the test's short life nobody could expect that a move pays for itself.
    "EXO_MIGRATION_COST_TOKENS": "0",
}
SLOW_GB_PER_S, FAST_GB_PER_S = 2.0, 200.0
LOOKS_S = 4.0
"""Sixteen looks at every instance."""


class Cluster:
    """Nodes that are one cluster, and are ended in the end."""

    def __init__(self, home: Path, stack: ExitStack) -> None:
        self.nodes: list[NodeProcess] = []
        self._home = home
        self._stack = stack

    def add(self, name: str, gb_per_s: float) -> NodeProcess:
        """Have one more join."""
        namespace = f"migrating-{os.getpid()}"
        node = PlayedNode(
            self._home / name,
            *("--name", f"node-{name}", "--telemetry-interval", "0.5"),
            gb_per_s=gb_per_s,
            environment=SOON,
            namespace=namespace,
        )
        self.nodes.append(self._stack.enter_context(node))
        eventually(lambda: is_one_cluster(self.nodes), "one cluster")
        return node

    def ready(self, instance_id: str, generation: int) -> dict[str, Any]:
        """Wait until an instance serves in this generation."""
        return eventually(
            lambda: (
                (one := self.nodes[0].get(f"/instance/{instance_id}"))["generation"] == generation
                and one["status"] == "ready"
                and one
            ),
            f"generation {generation} serves",
            90,
        )

    def check_that_it_stays(self, instance: dict[str, Any]) -> None:
        """Nothing moves for many looks, and no process is left of what was before."""
        names = {node_id(node): node for node in self.nodes}
        where = stage_nodes(instance)
        for one, node in names.items():
            eventually(
                lambda one=one, node=node: len(node.stages()) == where.count(one), "former stages end", 20
            )
        until_s = time.monotonic() + LOOKS_S
        while time.monotonic() < until_s:
            (now,) = self.nodes[0].get("/instance")["instances"]
            assert now["generation"] == instance["generation"] and stage_nodes(now) == where, now
            time.sleep(0.1)
        moves = sum(node.log().count("; it now runs") for node in self.nodes)
        assert moves == instance["generation"] - 1


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        made = Cluster(tmp_path, stack)
        yield made
        for node in made.nodes:
            print(f"--- {node.home.name}\n{node.log()[-8000:]}")


def test_a_faster_machine_that_joins_is_moved_to_once_while_people_ask(cluster: Cluster) -> None:
    first = cluster.add("a", SLOW_GB_PER_S)
    cluster.add("c", SLOW_GB_PER_S)
    # In one stage: two would be measured, and might change places where one of them had a bad moment.
    placed = place(first)
    right = answer(first, PROMPT)
    cluster.check_that_it_stays(placed)

    asking = Asking(first, PROMPT)
    asking.start()
    fast = cluster.add("b", FAST_GB_PER_S)
    moved = cluster.ready(placed["instance_id"], 2)
    assert stage_nodes(moved) == [node_id(fast)]
    why = moved["moved_reason"]
    assert why.startswith("each token is predicted to take ") and "; it now runs on cpu:0 of node-b" in why
    assert [answer(node, PROMPT) for node in cluster.nodes] == [right] * 3
    replies = asking.end()
    check_replies(replies, right)
    assert replies[0][0] == replies[-1][0] == 200, "before and after there is nothing to notice"
    assert {status for status, _ in replies} <= {200, 503}, "who asks again is answered"
    cluster.check_that_it_stays(moved)


def test_a_node_that_is_stopped_in_the_middle_of_a_move_ends_and_the_model_goes_on(cluster: Cluster) -> None:
    """The stage that is loaded there stands still, so that the move is surely not over."""
    first, other = cluster.add("a", SLOW_GB_PER_S), cluster.add("c", SLOW_GB_PER_S)
    placed = place(first)
    right = answer(first, PROMPT)
    fast = cluster.add("b", FAST_GB_PER_S)
    (stage,) = eventually(fast.stages, "the move has begun", 60)
    stage.suspend()
    assert fast.terminate() == 0
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE
    again = cluster.ready(placed["instance_id"], 3)
    assert set(stage_nodes(again)) < {node_id(first), node_id(other)}
    assert "node-b was stopped" in again["moved_reason"]
    assert answer(first, PROMPT) == right == answer(other, PROMPT)


def test_what_was_asked_for_is_given_back_when_the_node_is_back(cluster: Cluster) -> None:
    for name in "abc":
        cluster.add(name, FAST_GB_PER_S)
    first = cluster.nodes[0]
    placed = place(first, min_nodes=3)
    assert set(stage_nodes(placed)) == {node_id(node) for node in cluster.nodes}
    master = master_of(cluster.nodes)
    leaver = next(node for node in cluster.nodes if node is not master)
    others = [node for node in cluster.nodes if node is not leaver]
    assert leaver.terminate() == 0
    reduced = eventually(
        lambda: (
            (one := others[0].get(f"/instance/{placed['instance_id']}"))["generation"] == 2
            and one["status"] == "ready"
            and one
        ),
        "it goes on on fewer nodes",
        60,
    )
    assert set(stage_nodes(reduced)) == {node_id(node) for node in others}
    right = answer(others[0], PROMPT)

    asking = Asking(others[0], PROMPT)
    asking.start()
    leaver.start(60)
    again = cluster.ready(placed["instance_id"], 3)
    assert set(stage_nodes(again)) == {node_id(node) for node in cluster.nodes}
    why = again["moved_reason"]
    assert why.startswith("what was asked for can be had again (2 of 3 nodes take part); ")
    assert [answer(node, PROMPT) for node in cluster.nodes] == [right] * 3
    check_replies(asking.end(), right)
    cluster.check_that_it_stays(again)
