"""This host's network interfaces with their addresses, as they are now."""

import socket
import sys
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv6Interface

import ifaddr
import msgspec

INTERFACES_MAX = 16
"""Linux lets a socket take part in 20 groups, so more interfaces than this are passed over."""


class Interface(msgspec.Struct, frozen=True):
    """One interface that has an address."""

    name: str
    index: int
    """The system's number of it; 0: not known."""
    v4: tuple[IPv4Interface, ...]
    v6: tuple[IPv6Interface, ...]

    @property
    def is_loopback(self) -> bool:
        """Only this host is behind it."""
        return all(one.ip.is_loopback for one in (*self.v4, *self.v6))

    @property
    def scope(self) -> str | None:
        """What stands behind the `%` of an address that is valid on this interface only."""
        return scope_name(self.index)


def scope_name(index: int) -> str | None:
    """Return an interface's name in an address; Windows takes its number only. None: there is no such interface."""
    if index <= 0:
        return None
    if sys.platform == "win32":
        return str(index)
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def read_interfaces() -> list[Interface]:
    """Return the interfaces that have addresses, at most INTERFACES_MAX: loopback first, then those with most to offer.

    Costs a third of a millisecond where there are few. What cannot be read is left out.
    """
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:
        return []
    return suitable([_interface(adapter) for adapter in adapters])


def suitable(interfaces: Sequence[Interface]) -> list[Interface]:
    """Return the interfaces worth speaking on, the best first. Pure.

    A bridge's ports (one for each container) have nothing but a link-local address: they go last.
    """

    def rank(interface: Interface) -> tuple[bool, bool, int]:
        has_global = any(not one.ip.is_link_local for one in (*interface.v4, *interface.v6))
        return not interface.is_loopback, not has_global, interface.index

    return sorted((one for one in interfaces if one.v4 or one.v6), key=rank)[:INTERFACES_MAX]


def _interface(adapter: ifaddr.Adapter) -> Interface:
    v4: list[IPv4Interface] = []
    v6: list[IPv6Interface] = []
    for one in adapter.ips:
        try:
            if isinstance(one.ip, str):
                v4.append(IPv4Interface(f"{one.ip}/{one.network_prefix}"))
            else:
                v6.append(IPv6Interface(f"{one.ip[0].partition('%')[0]}/{one.network_prefix}"))
        except ValueError:
            continue
    return Interface(adapter.nice_name, adapter.index or 0, tuple(v4), tuple(v6))
