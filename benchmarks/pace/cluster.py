"""Three nodes of this machine whose stages can be slowed down, asked for predictions and held to them."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.calibration import calibrate
from benchmarks.nodes import NodeProcess
from benchmarks.results import CannotMeasureError, Result
from benchmarks.stream_client import stream_chat
from benchmarks.throttle import Throttle

PROMPT = "Count to 12."
CONTEXT_LENGTH = 256
NODE_COUNT = 3
_WARM_TOKENS = 8
_IDLE_TIMEOUT_S = 40.0
_IDLE_PERCENT = 20.0
"""Placement takes load below this for none."""

Nodes = tuple[int, ...]
Layers = tuple[int, ...]
Split = tuple[Nodes, Layers]
"""Which nodes, and how many layers of each."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a plan was said to do."""

    tokens_per_s: float
    is_calibrated: bool
    nodes: Nodes
    layers: Layers


class Bench:
    """Nodes whose stages can be slowed down.

    Args:
        nodes: Running, one cluster, in the order of their ids.
        groups: One for each of them.
    """

    def __init__(self, nodes: Sequence[NodeProcess], groups: Sequence[Throttle]) -> None:
        self._nodes = nodes
        self._groups = groups
        self._ids = [node.addresses["node_id"] for node in nodes]

    def predict(self, model: str, nodes: Nodes, layers: Layers = (), *, min_nodes: int = 1) -> Predicted:
        """Ask what a split would do, or without layers what the fastest one is, and what it would do."""
        names = "".join(f"&node_ids={self._ids[node]}" for node in nodes)
        split = "".join(f"&layer_split={count}" for count in layers)
        path = f"/instance/previews?model_id={model}&context_length={CONTEXT_LENGTH}&min_nodes={min_nodes}"
        plan = self._nodes[0].get(path + names + split)["previews"][0]["plan"]
        told = plan["prediction"]
        return Predicted(
            tokens_per_s=told["tokens_per_s"],
            is_calibrated=told["is_calibrated"],
            nodes=tuple(self._ids.index(stage["node_id"]) for stage in plan["stages"]),
            layers=tuple(stage["end_layer"] - stage["start_layer"] for stage in plan["stages"]),
        )

    def measure(
        self,
        model: str,
        nodes: Nodes,
        layers: Layers = (),
        *,
        shares: Sequence[float] | None,
        tokens: int,
        min_nodes: int = 1,
        yardstick: "Yardstick | None" = None,
    ) -> float:
        """Place a split, or without layers the fastest one, have it serve one stream, and return its tokens/s.

        With a yardstick these are what they would have been while the machine was as fast as when that was set.
        """
        with self.served(model, nodes, layers, min_nodes=min_nodes) as first:
            before = yardstick.speed() if yardstick is not None else 1.0
            seen = self.stream(first, model, shares=shares, tokens=tokens)
            if yardstick is None:
                return seen
            return seen / yardstick.drift(before, yardstick.speed())

    @contextmanager
    def served(
        self, model: str, nodes: Nodes, layers: Layers = (), *, min_nodes: int = 1
    ) -> Iterator[NodeProcess]:
        """Have a split placed and loaded, and its node with the first stage told."""
        wish = {
            "model_id": model,
            "context_length": CONTEXT_LENGTH,
            "node_ids": [self._ids[node] for node in nodes],
            "layer_split": list(layers),
            "min_nodes": min_nodes,
        }
        kept = self._all_stages()
        status, instance = self._nodes[0].call("POST", "/instance", wish)
        if status != 201:
            raise CannotMeasureError(f"{model} was not placed: {instance}")
        instance_id = instance["instance_id"]
        try:
            self._nodes[0].get(f"/instance/{instance_id}/wait?timeout_s=120", timeout_s=130)
            yield self._nodes[self._ids.index(instance["plan"]["stages"][0]["node_id"])]
        finally:
            self._nodes[0].call("DELETE", f"/instance/{instance_id}")
            self._until_gone(kept)

    def stream(self, first: NodeProcess, model: str, *, shares: Sequence[float] | None, tokens: int) -> float:
        """Stream one answer, with stages slowed down to their shares meanwhile; return its tokens/s."""
        try:
            self._slow_down(shares)
            stream_chat(first.url, model=model, prompt=PROMPT, tokens=_WARM_TOKENS)
            times_s = stream_chat(first.url, model=model, prompt=PROMPT, tokens=tokens).times_s
        finally:
            # The last second's steps are still to be told, at the pace at which they were made.
            time.sleep(1.2)
            self._slow_down(None)
        return (len(times_s) - 1) / (times_s[-1] - times_s[0])

    def _until_gone(self, kept: set[int]) -> None:
        """Wait until only these stages' processes are left: the others' memory is the next one's."""
        deadline_s = time.monotonic() + _IDLE_TIMEOUT_S
        while self._all_stages() - kept:
            if time.monotonic() > deadline_s:
                raise CannotMeasureError("stages of an instance that was deleted do not end")
            time.sleep(0.1)

    def _all_stages(self) -> set[int]:
        return {pid for node in self._nodes for pid in _pids(node)}

    def until_idle(self) -> None:
        """Wait until telemetry shows that nothing runs any more: own work of a moment ago is nobody's load."""
        deadline_s = time.monotonic() + _IDLE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            loads = [one["compute_utilization_percent"] for one in self._readings()]
            if all(load is not None and load < _IDLE_PERCENT for load in loads):
                return
            time.sleep(0.5)
        raise CannotMeasureError("this machine is busy with something else; run this on an idle one")

    def _readings(self) -> list[dict[str, Any]]:
        return list(self._nodes[0].get("/state")["gpu_device_state"].values())

    def _slow_down(self, shares: Sequence[float] | None) -> None:
        for number, (node, group) in enumerate(zip(self._nodes, self._groups, strict=False)):
            group.set_share(None if shares is None or shares[number] >= 1 else shares[number])
            group.add(_pids(node))


class Yardstick:
    """One split that stays loaded, and says how fast the machine is at the moment.

    A virtual machine is slower by half from one minute to the next, whatever runs on it. What is measured between two
    looks at the yardstick counts for as much as it would have while that was set.
    """

    def __init__(
        self, bench: Bench, first: NodeProcess, model: str, *, shares: Sequence[float], tokens: int
    ) -> None:
        self._bench, self._first, self._model = bench, first, model
        self._shares, self._tokens = shares, tokens
        self._set: list[float] = []

    def set(self) -> float:
        """Look, and count this look among those that the others are compared to."""
        self._set.append(self.speed())
        return self._set[-1]

    def speed(self) -> float:
        """Look: return its tokens/s now."""
        return self._bench.stream(self._first, self._model, shares=self._shares, tokens=self._tokens)

    def drift(self, before: float, after: float) -> float:
        """Return how fast the machine was between two looks, as a share of how fast it was when it was set."""
        now = (before + after) / 2 / (sum(self._set) / len(self._set))
        say(f"  the machine meanwhile: {now:.2f} times as fast as while it was learnt from")
        return now


@contextmanager
def three_nodes(
    groups: Sequence[Throttle] = (),
    *,
    own: Throttle | None = None,
    write_models: Callable[[Path], None] = lambda models: None,
) -> Iterator[Bench]:
    """Run three nodes that are one cluster.

    Args:
        groups: One for each of them, to slow stages down; none: nothing is slowed down.
        own: For this process and the nodes themselves.
        write_models: Writes models into a directory that all three have.
    """
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder, ExitStack() as stack:
        models = Path(folder) / "models"
        models.mkdir()
        write_models(models)
        if own is not None:
            own.add([os.getpid()])
        namespace = f"pace-{time.time_ns()}"
        nodes = [
            NodeProcess(
                Path(folder) / name,
                "--quiet",
                f"--models-dir={models}",
                namespace=namespace,
                # A split that is slow on purpose would be moved to where it is not.
                environment={"EXO_MIGRATION": "0"},
            )
            for name in "abc"
        ]
        for node in nodes:
            stack.enter_context(node)
        _until_one_cluster(nodes)
        nodes.sort(key=lambda node: node.addresses["node_id"])
        yield Bench(nodes, groups)


def told(name: str, told: Predicted, measured: float, *, bar: float | None) -> Result:
    error = abs(told.tokens_per_s / measured - 1) * 100
    basis = "" if told.is_calibrated else ", not calibrated"
    say(f"{name}: predicted {told.tokens_per_s:.4g}, measured {measured:.4g} tokens/s{basis}")
    return Result(
        name=f"{name}: predicted {told.tokens_per_s:.4g}, measured {measured:.4g} tokens/s{basis}; error",
        value=error,
        unit="%",
        # A figure that does not rest on measurements has not shown what it is to show.
        bar=bar if bar is None or told.is_calibrated else 0.0,
        at_least=False,
        calibration=calibrate(),
    )


def name_of(nodes: Nodes, layers: Layers) -> str:
    return f"{'/'.join(map(str, layers))} on {'/'.join('abc'[node] for node in nodes)}"


def _pids(node: NodeProcess) -> list[int]:
    return [one.pid for one in node.stages()]


def _until_one_cluster(nodes: Sequence[NodeProcess]) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        states = [node.get("/state") for node in nodes]
        there = [sum(one["is_connected"] for one in state["topology"]["nodes"]) for state in states]
        if len({state["cluster_id"] for state in states}) == 1 and set(there) == {len(nodes)}:
            return
        time.sleep(0.1)
    raise CannotMeasureError("three nodes of this machine did not become one cluster within 30 s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
