"""Which of several addresses to dial, and what an announced address means to whoever hears it. Pure."""

import ipaddress
from collections.abc import Iterable, Sequence

import msgspec

from exo.cluster.discovery.interfaces import Interface
from exo.cluster.facts import ClusterFacts
from exo.shared.types.nodes import HostPort


def is_unspecified(host: str) -> bool:
    """Say whether the host means all addresses of whoever says it."""
    return host in ("0.0.0.0", "::", "")


def address_at(announced: HostPort, host: str) -> HostPort:
    """Return the address that was announced, with the host that it was heard from where it names none."""
    return HostPort(host, announced.port) if is_unspecified(announced.host) else announced


def facts_at(facts: ClusterFacts, host: str) -> ClusterFacts:
    """Return facts whose unspecified addresses (0.0.0.0, ::) are replaced by the host that they were heard from.

    A master elsewhere that is known by such an address only cannot be found by it: its address is left out.
    """
    master_address = facts.master_address
    if master_address is not None and is_unspecified(master_address.host):
        is_own = facts.master_node_id == facts.node_id
        master_address = HostPort(host, master_address.port) if is_own else None
    return msgspec.structs.replace(
        facts, cluster_address=address_at(facts.cluster_address, host), master_address=master_address
    )


def own_hosts(interfaces: Iterable[Interface]) -> list[str]:
    """Return the addresses at which others can reach this host: IPv4 first, with the scope where one is needed."""
    found = [interface for interface in interfaces if not interface.is_loopback]
    hosts = [str(one.ip) for interface in found for one in interface.v4 if not one.ip.is_link_local]
    hosts += [str(one.ip) for interface in found for one in interface.v6 if not one.ip.is_link_local]
    return hosts + [
        with_scope(str(one.ip), interface.scope)
        for interface in found
        for one in (*interface.v4, *interface.v6)
        if one.ip.is_link_local
    ]


def with_scope(host: str, scope: str | None) -> str:
    """Return an address of IPv6's link-local kind with the interface on which it is valid; others as they are."""
    try:
        is_scoped = ipaddress.ip_address(host).is_link_local and ":" in host and "%" not in host
    except ValueError:
        is_scoped = False
    return f"{host}%{scope}" if is_scoped and scope else host


def best_first(hosts: Iterable[str], interfaces: Sequence[Interface]) -> list[str]:
    """Return a node's addresses in the order in which to try them.

    Those on one of this host's own networks go first, IPv4 before IPv6, and IPv6's link-local ones last. An address
    that this host has itself is a bridge's on both (such as a container engine's), unless the node has no other.
    """
    own = {str(one.ip) for interface in interfaces for one in (*interface.v4, *interface.v6)}
    networks = [one.network for interface in interfaces for one in (*interface.v4, *interface.v6)]

    def rank(host: str) -> tuple[bool, bool, bool, int]:
        bare = host.partition("%")[0]
        address = ipaddress.ip_address(bare)
        is_near = any(address.version == network.version and address in network for network in networks)
        return bare in own, address.is_link_local, not is_near, address.version

    return sorted(dict.fromkeys(host for host in hosts if _is_address(host)), key=rank)


def _is_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return not address.is_multicast and not address.is_unspecified
