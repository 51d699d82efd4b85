"""Addresses as sockets tell them, and which of them mean this host. Pure."""

import ipaddress
from collections.abc import Sequence
from typing import Any

from exo.shared.types.nodes import HostPort

LOOPBACK = "127.0.0.1"
ANY_HOSTS = frozenset({"0.0.0.0", "::"})
"""Where who listens is reached at every address of the host."""


def is_loopback(host: str) -> bool:
    """Say whether only this host can be meant."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def plain_address(name: Sequence[Any] | None) -> HostPort:
    """Return a socket's name as an address; IPv4 that arrived on an IPv6 socket as IPv4."""
    if name is None:
        return HostPort("unknown", 0)
    host = str(name[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return HostPort(host, int(name[1]))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return HostPort(str(mapped) if mapped is not None else host, int(name[1]))
