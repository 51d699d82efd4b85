"""Sockets to listen on, so that every listener of the data plane is reached on loopback too, at the same port."""

import os
import random
import socket
from collections.abc import Iterable

from exo.shared.addresses import ANY_HOSTS, LOOPBACK, is_loopback
from exo.shared.types.nodes import HostPort

BACKLOG = 128
_FREE_PORT_TRIES = 8
"""A port that is free at one address need not be free at the other."""

PortRange = tuple[int, int]
"""First and last."""


def bind(host: str, port: int | PortRange) -> list[socket.socket]:
    """Return bound sockets, which listen already: one, or two where `host` is neither loopback nor all addresses.

    Args:
        host: Where to listen; `0.0.0.0` and `::` mean every address, the latter those of IPv4 as well.
        port: 0 for any free one; or a range, of which any free one is taken.

    Raises:
        OSError: No such port is free, or the host is not this machine's.
    """
    hosts = [host] if host in ANY_HOSTS or is_loopback(host) else [host, LOOPBACK]
    failure: OSError | None = None
    for chosen in _ports(port):
        try:
            return _bind_all(hosts, chosen)
        except OSError as error:
            failure = error
    assert failure is not None
    if isinstance(port, int):
        raise failure
    raise OSError(
        failure.errno, f"no port of {port[0]} to {port[1]} can be used: {failure.strerror or failure}"
    )


def reached_at(bound: socket.socket, advertised_host: str | None) -> HostPort:
    """Return the address that peers are told for a socket of `bind`.

    Args:
        bound: The socket.
        advertised_host: Where other hosts reach this one; None: only this host is told.
    """
    host, port = bound.getsockname()[:2]
    if is_loopback(host):
        return HostPort(host, port)
    if advertised_host is not None:
        return HostPort(advertised_host, port)
    return HostPort(LOOPBACK if host in ANY_HOSTS else host, port)


def _ports(port: int | PortRange) -> Iterable[int]:
    if not isinstance(port, int):
        ports = list(range(port[0], port[1] + 1))
        # Several stages start at once: they need not all try the same one first.
        random.shuffle(ports)
        return ports
    return [0] * _FREE_PORT_TRIES if port == 0 else [port]


def _bind_all(hosts: list[str], port: int) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        for host in hosts:
            made.append(_bind_one(host, made[0].getsockname()[1] if made else port))
    except OSError:
        for one in made:
            one.close()
        raise
    return made


def _bind_one(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, name = resolve(HostPort(host, port), is_passive=True)
    made = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` is for everybody, whatever the system's default is.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        made.bind(name)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def resolve(address: HostPort, *, is_passive: bool = False) -> tuple[int, int, int, str, tuple[object, ...]]:
    """Return what `socket.getaddrinfo` says of an address; of several answers IPv4, where the name has one.

    Raises:
        OSError: There is no such name.
    """
    flags = socket.AI_PASSIVE if is_passive else 0
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    except (UnicodeError, OverflowError) as error:
        raise OSError(f"{address.host!r} is no name of a host") from error
    return min(found, key=lambda info: info[0] != socket.AF_INET)
