"""Peers of an etcd cluster that do not keep to the rules, and masters that are none: told so, and shut out."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from exo.cluster.errors import ConnectionLostError
from exo.cluster.etcd import wire
from exo.cluster.etcd.coordinator import EtcdCoordinator
from exo.cluster.etcd.records import BATCH_BYTES_MAX, MasterRecord, encode_record
from exo.cluster.etcd.wire import FromFollower, FromMaster, Hello, Level, NotNow, Welcome
from exo.cluster.transport.base import Connection, Listener
from exo.cluster.wire import TELEMETRY_BYTES_MAX, Call, Propose, ProposedEvent, Publish, TelemetryTick
from exo.shared.errors import NoMasterError
from exo.shared.types.commands import Command, DeleteInstance, Done, EnrolNode, Reply
from exo.shared.types.events import Decision, LinkMeasured, NodeJoined, NodeRemoved, TelemetryFrame
from exo.shared.types.ids import ClusterId, CommandId, EventId, InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from support.coordinators import closing
from support.etcd_cluster import QUICK_ETCD, EtcdCluster
from support.etcd_server import EtcdServer, running_etcd, text64
from support.simulated_cluster import tagged
from support.states import identity


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
async def cluster(etcd: EtcdServer) -> AsyncIterator[EtcdCluster]:
    options = msgspec.structs.replace(QUICK_ETCD, answer_timeout_s=0.3)
    async with closing(EtcdCluster(etcd, options)) as cluster:
        assert isinstance(cluster, EtcdCluster)
        yield cluster


# --- a master, and strangers that dial it --------------------------------------------------------------------------


class Stranger:
    """Dials a master and says what it likes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def say(self, message: FromFollower | bytes) -> None:
        data = message if isinstance(message, bytes) else wire.encode(message)
        await self.connection.send(data)

    async def hear(self) -> FromMaster:
        async with asyncio.timeout(5):
            return wire.decode_from_master(await self.connection.receive())

    async def ended(self) -> str:
        """Why the master hung up."""
        async with asyncio.timeout(5):
            while True:
                try:
                    await self.connection.receive()
                except ConnectionLostError as error:
                    return error.reason


async def dial(cluster: EtcdCluster, *, node_id: str | None = None) -> Stranger:
    certified = NodeId(node_id) if node_id is not None else None
    transport = cluster.network.transport("stranger", node_id=certified)
    address = cluster.node("a").state.nodes[NodeId("a")].identity.cluster_address
    return Stranger(await transport.dial(address, timeout_s=1))


def hello(**changes: Any) -> Hello:
    return Hello(**{"namespace": "test", "node_id": NodeId("stranger"), "term": 1, **changes})


async def taken_in(cluster: EtcdCluster, node_id: str = "stranger") -> Stranger:
    stranger = await dial(cluster)
    await stranger.say(hello(node_id=NodeId(node_id)))
    assert isinstance(await stranger.hear(), Welcome)
    return stranger


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 99}, "it speaks protocol 99, this node 1"),
        ({"namespace": "other"}, "this node belongs to the namespace 'test'"),
        ({"node_id": NodeId("a/b")}, "it has no id that a node can have"),
        ({"node_id": NodeId("a")}, "it has this node's id: a copied data directory"),
        ({"term": 7}, "this node does not lead in term 7"),
    ],
)
async def test_who_does_not_belong_here_is_told_why(
    cluster: EtcdCluster, changes: dict[str, Any], reason: str
) -> None:
    await cluster.start("a")
    stranger = await dial(cluster)
    await stranger.say(hello(**changes))
    answer = await stranger.hear()
    assert isinstance(answer, NotNow) and reason in answer.reason


async def test_a_node_is_who_its_certificate_says(cluster: EtcdCluster) -> None:
    await cluster.start("a")
    stranger = await dial(cluster, node_id="b")
    await stranger.say(hello())
    answer = await stranger.hear()
    assert isinstance(answer, NotNow) and "its certificate says b" in answer.reason
    true = await dial(cluster, node_id="stranger")
    await true.say(hello())
    assert isinstance(await true.hear(), Welcome)


async def test_who_does_not_greet_is_hung_up_on(cluster: EtcdCluster) -> None:
    await cluster.start("a")
    silent, rude, other = await dial(cluster), await dial(cluster), await dial(cluster)
    await rude.say(Level(index=1))
    assert await rude.ended() == "it did not say hello"
    await other.say(b"\x81\xa1t\xa5Hello")
    assert "start the other with the same --coordinator" in await other.ended()
    assert await silent.ended() == "it said nothing"
    left = await dial(cluster)
    left.connection.close("changed its mind")
    await cluster.node("a").propose([tagged(NodeId("a"), "alive")], cause_id="c")


def propose(first_seq: int, tag: str = "x", *, term: int = 1, event: Decision | None = None) -> Propose:
    proposed = ProposedEvent(event_id=EventId("e"), event=event or tagged(NodeId("stranger"), tag))
    return Propose(
        term=term, first_seq=first_seq, after_seq=first_seq - 1, cause_id="c", at="t", events=(proposed,)
    )


def publish(node_id: str, *, name_bytes: int = 1) -> Publish:
    link = LinkMeasured(
        source_node_id=NodeId(node_id), dest_node_id=NodeId("x" * name_bytes), link_type="unknown"
    )
    return Publish(frame=TelemetryFrame(node_id=NodeId(node_id), boot_id="a-1", seq=99, events=(link,)))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (hello(), "it said hello twice"),
        (b"?", "it speaks another release of exo"),
        (b"\x81\xa1t\xa4\xff\xff\xff\xff", "it speaks another release of exo"),
        (propose(1, event=tagged("a", "a lie")), "a DeviceLost that is not its own"),
        (propose(1, event=NodeRemoved(node_id=NodeId("a"), reason="")), "is for the master to decide"),
        (Level(index=10**6), "it has seen entry 1000000, this node only"),
        (propose(7), "proposal 7 behind 6, and the last one is 0"),
        (propose(0), "only the leader's own decisions go without a number"),
        (propose(1, term=2), "it is for term 2, this is term 1"),
        (propose(1, "x" * BATCH_BYTES_MAX), f"at most {BATCH_BYTES_MAX} fit into one commit"),
        (propose(1, "x" * 2 * BATCH_BYTES_MAX), f"at most {BATCH_BYTES_MAX} can be decided at once"),
        (publish("stranger", name_bytes=TELEMETRY_BYTES_MAX), "at most 1048576 can be sent at once"),
    ],
)
async def test_what_cannot_be_meant_ends_the_connection_and_nothing_else(
    cluster: EtcdCluster, message: FromFollower | bytes, reason: str
) -> None:
    a = await cluster.start("a")
    await cluster.until(lambda: a.leadership.is_self)
    stranger = await taken_in(cluster)
    await stranger.say(message)
    assert reason in await stranger.ended()
    index = await a.propose([tagged(a.node_id, "alive")], cause_id="c")
    again = await taken_in(cluster)
    await again.say(propose(1))
    await cluster.until(lambda: a.state.index > index)


async def test_nobody_speaks_for_another_node(cluster: EtcdCluster) -> None:
    a = await cluster.start("a")
    await cluster.until(lambda: a.leadership.is_self)
    stranger = await taken_in(cluster)
    before = a.state.live
    await stranger.say(publish("a"))
    await stranger.say(propose(1))
    await cluster.until(lambda: a.state.last_seq.get(NodeId("stranger")) == 1)
    assert a.state.live == before


async def test_a_follower_is_who_its_connection_says(cluster: EtcdCluster) -> None:
    a = await cluster.start("a")
    await cluster.until(lambda: a.leadership.is_self)
    heard: list[Command] = []

    async def hear(command: Command) -> Reply:
        heard.append(command)
        return Done(index=0)

    a.set_command_handler(hear)
    stranger = await taken_in(cluster)
    for node_id, proof in (("a", "certificate"), ("stranger", "certificate"), ("stranger", "host_secret")):
        claim = EnrolNode(
            command_id=CommandId("c"),
            node_id=NodeId(node_id),
            name="",
            request_der=b"",
            fingerprint="",
            address="",
            proof=proof,  # type: ignore[arg-type]
            is_proven=True,
        )
        await stranger.say(Call(call_id=1, command=claim))
        while not isinstance(await stranger.hear(), wire.Answer):
            pass
    assert [one.is_proven for one in heard if isinstance(one, EnrolNode)] == [False, False, True]


async def test_what_presupposes_a_commit_waits_for_it(cluster: EtcdCluster) -> None:
    """A follower may see a commit before its master has the answer to it."""
    a = await cluster.start("a")
    await cluster.until(lambda: a.leadership.is_self)
    stranger = await taken_in(cluster)
    own = identity("stranger", boot_id="a-1")
    joined = ProposedEvent(event_id=EventId("e"), event=NodeJoined(identity=own))
    await stranger.say(Propose(term=1, first_seq=1, after_seq=0, cause_id="c", at="t", events=(joined,)))
    await stranger.say(Level(index=a.state.index + 1))
    await stranger.say(publish("stranger"))
    await cluster.until(lambda: NodeId("stranger") in a.state.live)


async def test_a_node_that_connects_again_replaces_its_old_connection(cluster: EtcdCluster) -> None:
    await cluster.start("a")
    first = await taken_in(cluster)
    second = await taken_in(cluster)
    assert await first.ended() == "the same node has connected again"
    await second.say(propose(1))
    await cluster.until(lambda: cluster.node("a").state.last_seq.get(NodeId("stranger")) == 1)


async def test_a_command_for_a_master_without_a_handler_is_answered(cluster: EtcdCluster) -> None:
    master, follower = await cluster.start_cluster("a", "b")
    command = DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("i"))
    with pytest.raises(NoMasterError, match="no one to carry commands out"):
        await follower.send(command, timeout_s=2)
    stranger = await taken_in(cluster)
    await stranger.say(Call(call_id=5, command=command))
    while not isinstance(answer := await stranger.hear(), wire.Answer):
        pass
    assert answer.call_id == 5 and answer.error is not None
    with pytest.raises(NoMasterError, match=r"no master could be reached for 0.5 s"):
        await master.send(command, timeout_s=5)


# --- a node, and a master that is none -----------------------------------------------------------------------------


class FalseMaster:
    """Has the master's key, and does as it likes."""

    def __init__(self, cluster: EtcdCluster, listener: Listener) -> None:
        self.cluster = cluster
        self.listener = listener

    def claim(self, term: int) -> None:
        record = MasterRecord(
            node_id=NodeId("false"),
            boot_id="false-1",
            term=term,
            address=self.listener.address,
            name="host-false",
        )
        key = text64(f"/{self.cluster.prefix}/test/master")
        value = text64(encode_record(record).decode())
        self.cluster.server.delete(f"/{self.cluster.prefix}/test/master")
        self.cluster.server.call("/v3/kv/put", {"key": key, "value": value})

    async def met(self) -> tuple[Connection, Hello]:
        async with asyncio.timeout(5):
            connection = await self.listener.accept()
            hello = wire.decode_from_follower(await connection.receive())
        assert isinstance(hello, Hello)
        return connection, hello


@pytest.fixture
async def false_master(cluster: EtcdCluster) -> AsyncIterator[FalseMaster]:
    await cluster.start("a")
    await cluster.until_one()
    async with await cluster.transport("false").listen(HostPort("false", 0)) as listener:
        yield FalseMaster(cluster, listener)


async def until_trouble(cluster: EtcdCluster, node: EtcdCoordinator, text: str) -> None:
    await cluster.until(lambda: node.trouble is not None and text in node.trouble, timeout_s=5)


def welcome(node: EtcdCoordinator, *, term: int = 9) -> Welcome:
    return Welcome(
        term=term, cluster_id=node.state.cluster_id or ClusterId("c"), index=node.state.index, last_seq=0
    )


async def test_a_master_that_says_nothing_or_no_is_tried_again(
    cluster: EtcdCluster, false_master: FalseMaster
) -> None:
    a = cluster.node("a")
    false_master.claim(9)
    await false_master.met()
    assert not a.leadership.is_self
    await until_trouble(
        cluster, a, "host-false at false:3 as the master, which does not take this node: it gave no"
    )
    connection, hello = await false_master.met()
    assert (hello.node_id, hello.term) == ("a", 9)
    await connection.send(wire.encode(NotNow(reason="not today")))
    await until_trouble(cluster, a, "not today")
    connection, _ = await false_master.met()
    await connection.send(wire.encode(TelemetryTick(term=9, tick=1, frames=())))
    await until_trouble(cluster, a, "another one is the master by now")
    connection, _ = await false_master.met()
    await connection.send(b"?")
    await until_trouble(cluster, a, "it speaks another release of exo")
    connection, _ = await false_master.met()
    connection.close("enough")
    await until_trouble(cluster, a, "enough")
    cluster.server.delete(f"/{cluster.prefix}/test/master")
    await cluster.until(lambda: a.leadership.is_self)


async def test_a_master_that_talks_nonsense_is_left(cluster: EtcdCluster, false_master: FalseMaster) -> None:
    a = cluster.node("a")
    false_master.claim(9)
    for nonsense in (wire.encode(welcome(a)), b"?"):
        connection, _ = await false_master.met()
        await connection.send(wire.encode(welcome(a)))
        await connection.send(nonsense)
        with pytest.raises(ConnectionLostError) as caught:
            async with asyncio.timeout(5):
                while True:
                    await connection.receive()
        reason = "it greeted twice" if nonsense != b"?" else "this node speaks another release of exo"
        assert reason in caught.value.reason
    assert a.leadership.master_node_id is None, "its term was never opened"


async def test_a_node_whose_master_is_replaced_drops_it_at_once(
    cluster: EtcdCluster, false_master: FalseMaster
) -> None:
    a = cluster.node("a")
    false_master.claim(9)
    connection, _ = await false_master.met()
    await connection.send(wire.encode(welcome(a)))
    await cluster.until(lambda: a._member.link is not None)
    false_master.claim(10)
    with pytest.raises(ConnectionLostError, match="etcd names"):
        async with asyncio.timeout(5):
            while True:
                await connection.receive()
    _, hello = await false_master.met()
    assert hello.term == 10


async def test_calls_to_a_master_that_is_lost_fail_at_once(
    cluster: EtcdCluster, false_master: FalseMaster
) -> None:
    a = cluster.node("a")
    false_master.claim(9)
    connection, _ = await false_master.met()
    await connection.send(wire.encode(welcome(a)))
    await cluster.until(lambda: a._member.link is not None)
    link = a._member.link
    assert link is not None
    command = DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("i"))
    call = link.call(command)
    connection.close("gone")
    with pytest.raises(NoMasterError, match="was lost before it answered"):
        await asyncio.wait_for(call, 5)
