"""The cluster that sizes are measured at: 1,000 nodes of 8 GPUs, with everything known that can be known of them."""

from collections.abc import Iterator, Sequence

from exo.shared.apply import apply_entries, apply_frames
from exo.shared.types.devices import (
    DeviceGPUState,
    GPUDevice,
    MemoryProfile,
    NodePerformanceProfile,
    SystemProfile,
)
from exo.shared.types.events import (
    ClusterFormed,
    Decision,
    DeviceGPUStateUpdated,
    LogEntry,
    NodeJoined,
    NodeProfileUpdated,
    TelemetryFrame,
    TermOpened,
)
from exo.shared.types.ids import ClusterId, EventId, NodeId, device_id
from exo.shared.types.nodes import HostPort, NodeIdentity
from exo.shared.types.state import State

NODES = 1000
DEVICES = 8
BOOT_ID = "b" * 32
AT = "2026-01-01T00:00:00.000Z"
MEMORY_BYTES = 80 * 2**30


def node_id(number: int) -> NodeId:
    """Ids are as long as real ones."""
    return NodeId(f"{number:016x}")


def entries(events: Sequence[Decision], first_index: int = 1) -> list[LogEntry]:
    """Return the entries that a log would hold; their origins are the nodes in turn."""
    return [
        LogEntry(
            index=index,
            term=1,
            event_id=EventId(f"{index:032x}"),
            cause_id=f"{index:032x}",
            origin=node_id(index % NODES),
            seq=index,
            at=AT,
            event=event,
        )
        for index, event in enumerate(events, start=first_index)
    ]


def formed() -> State:
    """Return the cluster without telemetry."""
    opening: list[Decision] = [
        ClusterFormed(cluster_id=ClusterId("c" * 32), namespace="default"),
        TermOpened(master_node_id=node_id(0)),
    ]
    joined = [NodeJoined(identity=_identity(number)) for number in range(NODES)]
    return apply_entries(State(), entries([*opening, *joined]))


def measured() -> State:
    """Return the cluster with telemetry of everything."""
    return apply_frames(formed(), list(frames(0)))[0]


def frames(seq: int, nodes: int = NODES, devices: int = DEVICES) -> Iterator[TelemetryFrame]:
    """Yield what the first `nodes` nodes publish at a time: all their devices, and themselves at the first time."""
    for number in range(nodes):
        readings = [DeviceGPUStateUpdated(state=_reading(number, device, seq)) for device in range(devices)]
        profiles = [NodeProfileUpdated(node_id=node_id(number), profile=_profile(seq))] if seq == 0 else []
        yield TelemetryFrame(node_id=node_id(number), boot_id=BOOT_ID, seq=seq, events=(*profiles, *readings))


def _identity(number: int) -> NodeIdentity:
    own = node_id(number)
    host = f"10.{number >> 8}.{number & 255}.1"
    return NodeIdentity(
        node_id=own,
        boot_id=BOOT_ID,
        name=f"gpu-host-{number:04}",
        host_id=f"{number:032x}",
        platform="linux",
        exo_version="0.1.0",
        cluster_address=HostPort(host, 52416),
        data_address=HostPort(host, 52417),
        api_address=HostPort(host, 52415),
        devices=tuple(
            GPUDevice(
                device_id=device_id(own, f"cuda:{device}"),
                local_alias=f"cuda:{device}",
                name="NVIDIA H100 80GB HBM3",
                vendor="nvidia",
                backend="cuda",
                memory_kind="vram",
                memory_total_bytes=MEMORY_BYTES,
                compute_units=132,
                compute_capability="9.0",
                clock_mhz=1980.0,
                memory_bandwidth_bytes_per_s=3.35e12,
                flops_per_s=9.89e14,
                driver_version="570.86.15",
                uuid=f"GPU-{number:08x}-{device:04x}-4000-8000-000000000000",
            )
            for device in range(DEVICES)
        ),
        engines=("mlx", "torch"),
    )


def _reading(number: int, device: int, seq: int) -> DeviceGPUState:
    own = node_id(number)
    return DeviceGPUState(
        device_id=device_id(own, f"cuda:{device}"),
        node_id=own,
        memory_used_bytes=2**30 * device + seq,
        memory_total_bytes=MEMORY_BYTES,
        compute_utilization_percent=37.5 + seq % 50,
        thermal_temperature_c=61.0,
        thermal_throttle_threshold_c=87.0,
        is_thermal_throttling=False,
        power_watts=412.5,
        clock_mhz=1755.0,
        last_update=AT,
    )


def _profile(seq: int) -> NodePerformanceProfile:
    return NodePerformanceProfile(
        memory=MemoryProfile(
            ram_total=2**41,
            ram_available=2**40 + seq,
            swap_total=0,
            swap_available=0,
            gpu_vram_total=DEVICES * MEMORY_BYTES,
            gpu_vram_available=DEVICES * MEMORY_BYTES,
        ),
        system=SystemProfile(gpu_usage=37.5, pcpu_usage=12.5, gpu_count=DEVICES),
    )
