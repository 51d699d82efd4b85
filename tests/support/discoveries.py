"""What the tests of finding nodes share: facts, an ear for reports, and nodes that run for the length of a story."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from exo.cluster.discovery.base import Discovery
from exo.cluster.facts import ClusterFacts, PeerSeen, Sighting
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort


def facts(node_id: str = "a", **changes: object) -> ClusterFacts:
    """Return a node's facts."""
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
    """Return a UDP port that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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

    async def until(self, condition: Callable[[], bool], *, timeout_s: float = 10) -> None:
        """Wait until a condition holds that only a report can make true."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def node_ids(self) -> set[str]:
        return {sighting.facts.node_id for sighting in self.sightings if sighting.facts is not None}

    def addresses(self) -> set[str]:
        return {str(sighting.address) for sighting in self.sightings}


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 10) -> None:
    """Wait until a condition holds that nobody tells of."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110, what is waited for has no event of its own
            await asyncio.sleep(0.01)


async def with_nodes(
    nodes: Mapping[str, Discovery],
    ears: Mapping[str, Ear],
    story: Callable[[], Awaitable[None]],
    sources: Mapping[str, Callable[[], ClusterFacts]] | None = None,
) -> None:
    """Run discoveries during a story; each must go on until it is cancelled, and then end.

    Args:
        nodes: By name; a node's id is its name unless `sources` says otherwise.
        sources: Facts by name.
    """
    tasks = [
        asyncio.ensure_future(
            node.run((sources or {}).get(name, lambda name=name: facts(name)), ears[name].report)
        )
        for name, node in nodes.items()
    ]
    try:
        await story()
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results
