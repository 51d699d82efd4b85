"""The etcd coordinator where it is more than the contract: masters replaced, etcd lost, histories forgotten."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exo.cluster.errors import UnsendableError
from exo.cluster.etcd.client import EtcdClient
from exo.cluster.etcd.coordinator import EtcdCoordinator, elapsed_s, open_etcd_coordinator
from exo.cluster.etcd.errors import EtcdHistoryError, EtcdUnreachableError
from exo.cluster.etcd.messages import WatchAnswer
from exo.cluster.etcd.records import MasterRecord
from exo.cluster.etcd.store import EtcdStore, Hold, Tail
from exo.shared.errors import ConfigurationError, LogCorruptError, NoMasterError
from exo.shared.types.commands import Command, Deleted, DeleteInstance, Reply
from exo.shared.types.events import DeviceLost, LinkMeasured, LogEntry, NodeRemoved, TelemetryFrame
from exo.shared.types.ids import CommandId, InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from support.coordinators import closing
from support.etcd_cluster import QUICK_ETCD, EtcdCluster
from support.etcd_server import Cable, EtcdServer, running_etcd, text64
from support.simulated_cluster import tagged
from support.states import identity


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """For tests that kill it."""
    with running_etcd(tmp_path / "etcd") as server:
        yield server


@pytest.fixture
async def cluster(etcd: EtcdServer) -> AsyncIterator[EtcdCluster]:
    async with closing(EtcdCluster(etcd)) as cluster:
        assert isinstance(cluster, EtcdCluster)
        yield cluster


@pytest.fixture
async def own_cluster(own_etcd: EtcdServer) -> AsyncIterator[EtcdCluster]:
    async with closing(EtcdCluster(own_etcd)) as cluster:
        assert isinstance(cluster, EtcdCluster)
        yield cluster


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def start_on_cable(cluster: EtcdCluster, name: str, stack: AsyncExitStack, **changes: Any) -> Cable:
    """Start a node whose way to etcd can be cut."""
    cable = Cable(cluster.server.address)
    await stack.enter_async_context(cable)
    address = msgspec.structs.replace(cluster.etcd_address, endpoints=(cable.address,))
    await cluster.start(name, address=address, **changes)
    return cable


async def committed_tags(cluster: EtcdCluster, node: EtcdCoordinator) -> list[str]:
    """The tags of everything in the log, up to now."""
    last = await node.propose([tagged(node.node_id, "until here")], cause_id="c")
    found: list[str] = []
    async with asyncio.timeout(5):
        async for item in node.feed(0):
            if isinstance(item, LogEntry):
                if isinstance(item.event, DeviceLost):
                    found.append(item.event.reason)
                if item.index == last:
                    return found
    raise AssertionError


def command() -> Command:
    return DeleteInstance(command_id=CommandId("command"), instance_id=InstanceId("i"))


def answer_at_once(node: EtcdCoordinator) -> None:
    async def carry_out(command: Command) -> Reply:
        return Deleted(instance_id=InstanceId(node.node_id), index=node.state.index)

    node.set_command_handler(carry_out)


async def no_two_lead(*nodes: EtcdCoordinator) -> None:
    """Fail when two lead at once; look at every change of either."""

    async def watch(node: EtcdCoordinator) -> None:
        async for _ in node.changes():
            assert sum(one.leadership.is_self for one in nodes) <= 1

    await asyncio.gather(*map(watch, nodes))


# --- another master ----------------------------------------------------------------------------------------------


async def test_a_master_that_stops_is_replaced_and_what_waits_is_committed_once(cluster: EtcdCluster) -> None:
    await cluster.start_cluster("a", "b", "c")
    master = next(name for name in "abc" if cluster.node(name).leadership.is_self)
    before = cluster.node(master).leadership
    others = [cluster.node(name) for name in "abc" if name != master]
    proposals = [
        asyncio.ensure_future(node.propose([tagged(node.node_id, f"{node.node_id}-{number}")], cause_id="c"))
        for number in range(20)
        for node in others
    ]
    await asyncio.sleep(0)
    await cluster.stop(master)
    await asyncio.gather(*proposals)
    await cluster.until_one()
    assert {node.leadership.term for node in others} == {before.term + 1}
    assert sum(node.leadership.is_self for node in others) == 1
    seen = await committed_tags(cluster, others[0])
    for node in others:
        own = [tag for tag in seen if tag.startswith(f"{node.node_id}-")]
        assert own == [f"{node.node_id}-{number}" for number in range(20)]
    assert not others[0].state.nodes[NodeId(master)].is_connected


async def test_a_node_that_leaves_hands_the_lead_over_before_it_stops(cluster: EtcdCluster) -> None:
    await cluster.start_cluster("a", "b")
    a, b = cluster.node("a"), cluster.node("b")
    assert a.leadership.is_self
    await a.leave()
    await cluster.until(lambda: b.leadership.is_self)
    assert not b.state.nodes[NodeId("a")].is_connected
    assert b.state.nodes[NodeId("a")].left_reason == "it was stopped"
    assert not a.leadership.is_self
    await b.leave()
    await cluster.stop("b")
    await asyncio.sleep(3 * QUICK_ETCD.campaign_spread_s)
    assert a.leadership.master_node_id is None, "it has said that it stops"


async def test_a_master_cut_off_from_etcd_stops_leading_before_another_begins(
    cluster: EtcdCluster, stack: AsyncExitStack
) -> None:
    cable = await start_on_cable(cluster, "a", stack)
    await cluster.start("b")
    await cluster.until_one()
    a, b = cluster.node("a"), cluster.node("b")
    assert a.leadership.is_self
    term = a.leadership.term
    watching = asyncio.ensure_future(no_two_lead(a, b))
    cable.cut()
    lost = asyncio.ensure_future(a.propose([tagged(a.node_id, "said by a")], cause_id="c"))
    await cluster.until(lambda: b.leadership.is_self)
    assert not a.leadership.is_self
    assert a.trouble is not None and "etcd" in a.trouble
    assert b.leadership.term == term + 1
    await b.propose([tagged(b.node_id, "said by b")], cause_id="c")
    assert a.state.index < b.state.index, "the state is kept, and does not go on"
    cable.mend()
    await cluster.until_one()
    await asyncio.gather(lost, return_exceptions=True)
    seen = await committed_tags(cluster, b)
    assert seen.count("said by b") == 1
    assert seen.count("said by a") == (lost.exception() is None)
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert a.trouble is None


async def test_a_master_that_slept_through_its_lease_knows_when_it_wakes(cluster: EtcdCluster) -> None:
    slept_s = 0.0
    await cluster.start("a", clock=lambda: elapsed_s() + slept_s)
    await cluster.until_one()
    a = cluster.node("a")
    answer_at_once(a)
    await a.propose([tagged(a.node_id, "awake")], cause_id="c")
    assert a.leadership.is_self
    slept_s = 10.0
    assert not a.leadership.is_self, "before any of its loops has run"
    assert a.leadership.master_node_id is None
    await cluster.until(lambda: a.leadership.term == 2 and a.leadership.is_self)
    assert isinstance(await a.send(command(), timeout_s=2), Deleted)


async def test_a_master_whose_key_is_deleted_opens_another_term(cluster: EtcdCluster) -> None:
    await cluster.start_cluster("a", "b")
    a = cluster.node("a")
    cluster.server.delete(f"/{cluster.prefix}/test/master")
    await cluster.until(lambda: a.leadership.term == 2)
    await cluster.until_one()
    assert (await committed_tags(cluster, a))[-1] == "until here"


async def test_a_master_that_most_others_cannot_reach_lets_another_lead(cluster: EtcdCluster) -> None:
    await cluster.start_cluster("a", "b", "c")
    master = next(name for name in "abc" if cluster.node(name).leadership.is_self)
    others = [name for name in "abc" if name != master]
    cluster.network.isolate(master, others)
    await cluster.until(lambda: any(cluster.node(name).leadership.is_self for name in others))
    assert all(cluster.node(name).state.nodes[NodeId(name)].is_connected for name in others)
    cut_off = cluster.node(master)
    await cluster.until(lambda: not cut_off.state.nodes[NodeId(master)].is_connected)
    assert cut_off.leadership.master_node_id is None
    await cluster.until(lambda: cut_off.trouble is not None and "does not take this node" in cut_off.trouble)
    cluster.network.heal()
    await cluster.until_one()


async def test_when_all_others_are_gone_the_last_one_leads_all_the_same(cluster: EtcdCluster) -> None:
    await cluster.start_cluster("a", "b", "c")
    master = next(name for name in "abc" if cluster.node(name).leadership.is_self)
    others = [name for name in "abc" if name != master]
    last = cluster.node(master)
    cluster.network.isolate(master, others)
    for name in others:
        await cluster.stop(name)  # It cannot say goodbye.
    await cluster.until(
        lambda: (
            last.leadership.is_self
            and not any(last.state.nodes[NodeId(name)].is_connected for name in others)
        )
    )
    assert last.leadership.term > 1, "it had doubted itself first"


async def test_an_election_that_was_won_without_hearing_of_it_is_given_up(
    cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the winning request is lost: the node finds its own key there, and stands again."""
    real, calls = EtcdStore.campaign, 0

    async def campaign(self: EtcdStore, record: MasterRecord, lease_id: int, tail: Tail) -> Hold | None:
        nonlocal calls
        calls += 1
        hold = await real(self, record, lease_id, tail)
        if calls > 1:
            return hold
        revokes.append(lease_id)
        raise EtcdUnreachableError("the answer is lost; try again")

    revokes: list[int] = []
    real_revoke = EtcdClient.revoke

    async def revoke(self: EtcdClient, lease_id: int) -> None:
        if revokes == [lease_id]:
            revokes.append(lease_id)
            raise EtcdUnreachableError("this too; try again")
        await real_revoke(self, lease_id)

    monkeypatch.setattr(EtcdStore, "campaign", campaign)
    monkeypatch.setattr(EtcdClient, "revoke", revoke)
    options = msgspec.structs.replace(QUICK_ETCD, lease_s=30)
    a = await cluster.start("a", options=options)
    await cluster.until(lambda: a.leadership.is_self)
    assert a.leadership.term == 2, "the first term had no master that knew of it"


async def test_a_lease_that_etcd_ended_is_noticed_even_if_the_watch_is_silent(
    cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await cluster.start("a", options=msgspec.structs.replace(QUICK_ETCD, pulse_s=30.0))
    await cluster.until(lambda: a.leadership.is_self)
    member = cluster.node("a")._member
    monkeypatch.setattr(member, "master_seen", lambda *_: None)
    assert member.seat is not None
    held = member.seat
    await cluster.node("a")._client.revoke(held.hold.lease_id)
    await cluster.until(lambda: member.seat is not held)


async def test_a_commit_that_is_refused_deposes_even_if_the_watch_is_silent(
    cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.start("a", options=msgspec.structs.replace(QUICK_ETCD, pulse_s=30.0, lease_s=30))
    node = cluster.node("a")
    await cluster.until(lambda: node.leadership.is_self)
    monkeypatch.setattr(node._member, "master_seen", lambda *_: None)
    cluster.server.delete(f"/{cluster.prefix}/test/master")
    proposed = asyncio.ensure_future(node.propose([tagged(node.node_id, "too late")], cause_id="c"))
    await cluster.until(lambda: node._member.seat is None)
    assert not node.leadership.is_self
    monkeypatch.undo()
    proposed.cancel()
    await asyncio.gather(proposed, return_exceptions=True)


# --- etcd is gone ------------------------------------------------------------------------------------------------


async def test_while_etcd_is_dead_nothing_is_decided_and_it_all_comes_back_by_itself(
    own_cluster: EtcdCluster,
) -> None:
    nodes = await own_cluster.start_cluster("a", "b")
    for node in nodes:
        answer_at_once(own_cluster.node(node.node_id))
    before = nodes[0].state
    own_cluster.server.kill()
    await own_cluster.until(lambda: all(node.leadership.master_node_id is None for node in nodes))
    assert [node.state.decided() for node in nodes] == [before.decided()] * 2
    async with asyncio.timeout(3 * QUICK_ETCD.proposal_timeout_s):
        failures = await asyncio.gather(
            *(node.send(command(), timeout_s=30) for node in nodes),
            *(node.confirm(timeout_s=2) for node in nodes),
            nodes[1].propose([tagged(nodes[1].node_id, "given up")], cause_id="c"),
            return_exceptions=True,
        )
    for failure in failures:
        assert isinstance(failure, NoMasterError), failure
        assert "(Connection refused); start it, or correct --coordinator" in failure.message
    waiting = [
        asyncio.ensure_future(node.propose([tagged(node.node_id, f"waiting-{number}")], cause_id="c"))
        for number in range(3)
        for node in nodes
    ]
    own_cluster.server.start()
    await asyncio.gather(*waiting)
    await own_cluster.until_one()
    assert {node.leadership.term for node in nodes} == {before.term + 1}
    tags = await committed_tags(own_cluster, own_cluster.node("a"))
    assert sorted(tag for tag in tags if tag.startswith("waiting")) == [f"waiting-{n // 2}" for n in range(6)]
    assert nodes[0].state.cluster_id == before.cluster_id


async def test_a_stopped_etcd_deposes_the_master_in_time_and_commits_nothing_twice(
    own_cluster: EtcdCluster,
) -> None:
    nodes = await own_cluster.start_cluster("a", "b")
    own_cluster.server.pause()
    proposed = [
        asyncio.ensure_future(node.propose([tagged(node.node_id, f"by {node.node_id}")], cause_id="c"))
        for node in nodes
    ]
    await own_cluster.until(lambda: all(node.leadership.master_node_id is None for node in nodes))
    own_cluster.server.resume()  # What was sent to it meanwhile is carried out now.
    await own_cluster.until_one()
    await asyncio.gather(*proposed, return_exceptions=True)
    tags = await committed_tags(own_cluster, own_cluster.node("a"))
    for node, done in zip(nodes, proposed, strict=True):
        count = tags.count(f"by {node.node_id}")
        assert count == 1 if done.exception() is None else count <= 1


async def test_a_short_pause_of_etcd_changes_nothing(own_etcd: EtcdServer) -> None:
    options = msgspec.structs.replace(QUICK_ETCD, lease_s=5, touch_max_s=5.0)
    async with closing(EtcdCluster(own_etcd, options)) as cluster:
        nodes = await cluster.start_cluster("a", "b")
        own_etcd.pause()
        proposed = asyncio.ensure_future(nodes[1].propose([tagged(nodes[1].node_id, "later")], cause_id="c"))
        assert isinstance(cluster, EtcdCluster)
        await cluster.until(lambda: cluster.node(nodes[0].node_id).trouble is not None)
        own_etcd.resume()
        await proposed
        await cluster.until_one()
        assert nodes[0].leadership.term == 1


async def test_a_follower_cut_off_from_etcd_is_not_counted_on(
    cluster: EtcdCluster, stack: AsyncExitStack
) -> None:
    await cluster.start("a")
    cable = await start_on_cable(cluster, "b", stack)
    await cluster.until_one()
    a, b = cluster.node("a"), cluster.node("b")
    cable.cut()
    await cluster.until(lambda: not a.state.nodes[NodeId("b")].is_connected)
    assert a.state.nodes[NodeId("b")].left_reason == "it cannot reach etcd"
    assert b.leadership.master_node_id is None
    cable.mend()
    await cluster.until_one()


async def test_a_start_without_etcd_waits_a_while_and_says_why_it_gives_up(own_etcd: EtcdServer) -> None:
    own_etcd.kill()
    options = msgspec.structs.replace(QUICK_ETCD, start_patience_s=0.3)
    async with closing(EtcdCluster(own_etcd, options)) as cluster:
        with pytest.raises(EtcdUnreachableError, match=r"cannot be reached \(Connection refused\); start it"):
            await cluster.start("a")
        own_etcd.start()
        cluster.etcd_options = QUICK_ETCD  # type: ignore[attr-defined]
        await cluster.start("a")


async def test_a_start_gives_up_when_the_master_cannot_be_reached(cluster: EtcdCluster) -> None:
    await cluster.start("a")
    cluster.network.cut("a", "b")
    options = msgspec.structs.replace(QUICK_ETCD, start_patience_s=0.5, dial_timeout_s=0.1)
    await cluster.start("b", options=options)
    failure = await cluster.failure_of("b")
    assert isinstance(failure, NoMasterError)
    assert "names host-a at a:2 as the master, which does not take this node" in failure.message


# --- histories ---------------------------------------------------------------------------------------------------

SMALL = msgspec.structs.replace(QUICK_ETCD, snapshot_every=20, recent_entries=5)


async def test_the_log_is_kept_short_and_whoever_was_away_goes_on_from_a_snapshot(
    etcd: EtcdServer, stack: AsyncExitStack
) -> None:
    async with closing(EtcdCluster(etcd, SMALL)) as cluster:
        assert isinstance(cluster, EtcdCluster)
        await cluster.start("a")
        cable = await start_on_cable(cluster, "b", stack)
        await cluster.until_one()
        a, b = cluster.node("a"), cluster.node("b")
        b_feed = b.feed()
        cable.cut()
        for number in range(70):
            await a.propose([tagged(a.node_id, str(number))], cause_id="c")
        manifest = f"/{cluster.prefix}/test/snapshot"

        def log_keys() -> list[str]:
            return etcd.keys(f"/{cluster.prefix}/test/log/")

        await cluster.until(lambda: manifest in etcd.keys(manifest) and len(log_keys()) <= 30)
        assert len([key for key in etcd.keys(manifest) if key != manifest]) == 1, "older snapshots are gone"
        etcd.compact()
        cable.mend()
        await cluster.until_one()
        newcomer = await cluster.start("c")
        await cluster.until_one()
        assert newcomer.state.decided() == a.state.decided() == b.state.decided()
        async with asyncio.timeout(5):
            ended = [item async for item in b_feed]
        assert not any(isinstance(item, LogEntry) for item in ended), "what lies between cannot be told"
        first = await anext(newcomer.feed(0))
        assert isinstance(first, LogEntry) and first.index > 1, "the oldest that etcd has"
        async with asyncio.timeout(5):
            entries = [item async for item in _until(newcomer.feed(first.index - 1), newcomer.state.index)]
        assert [entry.index for entry in entries] == list(range(first.index, newcomer.state.index + 1))


async def _until(feed: AsyncIterator[LogEntry | TelemetryFrame], index: int) -> AsyncIterator[LogEntry]:
    async for item in feed:
        if isinstance(item, LogEntry):
            yield item
            if item.index == index:
                return


async def test_a_snapshot_of_many_pieces_is_read_whole(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exo.cluster.etcd.store.SNAPSHOT_PART_BYTES", 64)
    async with closing(EtcdCluster(etcd, SMALL)) as cluster:
        assert isinstance(cluster, EtcdCluster)
        a = await cluster.start("a")
        for number in range(30):
            await a.propose([tagged(a.node_id, str(number))], cause_id="c")
        parts = f"/{cluster.prefix}/test/snapshot/"
        await cluster.until(lambda: f"/{cluster.prefix}/test/snapshot" in etcd.keys(parts[:-1]))
        assert len(etcd.keys(parts)) > 8
        await cluster.start("b")
        await cluster.until_one()
        assert cluster.node("b").state.decided() == a.state.decided()


async def test_telemetry_survives_a_jump_to_a_snapshot(etcd: EtcdServer, stack: AsyncExitStack) -> None:
    async with closing(EtcdCluster(etcd, msgspec.structs.replace(SMALL, touch_max_s=30.0))) as cluster:
        assert isinstance(cluster, EtcdCluster)
        await cluster.start("a")
        cable = await start_on_cable(cluster, "b", stack)
        await cluster.until_one()
        a, b = cluster.node("a"), cluster.node("b")
        link = LinkMeasured(
            source_node_id=a.node_id, dest_node_id=b.node_id, link_type="wifi", latency_ms=1.0
        )
        a.publish([link])
        await cluster.until(lambda: a.node_id in b.state.live)
        cable.cut()
        for number in range(50):
            await a.propose([tagged(a.node_id, str(number))], cause_id="c")
        await cluster.until(lambda: len(etcd.keys(f"/{cluster.prefix}/test/log/")) < 40)
        cable.mend()
        await cluster.until(lambda: b.state.index == a.state.index)
        assert a.node_id in b.state.live


async def test_etcd_with_an_older_history_is_not_believed(own_cluster: EtcdCluster) -> None:
    nodes = await own_cluster.start_cluster("a", "b")
    before = nodes[0].state
    own_cluster.server.delete(f"/{own_cluster.prefix}/")
    await own_cluster.until(lambda: all(node.leadership.master_node_id is None for node in nodes))
    await own_cluster.until(
        lambda: all("was replaced or deleted" in (own_cluster.node(name).trouble or "") for name in "ab")
    )
    assert nodes[0].state.decided() == before.decided(), "what runs goes on running"
    with pytest.raises(NoMasterError, match="restore it, or start the nodes again"):
        await nodes[0].confirm(timeout_s=2)
    await own_cluster.stop_all()
    await own_cluster.start_cluster("a", "b")
    assert own_cluster.node("a").state.cluster_id != before.cluster_id


async def test_an_answer_that_the_watch_has_overtaken_is_no_older_history(
    cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a SIGSTOP: the answer to an old question lies in the socket, and the watch is read first."""
    a, b = await cluster.start_cluster("a", "b")
    node = cluster.node(b.node_id)
    read_after, is_late = node._store.read_after, True

    async def late(index: int) -> Tail:
        nonlocal is_late
        tail = await read_after(index)
        if is_late:
            is_late = False
            newest = await a.propose([tagged(a.node_id, "meanwhile")], cause_id="c")
            await node.wait_for(lambda state: state.index >= newest or None, timeout_s=5)
        return tail

    monkeypatch.setattr(node._store, "read_after", late)
    assert await node.confirm(timeout_s=5) == a.state.index
    assert not is_late and node.trouble is None


async def test_a_log_with_a_hole_stops_the_node(cluster: EtcdCluster) -> None:
    a = await cluster.start("a")
    for number in range(10):
        await a.propose([tagged(a.node_id, str(number))], cause_id="c")
    await cluster.stop("a")
    cluster.server.delete(f"/{cluster.prefix}/test/log/")
    with pytest.raises(LogCorruptError, match="has no entries from 1 on"):
        await cluster.start("a")


async def test_what_a_newer_release_wrote_stops_the_node(cluster: EtcdCluster) -> None:
    await cluster.start("a")
    task = cluster._tasks["a"]
    key = f"/{cluster.prefix}/test/log/{99:020d}"
    cluster.server.call("/v3/kv/put", {"key": text64(key), "value": text64("?")})
    await asyncio.wait([task], timeout=5)
    assert isinstance(task.exception(), LogCorruptError)
    assert "install the newer release" in str(task.exception())
    await cluster.stop("a")


# --- the watch ---------------------------------------------------------------------------------------------------


class _Watches:
    """Stands between a reader and its client's watch."""

    def __init__(self, node: EtcdCoordinator) -> None:
        self.client = node._client
        self.real = self.client.watch
        self.count = 0
        self.is_deaf = False
        self.client.watch = self.watch  # type: ignore[method-assign]

    async def watch(self, key: bytes, range_end: bytes, start_revision: int) -> AsyncGenerator[WatchAnswer]:
        self.count += 1
        first = self.count == 1
        async for answer in self.real(key, range_end, 1 if first else start_revision):
            if self.is_deaf and self.count == 2:
                await asyncio.Event().wait()
            yield answer


async def test_a_watch_from_a_forgotten_revision_is_begun_anew_and_a_deaf_one_is_noticed(
    cluster: EtcdCluster,
) -> None:
    await cluster.start("a")
    cluster.server.compact()
    transport = cluster.transport("b")
    listener = await transport.listen(HostPort("b", 0))
    watched = EtcdCoordinator(
        identity=msgspec.structs.replace(identity("b"), cluster_address=listener.address),
        namespace="test",
        address=cluster.etcd_address,
        transport=transport,
        listener=listener,
        options=QUICK_ETCD,
    )
    watches = _Watches(watched)
    running = asyncio.ensure_future(watched.run())
    try:
        await watched.wait_for(lambda state: state.nodes.get(NodeId("b")), timeout_s=5)
        assert watches.count == 2, "the first was refused: that revision is forgotten"
        watches.is_deaf = True
        a = cluster.node("a")
        await a.propose([tagged(a.node_id, "swallowed")], cause_id="c")
        index = await a.propose([tagged(a.node_id, "heard")], cause_id="c")
        await watched.wait_for(lambda state: state.index >= index or None, timeout_s=5)
        async with asyncio.timeout(5):
            while watches.count < 3:
                await a.propose([tagged(a.node_id, "again")], cause_id="c")
    finally:
        running.cancel()
        await asyncio.wait([running])


# --- the rest of the seam ----------------------------------------------------------------------------------------


async def test_confirm_brings_the_state_up_to_now(cluster: EtcdCluster) -> None:
    nodes = await cluster.start_cluster("a", "b")
    for _ in range(10):
        index = await nodes[0].propose([tagged(nodes[0].node_id, "x")], cause_id="c")
        assert await nodes[1].confirm(timeout_s=2) >= index
        assert nodes[1].state.index >= index
    with pytest.raises(NoMasterError):
        await nodes[1].confirm(timeout_s=0.0)


async def test_what_does_not_fit_into_one_commit_is_refused_before_it_is_tried(cluster: EtcdCluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    for node in (master, follower):
        with pytest.raises(UnsendableError, match="more than fit into one commit"):
            await node.propose([tagged(node.node_id, "x" * 1024 * 1024)], cause_id="c")
        with pytest.raises(UnsendableError, match="more than fit into one commit"):
            many = [tagged(node.node_id, "x") for _ in range(300)]
            await node.propose(many, cause_id="c" * 4096)  # Which is written with every entry.
        with pytest.raises(UnsendableError, match="cannot be sent"):
            await node.propose([tagged(node.node_id, "\ud800")], cause_id="c")
    large = "x" * (1024 * 1024 - 1000)
    indices = await asyncio.gather(
        *(node.propose([tagged(node.node_id, large)], cause_id="c") for node in (master, follower))
    )
    assert len(set(indices)) == 2


async def test_a_removed_node_does_not_come_back_unasked(cluster: EtcdCluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    gone = follower.node_id
    await master.propose([NodeRemoved(node_id=gone, reason="sold")], cause_id="c")
    await cluster.until(lambda: gone not in follower.state.nodes)
    await follower.wait_for(lambda state: state.index == master.state.index or None, timeout_s=2)
    name = str(gone)
    await cluster.stop(name)
    options = msgspec.structs.replace(QUICK_ETCD, start_patience_s=0.5)
    await cluster.start(name, options=options)
    failure = await cluster.failure_of(name)
    assert isinstance(failure, NoMasterError) and "it was removed from the cluster (sold)" in failure.message


async def test_round_trips_to_the_master_are_told(cluster: EtcdCluster) -> None:
    nodes = await cluster.start_cluster("a", "b")
    await cluster.until(
        lambda: all(
            nodes[0].state.live[node.node_id].links if node.node_id in nodes[0].state.live else None
            for node in nodes
        )
    )


async def test_two_namespaces_of_one_etcd_are_two_clusters(cluster: EtcdCluster) -> None:
    a = await cluster.start("a")
    b = await cluster.start("b", namespace="other/one")
    assert a.leadership.is_self and b.leadership.is_self
    assert a.state.cluster_id != b.state.cluster_id
    assert (a.state.namespace, b.state.namespace) == ("test", "other/one")


async def test_it_is_opened_by_a_url(cluster: EtcdCluster) -> None:
    transport = cluster.transport("a")
    listener = await transport.listen(HostPort("a", 0))
    wiring: dict[str, Any] = {
        "identity": msgspec.structs.replace(identity("a"), cluster_address=listener.address),
        "namespace": "test",
        "transport": transport,
        "listener": listener,
    }
    with pytest.raises(ConfigurationError):
        open_etcd_coordinator("http://127.0.0.1", **wiring)
    node = open_etcd_coordinator(f"{cluster.server.url}?prefix={cluster.prefix}&lease_s=2", **wiring)
    running = asyncio.ensure_future(node.run())
    try:
        async for _ in node.changes():
            if node.leadership.is_self:
                break
        keys = cluster.server.keys(f"/{cluster.prefix}/test/")
        assert f"/{cluster.prefix}/test/master" in keys
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert f"/{cluster.prefix}/test/master" not in cluster.server.keys(f"/{cluster.prefix}/test/")


async def test_an_etcd_that_is_full_is_named_and_used_again_when_there_is_room(tmp_path: Path) -> None:
    options = msgspec.structs.replace(QUICK_ETCD, lease_s=30, proposal_timeout_s=10.0)
    with running_etcd(tmp_path / "etcd", quota_bytes=2 * 1024 * 1024) as server:
        async with closing(EtcdCluster(server, options)) as cluster:
            assert isinstance(cluster, EtcdCluster)
            a = await cluster.start("a")
            node = cluster.node("a")
            await cluster.until(lambda: a.leadership.is_self)
            server.fill("junk/")
            proposed = asyncio.ensure_future(a.propose([tagged(a.node_id, "later")], cause_id="c"))
            await cluster.until(lambda: "is full: nothing can be decided" in (node.trouble or ""))
            assert a.leadership.is_self, "it still leads; it cannot decide"
            server.make_room("junk/")
            await proposed
            await cluster.until(lambda: node.trouble is None)


def test_a_history_error_is_no_log_error() -> None:
    """The node keeps what it has and goes on; it does not stop."""
    assert not issubclass(EtcdHistoryError, LogCorruptError)
