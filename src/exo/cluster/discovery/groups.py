"""One multicast group on one UDP port: the sockets that hear it and speak to it, on every interface there is."""

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable, Sequence

from exo.cluster.discovery.addresses import with_scope
from exo.cluster.discovery.interfaces import Interface, scope_name
from exo.shared.types.nodes import HostPort

GROUP_V4 = "239.255.101.120"
GROUP_V6 = "ff02::65:786f"
"""Link-local scope: no router passes it on."""

Heard = Callable[[bytes, HostPort], None]
"""Takes a datagram and where it came from, with the interface where the address is valid on that one only."""


class Group:
    """The group of one family. Call `open` first, then `use` whenever the interfaces may have changed.

    Args:
        family: socket.AF_INET or socket.AF_INET6.
        address: The group.
        port: UDP port, shared with every other node of this host.
        heard: Called with everything that arrives.
    """

    def __init__(self, family: socket.AddressFamily, address: str, port: int, heard: Heard) -> None:
        self.family = family
        self.address = address
        self.port = port
        self._heard = heard
        self._receiver: socket.socket | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self._senders: dict[tuple[int, str], tuple[Interface, socket.socket]] = {}
        self.join_problem = ""
        """Why the last interface that could not be used cannot be; empty: all can."""

    @property
    def family_name(self) -> str:
        """The family, for people."""
        return "IPv6" if self.family == socket.AF_INET6 else "IPv4"

    @property
    def is_open(self) -> bool:
        """It can be used."""
        return self._transport is not None

    @property
    def has_interfaces(self) -> bool:
        """There is at least one interface on which it hears and speaks."""
        return bool(self._senders)

    async def open(self) -> None:
        """Bind the port.

        Raises:
            OSError: The family is not there, or the port cannot be shared.
        """
        receiver = open_receiver(self.family, self.address, self.port)
        try:
            self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Protocol(self._heard), sock=receiver
            )
        except BaseException:
            receiver.close()
            raise
        self._receiver = receiver

    def use(self, interfaces: Sequence[Interface]) -> int:
        """Hear and speak on these interfaces and no others; return on how many that works."""
        wanted = {
            (one.index, str(addresses[0].ip)): one
            for one in interfaces
            if (addresses := one.v6 if self.family == socket.AF_INET6 else one.v4)
        }
        for key in self._senders.keys() - wanted.keys():
            self._leave(key)
        self.join_problem = ""
        for key, interface in wanted.items():
            if key not in self._senders:
                try:
                    self._join(key, interface)
                except OSError as error:
                    self.join_problem = f"{interface.name}: {error.strerror or error}"
        return len(self._senders)

    def send(self, data: bytes, *, is_loopback_only: bool) -> str | None:
        """Say something on every interface; return why it left on none of them, or None when it did on one."""
        problem = self.join_problem or "no interface takes part in multicast"
        is_sent = False
        for (index, _), (interface, sender) in self._senders.items():
            if is_loopback_only and not interface.is_loopback:
                continue
            try:
                sender.sendto(data, self._destination(index))
                is_sent = True
            except OSError as error:
                problem = f"{interface.name}: {error.strerror or error}"
        return None if is_sent else problem

    def close(self) -> None:
        """Close every socket."""
        for _, sender in self._senders.values():
            sender.close()
        self._senders.clear()
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        self._receiver = None

    def _destination(self, index: int) -> tuple[str, int] | tuple[str, int, int, int]:
        return (
            (self.address, self.port, 0, index)
            if self.family == socket.AF_INET6
            else (self.address, self.port)
        )

    def _join(self, key: tuple[int, str], interface: Interface) -> None:
        """Raises OSError: the interface does not take part in multicast."""
        assert self._receiver is not None
        join(self._receiver, self.family, self.address, *key)
        sender = socket.socket(self.family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        try:
            sender.setblocking(False)
            aim(sender, self.family, *key)
        except OSError:
            sender.close()
            raise
        self._senders[key] = (interface, sender)

    def _leave(self, key: tuple[int, str]) -> None:
        _, sender = self._senders.pop(key)
        sender.close()
        if self._receiver is None or any(index == key[0] for index, _ in self._senders):
            return
        try:
            option = socket.IPV6_LEAVE_GROUP if self.family == socket.AF_INET6 else socket.IP_DROP_MEMBERSHIP
            self._receiver.setsockopt(
                _level(self.family), option, _membership(self.family, self.address, *key)
            )
        except OSError:
            pass  # The interface is gone, and the membership with it.


class _Protocol(asyncio.DatagramProtocol):
    def __init__(self, heard: Heard) -> None:
        self._heard = heard

    def datagram_received(self, data: bytes, addr: tuple[str, int] | tuple[str, int, int, int]) -> None:
        host = addr[0].partition("%")[0]
        scope = scope_name(addr[3]) if len(addr) == 4 and addr[3] else None
        self._heard(data, HostPort(with_scope(host, scope), addr[1]))


def open_receiver(family: socket.AddressFamily, group: str, port: int) -> socket.socket:
    """Return a socket on the port that every node of this host may share.

    Raises:
        OSError: The family is not there, or another program keeps the port to itself.
    """
    receiver = socket.socket(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # A group of link-local scope can be bound to on one interface only, and this is for all of them.
            receiver.bind(("::", port))
        else:
            # Bound to the group, the socket hears nothing but the group; Windows has no such binding.
            receiver.bind(("" if sys.platform == "win32" else group, port))
        receiver.setblocking(False)
    except BaseException:
        receiver.close()
        raise
    return receiver


def join(receiver: socket.socket, family: socket.AddressFamily, group: str, index: int, address: str) -> None:
    """Hear the group on an interface, which has this number and this address.

    Raises:
        OSError: The interface does not take part in multicast.
    """
    option = socket.IPV6_JOIN_GROUP if family == socket.AF_INET6 else socket.IP_ADD_MEMBERSHIP
    try:
        receiver.setsockopt(_level(family), option, _membership(family, group, index, address))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # In use by this very socket: another address of the interface.
            raise


def aim(sender: socket.socket, family: socket.AddressFamily, index: int, address: str) -> None:
    """Have a socket's datagrams to groups leave through an interface, come back to this host, and cross no router.

    Raises:
        OSError: The interface does not take part in multicast.
    """
    if family == socket.AF_INET6:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
    else:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)


def _level(family: socket.AddressFamily) -> int:
    return socket.IPPROTO_IPV6 if family == socket.AF_INET6 else socket.IPPROTO_IP


def _membership(family: socket.AddressFamily, group: str, index: int, address: str) -> bytes:
    if family == socket.AF_INET6:
        return socket.inet_pton(family, group) + struct.pack("@I", index)
    return socket.inet_aton(group) + socket.inet_aton(address)
