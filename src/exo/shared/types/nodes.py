"""Nodes as members of the cluster, and the links between them."""

from typing import Literal

import msgspec

from exo.shared.types.devices import Backend, GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.models import ModelCard

LinkType = Literal["loopback", "ethernet", "wifi", "thunderbolt", "rdma", "p2p", "unknown"]


class HostPort(msgspec.Struct, frozen=True, order=True):
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @staticmethod
    def parse(text: str, default_port: int | None = None) -> "HostPort":
        """Read `HOST:PORT`, `[V6]:PORT` or, with a default port, `HOST`.

        Raises:
            ValueError: The text is no such address; the message says what was expected.
        """
        host, separator, port_text = text.strip().rpartition(":")
        if not separator or (":" in host and not host.startswith("[")):
            host, port_text = text.strip(), "" if default_port is None else str(default_port)
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port_text.isdecimal() or not 0 < int(port_text) < 65536:
            raise ValueError(f"{text!r} is not an address; expected HOST:PORT, such as 127.0.0.1:52416")
        return HostPort(host, int(port_text))


class NodeIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself when it joins; constant from one start (boot) to the next."""

    node_id: NodeId
    boot_id: str
    """Random at every start: stages that an earlier boot ran are gone."""
    name: str
    """The host's name, for people."""
    host_id: str
    """The same for all nodes that share one machine and therefore its memory."""
    platform: str
    exo_version: str
    cluster_address: HostPort
    data_address: HostPort
    api_address: HostPort
    is_worker: bool = True
    devices: tuple[GPUDevice, ...] = ()
    models: tuple[ModelCard, ...] = ()
    engines: tuple[str, ...] = ()
    engine_backends: dict[str, tuple[Backend, ...]] = {}
    """The kinds of devices that each engine can use, as it is installed there; one that is not named: processors."""
    zone: str = ""
    """The room, building or provider that it stands in, as its owner says; nodes of one zone are near each other."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A member of the cluster, as decided."""

    identity: NodeIdentity
    is_connected: bool = True
    left_reason: str | None = None


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One direction between two nodes, as measured."""

    source_node_id: NodeId
    dest_node_id: NodeId
    link_type: LinkType = "unknown"
    latency_ms: float | None = None
    bandwidth_mbps: float | None = None
    measurement_count: int = 0


class DeviceLink(msgspec.Struct, frozen=True, kw_only=True):
    """One direction between two devices of a node, as measured by copying."""

    source_device_id: DeviceId
    dest_device_id: DeviceId
    link_type: LinkType = "unknown"
    """`p2p` where the devices reach each other without the host's memory; `unknown` where that is not known."""
    latency_ms: float
    bandwidth_mbps: float
    measurement_count: int
