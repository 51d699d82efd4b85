"""What a node says of itself by DNS-SD, and what follows from what another says. Pure."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from exo.cluster.discovery.addresses import best_first, is_unspecified, own_hosts
from exo.cluster.discovery.interfaces import Interface
from exo.cluster.facts import ClusterFacts, PeerSeen, Sighting
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort

SERVICE_TYPE = "_exo._tcp.local."
LABEL_BYTES_MAX = 63
"""Of one part of a name in DNS (RFC 1035, section 2.3.4)."""
_VALUE_BYTES_MAX = 200
"""Of one value in a TXT record, whose key and value share 255 bytes (RFC 6763, section 6.1)."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What is registered for a node."""

    label: str
    """Before the service type; the node's id, so that a node that starts again replaces itself."""
    server: str
    port: int
    hosts: tuple[str, ...]
    """Addresses, without scope: what is valid on one interface only is heard on that one."""
    properties: dict[str, str]


def announce(facts: ClusterFacts, interfaces: Sequence[Interface]) -> Announcement:
    """Return what to register for a node with these facts on a host with these interfaces."""
    host = facts.cluster_address.host
    hosts = own_hosts(interfaces) if is_unspecified(host) else [host]
    if host == "0.0.0.0":
        hosts = [one for one in hosts if ":" not in one]
    label = facts.node_id.encode()[:LABEL_BYTES_MAX].decode(errors="ignore")
    return Announcement(
        label=label,
        server=f"exo-{label}"[:LABEL_BYTES_MAX] + ".local.",
        port=facts.cluster_address.port,
        hosts=tuple(dict.fromkeys(one.partition("%")[0] for one in hosts)),
        properties={
            "namespace": _short(facts.namespace),
            "node": _short(facts.node_id),
            "name": _short(facts.name),
            "cluster": _short(facts.cluster_id or ""),
            "version": _short(facts.exo_version),
            "port": str(facts.cluster_address.port),
        },
    )


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """What another node says of itself. Unproven."""

    namespace: str
    node_id: NodeId
    name: str
    cluster_id: ClusterId | None
    port: int
    hosts: tuple[str, ...]
    """Addresses, with their scope where they need one; never empty."""


def read_announced(
    port: int | None, hosts: Sequence[str], properties: Mapping[str, str | None]
) -> Announced | None:
    """Return what a service's records say, or None when they are not of a node that could be dialled.

    Args:
        port: Of the SRV record.
        hosts: Of the A and AAAA records.
        properties: Of the TXT record.
    """
    node_id, cluster_id = properties.get("node") or "", properties.get("cluster") or ""
    if not _ID.match(node_id) or (cluster_id and not _ID.match(cluster_id)):
        return None
    if port is None or not 0 < port < 65536 or not hosts:
        return None
    return Announced(
        namespace=properties.get("namespace") or "",
        node_id=NodeId(node_id),
        name=(properties.get("name") or "")[:64],
        cluster_id=ClusterId(cluster_id) if cluster_id else None,
        port=port,
        hosts=tuple(hosts),
    )


def judge_announced(
    announced: Announced, own: ClusterFacts, interfaces: Sequence[Interface], attempt: int, *, via: str
) -> Sighting | PeerSeen | None:
    """Return what to report of a node: an address to try, why it is none, or None for this node itself.

    Args:
        attempt: How often it was reported before: its addresses take turns, for one of them may lead nowhere.
    """
    if announced.node_id == own.node_id and announced.port == own.cluster_address.port:
        return None
    hosts = best_first(announced.hosts, interfaces)
    if not hosts:
        return None
    address = HostPort(hosts[attempt % len(hosts)], announced.port)
    if announced.namespace == _short(own.namespace):
        return Sighting(address=address, via=via)
    return PeerSeen(
        address=address,
        node_id=announced.node_id,
        name=announced.name,
        namespace=announced.namespace,
        cluster_id=announced.cluster_id,
        via=via,
        status="other_namespace",
        detail=f"it belongs to the namespace {announced.namespace!r}; "
        "start both with the same --namespace to join them",
        age_s=0.0,
    )


def _short(text: str) -> str:
    return text.encode()[:_VALUE_BYTES_MAX].decode(errors="ignore")
