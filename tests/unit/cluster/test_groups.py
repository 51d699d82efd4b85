"""The sockets of a multicast group on this host's loopback interface, and what is read of interfaces."""

import asyncio
import socket
import sys
from ipaddress import IPv4Interface, IPv6Interface

import ifaddr
import pytest

from exo.cluster.discovery.groups import GROUP_V4, Group
from exo.cluster.discovery.interfaces import Interface, read_interfaces, scope_name
from exo.shared.types.nodes import HostPort
from support.discoveries import eventually, free_udp_port

LOOPBACK = Interface("lo", 1, (IPv4Interface("127.0.0.1/8"),), ())
MOVED = Interface("lo", 1, (IPv4Interface("127.0.0.2/8"),), ())
GONE = Interface("gone0", 9999, (IPv4Interface("203.0.113.7/24"),), (IPv6Interface("fe80::7/64"),))


async def test_a_group_follows_the_interfaces() -> None:
    heard: list[tuple[bytes, HostPort]] = []
    group = Group(
        socket.AF_INET, GROUP_V4, free_udp_port(), lambda data, source: heard.append((data, source))
    )
    await group.open()
    try:
        assert group.is_open
        assert group.family_name == "IPv4"
        assert not group.has_interfaces
        assert group.send(b"nobody", is_loopback_only=False) == "no interface takes part in multicast"
        for number, interfaces in enumerate(([LOOPBACK], [LOOPBACK, GONE], [MOVED], [LOOPBACK])):
            assert group.use(interfaces) == 1
            assert ("gone0" in group.join_problem) == (GONE in interfaces)
            assert group.send(str(number).encode(), is_loopback_only=True) is None
            await eventually(lambda number=number: str(number).encode() in [data for data, _ in heard])
            assert heard[-1][1].host.startswith("127.0.0.")
        assert group.use([]) == 0
        assert group.use([GONE]) == 0
        assert "gone0" in str(group.send(b"nobody", is_loopback_only=False))
    finally:
        group.close()
    assert not group.is_open
    await asyncio.sleep(0)
    assert [data for data, _ in heard] == [b"0", b"1", b"2", b"3"]


async def test_a_family_without_the_interface_is_no_end() -> None:
    group = Group(socket.AF_INET6, "ff02::65:786f", free_udp_port(), lambda *_: None)
    try:
        await group.open()
    except OSError:
        pytest.skip("this host has no IPv6")
    try:
        assert group.family_name == "IPv6"
        assert group.use([LOOPBACK]) == 0, "it has no address of this family"
        assert group.use([GONE]) == 0
        assert "gone0" in group.join_problem
    finally:
        group.close()


def test_interfaces_are_read_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_interfaces()
    assert found[0].is_loopback
    assert found[0].scope == scope_name(found[0].index)
    assert scope_name(0) is None
    assert scope_name(2**30) is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert scope_name(7) == "7"

    def fail() -> None:
        raise OSError(1, "not permitted")

    monkeypatch.setattr(ifaddr, "get_adapters", fail)
    assert read_interfaces() == []
    odd = ifaddr.Adapter(
        "odd0",
        "odd0",
        [ifaddr.IP("junk", 24, "odd0"), ifaddr.IP(("fe80::1%3", 0, 3), 64, "odd0")],
        index=None,
    )
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [odd])
    (interface,) = read_interfaces()
    assert (interface.v4, [str(one.ip) for one in interface.v6], interface.index) == ((), ["fe80::1"], 0)
    assert not interface.is_loopback
