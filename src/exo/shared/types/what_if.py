"""What-if questions to placement: machines that are not there, and what would come of them."""

from typing import Literal

import msgspec

from exo.shared.types.devices import MemoryKind
from exo.shared.types.ids import DeviceId, NodeId

WISHED_DEVICES_MAX = 64
"""Of one machine."""


class WishedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that is not there. What is None comes from the catalogue of devices, by its name."""

    name: str
    kind: Literal["gpu", "processor"] = "gpu"
    vendor: str | None = None
    memory_kind: MemoryKind | None = None
    memory_total_bytes: int | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    flops_per_s: float | None = None
    compute_units: int | None = None


class WishedMachine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that is not there."""

    name: str
    devices: tuple[WishedDevice, ...]
    zone: str = ""
    link_mbps: float | None = None
    """10^6 bits per second to and from every other machine; None: assumed as between hosts that were not measured."""
    link_latency_ms: float | None = None


class AddedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a machine that is not there, as it was reckoned with."""

    device_id: DeviceId
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    memory_bandwidth_bytes_per_s: float
    source: str
    """Where the bandwidth is from."""
    is_estimated: bool


class AddedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that is not there, as it was reckoned with."""

    node_id: NodeId
    name: str
    devices: tuple[AddedDevice, ...]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """How the cluster would be another one."""

    without: tuple[str, ...] = ()
    """Ids of nodes and devices that would not be there."""
    machines: tuple[WishedMachine, ...] = ()
    """That would be there."""
    instead: tuple[str, ...] = ()
    """Ids of instances that would be gone: what they take would be free."""

    @property
    def is_none(self) -> bool:
        """Whether the cluster is taken as it is."""
        return not (self.without or self.machines or self.instead)
