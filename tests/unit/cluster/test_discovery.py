"""Being found: beacons that prove themselves, multicast between sockets of one host, and addresses that were named."""

import asyncio
import secrets
import socket
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from exo.cluster.discovery.base import Discovery
from exo.cluster.discovery.beacon import BEACON_BYTES_MAX, decode_beacon, encode_beacon
from exo.cluster.discovery.multicast import GROUP, MulticastDiscovery
from exo.cluster.discovery.static import StaticDiscovery
from exo.cluster.facts import ClusterFacts, PeerSeen, Sighting
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort
from support.virtual_time import run

SECRET = b"s" * 32


def facts(node_id: str = "a", **changes: object) -> ClusterFacts:
    own = ClusterFacts(
        exo_version="1",
        namespace="test",
        node_id=NodeId(node_id),
        boot_id=f"boot-{node_id}",
        name="a host with a long name " * 4,
        cluster_address=HostPort("127.0.0.1", 50000),
        cluster_id=ClusterId("c" * 32),
        incarnation=1,
        term=1,
        index=2**40,
        master_node_id=NodeId(node_id),
        master_address=HostPort("127.0.0.1", 50000),
        member_count=1000,
        instance_count=10,
    )
    return msgspec.structs.replace(own, **changes)


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_beacon_tells_the_facts_to_whoever_has_the_secret() -> None:
    beacon = encode_beacon(SECRET, facts())
    assert len(beacon) <= BEACON_BYTES_MAX
    assert decode_beacon(SECRET, beacon) == facts(name=facts().name[:64]), "names may be long"
    assert decode_beacon(b"t" * 32, beacon) == "other_secret"


@given(st.integers(min_value=0))
def test_no_bit_of_a_beacon_can_be_changed(position: int) -> None:
    beacon = bytearray(encode_beacon(SECRET, facts()))
    position %= 8 * len(beacon)
    beacon[position // 8] ^= 1 << position % 8
    assert isinstance(decode_beacon(SECRET, bytes(beacon)), str)


@given(st.binary(max_size=300))
def test_noise_is_no_beacon(data: bytes) -> None:
    assert isinstance(decode_beacon(SECRET, data), str)
    assert isinstance(decode_beacon(SECRET, b"EXOB\x01" + data), str)


class Ear:
    """What one discovery reported."""

    def __init__(self) -> None:
        self.sightings: list[Sighting] = []
        self.seen: list[PeerSeen] = []
        self._changed = asyncio.Event()

    def report(self, item: Sighting | PeerSeen) -> None:
        if isinstance(item, Sighting):
            self.sightings.append(item)
        else:
            self.seen.append(item)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def node_ids(self) -> set[str]:
        return {sighting.facts.node_id for sighting in self.sightings if sighting.facts is not None}


async def with_nodes(nodes: dict[str, Discovery], ears: dict[str, Ear], story: Callable[[], object]) -> None:
    tasks = [
        asyncio.ensure_future(node.run(lambda name=name: facts(name), ears[name].report))
        for name, node in nodes.items()
    ]
    try:
        await story()  # type: ignore[misc]
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def test_several_nodes_of_one_host_hear_each_other_at_once() -> None:
    port = free_udp_port()
    nodes: dict[str, Discovery] = {
        name: MulticastDiscovery(SECRET, port=port, interval_s=30.0) for name in ("a", "b", "c")
    }
    ears = {name: Ear() for name in nodes}

    async def story() -> None:
        for ear in ears.values():
            await ear.until(lambda ear=ear: ear.node_ids() == {"a", "b", "c"})

    await with_nodes(nodes, ears, story)


async def test_what_does_not_belong_is_counted_and_told_and_ignored() -> None:
    port = free_udp_port()
    node = MulticastDiscovery(SECRET, port=port, interval_s=0.1)
    stranger = MulticastDiscovery(b"t" * 32, port=port, interval_s=0.1)
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
                noisy.sendto(noise, (GROUP, port))
        await ears["a"].until(lambda: node.counts["malformed"] >= 4 and node.counts["other_version"] >= 1)
        await ears["a"].until(lambda: node.counts["other_secret"] >= 2)
        assert ears["a"].node_ids() == {"a"}, "only itself"
        assert {seen.status for seen in ears["a"].seen} == {"malformed", "other_version", "other_secret"}

    await with_nodes({"a": node, "stranger": stranger}, ears, story)


async def test_without_multicast_it_says_so_once_and_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(str(message)), level="INFO")

    def refuse(*_: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("exo.cluster.discovery.multicast._open_receiver", refuse)
    task = asyncio.ensure_future(MulticastDiscovery(SECRET, port=1).run(facts, lambda _: None))
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    logger.remove(handle)
    assert len(lines) == 1 and "--peer" in lines[0]


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
