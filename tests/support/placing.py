"""States to place on: the machines of tests/hardware and the named mixed clusters, as nodes that joined."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import cast

from benchmarks.placement.clusters import KINDS, MODELS, NAMED, Kind, Named
from msgspec.structs import replace

from exo.gpu.backends.simulated.machine import SimulatedDevice, load_machine
from exo.master.placement.place import place_instance
from exo.shared.types.commands import Refusal
from exo.shared.types.devices import Backend, DeviceGPUState, GPUDevice
from exo.shared.types.ids import ModelId, NodeId, device_id
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import ModelCard
from exo.shared.types.state import NodeTelemetry, State
from support.states import GIB, cluster, identity

MACHINES = tuple(sorted((Path(__file__).parents[1] / "hardware").glob("*.toml")))
MIXED = {one.name: one for one in NAMED}
_ALIASES = {"nvidia": "cuda:0", "amd": "rocm:0", "apple": "metal:0", "intel": "cpu:0"}


def never() -> bool:
    return False


def place(state: State, **request: object) -> Plan | Refusal:
    asked = PlacementRequest(**{"model_id": ModelId("big"), **request})  # pyright: ignore
    return place_instance(state, asked, should_stop=never)


def planned(state: State, **request: object) -> Plan:
    answer = place(state, **request)
    assert isinstance(answer, Plan), answer
    return answer


def big(layers: int, layer_bytes: int, *, hidden_size: int = 8192, ends_bytes: int = GIB // 2) -> ModelCard:
    """A 4-bit model."""
    return ModelCard(
        model_id=ModelId("big"),
        name="big",
        family="llama",
        dtype="4-bit",
        layer_count=layers,
        hidden_size=hidden_size,
        vocabulary_size=128_000,
        context_length_max=4096,
        layer_bytes=(layer_bytes,) * layers,
        embedding_bytes=ends_bytes,
        head_bytes=ends_bytes,
        has_tied_head=False,
        kv_bytes_per_token_and_layer=4096,
        fingerprint="big",
    )


def machine_state(file: Path, model: ModelCard) -> State:
    """A node for each device of a machine file, as if it were there, all on one host."""
    devices = load_machine(file).devices
    nodes = [(f"node-{number}", _real(f"node-{number}", one)) for number, one in enumerate(devices)]
    return joined([(name, device, "machine") for name, device in nodes], model)


def mixed_state(named: Named) -> State:
    """A named cluster: a node for each device, the hosts as they are named; 0.92 of the memory is free."""
    figures = MODELS[named.model]
    layer = figures.layers[0]
    model = replace(
        big(len(figures.layers), layer.weight_bytes, hidden_size=figures.hidden_size),
        embedding_bytes=figures.embedding_bytes,
        head_bytes=figures.head_bytes,
    )
    rows = [
        (f"node-{number:02}-{place}", _of_kind(f"node-{number:02}-{place}", KINDS[kind]), f"host-{number}")
        for number, kinds in enumerate(named.hosts)
        for place, kind in enumerate(kinds)
    ]
    return joined(rows, model)


def joined(rows: Sequence[tuple[str, GPUDevice, str]], model: ModelCard) -> State:
    """Nodes of one device each: (node id, device, host id)."""
    return cluster(
        *(
            replace(
                identity(node, models=[model], devices=[device], host_id=host),
                engine_backends={"mlx": ("cuda", "metal", "rocm", "cpu")},
            )
            for node, device, host in rows
        )
    )


def reading(state: State, node: str, **told: object) -> State:
    """Set what telemetry says of a node's first device."""
    one = state.nodes[NodeId(node)].identity
    device = one.devices[0]
    now = DeviceGPUState(
        **{  # pyright: ignore
            "device_id": device.device_id,
            "node_id": one.node_id,
            "memory_total_bytes": device.memory_total_bytes,
            "memory_used_bytes": 0,
            "last_update": "2026-01-01T00:00:00Z",
            **told,
        }
    )
    live = state.live.get(one.node_id, NodeTelemetry())
    return replace(state, live={**state.live, one.node_id: replace(live, devices={device.device_id: now})})


def _real(node: str, one: SimulatedDevice) -> GPUDevice:
    return real_device(node, one, _ALIASES[one.vendor])


def real_device(node: str, one: SimulatedDevice, alias: str) -> GPUDevice:
    """A device of a machine file as if it were there, under this alias of its node."""
    return GPUDevice(
        device_id=device_id(NodeId(node), alias),
        local_alias=alias,
        name=one.name,
        vendor=one.vendor,
        backend=backend_of(alias),
        memory_kind=one.memory_kind,
        memory_total_bytes=one.memory_total_bytes,
        compute_units=one.compute_units,
        memory_bandwidth_bytes_per_s=one.memory_bandwidth_bytes_per_s,
        flops_per_s=one.flops_per_s,
        uuid=one.uuid,
    )


def backend_of(alias: str) -> Backend:
    return cast(Backend, alias.partition(":")[0])


@cache
def _of_kind(node: str, kind: Kind) -> GPUDevice:
    is_apple = kind.name.startswith("M")
    alias = _ALIASES["intel" if kind.name == "CPU box" else "apple" if is_apple else "nvidia"]
    return GPUDevice(
        device_id=device_id(NodeId(node), alias),
        local_alias=alias,
        name=kind.name,
        vendor="apple" if is_apple else "intel" if kind.name == "CPU box" else "nvidia",
        backend=backend_of(alias),
        memory_kind="unified" if is_apple else "ram" if kind.name == "CPU box" else "vram",
        memory_total_bytes=int(kind.memory_gib * 0.92 * GIB),
        memory_bandwidth_bytes_per_s=kind.bandwidth_gb_per_s * 1e9,
        flops_per_s=kind.tflops * 1e12,
    )
