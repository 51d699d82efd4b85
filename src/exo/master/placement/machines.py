"""A machine that is not there, as a node that joined: its devices' figures come from the catalogue. Pure."""

import math
from collections.abc import Sequence

from msgspec.structs import replace

from exo.shared.device_figures import KnownDevice, catalogue, figures_for
from exo.shared.device_figures.naming import Match, matches, words
from exo.shared.near_matches import near_matches
from exo.shared.types.commands import Refusal
from exo.shared.types.devices import Backend, DeviceGPUState, GPUDevice, MemoryKind
from exo.shared.types.ids import DeviceId, NodeId, device_id
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import HostPort, Link, Node, NodeIdentity
from exo.shared.types.state import NodeTelemetry
from exo.shared.types.what_if import AddedDevice, AddedNode, WishedDevice, WishedMachine

GIB = 1024**3
TAKEN_SHARES: dict[MemoryKind, float] = {"vram": 0.05, "unified": 0.15, "ram": 0.15}
"""What the system and its desktop are assumed to take of a memory that nobody has measured."""
_BACKENDS: dict[str, Backend] = {"nvidia": "cuda", "amd": "rocm", "apple": "metal", "intel": "intel"}
_NOWHERE = HostPort("", 0)
_NAMES_MAX = 6
_BRANDS = frozenset(("nvidia", "geforce", "amd", "radeon", "apple", "intel", "tesla"))


def device_of(wished: WishedDevice, node_id: NodeId, number: int) -> GPUDevice | Refusal:
    """Return a wished device as its driver would tell of it, or why it is not known well enough."""
    found = _known(wished)
    if isinstance(found, Refusal):
        return found
    vendor = (wished.vendor or (found[0].vendor if found else "")).lower()
    backend: Backend | None = "cpu" if wished.kind == "processor" else _BACKENDS.get(vendor)
    memory_kind = wished.memory_kind or (found[0].memory_kind if found else None)
    if wished.kind == "processor":
        memory_kind = "ram"
    if backend is None or memory_kind is None:
        return _unknown(wished)
    memory_bytes = wished.memory_total_bytes or _memory_bytes(found)
    if memory_bytes is None:
        sizes = sorted({size for one in found for size in one.memory.gib})
        listed = f": it is sold with {', '.join(f'{size:g}' for size in sizes)} GiB" if sizes else ""
        return _refuse(wished, f"say how much memory {wished.name!r} has{listed}")
    alias = f"{backend}:{number}"
    device = GPUDevice(
        device_id=device_id(node_id, alias),
        local_alias=alias,
        name=wished.name if not found else found[0].name,
        vendor=vendor or "unknown",
        backend=backend,
        memory_kind=memory_kind,
        memory_total_bytes=memory_bytes,
        memory_bandwidth_bytes_per_s=wished.memory_bandwidth_bytes_per_s,
        flops_per_s=wished.flops_per_s,
        compute_units=wished.compute_units or _units(found),
    )
    if not found or figures_for(device).known_as is not None:
        return device
    # The catalogue's own name of it is none that a driver tells: its figures go along.
    bandwidth, flops = found[0].memory.bandwidth_gb_per_s, found[0].compute.tera_flops_per_s.get("float16")
    return replace(
        device,
        memory_bandwidth_bytes_per_s=device.memory_bandwidth_bytes_per_s or (bandwidth and bandwidth * 1e9),
        flops_per_s=device.flops_per_s or (flops and flops * 1e12),
    )


def node_of(
    machine: WishedMachine, node_id: NodeId, model: ModelCard, engines: Sequence[str]
) -> Node | Refusal:
    """Return a wished machine as a node with the model and the engines, or why it is not known well enough."""
    devices: list[GPUDevice] = []
    for number, wished in enumerate(machine.devices):
        device = device_of(wished, node_id, number)
        if isinstance(device, Refusal):
            return device
        devices.append(device)
    backends: tuple[Backend, ...] = tuple(dict.fromkeys((*(one.backend for one in devices), "cpu")))
    return Node(
        identity=NodeIdentity(
            node_id=node_id,
            boot_id="",
            name=machine.name,
            host_id=node_id,
            platform="",
            exo_version="",
            cluster_address=_NOWHERE,
            data_address=_NOWHERE,
            api_address=_NOWHERE,
            devices=tuple(devices),
            models=(model,),
            engines=tuple(engines),
            engine_backends=dict.fromkeys(engines, backends),
            zone=machine.zone,
        )
    )


def telemetry_of(machine: WishedMachine, node: Node, others: Sequence[NodeId]) -> NodeTelemetry:
    """Return what such a node would tell while nothing runs on it, and its links where the wish names them."""
    identity = node.identity
    readings: dict[DeviceId, DeviceGPUState] = {
        one.device_id: DeviceGPUState(
            device_id=one.device_id,
            node_id=identity.node_id,
            memory_total_bytes=one.memory_total_bytes,
            memory_used_bytes=int(one.memory_total_bytes * TAKEN_SHARES[one.memory_kind]),
            last_update="",
        )
        for one in identity.devices
    }
    links = {
        other: link for other in others if (link := link_of(machine, identity.node_id, other)) is not None
    }
    return NodeTelemetry(devices=readings, links=links)


def link_of(machine: WishedMachine, source: NodeId, target: NodeId) -> Link | None:
    """Return the link that a wish names; None where it names none."""
    if machine.link_mbps is None and machine.link_latency_ms is None:
        return None
    return Link(
        source_node_id=source,
        dest_node_id=target,
        latency_ms=machine.link_latency_ms,
        bandwidth_mbps=machine.link_mbps,
        measurement_count=1,
    )


def as_added(machine: WishedMachine, node: Node, live: NodeTelemetry) -> AddedNode:
    """Return what of a wished machine was reckoned with, for people to check."""
    devices: list[AddedDevice] = []
    for wished, one in zip(machine.devices, node.identity.devices, strict=True):
        bandwidth = figures_for(one).memory_bandwidth_bytes_per_s
        told = one.memory_bandwidth_bytes_per_s is not None
        source = "the catalogue of devices" if told else bandwidth.source
        free = live.devices[one.device_id].memory_free_bytes
        devices.append(
            AddedDevice(
                device_id=one.device_id,
                name=one.name,
                memory_total_bytes=one.memory_total_bytes,
                memory_free_bytes=one.memory_total_bytes if free is None else free,
                memory_bandwidth_bytes_per_s=bandwidth.value,
                source="as it was given" if wished.memory_bandwidth_bytes_per_s else source,
                is_estimated=bandwidth.basis == "estimated",
            )
        )
    return AddedNode(node_id=node.identity.node_id, name=node.identity.name, devices=tuple(devices))


def _known(wished: WishedDevice) -> tuple[KnownDevice, ...] | Refusal:
    """Return what the name means in the catalogue; nothing where it is not there and the wish tells all itself."""
    named = tuple(
        one for one in catalogue() if one.kind == wished.kind and words(one.name) == words(wished.name)
    )
    if named:
        return named
    for name in (wished.name, f"Apple {wished.name}"):
        hits: tuple[Match, ...] = matches(name, wished.kind)
        exact = tuple(one.device for one in hits if not one.extra_words)
        if exact:
            return _of_size(exact, wished.memory_total_bytes)
    if wished.kind == "processor":
        # No maker tells of a processor what its memory does: estimated by its class.
        return ()
    tells_all = wished.vendor and wished.memory_kind and wished.memory_total_bytes
    return () if tells_all else _unknown(wished)


def _of_size(found: tuple[KnownDevice, ...], memory_bytes: int | None) -> tuple[KnownDevice, ...]:
    if memory_bytes is None:
        return found
    fitting = tuple(
        one
        for one in found
        if any(math.isclose(memory_bytes / GIB, size, rel_tol=0.15) for size in one.memory.gib)
    )
    return fitting or found


def _memory_bytes(found: tuple[KnownDevice, ...]) -> int | None:
    sizes = {size for one in found for size in one.memory.gib}
    return int(sizes.pop() * GIB) if len(sizes) == 1 else None


def _units(found: tuple[KnownDevice, ...]) -> int | None:
    counts = {one.compute.units[0] for one in found if one.compute.units}
    return counts.pop() if len(counts) == 1 and len(found) == 1 else None


def _unknown(wished: WishedDevice) -> Refusal:
    names = [one.name for one in catalogue() if one.kind == wished.kind]
    said = set(words(wished.name))
    near = tuple(sorted((one for one in names if said and said <= set(words(one))), key=len)[:_NAMES_MAX])
    # Without the brand, which the names share and people leave out.
    short = {" ".join(one for one in words(name) if one not in _BRANDS): name for name in names}
    typed = " ".join(one for one in words(wished.name) if one not in _BRANDS)
    near = near or tuple(short[one] for one in near_matches(typed, short))
    hint = (
        f"did you mean {', '.join(near)}?" if near else "it knows the usual graphics cards and Apple's chips"
    )
    return _refuse(
        wished,
        f"the catalogue has no {wished.name!r}; {hint} Or give vendor, memory_kind and memory_total_bytes, and "
        "memory_bandwidth_bytes_per_s where you know it",
        near,
    )


def _refuse(wished: WishedDevice, message: str, near: tuple[str, ...] = ()) -> Refusal:
    return Refusal(status=422, code="unknown_hardware", message=f"{message}.", near_matches=near)
