"""From `kill -9` of a node that runs a stage to the next token of the same model, on what is left. Whole nodes.

Three nodes and a model over two of them; over all three where the master is to be killed, so that it surely has a
stage. Somebody asks at once, again and again, and the time to the first token is taken. The promise is that a model
serves again within five seconds and a load: the load is that of the same round, from the decision until it is ready.
"""

import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.cluster.measuring import CannotMeasureError, Sheet, percentile
from benchmarks.nodes import NodeProcess
from benchmarks.results import Result
from benchmarks.stream_client import stream_chat

MODEL = "exo-tiny"
PROMISE_S = 5.0
WAIT_S = 60.0


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One kill, in seconds from it; loads are durations."""

    first_load_s: float
    """From the request to place the model until it was ready."""
    decided_s: float
    ready_s: float
    served_s: float
    """The first token."""

    @property
    def load_s(self) -> float:
        """How long the stages took to be ready elsewhere."""
        return self.ready_s - self.decided_s

    @property
    def beyond_load_s(self) -> float:
        """What it took besides: to notice, to wait whether the node comes back, to decide, and to answer."""
        return self.served_s - self.load_s


def run(*, quick: bool) -> list[Result]:
    """Kill members, and then masters."""
    sheet = Sheet()
    with tempfile.TemporaryDirectory(prefix="exo-replacement-") as home, three_nodes(Path(home)) as nodes:
        for name, count, is_master in (
            ("node", 2 if quick else 10, False),
            ("master", 1 if quick else 5, True),
        ):
            rounds = [one_round(nodes, is_master=is_master) for _ in range(count)]
            figures = {
                "decided where it goes on": [one.decided_s for one in rounds],
                "loaded there": [one.load_s for one in rounds],
                "first token again": [one.served_s for one in rounds],
            }
            for what, times_s in figures.items():
                sheet.add(f"{name} killed: {what}, p50", statistics.median(times_s), "s")
                sheet.add(f"{name} killed: {what}, p99", percentile(times_s, 99), "s")
            beyond_s = [one.beyond_load_s for one in rounds]
            what = f"{name} killed: first token, the load left aside"
            sheet.add(f"{what}, p50", statistics.median(beyond_s), "s")
            sheet.add(f"{what}, p99", percentile(beyond_s, 99), "s", at_most=PROMISE_S)
            first_s = statistics.median(one.first_load_s for one in rounds)
            sheet.add(f"{name} killed: placed and loaded at first, p50", first_s, "s")
    return sheet.results


@contextlib.contextmanager
def three_nodes(home: Path) -> Iterator[list[NodeProcess]]:
    """Run three nodes that are one cluster and all vote."""
    nodes = [
        NodeProcess(home / name, "--name", f"node-{name}", namespace=f"replacement-{os.getpid()}")
        for name in "abc"
    ]
    with ExitStack() as stack:
        for node in nodes:
            node.launch()
            stack.callback(_end, node)
        for node in nodes:
            node.wait_ready(60)
        yield nodes


def one_round(nodes: list[NodeProcess], *, is_master: bool) -> Round:
    """Place the model, kill a node that has a stage, wait for a token; then bring all back as it was."""
    until(lambda: _is_whole(nodes), "three nodes are one cluster")
    master_id = nodes[0].get("/state")["master_node_id"]
    master = next(node for node in nodes if _id(node) == master_id)
    began_s = time.perf_counter()
    instance = _placed(nodes, 3 if is_master else 2)
    first_load_s = time.perf_counter() - began_s
    had = [stage["node_id"] for stage in instance["plan"]["stages"]]
    victim = master if is_master else next(one for one in nodes if one is not master and _id(one) in had)
    asked = next(node for node in nodes if node is not victim)
    stream_chat(asked.url, model=MODEL, prompt="Count to 12.", tokens=4)

    killed_s = time.perf_counter()
    victim.kill()
    seen: dict[str, float] = {}
    watching = threading.Thread(target=_watch, args=(asked, instance["instance_id"], killed_s, seen))
    watching.start()
    served_s = _first_token_s(asked, killed_s)
    watching.join(WAIT_S)
    if "ready" not in seen:
        raise CannotMeasureError("the model answered, and nobody has seen it ready elsewhere")
    asked.call("DELETE", f"/instance/{instance['instance_id']}")
    victim.start(60)
    return Round(
        first_load_s=first_load_s, decided_s=seen["decided"], ready_s=seen["ready"], served_s=served_s
    )


def _placed(nodes: list[NodeProcess], min_nodes: int) -> dict[str, Any]:
    status, instance = nodes[0].call("POST", "/instance", {"model_id": MODEL, "min_nodes": min_nodes})
    if status != 201:
        raise CannotMeasureError(f"the model is not placed: {instance}")
    return nodes[0].get(f"/instance/{instance['instance_id']}/wait?timeout_s=60", timeout_s=70)


def _watch(node: NodeProcess, instance_id: str, killed_s: float, seen: dict[str, float]) -> None:
    """Note when it was decided where the instance goes on, and when it was ready there."""
    while time.perf_counter() - killed_s < WAIT_S:
        with contextlib.suppress(OSError):
            one = node.get(f"/instance/{instance_id}")
            if one["moved_reason"]:
                seen.setdefault("decided", time.perf_counter() - killed_s)
                if one["status"] == "ready":
                    seen["ready"] = time.perf_counter() - killed_s
                    return
        time.sleep(0.01)


def _first_token_s(node: NodeProcess, killed_s: float) -> float:
    """Ask until there is an answer; return when its first token came."""
    while time.perf_counter() - killed_s < WAIT_S:
        asked_s = time.perf_counter()
        # What was under way, or begins on stages whose neighbour is gone, ends with an error that says: try again.
        with contextlib.suppress(OSError, RuntimeError):
            stream = stream_chat(node.url, model=MODEL, prompt="Count to 12.", tokens=4)
            if stream.times_s:
                return asked_s + stream.times_s[0] - killed_s
        time.sleep(0.01)
    raise CannotMeasureError(f"no token within {WAIT_S:g} s of the kill")


def until(wanted: Callable[[], bool], what: str) -> None:
    """Wait until something is so.

    Raises:
        CannotMeasureError: It is not within a minute.
    """
    deadline_s = time.perf_counter() + WAIT_S
    while time.perf_counter() < deadline_s:
        with contextlib.suppress(OSError):
            if wanted():
                return
        time.sleep(0.02)
    raise CannotMeasureError(f"not within {WAIT_S:g} s: {what}")


def _is_whole(nodes: list[NodeProcess]) -> bool:
    states = [node.get("/state") for node in nodes]
    return (
        len({(state["cluster_id"], state["index"]) for state in states}) == 1
        and len(states[0]["voters"]["voters"]) == len(nodes)
        and sum(one["is_connected"] for one in states[0]["topology"]["nodes"]) == len(nodes)
        and not states[0]["instances"]
    )


def _id(node: NodeProcess) -> str:
    return node.addresses["node_id"]


def _end(node: NodeProcess) -> None:
    if node.process is not None and node.process.poll() is None:
        node.terminate()
