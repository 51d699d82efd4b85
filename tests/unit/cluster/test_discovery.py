"""Being found: multicast between sockets of one host, and addresses that were named."""

import asyncio
import secrets
import socket
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface

import pytest
from loguru import logger

from exo.cluster.discovery.base import Discovery
from exo.cluster.discovery.beacon import decode_beacon
from exo.cluster.discovery.groups import GROUP_V4, Group, Heard
from exo.cluster.discovery.interfaces import Interface, read_interfaces
from exo.cluster.discovery.multicast import MulticastDiscovery, pace
from exo.cluster.discovery.static import StaticDiscovery
from exo.shared.types.nodes import HostPort
from support.discoveries import Ear, facts, free_udp_port, with_nodes
from support.virtual_time import run

SECRET = b"s" * 32
LOOPBACK = Interface("lo", 1, (IPv4Interface("127.0.0.1/8"),), (IPv6Interface("::1/128"),))
ETHERNET = Interface("eth0", 2, (IPv4Interface("10.0.0.1/24"),), (IPv6Interface("fe80::1/64"),))


def keys() -> list[bytes]:
    return [SECRET]


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What was said in the log."""
    said: list[str] = []
    handle = logger.add(lambda message: said.append(str(message)), level="INFO", format="{message}")
    yield said
    logger.remove(handle)


class ScriptedGroup(Group):
    """A group of which a test decides what works, and which keeps what was sent on which interface."""

    def __init__(self, family: socket.AddressFamily, heard: Heard, *, failures: dict[str, str]) -> None:
        super().__init__(family, "group", 1, heard)
        self.failures = failures
        self.sent: list[tuple[tuple[str, ...], bytes]] = []
        self.uses: list[tuple[str, ...]] = []
        self._is_open = False
        self._interfaces: tuple[Interface, ...] = ()

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def has_interfaces(self) -> bool:
        return self._is_open and bool(self._interfaces)

    async def open(self) -> None:
        if "open" in self.failures:
            raise OSError(97, self.failures["open"])
        self._is_open = True

    def use(self, interfaces: object) -> int:
        assert isinstance(interfaces, tuple)
        self._interfaces = interfaces
        self.uses.append(tuple(one.name for one in self._interfaces))
        return len(self._interfaces)

    def send(self, data: bytes, *, is_loopback_only: bool) -> str | None:
        names = tuple(one.name for one in self._interfaces if one.is_loopback or not is_loopback_only)
        self.sent.append((names, data))
        return self.failures.get("send")

    def close(self) -> None:
        self._is_open = False


class Air:
    """A discovery on scripted groups and interfaces."""

    def __init__(self, *, v4: dict[str, str] | None = None, v6: dict[str, str] | None = None) -> None:
        self.failures = {socket.AF_INET: v4 or {}, socket.AF_INET6: v6 or {}}
        self.interfaces: tuple[Interface, ...] = (LOOPBACK, ETHERNET)
        self.groups: list[ScriptedGroup] = []
        self.keys = [SECRET]

    def make_groups(self, heard: Heard) -> list[Group]:
        self.groups = [
            ScriptedGroup(family, heard, failures=self.failures[family]) for family in self.failures
        ]
        return list(self.groups)

    def discovery(self) -> MulticastDiscovery:
        return MulticastDiscovery(
            lambda: self.keys,
            port=1,
            jitter=lambda: 0.5,
            wall_clock=lambda: 0.0,
            interfaces=lambda: self.interfaces,
            make_groups=self.make_groups,
        )

    def told(self, seconds: float, **changes: object) -> None:
        """Let it run for so long, of virtual time."""

        async def story() -> None:
            task = asyncio.ensure_future(self.discovery().run(lambda: facts(**changes), lambda _: None))
            await asyncio.sleep(seconds)
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        run(story())


async def test_several_nodes_of_one_host_hear_each_other_at_once() -> None:
    port = free_udp_port()
    nodes: dict[str, Discovery] = {
        name: MulticastDiscovery(keys, port=port, interval_s=30.0) for name in ("a", "b", "c")
    }
    ears = {name: Ear() for name in nodes}

    async def story() -> None:
        for ear in ears.values():
            await ear.until(lambda ear=ear: ear.node_ids() == {"a", "b", "c"})

    await with_nodes(nodes, ears, story)


async def test_nodes_that_share_one_of_several_keys_hear_each_other() -> None:
    port = free_udp_port()
    nodes = {
        "member": MulticastDiscovery(lambda: [b"cluster" * 5, SECRET], port=port, interval_s=30.0),
        "neighbour": MulticastDiscovery(keys, port=port, interval_s=30.0),
        "remote": MulticastDiscovery(lambda: [b"cluster" * 5], port=port, interval_s=30.0),
    }
    ears = {name: Ear() for name in nodes}

    async def story() -> None:
        await ears["member"].until(lambda: ears["member"].node_ids() == {"member", "neighbour", "remote"})
        await ears["neighbour"].until(lambda: ears["neighbour"].node_ids() == {"member", "neighbour"})
        await ears["remote"].until(lambda: ears["remote"].node_ids() == {"member", "remote"})
        await ears["remote"].until(lambda: bool(ears["remote"].seen))
        assert {seen.node_id for seen in ears["remote"].seen} == {"neighbour"}

    await with_nodes(nodes, ears, story)


async def test_what_does_not_belong_is_counted_and_told_and_ignored() -> None:
    port = free_udp_port()
    node = MulticastDiscovery(keys, port=port, interval_s=0.1)
    stranger = MulticastDiscovery(lambda: [b"t" * 32], port=port, interval_s=0.1)
    ears = {"a": Ear(), "stranger": Ear()}

    async def story() -> None:
        await ears["a"].until(lambda: bool(ears["a"].sightings))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noisy:
            noisy.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            noisy.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            for noise in (
                b"",
                b"x",
                b"M-SEARCH * HTTP/1.1",
                secrets.token_bytes(1400),
                b"EXOB\x09" + bytes(64),
            ):
                noisy.sendto(noise, (GROUP_V4, port))
        await ears["a"].until(
            lambda: {seen.status for seen in ears["a"].seen} == {"malformed", "other_version", "other_secret"}
        )
        assert ears["a"].node_ids() == {"a"}, "only itself"
        assert node.counts["other_version"] == 1
        assert 1 <= node.counts["malformed"] <= 4
        assert {seen.node_id for seen in ears["a"].seen if seen.status == "other_secret"} == {"stranger"}

    await with_nodes({"a": node, "stranger": stranger}, ears, story)


async def test_ipv6_carries_beacons_where_an_interface_has_it() -> None:
    port = free_udp_port()
    interfaces = [one for one in read_interfaces() if one.v6 and not one.is_loopback]
    if not interfaces:
        pytest.skip("this host has no IPv6 beside its loopback; the namespaces test has")

    def only_v6(heard: Heard) -> list[Group]:
        return [Group(socket.AF_INET6, "ff02::65:786f", port, heard)]

    anywhere = {"cluster_address": HostPort("::", 7), "master_address": HostPort("::", 7)}
    nodes = {
        name: MulticastDiscovery(keys, port=port, interval_s=0.2, make_groups=only_v6) for name in ("a", "b")
    }
    ears = {name: Ear() for name in nodes}
    sources = {name: lambda name=name: facts(name, **anywhere) for name in nodes}

    async def story() -> None:
        await ears["a"].until(lambda: ears["a"].node_ids() == {"a", "b"})
        found = next(one for one in ears["a"].sightings if one.facts is not None and one.facts.node_id == "b")
        assert found.facts is not None
        assert found.address == found.facts.master_address
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as server:
            server.bind(("::", 0))
            server.listen()
            host = found.address.host
            _, writer = await asyncio.open_connection(host, server.getsockname()[1])
            writer.close()
            await writer.wait_closed()

    await with_nodes(nodes, ears, story, sources)


def test_a_node_of_loopback_speaks_on_loopback_alone() -> None:
    air = Air()
    air.told(5)
    assert {names for group in air.groups for names, _ in group.sent} == {("lo",)}
    air.told(5, cluster_address=HostPort("0.0.0.0", 7))
    assert {names for group in air.groups for names, _ in group.sent} == {("lo", "eth0")}
    times = len(air.groups[0].sent)
    assert 4 <= times <= 6
    assert all(decode_beacon([SECRET], data) != "malformed" for _, data in air.groups[1].sent)


def test_interfaces_that_come_and_go_are_noticed() -> None:
    air = Air()

    async def story() -> None:
        task = asyncio.ensure_future(air.discovery().run(facts, lambda _: None))
        await asyncio.sleep(1)
        air.interfaces = (LOOPBACK,)
        await asyncio.sleep(12)
        air.interfaces = (LOOPBACK, ETHERNET)
        await asyncio.sleep(12)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story())
    assert air.groups[0].uses == [("lo", "eth0"), ("lo",), ("lo", "eth0")]
    assert not any(group.is_open for group in air.groups), "closed at the end"


def test_without_keys_a_node_only_listens() -> None:
    air = Air()
    air.keys = []
    air.told(5)
    assert [group.sent for group in air.groups] == [[], []]


def test_without_multicast_it_says_so_once_and_is_quiet(lines: list[str]) -> None:
    closed = {"open": "No such device"}
    air = Air(v4=closed, v6=closed)
    air.told(60)
    assert len(lines) == 1
    assert "No such device" in lines[0]
    assert "--peer" in lines[0]
    lines.clear()
    closed.clear()
    air.told(60)
    assert lines == []


def test_without_ipv6_it_says_so_once_and_goes_on(lines: list[str]) -> None:
    air = Air(v6={"open": "Address family not supported"})
    air.told(60)
    assert len(lines) == 1
    assert "IPv6: Address family not supported" in lines[0]
    assert len(air.groups[0].sent) > 50


def test_beacons_that_cannot_leave_are_told_once(lines: list[str]) -> None:
    unreachable = {"send": "eth0: Network is unreachable"}
    Air(v6=unreachable).told(60)
    assert lines == []
    Air(v4=unreachable, v6=unreachable).told(60)
    assert len(lines) == 1
    assert "Network is unreachable" in lines[0]


def test_a_namespace_too_long_for_a_beacon_is_told(lines: list[str]) -> None:
    air = Air()
    air.told(3, namespace="n" * 1000)
    assert len(lines) == 1
    assert "--namespace" in lines[0]
    assert [group.sent for group in air.groups] == [[], []]


async def test_a_port_that_another_program_keeps_to_itself_is_no_end() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        group = Group(socket.AF_INET, GROUP_V4, port, lambda *_: None)
        with pytest.raises(OSError, match="in use"):
            await group.open()
        assert not group.is_open
        group.close()


def test_many_nodes_speak_more_seldom() -> None:
    assert pace(1, 1.0) == (0.05, 1.0)
    assert pace(250, 1.0)[1] == 1.0
    assert pace(1000, 1.0) == (2.5, 4.0)
    assert pace(10**6, 1.0)[1] == 4.0
    assert pace(1, 30.0)[1] == 30.0
    for count in range(1, 1001):
        pause_s, interval_s = pace(count, 1.0)
        assert count / interval_s <= 250 * 1.001
        assert count / pause_s <= 400 * 1.001


def test_named_peers_are_tried_again_and_again_ever_more_slowly() -> None:
    peers = [HostPort("127.0.0.1", 1), HostPort("127.0.0.1", 2), HostPort("127.0.0.1", 1)]
    times: list[tuple[float, int]] = []

    async def story() -> None:
        loop = asyncio.get_running_loop()
        discovery = StaticDiscovery(peers, pause_s=(0.25, 4.0))
        task = asyncio.ensure_future(
            discovery.run(facts, lambda item: times.append((loop.time(), item.address.port)))  # type: ignore[union-attr]
        )
        await asyncio.sleep(20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(story())
    assert [at for at, port in times if port == 1] == [0, 0.25, 0.75, 1.75, 3.75, 7.75, 11.75, 15.75, 19.75]
    assert [port for _, port in times[:4]] == [1, 2, 1, 2]
