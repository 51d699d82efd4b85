"""What a decision was made on: packed, unpacked and asked again it has the same answer."""

import random

import msgspec
import pytest
import zstandard
from msgspec.structs import replace

from exo.master.decide import decide
from exo.master.errors import BasisUnreadableError
from exo.master.placement.basis import BASIS_BYTES_MAX, Basis, pack, reduced, unpack
from exo.master.placement.place import place_instance
from exo.shared.apply import apply_telemetry
from exo.shared.types.access import Access
from exo.shared.types.commands import CommitPlan, Refusal
from exo.shared.types.devices import DeviceGPUState, GPUDevice, ProcessMemory, ThermalStatus
from exo.shared.types.events import DeviceGPUStateUpdated, LinkMeasured, NodeDisconnected, TelemetryFrame
from exo.shared.types.ids import CommandId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.nodes import NodeIdentity
from exo.shared.types.state import State
from support.placing import MIXED, mixed_state, never
from support.states import GIB, card, cluster, cpu, fold, gpu, identity

NAMES = ("RTX 4090", "RTX 3090", "Tesla T4", "no such GPU")


def random_state(rng: random.Random) -> State:
    """Nodes of one to three devices with load, heat and links, of which some have failed, left, or run a model."""
    nodes = [_node(rng, f"n{number}") for number in range(rng.randint(1, 7))]
    state = cluster(*nodes)
    for node in nodes:
        state = apply_telemetry(state, _frame(rng, node, nodes))
    for number in range(rng.randint(0, 2)):
        answer = _answer(state, PlacementRequest(model_id=ModelId("other"), min_nodes=rng.randint(1, 2)))
        if isinstance(answer, Plan):
            asked = PlacementRequest(model_id=ModelId("other"))
            commit = CommitPlan(
                command_id=CommandId("c"), instance_id=InstanceId(f"i{number}"), request=asked, plan=answer
            )
            events = decide(state, commit)
            if not isinstance(events, Refusal):
                state = fold(state, *events)
    if rng.random() < 0.3:
        state = fold(state, NodeDisconnected(node_id=rng.choice(nodes).node_id, reason="cable"))
    return state


def random_request(rng: random.Random, state: State) -> PlacementRequest:
    nodes = sorted(state.nodes)
    return PlacementRequest(
        model_id=ModelId(rng.choice(("big", "big", "big", "other"))),
        min_nodes=rng.choice((1, 1, 1, 2, 3)),
        prefer_gpu=rng.random() < 0.8,
        exclude=tuple(rng.sample(nodes, 1)) if rng.random() < 0.2 else (),
        concurrency=rng.choice((1, 1, 4)),
        objective=rng.choice(("auto", "latency", "throughput")),
        must_use=tuple(rng.sample(nodes, 1)) if rng.random() < 0.2 else (),
        apart_from=("other",) if rng.random() < 0.2 else (),
    )


@pytest.mark.parametrize("seed", range(80))
def test_a_basis_asked_again_has_the_same_answer(seed: int) -> None:
    rng = random.Random(seed)
    state = random_state(rng)
    request = random_request(rng, state)
    basis = unpack(pack(state, request))
    assert basis.state is not None and basis.request == request
    assert _answer(basis.state, basis.request) == _answer(state, request)


def test_random_states_are_answered_with_plans_and_with_refusals() -> None:
    """The property above would hold for refusals alone."""
    found: list[type] = []
    for seed in range(80):
        rng = random.Random(seed)
        state = random_state(rng)
        found.append(type(_answer(state, random_request(rng, state))))
    assert found.count(Plan) > 30 and found.count(Refusal) > 5


@pytest.mark.parametrize("name", sorted(MIXED))
def test_a_basis_of_a_mixed_cluster_has_the_same_answer(name: str) -> None:
    state = mixed_state(MIXED[name])
    request = PlacementRequest(model_id=ModelId("big"))
    basis = unpack(pack(state, request))
    assert basis.state is not None
    answer = _answer(basis.state, basis.request)
    assert isinstance(answer, Plan) and answer == _answer(state, request)


def test_equal_states_are_packed_alike_whatever_their_order() -> None:
    state = random_state(random.Random(3))
    turned = replace(
        state,
        nodes=dict(reversed(state.nodes.items())),
        live=dict(reversed(state.live.items())),
    )
    request = PlacementRequest(model_id=ModelId("big"))
    assert pack(state, request) == pack(turned, request)


def test_what_has_no_say_is_left_out() -> None:
    state = random_state(random.Random(4))
    state = replace(state, access=Access(authority_pem="secret"), last_seq={NodeId("n0"): 7})
    kept = reduced(state, PlacementRequest(model_id=ModelId("big")))
    assert kept.access == Access() and not kept.last_seq
    identities = [one.identity for one in kept.nodes.values()]
    assert {card.model_id for one in identities for card in one.models} == {"big"}
    assert {one.boot_id for one in identities} == {""}
    readings = [reading for live in kept.live.values() for reading in live.devices.values()]
    assert readings and {one.processes for one in readings} == {None}
    assert {one.last_update for one in readings} == {""}


@pytest.mark.parametrize("count", [3, 100, 1000])
def test_it_fits_into_the_log_for_up_to_a_thousand_nodes(count: int) -> None:
    rng = random.Random(count)
    nodes = [_node(rng, f"node-{number:04}") for number in range(count)]
    state = cluster(*nodes)
    live = {}
    for node in nodes:
        near = [nodes[rng.randrange(count)] for _ in range(8)]
        alone = apply_telemetry(state, _frame(rng, node, near))
        live[node.node_id] = alone.live[node.node_id]
    state = replace(state, live=live)
    packed = pack(state, PlacementRequest(model_id=ModelId("big")))
    print(f"{count} nodes: {len(packed):,} bytes")
    assert unpack(packed).state is not None
    assert len(packed) < BASIS_BYTES_MAX


def test_one_that_is_too_large_says_so() -> None:
    state = random_state(random.Random(5))
    basis = unpack(pack(state, PlacementRequest(model_id=ModelId("big")), bytes_max=300))
    assert basis.state is None
    assert basis.omitted is not None and "no more than 300 are kept" in basis.omitted
    assert basis.request.model_id == "big"


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"nonsense",
        zstandard.ZstdCompressor().compress(b"\xc1"),
        zstandard.ZstdCompressor().compress(msgspec.msgpack.encode({"state": 1})),
        pack(State(), PlacementRequest(model_id=ModelId("big")))[:-3],
    ],
    ids=["empty", "nonsense", "no msgpack", "another shape", "cut off"],
)
def test_what_cannot_be_read_is_refused_in_words(packed: bytes) -> None:
    with pytest.raises(BasisUnreadableError, match="cannot be read by this release"):
        unpack(packed)


def test_a_later_release_may_add_fields() -> None:
    packed = pack(random_state(random.Random(1)), PlacementRequest(model_id=ModelId("big")))
    raw = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(packed))
    raw["of a later release"] = 1
    del raw["has_constraint_layer"]
    changed = zstandard.ZstdCompressor().compress(msgspec.msgpack.encode(raw))
    assert isinstance(unpack(changed), Basis) and unpack(changed) == unpack(packed)


def _answer(state: State, request: PlacementRequest) -> Plan | Refusal:
    return place_instance(state, request, should_stop=never)


def _node(rng: random.Random, name: str) -> NodeIdentity:
    devices: list[GPUDevice] = [cpu(name, rng.randint(1, 64) * GIB)]
    for place in range(rng.randint(0, 2)):
        card_of = replace(gpu(name, rng.choice((8, 16, 24)) * GIB, f"cuda:{place}"), name=rng.choice(NAMES))
        devices.append(card_of)
    models = (card("big", layers=24, layer_bytes=rng.choice((GIB, GIB)) // 2), card("other", layers=6))
    return identity(name, devices=devices, models=models, host_id=rng.choice((name, "shared")))


def _frame(rng: random.Random, node: NodeIdentity, nodes: list[NodeIdentity]) -> TelemetryFrame:
    readings = [
        DeviceGPUStateUpdated(
            state=DeviceGPUState(
                device_id=one.device_id,
                node_id=node.node_id,
                memory_total_bytes=one.memory_total_bytes,
                memory_used_bytes=rng.randint(0, one.memory_total_bytes // 2),
                compute_utilization_percent=rng.choice((None, rng.uniform(0, 100))),
                thermal_temperature_c=rng.uniform(30, 95),
                thermal_throttle_threshold_c=rng.choice((None, 95.0)),
                power_watts=rng.uniform(10, 400),
                health=rng.choice(("healthy", "healthy", "healthy", "failed")),
                last_update="2026-01-01T00:00:00Z",
                processes=(ProcessMemory(pid=rng.randint(2, 9999), used_bytes=rng.randint(1, GIB)),),
                thermal=rng.choice(
                    (
                        None,
                        ThermalStatus(
                            state="warm",
                            reason="close to its limit",
                            work_fraction=1.0,
                            sustained_fraction=rng.random(),
                        ),
                    )
                ),
            )
        )
        for one in node.devices
    ]
    links = [
        LinkMeasured(
            source_node_id=node.node_id,
            dest_node_id=other.node_id,
            link_type="ethernet",
            latency_ms=rng.uniform(0.05, 3),
            bandwidth_mbps=rng.uniform(100, 25_000),
        )
        for other in nodes
        if other.node_id != node.node_id and rng.random() < 0.8
    ]
    return TelemetryFrame(node_id=node.node_id, boot_id=node.boot_id, seq=1, events=(*readings, *links))
