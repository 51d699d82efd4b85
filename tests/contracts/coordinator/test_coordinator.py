"""What every Coordinator promises. An implementation takes part by offering a Cluster of its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.shared.errors import NoMasterError
from exo.shared.types.access import TokenId
from exo.shared.types.commands import Command, CreateToken, Deleted, DeleteInstance, Refusal, Reply
from exo.shared.types.devices import DeviceGPUState, MemoryProfile, NodePerformanceProfile, SystemProfile
from exo.shared.types.events import (
    Decision,
    DeviceGPUStateUpdated,
    DeviceLost,
    LogEntry,
    NodeModelsChanged,
    NodeProfileUpdated,
    TelemetryFrame,
)
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, NodeId
from support.coordinators import Cluster, MemoryCluster, TcpCluster, closing
from support.etcd_cluster import EtcdCluster
from support.etcd_server import EtcdServer, running_etcd
from support.states import card


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(params=["memory", "tcp", "etcd"])
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    match request.param:
        case "memory":
            made: Cluster = MemoryCluster()
        case "tcp":
            made = TcpCluster(tmp_path)
        case _:
            made = EtcdCluster(request.getfixturevalue("etcd"))
    async with closing(made) as cluster:
        yield cluster


def need_a_master_that_is_missed(cluster: Cluster) -> None:
    """For tests of what the others do until a lost master is back."""
    if isinstance(cluster, EtcdCluster):
        pytest.skip("another node takes the lead at once: see tests/unit/cluster/test_etcd_coordinator.py")


def fact(node: Coordinator, tag: str) -> Decision:
    """A decision that changes nothing and can be told from all others."""
    return DeviceLost(node_id=node.node_id, device_id=DeviceId(f"{node.node_id}/none"), reason=tag)


def profile(node: Coordinator, ram_total: int) -> NodeProfileUpdated:
    memory = MemoryProfile(ram_total=ram_total, ram_available=0, swap_total=0, swap_available=0)
    return NodeProfileUpdated(
        node_id=node.node_id, profile=NodePerformanceProfile(memory=memory, system=SystemProfile())
    )


def ram_total(of: NodeId, at: Coordinator) -> int | None:
    live = at.state.live.get(of)
    return live.profile.memory.ram_total if live is not None and live.profile is not None else None


async def tags(feed: AsyncIterator[LogEntry | TelemetryFrame], until: str) -> list[str]:
    """The tags of a feed's decisions, up to one."""
    found: list[str] = []
    async with asyncio.timeout(5):
        async for item in feed:
            if isinstance(item, LogEntry) and isinstance(item.event, DeviceLost):
                found.append(item.event.reason)
                if found[-1] == until:
                    break
    return found


# --- alone -----------------------------------------------------------------------------------------------------------


async def test_a_node_alone_leads_at_once(cluster: Cluster) -> None:
    node = await cluster.start("a")
    await cluster.until_one()
    assert node.leadership.is_self
    assert node.leadership.master_node_id == "a"
    assert node.leadership.term == 1
    assert node.state.cluster_id is not None
    assert node.state.nodes[NodeId("a")].is_connected


async def test_what_was_committed_is_there_after_a_restart_in_a_higher_term(cluster: Cluster) -> None:
    node = await cluster.start("a")
    model = card("kept")
    index = await node.propose([NodeModelsChanged(node_id=node.node_id, models=(model,))], cause_id="c")
    before = node.state
    assert before.index == index
    await cluster.stop("a")
    node = await cluster.start("a")
    await cluster.until_one()
    assert node.state.cluster_id == before.cluster_id
    assert node.state.index > index
    assert node.leadership.term == 2
    assert node.state.last_seq[NodeId("a")] > before.last_seq[NodeId("a")]
    entries = [item async for item in _until_index(node.feed(0), node.state.index)]
    assert [entry.index for entry in entries] == list(range(1, node.state.index + 1))
    assert entries[index - 1].event == NodeModelsChanged(node_id=node.node_id, models=(model,))
    assert all(one.term <= two.term for one, two in pairwise(entries))


async def _until_index(feed: AsyncIterator[LogEntry | TelemetryFrame], index: int) -> AsyncIterator[LogEntry]:
    async with asyncio.timeout(5):
        async for item in feed:
            if isinstance(item, LogEntry):
                yield item
                if item.index >= index:
                    return


# --- proposals -------------------------------------------------------------------------------------------------------


async def test_proposals_from_every_node_are_committed_once_in_one_order(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b", "c")
    start = nodes[0].state.index
    feeds = [node.feed() for node in nodes]
    count = 40

    async def propose(node: Coordinator, number: int) -> None:
        index = await node.propose([fact(node, f"{node.node_id}-{number}")], cause_id=f"cause-{number}")
        assert node.state.index >= index > start

    await asyncio.gather(*(propose(node, number) for node in nodes for number in range(count)))
    last = await nodes[1].propose([fact(nodes[1], "last")], cause_id="c")
    seen = [await tags(feed, "last") for feed in feeds]
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == len(set(seen[0])) == 3 * count + 1
    for node in nodes:
        own = [tag for tag in seen[0] if tag.startswith(f"{node.node_id}-")]
        assert own == [f"{node.node_id}-{number}" for number in range(count)], "an origin's order is kept"
    await cluster.until(lambda: all(node.state.index == last for node in nodes))
    assert nodes[0].state.decided() == nodes[1].state.decided() == nodes[2].state.decided()


async def test_decisions_of_one_proposal_stay_together(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b")
    feed = nodes[0].feed()

    async def propose(node: Coordinator, number: int) -> int:
        group = [fact(node, f"{node.node_id}-{number}-{part}") for part in range(3)]
        return await node.propose(group, cause_id="c")

    indices = await asyncio.gather(*(propose(node, number) for node in nodes for number in range(10)))
    await nodes[1].propose([fact(nodes[1], "last")], cause_id="c")
    seen = await tags(feed, "last")
    for start in range(0, 60, 3):
        assert [tag.rsplit("-", 1)[1] for tag in seen[start : start + 3]] == ["0", "1", "2"]
        assert len({tag.rsplit("-", 1)[0] for tag in seen[start : start + 3]}) == 1
    assert len(set(indices)) == 20


async def test_nothing_proposed_is_nothing_done(cluster: Cluster) -> None:
    node = await cluster.start("a")
    await cluster.until_one()
    index = node.state.index
    assert await node.propose([], cause_id="c") == index
    assert node.state.index == index


async def test_entries_say_what_caused_them_and_who_proposed_them(cluster: Cluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    feed = master.feed()
    index = await follower.propose([fact(follower, "x")], cause_id="the cause")
    entry = [item async for item in _until_index(feed, index)][-1]
    assert (entry.cause_id, entry.origin, entry.term) == (
        "the cause",
        follower.node_id,
        master.leadership.term,
    )
    assert entry.seq == master.state.last_seq[follower.node_id]
    assert entry.event_id
    assert entry.at.endswith("+00:00")


async def test_proposals_wait_for_the_master_and_are_committed_once(cluster: Cluster) -> None:
    need_a_master_that_is_missed(cluster)
    master, follower = await cluster.start_cluster("a", "b")
    name = str(master.node_id)
    await cluster.stop(name)
    await cluster.until(lambda: follower.leadership.master_node_id is None)
    proposals = [
        asyncio.ensure_future(follower.propose([fact(follower, f"waiting-{number}")], cause_id="c"))
        for number in range(5)
    ]
    index = follower.state.index
    await asyncio.sleep(0)
    assert not any(proposal.done() for proposal in proposals)
    master = await cluster.start(name)
    indices = await asyncio.gather(*proposals)
    assert indices == sorted(set(indices)) and indices[0] > index
    await cluster.until_one()
    await master.propose([fact(master, "last")], cause_id="c")
    seen = await tags(master.feed(0), "last")
    assert [tag for tag in seen if tag.startswith("waiting")] == [f"waiting-{number}" for number in range(5)]


async def test_a_proposal_is_given_up_when_no_master_comes(cluster: Cluster) -> None:
    need_a_master_that_is_missed(cluster)
    master, follower = await cluster.start_cluster("a", "b")
    await cluster.stop(str(master.node_id))
    await cluster.until(lambda: follower.leadership.master_node_id is None)
    with pytest.raises(NoMasterError):
        await follower.propose([fact(follower, "given up")], cause_id="c")


# --- membership ------------------------------------------------------------------------------------------------------


async def test_a_lost_follower_is_marked_and_comes_back_as_a_new_boot(cluster: Cluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    name, gone = str(follower.node_id), follower.node_id
    await cluster.stop(name)
    await cluster.until(lambda: not master.state.nodes[gone].is_connected)
    assert master.state.nodes[gone].left_reason
    follower = await cluster.start(name)
    await cluster.until_one()
    assert master.state.nodes[gone].identity.boot_id == f"{name}-2"


async def test_a_restarted_master_is_found_again_with_its_cluster(cluster: Cluster) -> None:
    need_a_master_that_is_missed(cluster)
    nodes = await cluster.start_cluster("a", "b", "c")
    master, followers = nodes[0], nodes[1:]
    name, cluster_id, term = str(master.node_id), master.state.cluster_id, master.leadership.term
    await cluster.stop(name)
    await cluster.until(lambda: all(node.leadership.master_node_id is None for node in followers))
    assert all(node.state.cluster_id == cluster_id for node in followers), "the state is kept"
    master = await cluster.start(name)
    await cluster.until_one()
    assert master.state.cluster_id == cluster_id
    assert [node.leadership.term for node in (master, *followers)] == [term + 1] * 3
    assert all(node.leadership.master_node_id == master.node_id for node in followers)


async def test_members_that_do_not_come_back_are_marked_by_the_next_master(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b", "c")
    names = [str(node.node_id) for node in nodes]
    for name in names:
        await cluster.stop(name)
    master = await cluster.start(names[0])
    await cluster.start(names[1])
    await cluster.until(lambda: not master.state.nodes[NodeId(names[2])].is_connected)
    await cluster.until(lambda: master.state.nodes[NodeId(names[1])].is_connected)


# --- commands --------------------------------------------------------------------------------------------------------


def answer_with_refusals(node: Coordinator) -> None:
    """Commands are refused with the name of whoever carried them out, after a decision about them."""

    async def carry_out(command: Command) -> Reply:
        assert isinstance(command, DeleteInstance)
        if command.instance_id == "refuse":
            return Refusal(status=404, code="instance_not_found", message=f"{node.node_id} has none")
        index = await node.propose([fact(node, command.command_id)], cause_id=command.command_id)
        return Deleted(instance_id=command.instance_id, index=index)

    node.set_command_handler(carry_out)


def command(instance_id: str = "i", command_id: str = "command") -> Command:
    return DeleteInstance(command_id=CommandId(command_id), instance_id=InstanceId(instance_id))


async def test_the_master_carries_out_the_commands_of_all(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b", "c")
    for node in nodes:
        answer_with_refusals(node)
    feeds = [node.feed() for node in nodes]
    for node in nodes:
        reply = await node.send(command(command_id=f"from {node.node_id}"), timeout_s=5)
        assert isinstance(reply, Deleted)
        assert node.state.index >= reply.index, "the state here contains it"
        refusal = await node.send(command("refuse"), timeout_s=5)
        assert isinstance(refusal, Refusal)
        assert refusal.message == f"{nodes[0].node_id} has none"
    wanted = [f"from {node.node_id}" for node in nodes]
    for feed in feeds:
        assert await tags(feed, wanted[-1]) == wanted


async def test_many_commands_at_once_get_their_own_answers(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b")
    for node in nodes:
        answer_with_refusals(node)
    sent = [node.send(command(f"{node.node_id}-{n}"), timeout_s=5) for node in nodes for n in range(20)]
    replies = await asyncio.gather(*sent)
    wanted = [f"{node.node_id}-{n}" for node in nodes for n in range(20)]
    assert [reply.instance_id for reply in replies if isinstance(reply, Deleted)] == wanted


async def test_a_handler_that_raises_fails_the_command_and_nothing_else(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b")

    async def fail(command: Command) -> Reply:
        raise KeyError("a bug")

    nodes[0].set_command_handler(fail)
    secret = CreateToken(
        command_id=CommandId("c-1"),
        token_id=TokenId("t"),
        verifier="as good as the token",
        lifetime_s=1,
        uses=1,
        created_by="",
    )
    lines: list[str] = []
    # As `exo` logs: values of local variables are left out.
    sink = logger.add(lines.append, level=0, diagnose=False)
    try:
        for node in nodes:
            with pytest.raises(NoMasterError, match="a bug"):
                await node.send(secret, timeout_s=5)
    finally:
        logger.remove(sink)
    assert [line for line in lines if "a command failed" in line]
    assert not [line for line in lines if secret.verifier in line]
    await nodes[1].propose([fact(nodes[1], "alive")], cause_id="c")


async def test_send_gives_up_without_a_master(cluster: Cluster) -> None:
    need_a_master_that_is_missed(cluster)
    master, follower = await cluster.start_cluster("a", "b")
    await cluster.stop(str(master.node_id))
    await cluster.until(lambda: follower.leadership.master_node_id is None)
    started = time.monotonic()
    with pytest.raises(NoMasterError):
        await follower.send(command(), timeout_s=0.3)
    assert time.monotonic() - started > 0.2


async def test_send_fails_when_the_master_is_lost_before_it_answers(cluster: Cluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    is_reached = asyncio.Event()

    async def never(command: Command) -> Reply:
        is_reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    master.set_command_handler(never)
    sending = asyncio.ensure_future(follower.send(command(), timeout_s=10))
    await is_reached.wait()
    await cluster.stop(str(master.node_id))
    with pytest.raises(NoMasterError):
        await asyncio.wait_for(sending, 3)


async def test_send_gives_up_on_a_master_that_takes_too_long(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b")

    async def never(command: Command) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    nodes[0].set_command_handler(never)
    for node in nodes:
        with pytest.raises(NoMasterError):
            await node.send(command(), timeout_s=0.2)


# --- telemetry -------------------------------------------------------------------------------------------------------


async def test_telemetry_reaches_every_node(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b", "c")
    index = nodes[0].state.index
    for number, source in enumerate(nodes, start=1):
        source.publish([profile(source, number)])
        await cluster.until(
            lambda source=source, number=number: all(
                ram_total(source.node_id, node) == number for node in nodes
            )
        )
    assert index == nodes[0].state.index, "telemetry is no decision"


async def test_of_many_values_about_one_thing_the_last_arrives(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b")
    follower = nodes[1]
    frames: list[TelemetryFrame] = []

    async def collect(feed: AsyncIterator[LogEntry | TelemetryFrame]) -> None:
        async for item in feed:
            if isinstance(item, TelemetryFrame):
                frames.append(item)

    collecting = asyncio.ensure_future(collect(nodes[0].feed()))
    index = nodes[0].state.index
    for value in range(2000):
        follower.publish([profile(follower, value)])
        if value % 200 == 0:
            await asyncio.sleep(0.005)
    await cluster.until(lambda: all(ram_total(follower.node_id, node) == 1999 for node in nodes))
    collecting.cancel()
    await asyncio.gather(collecting, return_exceptions=True)
    assert len([frame for frame in frames if frame.node_id == follower.node_id]) < 100
    assert nodes[0].state.index == index, "telemetry is no decision"


async def test_a_newcomer_gets_all_telemetry_and_a_new_master_is_told_again(cluster: Cluster) -> None:
    nodes = await cluster.start_cluster("a", "b")
    for number, node in enumerate(nodes, start=1):
        node.publish([profile(node, number)])
        device = DeviceGPUState(
            device_id=DeviceId(f"{node.node_id}/cpu:0"),
            node_id=node.node_id,
            last_update="2026-01-01T00:00:00Z",
        )
        node.publish([DeviceGPUStateUpdated(state=device)])
    newcomer = await cluster.start("c")
    await cluster.until(
        lambda: (
            [ram_total(node.node_id, newcomer) for node in nodes] == [1, 2]
            and all(newcomer.state.live[node.node_id].devices for node in nodes)
        )
    )
    name = str(nodes[0].node_id)
    await cluster.stop(name)
    master = await cluster.start(name)
    await cluster.until(lambda: ram_total(nodes[1].node_id, master) == 2)
    assert master.state.live[nodes[1].node_id].devices


async def test_telemetry_published_before_the_start_is_not_lost(cluster: Cluster) -> None:
    master = await cluster.start("a")
    node = await cluster.start("b")
    node.publish([profile(node, 7)])
    await cluster.until(lambda: ram_total(NodeId("b"), master) == 7)


# --- watching --------------------------------------------------------------------------------------------------------


async def test_changes_yields_now_then_the_newest(cluster: Cluster) -> None:
    node = await cluster.start("a")
    await cluster.until_one()
    changes = node.changes()
    assert await anext(changes) is node.state
    for number in range(10):
        await node.propose([fact(node, str(number))], cause_id="c")
    assert await asyncio.wait_for(anext(changes), 2) is node.state, "a slow consumer skips to the newest"


async def test_wait_for_returns_what_was_wanted_or_times_out(cluster: Cluster) -> None:
    node = await cluster.start("a")
    assert await node.wait_for(lambda state: state.cluster_id, timeout_s=2) == node.state.cluster_id
    waiting = asyncio.ensure_future(
        node.wait_for(lambda state: state.nodes[NodeId("a")].identity.models or None, timeout_s=2)
    )
    await asyncio.sleep(0)
    await node.propose([NodeModelsChanged(node_id=node.node_id, models=(card("m"),))], cause_id="c")
    models = await waiting
    assert models[0].model_id == "m"
    with pytest.raises(TimeoutError):
        await node.wait_for(lambda _: None, timeout_s=0.05)


async def test_a_feed_begins_where_it_is_asked_to(cluster: Cluster) -> None:
    node = await cluster.start("a")
    for number in range(10):
        await node.propose([fact(node, str(number))], cause_id="c")
    index = node.state.index
    from_now, from_there, from_the_start = node.feed(), node.feed(index - 3), node.feed(0)
    await node.propose([fact(node, "last")], cause_id="c")
    assert await tags(from_now, "last") == ["last"]
    assert await tags(from_there, "last") == ["7", "8", "9", "last"]
    assert await tags(from_the_start, "last") == [*map(str, range(10)), "last"]


async def test_a_follower_has_a_feed_too(cluster: Cluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    feed = follower.feed(follower.state.index)
    for number in range(5):
        await master.propose([fact(master, str(number))], cause_id="c")
    await master.propose([fact(master, "last")], cause_id="c")
    assert await tags(feed, "last") == ["0", "1", "2", "3", "4", "last"]
