"""What no message can carry: it fails whoever asked for it, and nobody else; what is only much goes in pieces."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from exo.cluster.errors import UnsendableError
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.telemetry import TickRing
from exo.cluster.transport.base import MESSAGE_BYTES_MAX
from exo.cluster.wire import ENTRIES_BYTES, PROPOSAL_BYTES_MAX, Entries, decode_from_listener, encode_entries
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command, Deleted, DeleteInstance, PlaceInstance, Refusal, Reply
from exo.shared.types.devices import MemoryProfile, NodePerformanceProfile, SystemProfile
from exo.shared.types.events import InstanceCreated, NodeProfileUpdated, TelemetryFrame
from exo.shared.types.ids import CommandId, InstanceId, ModelId, NodeId
from exo.shared.types.instances import PlacementRequest
from support.coordinators import MemoryCluster, closing
from support.entries import entry
from support.faulty_story import instance
from support.simulated_cluster import tagged

UNSENDABLE = {
    "lone surrogate": "\ud800",
    "too long": "x" * MESSAGE_BYTES_MAX,
}


@pytest.fixture
async def cluster() -> AsyncIterator[MemoryCluster]:
    async with closing(MemoryCluster()) as cluster:
        assert isinstance(cluster, MemoryCluster)
        yield cluster


def answering(node: EmbeddedCoordinator, reply: Callable[[Command], Reply]) -> None:
    async def carry_out(command: Command) -> Reply:
        return reply(command)

    node.set_command_handler(carry_out)


def deleted(name: str = "i") -> Deleted:
    return Deleted(instance_id=InstanceId(name), index=0)


def profile(node_id: NodeId, ram_total: int) -> NodeProfileUpdated:
    memory = MemoryProfile(ram_total=ram_total, ram_available=0, swap_total=0, swap_available=0)
    return NodeProfileUpdated(
        node_id=node_id, profile=NodePerformanceProfile(memory=memory, system=SystemProfile())
    )


async def all_still_work(cluster: MemoryCluster, nodes: list[EmbeddedCoordinator]) -> None:
    term = nodes[0].leadership.term
    for node in nodes:
        index = await node.propose([tagged(node.node_id, "after")], cause_id="c")
        await cluster.until(lambda index=index: all(one.state.index >= index for one in nodes))
    assert {node.leadership.term for node in nodes} == {term}
    answering(nodes[0], lambda _: deleted())
    command = DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("i"))
    for node in nodes:
        assert isinstance(await node.send(command, timeout_s=5), Deleted)


@pytest.mark.parametrize("text", UNSENDABLE.values(), ids=UNSENDABLE.keys())
async def test_a_command_that_no_message_carries_fails_its_caller_only(
    cluster: MemoryCluster, text: str
) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    command = DeleteInstance(command_id=CommandId(text), instance_id=InstanceId("i"))
    with pytest.raises(UnsendableError, match="the command"):
        await follower.send(command, timeout_s=5)
    request = PlacementRequest(model_id=ModelId("m"), min_nodes=10**30)
    with pytest.raises(UnsendableError, match="cannot be sent"):
        await follower.send(PlaceInstance(command_id=CommandId("c"), request=request), timeout_s=5)
    await all_still_work(cluster, [master, follower])


@pytest.mark.parametrize("text", UNSENDABLE.values(), ids=UNSENDABLE.keys())
async def test_an_answer_that_no_message_carries_fails_its_caller_only(
    cluster: MemoryCluster, text: str
) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    answering(master, lambda _: Refusal(status=409, code="c", message=text))
    command = DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("i"))
    with pytest.raises(NoMasterError, match="the master's answer"):
        await follower.send(command, timeout_s=5)
    await all_still_work(cluster, [master, follower])


@pytest.mark.parametrize("text", UNSENDABLE.values(), ids=UNSENDABLE.keys())
async def test_a_proposal_that_no_message_carries_is_refused_at_once(
    cluster: MemoryCluster, text: str
) -> None:
    nodes = await cluster.start_cluster("a", "b")
    for node in nodes:
        with pytest.raises(UnsendableError, match="what was proposed"):
            await node.propose([tagged(node.node_id, text)], cause_id="c")
        with pytest.raises(UnsendableError):
            await node.propose([tagged(node.node_id, "x")], cause_id=text)
    await all_still_work(cluster, nodes)


async def test_the_longest_proposal_goes_all_the_way(cluster: MemoryCluster) -> None:
    nodes = await cluster.start_cluster("a", "b")
    for node in nodes:
        with pytest.raises(UnsendableError, match="more than can be sent at once"):
            await node.propose([tagged(node.node_id, "x" * PROPOSAL_BYTES_MAX)], cause_id="c")
        await node.propose([tagged(node.node_id, "x" * (PROPOSAL_BYTES_MAX - 400))], cause_id="c")
    await all_still_work(cluster, nodes)


async def test_telemetry_that_no_message_carries_is_left_out(cluster: MemoryCluster) -> None:
    nodes = await cluster.start_cluster("a", "b")
    for node in nodes:
        node.publish([profile(node.node_id, 7)])
        node.publish([profile(node.node_id, 10**30)])

    def are_all_told() -> bool:
        lives = [node.state.live.get(of.node_id) for node in nodes for of in nodes]
        return all(live is not None and live.profile is not None for live in lives)

    await cluster.until(are_all_told)
    for node in nodes:
        live = node.state.live[node.node_id].profile
        assert live is not None and live.memory.ram_total == 7
    await all_still_work(cluster, nodes)


async def test_a_follower_that_is_far_more_than_a_message_behind_catches_up(cluster: MemoryCluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    name = str(follower.node_id)
    await cluster.stop(name)
    for number in range(24):
        await master.propose([tagged(master.node_id, f"{number}" + "x" * 10**6)], cause_id="c")
    follower = await cluster.start(name)
    await cluster.until_one()
    assert follower.leadership.master_node_id == master.node_id
    await all_still_work(cluster, [master, follower])


async def test_a_live_state_beyond_one_message_goes_in_pieces(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = await cluster.start("a")
    await master.propose([InstanceCreated(instance=instance())], cause_id="so that it does not yield")
    master.publish([profile(master.node_id, 7)])
    await cluster.until(lambda: bool(master.state.live))
    monkeypatch.setattr("exo.cluster.hosting.MESSAGE_BYTES_MAX", 10)
    follower = await cluster.start("b")
    await cluster.until_one()
    await cluster.until(lambda: master.node_id in follower.state.live)
    await all_still_work(cluster, [master, follower])


def test_a_tick_beyond_one_message_is_replaced_by_the_live_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exo.cluster.telemetry.MESSAGE_BYTES_MAX", 10)
    ring = TickRing()
    ring.gather(TelemetryFrame(node_id=NodeId("a"), boot_id="1", seq=0, events=(profile(NodeId("a"), 1),)))
    ring.close_tick(1)
    assert ring.since(0) is None and ring.since(1) == []


@pytest.mark.parametrize(
    "sizes", [[], [1], [10] * 1000, [300_000] * 10, [ENTRIES_BYTES * 3, 1, ENTRIES_BYTES]]
)
def test_entries_come_out_of_their_messages_as_they_went_in(sizes: list[int]) -> None:
    source = [entry(index, event=tagged("a", "x" * size)) for index, size in enumerate(sizes, start=1)]
    messages = encode_entries(3, source)
    found = [decode_from_listener(message) for message in messages]
    assert all(isinstance(message, Entries) and message.term == 3 for message in found)
    assert [one for message in found if isinstance(message, Entries) for one in message.entries] == source
    for message, data in zip(found, messages, strict=True):
        assert isinstance(message, Entries)
        assert len(data) < ENTRIES_BYTES + 1000 or len(message.entries) == 1


# --- no master -----------------------------------------------------------------------------------------------------


async def test_a_command_without_a_master_fails_soon_however_long_it_may_take() -> None:
    options = msgspec.structs.replace(MemoryCluster().options, master_wait_s=0.2)
    async with closing(MemoryCluster(options)) as cluster:
        master, follower = await cluster.start_cluster("a", "b")
        may_answer = asyncio.Event()

        async def slowly(_: Command) -> Reply:
            await may_answer.wait()
            return deleted()

        master.set_command_handler(slowly)
        command = DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("i"))
        sending = asyncio.ensure_future(follower.send(command, timeout_s=60))
        await asyncio.wait([sending], timeout=0.4)
        assert not sending.done(), "the master has it: it may take its whole time"
        may_answer.set()
        assert isinstance(await sending, Deleted)
        await cluster.stop(str(master.node_id))
        await cluster.until(lambda: follower.leadership.master_node_id is None)
        with pytest.raises(NoMasterError, match=r"no master could be reached for 0\.2 s"):
            async with asyncio.timeout(20):
                await follower.send(command, timeout_s=600)
