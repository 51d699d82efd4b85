"""Where members were before they started again is tried as long as it is of use, and then no longer told."""

from exo.cluster.discovery.introduced import IntroducedPeers
from exo.cluster.facts import Sighting
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.coordinators import MemoryCluster, closing

OLD = HostPort("old", 7)


def addresses(cluster_node: object) -> list[HostPort | None]:
    return [seen.address for seen in cluster_node.peers_seen]  # pyright: ignore


async def test_the_old_address_of_a_member_that_is_here_again_is_told_no_longer() -> None:
    async with closing(MemoryCluster()) as cluster:
        assert isinstance(cluster, MemoryCluster)
        master, _ = await cluster.start_cluster("a", "b")
        # Somebody said nothing but an address: it is tried, cannot be reached, and people are told.
        master._scout.report(Sighting(address=OLD, via="introduced"))
        await cluster.until(lambda: OLD in addresses(master))
        master._scout.report(Sighting(address=OLD, via="introduced", expected_node_id=NodeId("b")))
        assert OLD not in addresses(master)
        assert OLD not in master._scout._to_look_at


async def test_while_it_is_away_its_old_address_is_tried() -> None:
    async with closing(MemoryCluster()) as cluster:
        assert isinstance(cluster, MemoryCluster)
        master, _ = await cluster.start_cluster("a", "b")
        master._scout.report(Sighting(address=OLD, via="introduced", expected_node_id=NodeId("nobody")))
        await cluster.until(lambda: OLD in addresses(master))


async def test_who_was_seen_where_goes_along() -> None:
    found: list[Sighting] = []
    introduced = IntroducedPeers()
    introduced.introduce(OLD, NodeId("b"))
    introduced.introduce(HostPort("token", 1))

    class EnoughError(Exception):
        """Raised when both were told."""

    def report(sighting: object) -> None:
        assert isinstance(sighting, Sighting)
        found.append(sighting)
        if len(found) == 2:
            raise EnoughError

    try:
        await introduced.run(lambda: None, report)  # pyright: ignore
    except EnoughError:
        pass
    assert [(one.address, one.expected_node_id) for one in found] == [
        (OLD, "b"),
        (HostPort("token", 1), None),
    ]
