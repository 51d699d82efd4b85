"""The whole way from a state to a plan with its reasons, on large clusters."""

import random
import statistics
import time

from msgspec.structs import replace

from benchmarks.cluster.measuring import Sheet
from benchmarks.placement.clusters import KINDS
from benchmarks.placement.states import device_of, node_of
from benchmarks.results import Result
from exo.master.placement.place import place_instance
from exo.shared.types.ids import ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Link
from exo.shared.types.state import NodeTelemetry, State

NEIGHBOURS = 6
"""Nodes to which each of a large cluster has measured its link."""


def run(*, quick: bool) -> list[Result]:
    """100 nodes that all measured each other, 1,000 that measured none or a few."""
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
    return sheet.results


def large_state(seed: int, count: int, measured: int) -> State:
    """Nodes of one device each with a model of 150 GB."""
    chance = random.Random(seed)
    model = _model()
    names = [NodeId(f"node-{number:04}") for number in range(count)]
    nodes = {
        name: node_of(name, f"host-{name}", [device_of(name, chance.choice(list(KINDS)))], model)
        for name in names
    }
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
