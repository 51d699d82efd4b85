"""Clusters to place models on: devices by their makers' figures, the named mixed clusters, and random ones."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exo.master.placement.ladder.cost_model import (
    Assumptions,
    Built,
    DeviceFigures,
    LayerFigures,
    LinkFigures,
    ModelFigures,
    RequestShape,
    build_problem,
)
from exo.master.placement.ladder.problem import CostProblem

GIB = 2**30
CONTEXT_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Kind:
    """A device as its maker describes it: memory in GiB, bandwidth in GB/s, dense 16-bit TFLOP/s."""

    name: str
    memory_gib: float
    bandwidth_gb_per_s: float
    tflops: float


# Sources: NVIDIA data sheets (H200, A100 80 GB SXM, Ada and Ampere GA102 white papers, RTX 3050, Jetson AGX Orin),
# Apple's technical specifications of each Mac; the CPU box is two channels of DDR5-5600.
KINDS = {
    one.name: one
    for one in (
        Kind("H200", 141, 4800, 989),
        Kind("A100", 80, 2039, 312),
        Kind("4090", 24, 1008, 165),
        Kind("3090", 24, 936, 71),
        Kind("3050", 8, 224, 18),
        Kind("M3 Ultra", 256, 819, 57),
        Kind("M2 Ultra", 192, 800, 54),
        Kind("M4 Max", 128, 546, 34),
        Kind("M1 Max", 64, 400, 21),
        Kind("M1", 16, 68, 5),
        Kind("Orin", 64, 205, 42),
        Kind("CPU box", 128, 90, 2),
    )
}


def model(
    layers: int, layer_bytes: int, hidden_size: int, kv_bytes: int, ends_bytes: int, active: float = 1.0
) -> ModelFigures:
    """A model of alike layers."""
    layer = LayerFigures(
        weight_bytes=layer_bytes,
        active_bytes=int(layer_bytes * active),
        kv_bytes_per_token=kv_bytes,
        flops_per_token=4 * layer_bytes * active,
    )
    return ModelFigures(
        layers=(layer,) * layers,
        hidden_size=hidden_size,
        embedding_bytes=ends_bytes,
        head_bytes=ends_bytes,
    )


# 4-bit weights with their scales: 4.5 bits a parameter. KV cache in 16 bits.
MODELS = {
    "70B": model(80, 481_000_000, 8192, 4096, 591_000_000),
    "405B": model(126, 1_793_000_000, 16384, 4096, 1_182_000_000),
    "235B mixture of experts": model(94, 1_400_000_000, 4096, 2048, 350_000_000, active=0.091),
    "32B": model(64, 274_000_000, 5120, 4096, 438_000_000),
}


@dataclass(frozen=True, slots=True)
class Named:
    """A cluster that people have: hosts with the kinds of their devices."""

    name: str
    model: str
    hosts: Sequence[Sequence[str]]
    zone_link: LinkFigures


WIRED = LinkFigures(latency_s=300e-6, bandwidth_bytes_per_s=1.25e9)
GIGABIT = LinkFigures(latency_s=500e-6, bandwidth_bytes_per_s=125e6)

NAMED = (
    Named("studio and PCs, 70B", "70B", [["M3 Ultra"], ["4090"], ["3090"], ["M1 Max"]], WIRED),
    Named(
        "lab of everything, 70B",
        "70B",
        [["4090", "4090"], ["3090", "3090"], ["3050"], ["A100"], ["Orin"], ["CPU box"]],
        GIGABIT,
    ),
    Named(
        "server room, 405B",
        "405B",
        [["H200"], ["A100", "A100"], ["4090"] * 4, ["3090"] * 4, ["M3 Ultra"], ["M2 Ultra"]],
        WIRED,
    ),
    Named(
        "five Macs, 235B mixture of experts",
        "235B mixture of experts",
        [["M3 Ultra"], ["M2 Ultra"], ["M4 Max"], ["M1 Max"], ["M1"]],
        WIRED,
    ),
    Named("what was at hand, 32B", "32B", [["Orin"], ["3050"], ["M1"], ["CPU box"]], GIGABIT),
)


def named_problem(named: Named, *, concurrency: int = 1, micro_batches: int = 1) -> CostProblem:
    """The problem of a named cluster, one user unless told otherwise."""
    devices, pools = _devices([(host, "home", kinds) for host, kinds in enumerate(named.hosts)])
    built = build_problem(
        devices,
        pools,
        MODELS[named.model],
        RequestShape(context_length=CONTEXT_LENGTH, concurrency=concurrency, micro_batches=micro_batches),
        assumed=Assumptions(zone_link=named.zone_link),
    )
    return built.problem


def random_problem(
    seed: int, devices: int, layers: int = 126, *, irregular: bool = False, min_stages: int = 1
) -> CostProblem:
    """A cluster of random devices whose memory is 1.2 to 12 times the model; with measured links if told so."""
    return random_built(seed, devices, layers, irregular=irregular, min_stages=min_stages).problem


def random_built(
    seed: int, devices: int, layers: int = 126, *, irregular: bool = False, min_stages: int = 1
) -> Built:
    """As `random_problem`."""
    chance = random.Random(seed * 1_000_003 + devices)
    zones = chance.randint(1, 1 + min(7, devices // 4))
    hosts: list[tuple[int, str, list[str]]] = []
    left = devices
    while left:
        count = min(left, chance.choice([1, 1, 1, 2, 4]))
        kind = chance.choice(list(KINDS))
        hosts.append((len(hosts), f"zone-{chance.randrange(zones)}", [kind] * count))
        left -= count
    made, pools = _devices(hosts, chance)
    hidden = chance.choice([4096, 8192, 16384])
    # Large clusters serve models that need many of their devices, not one.
    share = 1 / chance.uniform(1.1, 5.0) if devices <= 64 else chance.uniform(0.02, 0.1)
    size = sum(pools.values()) * share
    shape = model(layers, max(1, int(size / (layers + 2))), hidden, 0, int(size / (layers + 2)))
    assumed = Assumptions(
        host_link=LinkFigures(latency_s=chance.uniform(20e-6, 80e-6), bandwidth_bytes_per_s=10e9),
        zone_link=LinkFigures(
            latency_s=chance.uniform(1e-4, 1e-3), bandwidth_bytes_per_s=10 ** chance.uniform(8, 9.5)
        ),
        cluster_link=LinkFigures(
            latency_s=chance.uniform(2e-3, 3e-2), bandwidth_bytes_per_s=10 ** chance.uniform(6.8, 8)
        ),
    )
    measured = _measured(made, chance) if irregular else None
    return build_problem(
        made,
        pools,
        shape,
        RequestShape(context_length=CONTEXT_LENGTH, min_stages=min_stages),
        measured=measured,
        assumed=assumed,
    )


def _devices(
    hosts: Sequence[tuple[int, str, Sequence[str]]], chance: random.Random | None = None
) -> tuple[list[DeviceFigures], dict[str, int]]:
    made: list[DeviceFigures] = []
    pools: dict[str, int] = {}
    for host, zone, kinds in hosts:
        for name in kinds:
            kind, number = KINDS[name], len(made)
            free = chance.uniform(0.4, 0.98) if chance is not None else 0.92
            pool = f"pool-{number:04d}"
            pools[pool] = int(kind.memory_gib * GIB * free)
            made.append(
                DeviceFigures(
                    device_id=f"device-{number:04d}",
                    node_id=f"node-{host:04d}",
                    host=f"host-{host:04d}",
                    zone=zone,
                    pool_id=pool,
                    memory_bandwidth_bytes_per_s=kind.bandwidth_gb_per_s * 1e9,
                    flops_per_s=kind.tflops * 1e12,
                    utilization_percent=chance.choice([0, 0, 0, 10, 35, 70]) if chance is not None else 0,
                    thermal_headroom_c=chance.choice([None, 20, 8, 2]) if chance is not None else None,
                )
            )
    return made, pools


def _measured(
    devices: Sequence[DeviceFigures], chance: random.Random
) -> Mapping[tuple[str, str], LinkFigures]:
    """Every pair measured, by no rule: some near pairs are slow and some far ones fast."""
    links: dict[tuple[str, str], LinkFigures] = {}
    for one in devices:
        for other in devices:
            if one.device_id < other.device_id:
                latency_s, bandwidth = 10 ** chance.uniform(-4.3, -2), 10 ** chance.uniform(7, 9.5)
                for pair in ((one.device_id, other.device_id), (other.device_id, one.device_id)):
                    links[pair] = LinkFigures(
                        latency_s=latency_s * chance.uniform(0.8, 1.25),
                        bandwidth_bytes_per_s=bandwidth * chance.uniform(0.8, 1.25),
                    )
    return links
