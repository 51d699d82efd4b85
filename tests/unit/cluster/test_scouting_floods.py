"""Announcements come from anybody: a flood of them costs little, and keeps no node from its master."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from loguru import logger

from exo.cluster import scouting, sightings
from exo.cluster.facts import Sighting
from exo.cluster.replica import EmbeddedCoordinator
from exo.shared.types.ids import ClusterId
from exo.shared.types.nodes import HostPort
from support.coordinators import MemoryCluster, closing


@pytest.fixture
async def cluster() -> AsyncIterator[MemoryCluster]:
    async with closing(MemoryCluster()) as cluster:
        assert isinstance(cluster, MemoryCluster)
        yield cluster


@pytest.fixture
async def node(cluster: MemoryCluster) -> EmbeddedCoordinator:
    return await cluster.start("a")


async def test_addresses_without_end_are_not_kept(node: EmbeddedCoordinator) -> None:
    scout = node._scout
    for number in range(5000):
        scout.report(Sighting(address=HostPort(f"h{number}", 1), via="mdns"))
    assert len(scout._to_look_at) == scouting.TO_LOOK_AT_MAX


async def test_mistakes_without_end_are_not_logged(node: EmbeddedCoordinator) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING")
    try:
        own = node._kernel.situation.facts()
        for number in range(1000):
            copy = msgspec.structs.replace(own, boot_id=f"boot-{number}", cluster_id=ClusterId(f"c{number}"))
            node._scout.report(Sighting(address=HostPort("x", 1), facts=copy, via="multicast"))
    finally:
        logger.remove(sink)
    assert len(lines) == sightings.WARNINGS_MAX
    assert [peer.status for peer in node.peers_seen] == ["same_node_id"]


async def test_a_forged_echo_does_not_keep_a_node_from_its_master(cluster: MemoryCluster) -> None:
    master, node = await cluster.start_cluster("a", "b")
    address = master.state.nodes[master.node_id].identity.cluster_address
    own = node._kernel.situation.facts()
    for number in range(1000):
        port = number or address.port
        forged = msgspec.structs.replace(own, cluster_address=HostPort(address.host, port))
        node._scout.report(Sighting(address=address, facts=forged, via="multicast"))
    assert len(node._scout._own_addresses) == scouting.OWN_ADDRESSES_MAX
    cluster.network.break_connections("a", "b")
    await cluster.until(lambda: node.leadership.master_node_id is None)
    assert address in node._scout._wanted()
    await cluster.until_one()
