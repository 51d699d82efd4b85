"""The embedded coordinator where it is more than the contract: joining, yielding, waiting, and disks that fail."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from loguru import logger

from exo.cluster.discovery.memory import MemoryDiscovery
from exo.cluster.discovery.static import StaticDiscovery
from exo.cluster.errors import LogWriteError
from exo.cluster.log.store import memory_store, open_store
from exo.cluster.membership import STOPPED
from exo.cluster.options import CoordinatorOptions
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.transport.tcp import TcpTransport
from exo.shared.errors import ConfigurationError, NoMasterError
from exo.shared.types.commands import Command, Deleted, DeleteInstance, Reply
from exo.shared.types.events import DeviceLost, InstanceCreated, LogEntry, NodeModelsChanged, TelemetryFrame
from exo.shared.types.ids import CommandId, InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from support.coordinators import QUICK, Cluster, MemoryCluster, TcpCluster, closing
from support.faulty_story import instance
from support.power_loss import PowerLossFiles
from support.simulated_cluster import Simulation, tagged
from support.states import card, identity
from support.virtual_time import run
from support.yielding_story import YieldingStory


@pytest.fixture
async def cluster() -> AsyncIterator[MemoryCluster]:
    async with closing(MemoryCluster()) as cluster:
        assert isinstance(cluster, MemoryCluster)
        yield cluster


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(handle)


async def entries_from(feed: AsyncIterator[LogEntry | TelemetryFrame], count: int) -> list[LogEntry]:
    found: list[LogEntry] = []
    async with asyncio.timeout(5):
        async for item in feed:
            if isinstance(item, LogEntry):
                found.append(item)
                if len(found) == count:
                    break
    return found


# --- joining and yielding ----------------------------------------------------------------------------------------


def test_followers_of_a_cluster_that_yields_go_along() -> None:
    async def story() -> None:
        simulation = Simulation(3, "abcde")
        small, large = ["a", "b"], ["c", "d", "e"]
        for one in small:
            simulation.network.isolate(one, large)
        await simulation.start_all()
        ups = {host: node.up for host, node in simulation.nodes.items()}

        def are_two() -> bool:
            ids = [{ups[host].state.cluster_id for host in side} for side in (small, large)]
            sizes = [{len(ups[host].state.nodes) for host in side} for side in (small, large)]
            return [len(one) for one in ids] == [1, 1] and sizes == [{2}, {3}]

        await simulation.until(are_two, timeout_s=5)
        kept = ups["c"].state.cluster_id
        model = card("local to b")
        await ups["b"].propose([NodeModelsChanged(node_id=NodeId("b"), models=(model,))], cause_id="c")
        simulation.network.heal()
        started_s = asyncio.get_running_loop().time()
        await simulation.until(simulation.is_one, timeout_s=8)
        assert asyncio.get_running_loop().time() - started_s < 4
        assert ups["a"].state.cluster_id == kept, "the larger one stays"
        assert ups["a"].state.nodes[NodeId("b")].identity.models == (model,), "a node's facts come along"
        ids = {ups[host].state.nodes[NodeId("b")].identity.boot_id for host in "abcde"}
        assert len(ids) == 1
        await simulation.stop_all()

    run(story())


@pytest.mark.parametrize("host", ["master", "voter", "observer"])
def test_whoever_stops_is_known_to_have_stopped_however_soon_it_ends_then(host: str) -> None:
    async def story() -> None:
        simulation = Simulation(8, "abcdefgh", delay_s=0.1)
        await simulation.start_all()
        await simulation.until(simulation.is_one, timeout_s=20)
        await simulation.until(lambda: len(simulation.master.up.state.voters.voters) == 5, timeout_s=20)
        voters = simulation.master.up.state.voters.members
        others = [node for node in simulation.running if node is not simulation.master]
        leaver = {
            "master": simulation.master,
            "voter": next(node for node in others if node.host in voters),
            "observer": next(node for node in others if node.host not in voters),
        }[host]
        witness = next(node for node in others if node is not leaver)
        await leaver.stop()

        def is_told() -> bool:
            one = witness.up.state.nodes[NodeId(leaver.host)]
            return not one.is_connected and one.left_reason == STOPPED

        await simulation.until(is_told, timeout_s=3)
        await simulation.stop_all()

    run(story())


def test_a_cluster_with_an_instance_is_senior_to_a_larger_one_without() -> None:
    async def story() -> None:
        simulation = Simulation(4, "abcd")
        simulation.network.isolate("a", ["b", "c", "d"])
        await simulation.start_all()
        ups = {host: node.up for host, node in simulation.nodes.items()}
        await simulation.until(lambda: len(ups["b"].state.nodes) == 3, timeout_s=5)
        await ups["a"].propose([InstanceCreated(instance=instance())], cause_id="c")
        kept = ups["a"].state.cluster_id
        simulation.network.heal()
        await simulation.until(simulation.is_one, timeout_s=8)
        assert ups["b"].state.cluster_id == kept
        assert ups["a"].leadership.is_self
        await simulation.stop_all()

    run(story())


def test_two_clusters_with_instances_stay_apart_and_say_so_once(warnings: list[str]) -> None:
    async def story() -> None:
        simulation = Simulation(5, "ab")
        simulation.network.cut("a", "b")
        await simulation.start_all()
        ups = {host: node.up for host, node in simulation.nodes.items()}
        for up in ups.values():
            await up.propose([InstanceCreated(instance=instance())], cause_id="c")
        simulation.network.heal()
        await asyncio.sleep(20)
        simulation.check()
        assert ups["a"].state.cluster_id != ups["b"].state.cluster_id
        for host, other in (("a", "b"), ("b", "a")):
            (seen,) = [one for one in ups[host].peers_seen if one.node_id == other]
            assert seen.status == "both_have_instances"
            assert seen.cluster_id == ups[other].state.cluster_id
            assert seen.age_s < 2 and seen.count > 10
        await simulation.stop_all()

    run(story())
    assert len([line for line in warnings if "such clusters are not merged" in line]) == 2


def test_an_orphan_without_instances_joins_others_after_a_while() -> None:
    async def story() -> None:
        simulation = Simulation(6, "abc")
        simulation.network.isolate("c", ["a", "b"])
        await simulation.start_all()
        nodes = simulation.nodes
        await simulation.until(
            lambda: len(nodes["a"].up.state.nodes) == 2 == len(nodes["b"].up.state.nodes), timeout_s=5
        )
        master, orphan = sorted((nodes["a"], nodes["b"]), key=lambda node: not node.up.leadership.is_self)
        await master.kill()
        simulation.network.heal()
        await asyncio.sleep(5)
        assert orphan.up.leadership.master_node_id is None, "it waits for its master first"
        await simulation.until(lambda: orphan.up.leadership.master_node_id == "c", timeout_s=10)
        await simulation.start_all()
        await simulation.until(simulation.is_one, timeout_s=8)
        await simulation.stop_all()

    run(story())


def test_an_orphan_with_instances_waits_for_its_master() -> None:
    async def story() -> None:
        simulation = Simulation(7, "abc")
        simulation.network.isolate("c", ["a", "b"])
        await simulation.start_all()
        nodes = simulation.nodes
        await simulation.until(
            lambda: len(nodes["a"].up.state.nodes) == 2 == len(nodes["b"].up.state.nodes), timeout_s=5
        )
        master, orphan = sorted((nodes["a"], nodes["b"]), key=lambda node: not node.up.leadership.is_self)
        await master.up.propose([InstanceCreated(instance=instance())], cause_id="c")
        await simulation.until(lambda: bool(orphan.up.state.instances), timeout_s=1)
        kept = orphan.up.state.cluster_id
        await master.kill()
        simulation.network.heal()
        await asyncio.sleep(60)
        assert orphan.up.leadership.master_node_id is None
        assert orphan.up.state.cluster_id == kept and orphan.up.state.instances
        await master.start()
        await simulation.until(simulation.is_one, timeout_s=8)
        assert nodes["c"].up.state.cluster_id == kept
        await simulation.stop_all()

    run(story())


async def test_a_node_that_was_named_by_nobody_is_joined_through_a_follower(tmp_path: Path) -> None:
    """`--peer` of any node of a cluster is enough, in either direction."""
    async with closing(TcpCluster(tmp_path)) as cluster:
        first = await cluster.start("a", discoveries=[])
        second = await cluster.start("b", discoveries=[StaticDiscovery([address(first)], pause_s=(0.1, 0.3))])
        await cluster.until_one()
        follower = second if first.leadership.is_self else first
        third = await cluster.start(
            "c", discoveries=[StaticDiscovery([address(follower)], pause_s=(0.1, 0.3))]
        )
        await cluster.until_one()
        assert len(third.state.nodes) == 3


async def test_a_follower_that_names_a_newcomer_brings_it_in(tmp_path: Path) -> None:
    async with closing(TcpCluster(tmp_path)) as cluster:
        transport = TcpTransport(b"s" * 32)
        async with await transport.listen(HostPort("127.0.0.1", 0)) as placeholder:
            later = placeholder.address
        peers = StaticDiscovery([later], pause_s=(0.1, 0.2))
        first = await cluster.start("a", discoveries=[])
        await cluster.start("b", discoveries=[StaticDiscovery([address(first)], pause_s=(0.1, 0.2)), peers])
        await cluster.until_one()
        listener = await transport.listen(later)
        newcomer = EmbeddedCoordinator(
            identity=msgspec.structs.replace(identity("c"), cluster_address=later),
            namespace="test",
            store=memory_store(),
            transport=transport,
            listener=listener,
            options=QUICK,
        )
        task = asyncio.ensure_future(newcomer.run())
        await cluster.until(lambda: len(newcomer.state.nodes) == 3)
        task.cancel()
        await asyncio.wait([task])


def address(node: EmbeddedCoordinator) -> HostPort:
    return node.state.nodes[node.node_id].identity.cluster_address


async def test_other_namespaces_and_other_secrets_are_told_apart(tmp_path: Path, warnings: list[str]) -> None:
    async with closing(TcpCluster(tmp_path)) as cluster:
        strange = TcpTransport(b"t" * 32)
        far = await cluster.start("far", namespace="far", discoveries=[])
        listener = await strange.listen(HostPort("127.0.0.1", 0))
        nobody = HostPort("127.0.0.1", 1)
        peers = [address(far), listener.address, nobody]
        node = await cluster.start("a", discoveries=[StaticDiscovery(peers, pause_s=(0.1, 0.2))])
        await cluster.until(lambda: len(node.peers_seen) == 3)
        seen = {peer.address: peer for peer in node.peers_seen}
        assert [seen[peer].status for peer in peers] == ["other_namespace", "other_secret", "unreachable"]
        assert seen[peers[0]].namespace == "far"
        assert "EXO_HOST_SECRET_FILE" in seen[listener.address].detail
        assert len(node.state.nodes) == 1
        await cluster.until(
            lambda: len([peer for peer in far.peers_seen if peer.status == "other_namespace"]) == 1
        )
        await listener.close()
    assert len(warnings) == 2, "once for each, however often they are seen"


async def test_naming_a_peer_on_another_host_is_answered_with_a_warning(
    tmp_path: Path, warnings: list[str]
) -> None:
    async with closing(TcpCluster(tmp_path)) as cluster:
        peer = HostPort("192.0.2.77", 52416)
        node = await cluster.start("a", discoveries=[StaticDiscovery([peer], pause_s=(0.05, 0.05))])
        await cluster.until(lambda: any(seen.count > 2 for seen in node.peers_seen))
        assert [(seen.address, seen.status) for seen in node.peers_seen] == [(peer, "unreachable")]
    (warning,) = warnings
    assert "only nodes of this host are admitted" in warning


def test_commands_wait_until_a_fresh_node_has_found_its_cluster() -> None:
    async def story() -> None:
        simulation = Simulation(8, "ab", options=CoordinatorOptions(settle_s=1.0))
        await simulation.nodes["a"].start()
        await simulation.nodes["a"].up.propose([InstanceCreated(instance=instance())], cause_id="c")
        await simulation.nodes["b"].start()
        fresh = simulation.nodes["b"].up
        command = DeleteInstance(command_id=CommandId("early"), instance_id=InstanceId("i"))
        assert fresh.leadership.is_self, "alone at first"
        reply = await fresh.send(command, timeout_s=5)
        assert isinstance(reply, Deleted)
        (carried_out,) = [
            entry
            for entry in simulation.nodes["a"].store.log.read()
            if isinstance(entry.event, DeviceLost) and entry.event.reason == "early"
        ]
        assert carried_out.origin == "a", "the cluster's master did it, not the fresh node for itself"
        await simulation.stop_all()

    run(story())


def test_a_node_that_stays_alone_carries_commands_out_soon() -> None:
    async def story() -> float:
        simulation = Simulation(9, "a", options=CoordinatorOptions(settle_s=1.0))
        await simulation.start_all()
        started_s = asyncio.get_running_loop().time()
        command = DeleteInstance(command_id=CommandId("x"), instance_id=InstanceId("i"))
        await simulation.nodes["a"].up.send(command, timeout_s=5)
        took_s = asyncio.get_running_loop().time() - started_s
        await simulation.stop_all()
        return took_s

    assert 0.5 < run(story()) < 1.1


async def test_a_node_with_a_command_under_way_does_not_yield(cluster: MemoryCluster) -> None:
    node = await cluster.start("a")
    is_under_way, may_go_on = asyncio.Event(), asyncio.Event()

    async def slowly(command: Command) -> Reply:
        is_under_way.set()
        await may_go_on.wait()
        index = await node.propose([tagged("a", "done")], cause_id="c")
        return Deleted(instance_id=InstanceId("i"), index=index)

    node.set_command_handler(slowly)
    own = node.state.cluster_id
    sending = asyncio.ensure_future(
        node.send(DeleteInstance(command_id=CommandId("x"), instance_id=InstanceId("i")), timeout_s=8)
    )
    await is_under_way.wait()
    senior = await cluster.start("b")
    await senior.propose([InstanceCreated(instance=instance())], cause_id="c")
    await asyncio.sleep(0.6)
    assert node.state.cluster_id == own
    may_go_on.set()
    assert isinstance(await sending, Deleted)
    await cluster.until_one()
    assert node.state.cluster_id == senior.state.cluster_id


@pytest.mark.parametrize("seed", range(5))
def test_a_node_that_yields_acknowledges_nothing_that_it_then_forgets(seed: int) -> None:
    run(YieldingStory(seed).tell())


async def test_only_facts_wait_for_a_master(cluster: MemoryCluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    name = str(master.node_id)
    await cluster.stop(name)
    await cluster.until(lambda: follower.leadership.master_node_id is None)
    told = asyncio.ensure_future(follower.propose([tagged(follower.node_id, "a fact")], cause_id="c"))
    with pytest.raises(NoMasterError, match="does not lead"):
        await follower.propose([InstanceCreated(instance=instance())], cause_id="c")
    await cluster.start(name)
    assert await told > 0
    assert not follower.state.instances


# --- disks ---------------------------------------------------------------------------------------------------------


async def test_a_full_disk_ends_the_node_and_keeps_what_was_acknowledged(cluster: MemoryCluster) -> None:
    files = PowerLossFiles()
    node = await cluster.start("a", store=open_store(Path("disk"), files=files))
    acknowledged = [await node.propose([tagged("a", str(n))], cause_id="c") for n in range(5)]
    files.room_bytes = 100
    proposals = [
        asyncio.ensure_future(node.propose([tagged("a", f"late {n}")], cause_id="c")) for n in range(3)
    ]
    failure = await cluster.failure_of("a")
    assert isinstance(failure, LogWriteError)
    assert "No space left" in failure.message and failure.exit_code != 0
    for proposal in proposals:
        with pytest.raises(NoMasterError):
            await asyncio.wait_for(proposal, 1)
    with pytest.raises(NoMasterError):
        await node.propose([tagged("a", "later")], cause_id="c")
    files.lose_power(kept_bytes=50)
    again = await cluster.start("a", store=open_store(Path("disk"), files=files))
    entries = await entries_from(again.feed(0), again.state.index)
    reasons = {entry.index: entry.event.reason for entry in entries if isinstance(entry.event, DeviceLost)}
    assert [reasons[index] for index in acknowledged] == ["0", "1", "2", "3", "4"]
    assert set(reasons.values()) == {"0", "1", "2", "3", "4"}, (
        "what was not acknowledged was not written whole"
    )


async def test_a_failing_disk_of_the_master_leaves_the_followers_waiting(cluster: MemoryCluster) -> None:
    files = PowerLossFiles()
    disk = open_store(Path("disk"), files=files)
    master = await cluster.start("a", store=disk)
    await master.propose([InstanceCreated(instance=instance())], cause_id="c")
    follower = await cluster.start("b")
    await cluster.until_one()
    files.is_sync_failing = True
    with pytest.raises(NoMasterError):
        await follower.propose([tagged("b", "x")], cause_id="c")
    assert isinstance(await cluster.failure_of("a"), LogWriteError)
    await cluster.until(lambda: follower.leadership.master_node_id is None)
    files.lose_power()
    await cluster.start("a", store=open_store(Path("disk"), files=files))
    await cluster.until_one()
    feed = follower.feed(0)
    await follower.propose([tagged("b", "last")], cause_id="c")
    reasons: list[str] = []
    async with asyncio.timeout(5):
        async for item in feed:
            if isinstance(item, LogEntry) and isinstance(item.event, DeviceLost):
                reasons.append(item.event.reason)
                if reasons[-1] == "last":
                    break
    assert reasons in (["x", "last"], ["last"]), "given up, and never twice"


async def test_another_namespaces_log_is_refused(cluster: MemoryCluster) -> None:
    await cluster.start("a")
    await cluster.stop("a")
    with pytest.raises(ConfigurationError, match="namespace 'test', not 'other'"):
        await cluster.start("a", namespace="other")


async def test_one_sync_serves_everything_that_waited_for_it(cluster: MemoryCluster) -> None:
    files = PowerLossFiles()
    node = await cluster.start("a", store=open_store(Path("disk"), files=files))
    before = files.sync_count
    await asyncio.gather(*(node.propose([tagged("a", str(n))], cause_id="c") for n in range(500)))
    assert files.sync_count - before < 20


# --- watching ------------------------------------------------------------------------------------------------------


class TestFeeds:
    """Feeds that reach back further than memory, and consumers that do not keep up."""

    @pytest.fixture
    async def small(self) -> AsyncIterator[Cluster]:
        options = msgspec.structs.replace(QUICK, recent_entries=10, feed_backlog=20)
        async with closing(MemoryCluster(options)) as cluster:
            yield cluster

    async def test_a_master_reaches_back_to_the_first_decision(self, small: Cluster) -> None:
        node = await small.start("a")
        for number in range(50):
            await node.propose([tagged("a", str(number))], cause_id="c")
        feed = node.feed(0)
        index = await node.propose([tagged("a", "last")], cause_id="c")
        entries = await entries_from(feed, index)
        assert [entry.index for entry in entries] == list(range(1, index + 1))

    async def test_a_follower_begins_with_what_it_has(self, small: Cluster) -> None:
        master, follower = await small.start_cluster("a", "b")
        for number in range(50):
            index = await master.propose([tagged("a", str(number))], cause_id="c")
        await small.until(lambda: follower.state.index == index)
        (first, *_) = await entries_from(follower.feed(0), 1)
        assert index - 20 < first.index <= index

    async def test_a_consumer_that_falls_behind_loses_its_feed_and_no_decision(self, small: Cluster) -> None:
        node = await small.start("a")
        feed = node.feed()
        index = node.state.index
        for number in range(30):
            await node.propose([tagged("a", str(number))], cause_id="c")
        seen = [item.index async for item in feed if isinstance(item, LogEntry)]
        assert seen == list(range(index + 1, index + 21)), "the feed ended after what it could hold"
        (following,) = await entries_from(node.feed(seen[-1]), 1)
        assert following.index == seen[-1] + 1

    async def test_a_feed_ends_when_the_node_joins_another_cluster(self, small: MemoryCluster) -> None:
        small.network.cut("a", "b")
        one = await small.start("a")
        two = await small.start("b")
        await two.propose([InstanceCreated(instance=instance())], cause_id="c")
        feed = one.feed()
        small.network.heal()
        await small.until_one()
        async with asyncio.timeout(2):
            assert [item async for item in feed if isinstance(item, LogEntry)] == []


def test_a_follower_that_falls_far_behind_skips_ahead() -> None:
    """A slow link, more decisions than the master remembers: a snapshot in the middle of the connection."""

    async def story() -> None:
        simulation = Simulation(11, "ab", options=CoordinatorOptions(recent_entries=8, entries_per_message=2))
        await simulation.start_all()
        await simulation.until(simulation.is_one, timeout_s=5)
        master = simulation.master
        (follower,) = [node for node in simulation.nodes.values() if node is not master]
        session = follower.up
        terms = session.leadership.term
        big = "x" * 200_000
        simulation.network.cut("a", "b")
        for number in range(60):
            await master.up.propose([tagged(master.host, f"{number} {big}")], cause_id="c")
        simulation.network.heal()
        await simulation.until(simulation.is_one, timeout_s=5)
        assert follower.up is session and session.leadership.term == terms
        assert session.state.index == master.up.state.index
        await session.propose([tagged(follower.host, "after")], cause_id="c")
        await simulation.stop_all()

    run(story())


async def test_links_are_measured_and_told_to_all(tmp_path: Path) -> None:
    async with closing(TcpCluster(tmp_path)) as cluster:
        nodes = await cluster.start_cluster("a", "b", "c")
        master = nodes[0].node_id

        def links(at: EmbeddedCoordinator) -> Sequence[tuple[str, str, str]]:
            return sorted(
                (source, dest, link.link_type)
                for source, live in at.state.live.items()
                for dest, link in live.links.items()
                if link.latency_ms is not None and 0 < link.latency_ms < 200
            )

        wanted = sorted(
            pair
            for follower in (nodes[1].node_id, nodes[2].node_id)
            for pair in ((master, follower, "loopback"), (follower, master, "loopback"))
        )
        await cluster.until(lambda: all(links(node) == wanted for node in nodes))


async def test_discoveries_are_told_of_changes_that_matter(cluster: MemoryCluster) -> None:
    nudges: list[int] = []

    class Counting(MemoryDiscovery):
        def nudge(self) -> None:
            nudges.append(1)
            super().nudge()

    node = await cluster.start("a", discoveries=[Counting(cluster.air, "a")])
    await cluster.until(lambda: bool(nudges))
    before = len(nudges)
    for number in range(5):
        await node.propose([tagged("a", str(number))], cause_id="c")
    assert len(nudges) == before
    await node.propose([InstanceCreated(instance=instance())], cause_id="c")
    await cluster.until(lambda: len(nudges) == before + 1)
