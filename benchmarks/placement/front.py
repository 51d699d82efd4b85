"""The whole way from a state to a plan with its reasons, on large clusters."""

import random
import statistics
import time

from msgspec.structs import replace

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.clusters import KINDS
from benchmarks.placement.states import device_of, node_of
from benchmarks.placement.timing import deadline
from benchmarks.results import Result
from exo.master.placement.place import place_instance
from exo.shared.types.ids import ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Link, Node
from exo.shared.types.state import NodeTelemetry, State

NEIGHBOURS = 6
"""Nodes to which each of a large cluster has measured its link."""
DEADLINE_MS = 100
LATE_MS = 75
"""By how much an answer may come after its deadline: what the plan at hand and its reasons take is in it."""
_GPUS = tuple(name for name in KINDS if name != "CPU box" and not name.startswith("M"))


def run(*, quick: bool) -> list[Result]:
    """100 and 900 nodes that all measured each other, 1,000 of one or four devices that measured none or a few."""
    sheet = Sheet()
    for name, nodes, measured, bar in (
        ("100 nodes, all links measured", 100, 99, None),
        ("1,000 nodes", 1000, 0, 500),
        ("1,000 nodes, six links of each measured", 1000, NEIGHBOURS, None),
    ):
        for what, min_nodes in (("plan with its reasons", 1), ("at least ten nodes", 10)):
            times_ms: list[float] = []
            for seed in range(1 if quick else 3):
                state = large_state(seed, nodes, measured)
                request = PlacementRequest(model_id=ModelId("big"), min_nodes=min_nodes)
                started_s = time.process_time()
                plan = place_instance(state, request, should_stop=lambda: False)
                times_ms.append((time.process_time() - started_s) * 1000)
                assert isinstance(plan, Plan), plan
            limit = bar if min_nodes == 1 else None
            if limit is None:
                sheet.add(f"{name}: {what}", statistics.median(times_ms), "ms")
            else:
                sheet.add(f"{name}: {what}", statistics.median(times_ms), "ms", at_most=limit)
    for name, nodes, each, measured in (
        ("900 nodes, all links measured", 900, 1, 899),
        ("1,000 nodes of four GPUs", 1000, 4, 0),
        ("1,000 nodes of four GPUs, six links of each measured", 1000, 4, NEIGHBOURS),
    ):
        state = large_state(0, nodes, measured, each=each)
        times = 1 if quick else 3
        sheet.add(f"{name}: plan with its reasons", statistics.median(_times_ms(state, times)), "ms")
        late_ms = max(0.0, max(_times_ms(state, times, deadline_ms=DEADLINE_MS)) - DEADLINE_MS)
        sheet.add(f"{name}: overrun of a deadline of {DEADLINE_MS} ms", late_ms, "ms", at_most=LATE_MS)
    return sheet.results


def _times_ms(state: State, times: int, *, deadline_ms: float | None = None) -> list[float]:
    """Place so many times; return the processor time that each took."""
    found: list[float] = []
    for _ in range(times):
        should_stop = (lambda: False) if deadline_ms is None else deadline(deadline_ms)
        started_s = time.process_time()
        plan = place_instance(state, PlacementRequest(model_id=ModelId("big")), should_stop=should_stop)
        found.append((time.process_time() - started_s) * 1000)
        assert isinstance(plan, Plan), plan
    return found


def large_state(seed: int, count: int, measured: int, *, each: int = 1) -> State:
    """Nodes of one device each, or of several GPUs of one kind, with a model of 150 GB."""
    chance = random.Random(seed)
    model = _model()
    names = [NodeId(f"node-{number:04}") for number in range(count)]
    kinds = list(KINDS) if each == 1 else _GPUS
    nodes: dict[NodeId, Node] = {}
    for name in names:
        kind = chance.choice(kinds)
        devices = [device_of(name, kind, place) for place in range(each)]
        nodes[name] = node_of(name, f"host-{name}", devices, model)
    live: dict[NodeId, NodeTelemetry] = {}
    for name in names if measured else ():
        others = [one for one in chance.sample(names, min(count, measured + 1)) if one != name]
        live[name] = NodeTelemetry(links={other: _link(chance, name, other) for other in others})
    return replace(State(index=1, term=1), nodes=nodes, live=live)


def _link(chance: random.Random, source: NodeId, target: NodeId) -> Link:
    return Link(
        source_node_id=source,
        dest_node_id=target,
        link_type="ethernet",
        latency_ms=10 ** chance.uniform(-1, 1),
        bandwidth_mbps=10 ** chance.uniform(2, 4),
        measurement_count=3,
    )


def _model() -> ModelCard:
    return ModelCard(
        model_id=ModelId("big"),
        name="big",
        family="llama",
        dtype="4-bit",
        layer_count=80,
        hidden_size=8192,
        vocabulary_size=128_000,
        context_length_max=4096,
        layer_bytes=(1_900_000_000,) * 80,
        embedding_bytes=500_000_000,
        head_bytes=500_000_000,
        has_tied_head=False,
        kv_bytes_per_token_and_layer=4096,
        fingerprint="big",
    )
