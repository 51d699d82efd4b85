"""Placements to read: clusters and requests with names, each told with its answer as a page of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.placement.clusters import KINDS
from msgspec.structs import replace

from exo.gpu.backends.simulated.machine import load_machine
from exo.master.placement.place import place_instance
from exo.shared.types.commands import Refusal
from exo.shared.types.devices import Backend, GPUDevice
from exo.shared.types.ids import ModelId, NodeId
from exo.shared.types.instances import PlacementRequest, Plan, StagePlan
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import Link
from exo.shared.types.state import NodeTelemetry, State
from support.placing import MIXED, big, mixed_state, reading, real_device
from support.states import GIB, cluster, cpu, gpu, identity, running

FOLDER = Path(__file__).parents[1] / "golden"
HARDWARE = Path(__file__).parents[1] / "hardware"
_BACKENDS: dict[str, Backend] = {"nvidia": "cuda", "amd": "rocm", "apple": "metal"}


@dataclass(frozen=True, slots=True)
class Case:
    """One page."""

    name: str
    about: str
    state: State
    request: PlacementRequest


def told(case: Case) -> str:
    """Return the page: the cluster in a few lines, the request, and the answer in the words of placement."""
    answer = place_instance(case.state, case.request, should_stop=lambda: False)
    lines = [
        case.about,
        "",
        "cluster",
        *_of_cluster(case.state),
        "",
        f"request: {_of_request(case.request)}",
        "",
    ]
    if isinstance(answer, Refusal):
        lines += [f"refusal: {answer.status} {answer.code}", answer.message]
    else:
        lines += [f"plan: {answer.method}", answer.explanation, *_of_shares(answer)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _of_cluster(state: State) -> list[str]:
    lines: list[str] = []
    for node_id, node in sorted(state.nodes.items()):
        one = node.identity
        zone = f", zone {one.zone}" if one.zone else ""
        lines.append(f"  {one.name} ({node_id}) on {one.host_id}{zone}")
        live = state.live.get(node_id)
        for device in one.devices:
            speed = device.memory_bandwidth_bytes_per_s
            words = [
                f"{device.memory_total_bytes / GIB:.4g} GiB {device.memory_kind}",
                "speed not told" if speed is None else f"{speed / 1e9:.4g} GB/s",
            ]
            now = live.devices.get(device.device_id) if live is not None else None
            if now is not None and now.memory_free_bytes is not None:
                words.append(f"{now.memory_free_bytes / GIB:.4g} GiB free")
            if now is not None and now.compute_utilization_percent is not None:
                words.append(f"{now.compute_utilization_percent:g} % busy")
            if now is not None and now.thermal_temperature_c is not None:
                words.append(f"{now.thermal_temperature_c:g} of {now.thermal_throttle_threshold_c:g} degrees")
            lines.append(f"    {device.local_alias} {device.name}: {', '.join(words)}")
        for link in (live.links if live is not None else {}).values():
            lines.append(f"    to {link.dest_node_id}: {link.latency_ms} ms, {link.bandwidth_mbps} Mbit/s")
    for name, instance in sorted(state.instances.items()):
        stage = instance.plan.stages[0]
        lines.append(
            f"  {name} of {instance.model.model_id}: {stage.memory_bytes / GIB:.4g} GiB on {stage.device_ids[0]}, "
            f"{instance.stages[0].phase}"
        )
    models = {card.model_id: card for node in state.nodes.values() for card in node.identity.models}
    lines.extend(
        f"  model {card.model_id}: {card.layer_count} layers, {card.total_bytes / GIB:.4g} GiB, {card.dtype}"
        for _, card in sorted(models.items())
    )
    return lines


def _of_request(request: PlacementRequest) -> str:
    plain = PlacementRequest(model_id=request.model_id)
    wishes = [
        f"{name} {getattr(request, name)}"
        for name in request.__struct_fields__
        if getattr(request, name) != getattr(plain, name)
    ]
    return ", ".join([str(request.model_id), *wishes])


def _of_shares(plan: Plan) -> list[str]:
    """What each stage's time is made of, as far as it is told."""
    return [
        f"stage {stage.rank} in ms: {stage.shares.memory_ms:.3g} memory, {stage.shares.utilization_ms:.3g} load, "
        f"{stage.shares.thermal_ms:.3g} heat, {stage.shares.overhead_ms:.3g} overhead, "
        f"{stage.shares.network_ms:.3g} network"
        for stage in plan.stages
        if stage.shares is not None
    ]


def _machine(node: str, file: str, *, ram_gib: int = 0) -> list[GPUDevice]:
    """All devices of a machine file, as one node tells of them."""
    counts: dict[str, int] = {}
    found: list[GPUDevice] = []
    for one in load_machine(HARDWARE / f"{file}.toml").devices:
        backend = _BACKENDS[one.vendor]
        alias = f"{backend}:{counts.get(backend, 0)}"
        counts[backend] = counts.get(backend, 0) + 1
        found.append(real_device(node, one, alias))
    return [*found, _processor(node, ram_gib)] if ram_gib else found


def _processor(node: str, ram_gib: int) -> GPUDevice:
    kind = KINDS["CPU box"]
    return replace(
        cpu(node, ram_gib * GIB),
        name="16-core processor",
        memory_bandwidth_bytes_per_s=kind.bandwidth_gb_per_s * 1e9,
        flops_per_s=kind.tflops * 1e12,
    )


def _of(model: ModelCard, *rows: tuple[str, Sequence[GPUDevice]], zones: Sequence[str] = ()) -> State:
    """Nodes by name with their devices, each on a host of its own."""
    return cluster(
        *(
            replace(
                identity(name, models=[model], devices=devices, host_id=f"host-{name}"),
                name=name,
                engine_backends={"mlx": ("cuda", "metal", "rocm", "cpu")},
                zone=zones[number] if zones else "",
            )
            for number, (name, devices) in enumerate(rows)
        )
    )


def _card(node: str, gib: int, *, gb_per_s: float = 1008, place: int = 0) -> GPUDevice:
    return replace(
        gpu(node, gib * GIB, f"cuda:{place}"),
        name=f"{gib} GiB card",
        memory_bandwidth_bytes_per_s=gb_per_s * 1e9,
    )


def _linked(state: State, *links: tuple[str, str, float, float]) -> State:
    live = dict(state.live)
    for source, target, latency_ms, bandwidth_mbps in links:
        for one, other in ((source, target), (target, source)):
            of = live.get(NodeId(one), NodeTelemetry())
            link = Link(
                source_node_id=NodeId(one),
                dest_node_id=NodeId(other),
                link_type="ethernet",
                latency_ms=latency_ms,
                bandwidth_mbps=bandwidth_mbps,
                measurement_count=5,
            )
            live[NodeId(one)] = replace(of, links={**of.links, NodeId(other): link})
    return replace(state, live=live)


def _running(state: State, node: str, size_bytes: int, *, model: ModelCard) -> State:
    device = state.nodes[NodeId(node)].identity.devices[0]
    stage = StagePlan(
        rank=0,
        node_id=NodeId(node),
        device_ids=(device.device_id,),
        start_layer=0,
        end_layer=1,
        memory_bytes=size_bytes,
    )
    other = replace(model, model_id=ModelId("small"), name="small")
    instance = running(other, stage, instance_id="instance-1", phase="loading")
    return replace(state, instances={instance.instance_id: instance})


def _asked(**wishes: object) -> PlacementRequest:
    return PlacementRequest(**{"model_id": ModelId("big"), **wishes})  # pyright: ignore


MODEL = big(80, 481_000_000)
"""About 38 GB: 70B parameters in 4 bits."""
SMALL = big(32, 130_000_000, hidden_size=4096, ends_bytes=150_000_000)
"""About 4.5 GB: 8B parameters in 4 bits."""


def _mixed() -> list[Case]:
    return [
        Case("mixed " + name.split(",")[0], f"Named mixed cluster: {name}.", mixed_state(named), _asked())
        for name, named in MIXED.items()
    ]


def _machines() -> list[Case]:
    return [
        Case(
            f"machine {file.stem}",
            f"The machine of tests/hardware/{file.name} alone.",
            _of(SMALL, (file.stem, _machine(file.stem, file.stem))),
            _asked(),
        )
        for file in sorted(HARDWARE.glob("*.toml"))
    ]


def cases() -> list[Case]:
    """Return all of them."""
    trio = _of(MODEL, *((name, [_card(name, 24)]) for name in ("attic", "cellar", "study")))
    pc = _of(MODEL, ("pc", [*_machine("pc", "pc-4090"), _processor("pc", 64)]))
    rooms = _of(
        MODEL,
        *((name, [_card(name, 48)]) for name in ("a", "b", "c", "d")),
        zones=("left", "left", "right", "right"),
    )
    uneven = replace(
        MODEL,
        layer_bytes=tuple(
            size * 3 // 5 if layer < 3 else size for layer, size in enumerate(MODEL.layer_bytes)
        ),
    )
    together = _of(
        MODEL, *((file.stem, _machine(file.stem, file.stem)) for file in sorted(HARDWARE.glob("*.toml")))
    )
    return [
        *_mixed(),
        *_machines(),
        Case(
            "all machines of tests hardware",
            "All machines of tests/hardware as one cluster.",
            together,
            _asked(),
        ),
        Case("homogeneous ring", "Three equal cards: the ring by memory is the answer.", trio, _asked()),
        Case("offload", "VRAM does not hold the model, host memory does.", pc, _asked()),
        Case(
            "offload refused without memory",
            "Neither VRAM nor host memory hold the model.",
            _of(MODEL, ("pc", [*_machine("pc", "pc-4090"), _processor("pc", 8)])),
            _asked(),
        ),
        Case(
            "two cards of one node",
            "A node with two cards is two stages.",
            _of(MODEL, ("pc", [_card("pc", 24), _card("pc", 24, place=1)])),
            _asked(),
        ),
        Case("too many nodes", "It fits, but not on so many nodes.", trio, _asked(min_nodes=4)),
        Case(
            "one constraint in the way",
            "The model fits on two nodes; the third that was asked for has no room.",
            _of(
                MODEL,
                ("a", [_card("a", 24)]),
                ("b", [_card("b", 24)]),
                ("c", [replace(_card("c", 1), name="small card", memory_total_bytes=400 * 2**20)]),
            ),
            _asked(min_nodes=3),
        ),
        Case(
            "missing memory",
            "Nothing holds the model; it says by how much it misses.",
            _of(MODEL, ("a", [_card("a", 12)]), ("b", [_card("b", 24)])),
            _asked(),
        ),
        Case(
            "must use",
            "A slower node must take part.",
            mixed_state(MIXED["studio and PCs, 70B"]),
            _asked(must_use=("node-03-0",)),
        ),
        Case(
            "must use what is excluded",
            "A wish that contradicts itself.",
            trio,
            _asked(must_use=("attic",), exclude=("attic",)),
        ),
        Case("unknown node", "A node that is not there.", trio, _asked(node_ids=(NodeId("attics"),))),
        Case("one zone", "Only nodes of one zone may take part.", rooms, _asked(zones=("right",))),
        Case("two zones", "Spread over two zones.", rooms, _asked(min_zones=2)),
        Case("three zones of two", "More zones than there are.", rooms, _asked(min_zones=3)),
        Case(
            "apart from an instance",
            "Off the node that runs something else, whose memory is promised but not taken yet.",
            _running(trio, "cellar", 2 * GIB, model=MODEL),
            _asked(apart_from=("instance-1",), context_length=512),
        ),
        Case(
            "promised memory",
            "An instance is still loading: what it will take is not free.",
            _running(rooms, "a", 30 * GIB, model=MODEL),
            _asked(),
        ),
        Case(
            "hot device",
            "Of three equal cards one is close to its limit.",
            reading(trio, "attic", thermal_temperature_c=88.0, thermal_throttle_threshold_c=90.0),
            _asked(),
        ),
        Case(
            "busy device",
            "Of three equal cards one is used by others.",
            reading(trio, "attic", compute_utilization_percent=65.0, memory_used_bytes=GIB),
            _asked(),
        ),
        Case(
            "measured links",
            "One of three equal nodes is behind a slow link.",
            _linked(
                trio,
                ("attic", "cellar", 12.0, 40.0),
                ("attic", "study", 14.0, 40.0),
                ("cellar", "study", 0.2, 9_400.0),
            ),
            _asked(),
        ),
        Case(
            "eight requests at once",
            "Throughput counts.",
            mixed_state(MIXED["studio and PCs, 70B"]),
            _asked(concurrency=8),
        ),
        Case(
            "unequal layers",
            "Three smaller layers in front.",
            _of(uneven, ("a", [_card("a", 24)]), ("b", [_card("b", 24)])),
            _asked(),
        ),
        Case("tensor", "No engine here can do that yet.", trio, _asked(sharding="tensor")),
        Case("context too long", "More than the model knows.", trio, _asked(context_length=1_000_000)),
        Case("given split", "Layers as they were asked for.", trio, _asked(layer_split=(20, 30, 30))),
        Case("processors", "GPUs are not wanted.", pc, _asked(prefer_gpu=False)),
    ]
