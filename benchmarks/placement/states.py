"""Random states and requests: what a master may be asked at any moment, of clusters that people could have."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from msgspec.structs import replace

from benchmarks.placement.clusters import GIB, KINDS
from exo.shared.types.devices import Backend, DeviceGPUState, GPUDevice, MemoryKind
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, ModelId, NodeId, device_id
from exo.shared.types.instances import Instance, PlacementRequest, Plan, StagePhase, StagePlan, StageState
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import HostPort, Link, Node, NodeIdentity
from exo.shared.types.state import NodeTelemetry, State

Key = TypeVar("Key")
Value = TypeVar("Value")
_NOW = "2026-01-01T00:00:00Z"
_ADDRESS = HostPort("127.0.0.1", 1)
_PHASES: Sequence[StagePhase] = ("pending", "loading", "ready", "failed")


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to placement."""

    state: State
    request: PlacementRequest


def random_asked(seed: int, *, nodes_max: int = 10) -> Asked:
    """Draw a cluster with its telemetry, what runs on it, and what is asked for."""
    chance = random.Random(seed)
    count = chance.randint(1, nodes_max)
    hosts = [f"host-{chance.randrange(count)}" for _ in range(count)]
    zones = {host: chance.choice(["", "", "attic", "cellar"]) for host in hosts}
    drawn = [
        (f"node-{number:03}", host, _devices(chance, f"node-{number:03}"))
        for number, host in enumerate(hosts)
    ]
    whole = sum(device.memory_total_bytes for _, _, devices in drawn for device in devices)
    model = random_model(chance, int(whole / chance.uniform(1.05, 8)))
    nodes = {
        NodeId(name): node_of(
            name, host, devices, model, zone=zones[host], is_connected=chance.random() < 0.95
        )
        for name, host, devices in drawn
    }
    state = State(index=seed % 1000, term=1, nodes=nodes)
    state = replace(
        state, live={node: _telemetry(chance, state, node) for node in nodes if chance.random() < 0.8}
    )
    state = replace(state, instances=_instances(chance, state, model))
    state = replace(state, instances=_some_apart(random.Random(f"apart {seed}"), state, model))
    return Asked(state, random_request(chance, state, model))


def node_of(
    name: str,
    host: str,
    devices: Sequence[GPUDevice],
    model: ModelCard,
    *,
    zone: str = "",
    is_connected: bool = True,
) -> Node:
    """A node that has the model and an engine for all devices."""
    identity = NodeIdentity(
        node_id=NodeId(name),
        boot_id="boot",
        name=f"name-of-{name}",
        host_id=host,
        platform="linux",
        exo_version="0",
        cluster_address=_ADDRESS,
        data_address=_ADDRESS,
        api_address=_ADDRESS,
        devices=tuple(devices),
        models=(model,),
        engines=("mlx",),
        engine_backends={"mlx": ("cuda", "metal", "rocm", "cpu")},
        zone=zone,
    )
    return Node(identity=identity, is_connected=is_connected, left_reason=None if is_connected else "it left")


def device_of(node: str, kind_name: str, place: int = 0) -> GPUDevice:
    """A device by its maker's figures, as a node tells of it."""
    kind = KINDS[kind_name]
    backend: Backend = "cpu" if kind_name == "CPU box" else "metal" if kind_name.startswith("M") else "cuda"
    memory: MemoryKind = "ram" if backend == "cpu" else "unified" if backend == "metal" else "vram"
    alias = f"{backend}:{place}"
    return GPUDevice(
        device_id=device_id(NodeId(node), alias),
        local_alias=alias,
        name=kind.name,
        vendor="intel" if backend == "cpu" else "apple" if backend == "metal" else "nvidia",
        backend=backend,
        memory_kind=memory,
        memory_total_bytes=int(kind.memory_gib * GIB),
        memory_bandwidth_bytes_per_s=kind.bandwidth_gb_per_s * 1e9,
        flops_per_s=kind.tflops * 1e12,
    )


def random_model(chance: random.Random, size_bytes: int) -> ModelCard:
    """A model of about so many bytes: dense or of experts, some with unequal layers or caches with a window."""
    layers = chance.choice([1, 2, 7, 16, 32, 61, 80])
    each = max(1, size_bytes // (layers + 2))
    is_uneven = chance.random() < 0.2
    sizes = tuple(max(1, int(each * (chance.uniform(0.6, 1.3) if is_uneven else 1))) for _ in range(layers))
    has_window = chance.random() < 0.1
    return ModelCard(
        model_id=ModelId("big"),
        name="big",
        family="llama",
        dtype=chance.choice(["4-bit", "bfloat16"]),
        layer_count=layers,
        hidden_size=chance.choice([1024, 8192]),
        vocabulary_size=128_000,
        context_length_max=32_768,
        layer_bytes=sizes,
        embedding_bytes=each // 2,
        head_bytes=chance.choice([0, each // 2]),
        has_tied_head=chance.random() < 0.3,
        kv_bytes_per_token_and_layer=chance.choice([0, 512, 4096]),
        fingerprint="big",
        layer_active_bytes=tuple(size // 8 for size in sizes) if chance.random() < 0.2 else (),
        layer_kv_tokens_max=tuple(1024 if layer % 2 else 0 for layer in range(layers)) if has_window else (),
    )


def random_request(chance: random.Random, state: State, model: ModelCard) -> PlacementRequest:
    """Mostly plain, sometimes with wishes; some of them cannot be met."""
    nodes = sorted(state.nodes)
    devices = [one.device_id for node in state.nodes.values() for one in node.identity.devices]

    def some(names: Sequence[str], share: float) -> tuple[str, ...]:
        return (
            tuple(chance.sample(names, min(len(names), chance.randint(1, 2))))
            if chance.random() < share
            else ()
        )

    names = [*nodes, *devices]
    return PlacementRequest(
        model_id=model.model_id,
        min_nodes=chance.choice([1, 1, 1, 1, 2, 3]),
        prefer_gpu=chance.random() < 0.8,
        node_ids=tuple(NodeId(one) for one in nodes if chance.random() < 0.8)
        if chance.random() < 0.1
        else (),
        device_ids=tuple(DeviceId(one) for one in some(devices, 0.05)),
        exclude=some(names, 0.15),
        context_length=chance.choice([None, None, 512, 32_768]),
        concurrency=chance.choice([1, 1, 1, 4, 9]),
        objective=chance.choice(["auto", "auto", "latency", "throughput"]),
        must_use=some(names, 0.12),
        apart_from=some(sorted(state.instances), 0.3),
        zones=some(["", "attic", "cellar"], 0.05),
        min_zones=chance.choice([1, 1, 1, 1, 1, 1, 2]),
    )


def permuted(asked: Asked, chance: random.Random) -> Asked:
    """The same, told in another order."""

    def mixed(items: dict[Key, Value]) -> dict[Key, Value]:
        return dict(chance.sample(list(items.items()), len(items)))

    state = asked.state
    nodes = {
        name: replace(node, identity=replace(node.identity, devices=_shuffled(chance, node.identity.devices)))
        for name, node in mixed(state.nodes).items()
    }
    live = {
        name: replace(told, devices=mixed(told.devices), links=mixed(told.links))
        for name, told in mixed(state.live).items()
    }
    return Asked(replace(state, nodes=nodes, live=live, instances=mixed(state.instances)), asked.request)


def with_one_more(asked: Asked, chance: random.Random) -> Asked:
    """The same with a machine more, idle and on a host of its own; nothing that was there changes."""
    model = next(iter(asked.state.nodes.values())).identity.models[0]
    device = device_of("node-more", chance.choice(list(KINDS)))
    zone = chance.choice(["", "attic", "cellar"])
    node = node_of("node-more", "host-more", [device], model, zone=zone)
    state = asked.state
    return Asked(replace(state, nodes={**state.nodes, NodeId("node-more"): node}), asked.request)


def _shuffled(chance: random.Random, devices: tuple[GPUDevice, ...]) -> tuple[GPUDevice, ...]:
    return tuple(chance.sample(devices, len(devices)))


def _devices(chance: random.Random, node: str) -> list[GPUDevice]:
    kind = chance.choice(list(KINDS))
    cards = [
        device_of(node, kind, place)
        for place in range(chance.choice([1, 1, 1, 2, 4]) if kind[0] != "M" else 1)
    ]
    if kind != "CPU box" and chance.random() < 0.5:
        size = (
            cards[0].memory_total_bytes
            if cards[0].memory_kind == "unified"
            else chance.choice([16, 64]) * GIB
        )
        cards.append(replace(device_of(node, "CPU box"), memory_total_bytes=size))
    return cards[:1] if kind == "CPU box" else cards


def _telemetry(chance: random.Random, state: State, node: NodeId) -> NodeTelemetry:
    devices: dict[DeviceId, DeviceGPUState] = {}
    for device in state.nodes[node].identity.devices:
        is_told = chance.random() < 0.8
        devices[device.device_id] = DeviceGPUState(
            device_id=device.device_id,
            node_id=node,
            memory_total_bytes=device.memory_total_bytes if is_told else None,
            memory_used_bytes=int(device.memory_total_bytes * chance.choice([0.02, 0.1, 0.5]))
            if is_told
            else None,
            compute_utilization_percent=chance.choice([None, 0.0, 15.0, 60.0, 100.0]),
            thermal_temperature_c=chance.choice([None, 45.0, 78.0, 91.0]),
            thermal_throttle_threshold_c=chance.choice([None, 90.0]),
            health="failed" if chance.random() < 0.1 else "healthy",
            last_update=_NOW,
        )
    links = {
        other: Link(
            source_node_id=node,
            dest_node_id=other,
            link_type="ethernet",
            latency_ms=chance.choice([None, 10 ** chance.uniform(-1.5, 1.2)]),
            bandwidth_mbps=chance.choice([None, 10 ** chance.uniform(1.5, 4.5)]),
            measurement_count=3,
        )
        for other in state.nodes
        if other != node and chance.random() < 0.4
    }
    return NodeTelemetry(boot_id="boot", seq=1, devices=devices, links=links)


def _instances(chance: random.Random, state: State, model: ModelCard) -> dict[InstanceId, Instance]:
    found: dict[InstanceId, Instance] = {}
    for number in range(chance.choice([0, 0, 0, 1, 2])):
        node_id = chance.choice(sorted(state.nodes))
        device = chance.choice(state.nodes[node_id].identity.devices)
        stage = StagePlan(
            rank=0,
            node_id=node_id,
            device_ids=(device.device_id,),
            start_layer=0,
            end_layer=model.layer_count,
            memory_bytes=int(device.memory_total_bytes * chance.uniform(0.1, 0.7)),
        )
        plan = Plan(
            stages=(stage,),
            sharding="pipeline",
            engine="mlx",
            context_length=1,
            concurrency=1,
            method="greedy",
        )
        found[InstanceId(f"instance-{number}")] = Instance(
            instance_id=InstanceId(f"instance-{number}"),
            model=model,
            plan=plan,
            request=PlacementRequest(model_id=model.model_id),
            stages=(StageState(phase=chance.choice(_PHASES)),),
            created_by=CommandId("command"),
        )
    return found


def _some_apart(chance: random.Random, state: State, model: ModelCard) -> dict[InstanceId, Instance]:
    """Have some of those that run be apart from the model, as they were asked to be."""
    return {
        key: replace(one, request=replace(one.request, apart_from=(model.model_id,)))
        if chance.random() < 0.2
        else one
        for key, one in state.instances.items()
    }
