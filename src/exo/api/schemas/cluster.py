"""Shapes of `GET /state` and `GET /gpu/info`: nodes, devices, links and telemetry."""

from typing import Literal

from exo.api.schemas.base import Shape
from exo.api.schemas.instances import InstanceView
from exo.cluster.facts import PeerStatus
from exo.shared.types.devices import (
    Backend,
    Health,
    MemoryKind,
    PowerSource,
    RefusalKind,
    SupportLevel,
    ThermalState,
    ThrottleReason,
)
from exo.shared.types.nodes import LinkType


class AddressView(Shape):
    host: str
    port: int


class DeviceView(Shape):
    """What a device is. How it is at the moment is under `gpu_device_state`."""

    device_id: str
    local_alias: str
    """What its node calls it, such as `cuda:0`."""
    name: str
    vendor: str
    backend: Backend
    memory_kind: MemoryKind
    memory_total_bytes: int
    compute_units: int | None
    compute_capability: str | None
    clock_mhz: float | None
    memory_bandwidth_bytes_per_s: float | None
    flops_per_s: float | None
    driver_version: str | None
    uuid: str | None
    is_simulated: bool
    pci_address: str | None
    support_level: SupportLevel | None
    """`full`: it computes, and was seen to compute right; `monitoring`: it is only watched."""
    measured_memory_bandwidth_bytes_per_s: float | None
    """Measured on it, where nobody tells."""
    measured_flops_per_s: float | None
    """The same: in float32 on a processor, in float16 on a GPU."""
    number: int | None
    """Of a GPU within its node, as `gpu_id`; null where its node does not say."""


class ProcessMemoryView(Shape):
    """What one process of the host holds on a device."""

    pid: int
    used_bytes: int | None


class DeviceFaultView(Shape):
    """Something that the driver reports of a device, such as NVIDIA's Xid 79."""

    kind: str
    code: int | None
    message: str
    is_fatal: bool
    """The device cannot be used until it is reset or replaced."""


class ThermalStatusView(Shape):
    """How a device's heat is governed; null where that is not known, or not calibrated yet."""

    state: ThermalState
    """`warm`: full work, but close to where it is slowed down. `starting`: it is cool, and has not worked enough to
    know how it heats. `slowed`, `paused`: exo itself holds its work back, for heat or for the battery. `unknown`: full
    work; the device tells no temperature."""
    reason: str
    work_fraction: float
    """How much of the time exo works on it, 0 to 1."""
    limit_c: float | None
    is_limit_assumed: bool
    """The device does not tell its limit: it is the one of its class."""
    predicted_temperature_c: float | None
    """In 30 seconds, at this much work."""
    prediction_error_c: float | None
    """Root mean square of how far such predictions were off lately."""
    sustained_fraction: float | None
    """How much of full work it is predicted to hold for good, 0 to 1."""
    is_calibrated: bool
    power_source: PowerSource
    """`estimated`: from the utilization and the power limit."""


class DeviceStateView(Shape):
    """How a device is: its latest telemetry. Percent 0 to 100, Celsius, watts."""

    device_id: str
    node_id: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    compute_utilization_percent: float | None
    thermal_temperature_c: float | None
    thermal_throttle_threshold_c: float | None
    is_thermal_throttling: bool | None
    power_watts: float | None
    clock_mhz: float | None
    battery_percent: float | None
    is_plugged_in: bool | None
    health: Health
    health_reason: str | None
    last_update: str
    """ISO 8601, UTC."""
    throttle_reasons: list[ThrottleReason] | None
    """Null: the device does not tell; empty: it is not held back."""
    power_limit_watts: float | None
    clock_max_mhz: float | None
    ecc_corrected_count: int | None
    ecc_uncorrected_count: int | None
    faults: list[DeviceFaultView]
    processes: list[ProcessMemoryView] | None
    """Those that hold most of its memory, largest first."""
    is_memory_pressed: bool | None
    """The system says that it is short of memory."""
    thermal: ThermalStatusView | None
    """How its heat is governed; null where nothing does (`EXO_THERMAL=0`)."""
    energy_joules: float | None
    """Drawn since the driver counts; it may be as it was some seconds before the rest."""


class DeviceRefusalView(Shape):
    """A device that is there, or all those of one driver, and is not used. Nothing is ever placed on it."""

    backend: Backend
    kind: RefusalKind
    """`wrong`: it computed wrongly. `unchecked`: its check has not ended. `hanging`: its driver has not answered at the
    start. `duplicate`: another driver has it. `unavailable`: what its driver needs is missing or too old."""
    name: str
    local_alias: str | None
    """What it would be called, such as `cuda:1`; null where no single device is known."""
    reason: str
    next_step: str
    """What somebody can do about it; empty where the reason says it."""


class MemoryProfileView(Shape):
    """A host's memory in bytes."""

    ram_total: int
    ram_available: int
    swap_total: int
    swap_available: int
    gpu_vram_total: int
    gpu_vram_available: int | None
    """Null: of some GPU nobody knows how much of its memory is in use."""
    gpu_vram_used: int | None


class SystemProfileView(Shape):
    """A host's load. Percent 0 to 100, Celsius, watts."""

    gpu_usage: float | None
    temp: float | None
    sys_power: float | None
    """Of the machine as it counts itself; else of its processor and GPUs together, where each of them tells."""
    pcpu_usage: float | None
    """Of the performance cores; of all where they are alike."""
    ecpu_usage: float | None
    """Of the efficiency cores; null where all are alike, or the system does not tell them apart."""
    ane_power: float | None
    utilization_memory_percent: float | None
    gpu_count: int
    gpu_names: list[str]
    gpu_power_watts: float | None


class NodeProfileView(Shape):
    memory: MemoryProfileView
    system: SystemProfileView


class NodeModelView(Shape):
    """A model that lies on a node's disk."""

    model_id: str
    total_bytes: int
    problem: str | None
    """Why it cannot be loaded, or null."""


class NodeView(Shape):
    """A member of the cluster."""

    node_id: str
    name: str
    host_id: str
    """The same for nodes that share one machine and therefore its memory."""
    zone: str
    """The room, building or provider that it stands in; empty where its owner named none."""
    boot_id: str
    platform: str
    exo_version: str
    is_worker: bool
    is_connected: bool
    left_reason: str | None
    api_address: AddressView
    cluster_address: AddressView
    data_address: AddressView
    engines: list[str]
    node_profile: NodeProfileView | None
    """The host as a whole; null until its first telemetry."""
    devices: list[DeviceView]
    refused_devices: list[DeviceRefusalView]
    """What is there besides and is not used, with the reason."""
    models: list[NodeModelView]


class LinkView(Shape):
    """One direction between two nodes, as measured. `bandwidth_mbps` is 10^6 bits per second."""

    source_node_id: str
    dest_node_id: str
    link_type: LinkType
    latency_ms: float | None
    bandwidth_mbps: float | None
    measurement_count: int


class DeviceLinkView(Shape):
    """One direction between two devices of a node, as measured by copying."""

    source_device_id: str
    dest_device_id: str
    link_type: LinkType
    """`p2p` where they reach each other without the host's memory; `unknown` where that is not known."""
    latency_ms: float
    bandwidth_mbps: float
    measurement_count: int


class TopologyMetricsView(Shape):
    """The cluster in a few numbers."""

    node_count: int
    connected_node_count: int
    device_count: int
    memory_total_bytes: int
    """Of connected workers' devices; memory that several nodes of one machine share counts once."""
    link_count: int
    mean_latency_ms: float | None
    mean_bandwidth_mbps: float | None
    bottleneck_link: LinkView | None
    """The slowest measured link between connected nodes."""
    diameter_ms: float | None
    """Latency of the longest of all shortest ways; null where a way is not measured, or above 64 nodes."""
    summary: str
    """The same in a sentence."""


class TopologyView(Shape):
    nodes: list[NodeView]
    """Sorted by `node_id`."""
    links: list[LinkView]
    """Sorted by source, then destination."""
    device_links: list[DeviceLinkView]
    """Within nodes. Sorted by node, then source, then destination."""
    metrics: TopologyMetricsView


class VotersView(Shape):
    """Whose disks make a decision count: a majority of the voters, and every replica."""

    voters: list[str]
    """Node ids."""
    replicas: list[str]
    """The second node of a cluster of two, while it is in sync: it holds a copy and does not vote."""


class ClusterStateView(Shape):
    """Everything the cluster knows, as folded on the node that answers."""

    cluster_id: str | None
    namespace: str
    node_id: str
    """The node that answers."""
    index: int
    """Of the last decision folded in. Equal index: equal decided state on every node."""
    term: int
    incarnation: int
    """1, and 1 more for each time that an operator went on without lost voters (`exo node forget`)."""
    voters: VotersView
    master_node_id: str | None
    """Who leads; null while the node that answers can reach no master."""
    topology: TopologyView
    instances: dict[str, InstanceView]
    gpu_device_state: dict[str, DeviceStateView]
    """By `device_id`."""


class AllocationView(Shape):
    """What a stage of an instance may take of a device."""

    instance_id: str
    model_id: str
    rank: int
    start_layer: int
    end_layer: int
    memory_bytes: int


class ThermalView(Shape):
    """A device's heat; null where the device does not tell."""

    temperature_c: float | None
    throttle_threshold_c: float | None
    """Above this the device slows itself down."""
    headroom_c: float | None
    """Degrees left below the throttle threshold; negative above it."""
    is_throttling: bool | None
    """Heat slows the device down now."""
    governed: ThermalStatusView | None
    """How exo keeps it below the threshold; null before its first telemetry, and where nothing does."""


class DeviceInfoView(Shape):
    """One device: what it is, how it is, and who has it."""

    gpu_id: int
    """Its number within its node, as in the metrics: GPUs as their driver counts them, then the processor."""
    device: DeviceView
    state: DeviceStateView | None
    """Null until its first telemetry."""
    health: Health | Literal["unknown"]
    """`unknown` until its first telemetry; nothing is placed on a device that has failed."""
    health_reason: str | None
    """Why it is not healthy."""
    memory_free_bytes: int | None
    allocations: list[AllocationView]
    """The stages that are placed on it."""
    thermal: ThermalView


class NodeDevicesView(Shape):
    """The devices of one node."""

    node_id: str
    name: str
    is_connected: bool
    """Otherwise what is told of its devices is the last that was heard."""
    devices: list[DeviceInfoView]
    """By `gpu_id`."""
    refused_devices: list[DeviceRefusalView]
    """What is there besides and is not used, with the reason."""


class HottestDeviceView(Shape):
    """Where it is hottest in the cluster."""

    node_id: str
    device_id: str
    temperature_c: float


class GpuInfoView(Shape):
    """Every node's devices with telemetry, health, allocation and heat."""

    index: int
    nodes: list[NodeDevicesView]
    hottest_device: HottestDeviceView | None
    """Null where no device tells its temperature."""


class PeerView(Shape):
    """Another node that was noticed, whether or not it is a member."""

    address: AddressView | None
    node_id: str | None
    name: str | None
    namespace: str | None
    cluster_id: str | None
    via: str
    """How it was noticed: `multicast`, `static`, ..."""
    status: PeerStatus
    detail: str
    """Why it is not a member, and what to do."""
    age_s: float
    """Seconds since it was last noticed."""
    count: int


class PeerList(Shape):
    peers: list[PeerView]
