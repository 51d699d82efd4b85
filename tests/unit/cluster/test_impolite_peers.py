"""Peers that have the secret and do not keep to the protocol: each loses its connection, and nobody else anything."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from exo.cluster.errors import ConnectionLostError
from exo.cluster.facts import PROTOCOL_VERSION, ClusterFacts
from exo.cluster.peer_wire import encode_peer_message
from exo.cluster.raft.messages import VoteRequest
from exo.cluster.replica import EmbeddedCoordinator
from exo.cluster.transport.base import MESSAGE_BYTES_MAX, Connection, Listener
from exo.cluster.wire import (
    Agreed,
    Call,
    Entries,
    FromDialer,
    FromListener,
    Hello,
    LiveState,
    NotNow,
    Propose,
    ProposedEvent,
    Publish,
    SnapshotPart,
    TelemetryTick,
    Welcome,
    decode_from_dialer,
    decode_from_listener,
    encode,
    encode_snapshot,
)
from exo.shared.errors import NoMasterError
from exo.shared.types.access import KeyId
from exo.shared.types.commands import DeleteInstance
from exo.shared.types.devices import MemoryProfile, NodePerformanceProfile, SystemProfile
from exo.shared.types.events import (
    ClusterDissolved,
    Decision,
    DeviceAppeared,
    DeviceLost,
    HistoryForced,
    InstanceCreated,
    InstanceDeleted,
    InstanceMoved,
    InstanceStranded,
    KeyCreated,
    NodeDisconnected,
    NodeJoined,
    NodeModelsChanged,
    NodeProfileUpdated,
    NodeRemoved,
    StageChanged,
    TelemetryFrame,
    TermOpened,
    VotersChanged,
)
from exo.shared.types.ids import ClusterId, CommandId, DeviceId, EventId, InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from support.coordinators import QUICK, MemoryCluster, closing
from support.entries import entries
from support.faulty_story import instance
from support.simulated_cluster import tagged
from support.states import cpu, identity

FUTURE = msgspec.msgpack.encode({"t": "MessageOfTheFuture", "x": 1})
NO_TEXT = msgspec.msgpack.encode({"t": "????"}).replace(b"????", b"\xff\xfe\xff\xfe")
"""What kind of message it is, is no UTF-8."""
DEEP = msgspec.msgpack.encode({"t": "Farewell", "x": []})[:-1] + b"\x91" * 10_000 + b"\x90"
"""A list in a list in a list."""


@pytest.fixture
async def cluster() -> AsyncIterator[MemoryCluster]:
    async with closing(MemoryCluster()) as cluster:
        assert isinstance(cluster, MemoryCluster)
        yield cluster


@pytest.fixture
async def node(cluster: MemoryCluster) -> EmbeddedCoordinator:
    """A master with something to lose."""
    node = await cluster.start("a")
    await node.propose([InstanceCreated(instance=instance())], cause_id="c")
    return node


def facts(node_id: str = "x", **changes: object) -> ClusterFacts:
    own = ClusterFacts(
        exo_version="0",
        namespace="test",
        node_id=NodeId(node_id),
        boot_id=f"{node_id}-1",
        name=node_id,
        cluster_address=HostPort(node_id, 1),
        cluster_id=ClusterId("theirs"),
        incarnation=1,
        term=1,
        index=3,
        master_node_id=NodeId(node_id),
        master_address=HostPort(node_id, 1),
        member_count=1,
        instance_count=0,
    )
    return msgspec.structs.replace(own, **changes)


async def dial(cluster: MemoryCluster, node: EmbeddedCoordinator) -> Connection:
    address = node.state.nodes[node.node_id].identity.cluster_address
    return await cluster.network.transport("x").dial(address, timeout_s=1)


async def say(connection: Connection, *messages: FromDialer | FromListener | bytes) -> None:
    for message in messages:
        await connection.send(message if isinstance(message, bytes) else encode(message))


async def hear(connection: Connection) -> FromListener:
    return decode_from_listener(await asyncio.wait_for(connection.receive(), 2))


async def ending(connection: Connection) -> str:
    """Read to the end, and return why it came."""
    with pytest.raises(ConnectionLostError) as end:
        while True:
            await asyncio.wait_for(connection.receive(), 2)
    return end.value.message


async def still_works(node: EmbeddedCoordinator) -> None:
    index = await node.propose([tagged("a", "still works")], cause_id="c")
    assert node.state.index == index


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "another release"),
        (b"\xc1garbage", "another release"),
        (FUTURE, "another release"),
        (NO_TEXT, "another release"),
        (DEEP, "another release"),
        (
            encode(Publish(frame=TelemetryFrame(node_id=NodeId("x"), boot_id="1", seq=0, events=()))),
            "say hello",
        ),
    ],
)
async def test_who_does_not_greet_is_hung_up_on(
    cluster: MemoryCluster, node: EmbeddedCoordinator, message: bytes, reason: str
) -> None:
    connection = await dial(cluster, node)
    await say(connection, message)
    assert reason in await ending(connection)
    assert node.counts["incidents"]["peer_malformed"] == 1
    await still_works(node)


@pytest.mark.parametrize(
    ("theirs", "intent", "code"),
    [
        (facts(version=PROTOCOL_VERSION + 1), "join", "other_version"),
        (facts(namespace="other"), "join", "other_namespace"),
        (facts("a"), "join", "same_node_id"),
        (facts(instance_count=1), "join", "both_have_instances"),
        (facts(), "look", "look"),
    ],
)
async def test_who_cannot_join_is_told_why_and_what_is_so_here(
    cluster: MemoryCluster, node: EmbeddedCoordinator, theirs: ClusterFacts, intent: str, code: str
) -> None:
    connection = await dial(cluster, node)
    await say(connection, Hello(facts=theirs, intent=intent))  # type: ignore[arg-type]
    answer = await hear(connection)
    assert isinstance(answer, NotNow)
    assert answer.code == code
    assert (answer.facts.node_id, answer.facts.instance_count) == ("a", 1)
    await ending(connection)
    assert set(node.state.nodes) == {"a"}
    assert node.counts["incidents"]["peer_turned_away"] == 1
    await still_works(node)


async def test_another_master_of_the_same_cluster_is_refused(
    cluster: MemoryCluster, node: EmbeddedCoordinator
) -> None:
    connection = await dial(cluster, node)
    await say(connection, Hello(facts=facts(cluster_id=node.state.cluster_id), intent="join"))
    answer = await hear(connection)
    assert isinstance(answer, NotNow) and answer.code == "two_masters"
    assert [peer.status for peer in node.peers_seen] == ["two_masters"]


async def test_a_senior_that_asks_to_join_is_refused_and_joined(cluster: MemoryCluster) -> None:
    node = await cluster.start("a")
    connection = await dial(cluster, node)
    await say(connection, Hello(facts=facts(instance_count=1), intent="join"))
    answer = await hear(connection)
    assert isinstance(answer, NotNow) and answer.code == "junior"
    await cluster.until(lambda: [peer.status for peer in node.peers_seen] == ["joining", "unreachable"])


async def joined(cluster: MemoryCluster, node: EmbeddedCoordinator) -> tuple[Connection, Welcome]:
    connection = await dial(cluster, node)
    await say(connection, Hello(facts=facts(), intent="join"))
    welcome = await hear(connection)
    assert isinstance(welcome, Welcome) and welcome.is_snapshot_next
    part = await hear(connection)
    assert isinstance(part, SnapshotPart) and part.is_last
    return connection, welcome


def proposal(term: int, first_seq: int) -> Propose:
    event = ProposedEvent(event_id=EventId("e"), event=tagged("x", "impolite"))
    return Propose(
        term=term, first_seq=first_seq, after_seq=first_seq - 1, cause_id="c", at="now", events=(event,)
    )


async def test_a_follower_that_breaks_the_rules_loses_its_connection(
    cluster: MemoryCluster, node: EmbeddedCoordinator
) -> None:
    index = node.state.index
    for rude, reason in (
        (FUTURE, "another release"),
        (NO_TEXT, "another release"),
        (DEEP, "another release"),
        (encode(Hello(facts=facts(), intent="join")), "hello twice"),
        (encode(proposal(term=7, first_seq=1)), "term 7"),
        (encode(proposal(term=1, first_seq=5)), "the last one is 0"),
    ):
        connection, _ = await joined(cluster, node)
        await say(connection, rude)
        assert reason in await ending(connection)
    assert node.state.index == index
    incidents = node.counts["incidents"]
    assert (incidents["peer_malformed"], incidents["proposal_refused"]) == (4, 2)
    await still_works(node)


def forged() -> list[Decision]:
    """What a member has no right to propose."""
    foreign = identity("x", devices=[cpu("a", 1)])
    stage = StageChanged(instance_id=instance().instance_id, generation=1, rank=0, phase="ready")
    return [
        NodeJoined(identity=identity("a")),
        NodeJoined(identity=foreign),
        NodeModelsChanged(node_id=NodeId("a"), models=()),
        DeviceAppeared(node_id=NodeId("a"), device=cpu("x", 1)),
        DeviceAppeared(node_id=NodeId("x"), device=cpu("a", 1)),
        DeviceLost(node_id=NodeId("a"), device_id=DeviceId("a/cpu:0"), reason="a lie"),
        stage,
        msgspec.structs.replace(stage, rank=-1),
        msgspec.structs.replace(stage, rank=99),
        msgspec.structs.replace(stage, instance_id=InstanceId("gone"), rank=-1),
        NodeDisconnected(node_id=NodeId("a"), reason="a lie"),
        NodeRemoved(node_id=NodeId("a"), reason="a lie"),
        InstanceDeleted(instance_id=instance().instance_id, reason="a lie"),
        InstanceMoved(instance_id=instance().instance_id, generation=2, plan=instance().plan, reason="a lie"),
        InstanceStranded(instance_id=instance().instance_id, generation=1, reason="a lie"),
        KeyCreated(
            key_id=KeyId("k"),
            hash="0" * 64,
            name="",
            scopes=("admin",),
            created_at_s=0.0,
            expires_at_s=None,
            created_by="",
        ),
        VotersChanged(voters=Voters(voters=("x",)), reason="a lie"),
        HistoryForced(incarnation=2, forgotten=(NodeId("a"),), voters=Voters(voters=("x",))),
        TermOpened(master_node_id=NodeId("x")),
        ClusterDissolved(into_cluster_id=ClusterId("theirs"), address=HostPort("x", 1)),
    ]


@pytest.mark.parametrize("event", forged(), ids=lambda event: type(event).__name__)
async def test_a_follower_proposes_nothing_but_facts_of_itself(
    cluster: MemoryCluster, node: EmbeddedCoordinator, event: Decision
) -> None:
    index = node.state.index
    connection, welcome = await joined(cluster, node)
    proposed = (
        ProposedEvent(event_id=EventId("good"), event=tagged("x", "of itself")),
        ProposedEvent(event_id=EventId("bad"), event=event),
    )
    await say(
        connection,
        Propose(term=welcome.facts.term, first_seq=1, after_seq=0, cause_id="c", at="now", events=proposed),
    )
    assert type(event).__name__ in await ending(connection)
    assert node.state.index == index
    assert node.counts["incidents"]["peer_lied"] == 1
    await still_works(node)


async def test_who_does_not_lead_decides_nothing(cluster: MemoryCluster) -> None:
    _, follower = await cluster.start_cluster("a", "b")
    with pytest.raises(NoMasterError, match="does not lead"):
        await follower.propose([InstanceCreated(instance=instance())], cause_id="c")
    await follower.propose([tagged(follower.node_id, "a fact")], cause_id="c")


async def test_a_member_that_gives_an_endless_reason_for_its_end_is_called_disconnected(
    cluster: MemoryCluster, node: EmbeddedCoordinator
) -> None:
    connection, welcome = await joined(cluster, node)
    event = ProposedEvent(event_id=EventId("e"), event=NodeJoined(identity=identity("x")))
    await say(
        connection,
        Propose(term=welcome.facts.term, first_seq=1, after_seq=0, cause_id="c", at="now", events=(event,)),
    )
    await cluster.until(lambda: "x" in node.state.nodes)
    connection.close("no\nreason" * MESSAGE_BYTES_MAX)
    await cluster.until(lambda: not node.state.nodes[NodeId("x")].is_connected)
    reason = node.state.nodes[NodeId("x")].left_reason
    assert reason is not None and reason.startswith("no reason") and len(reason) < 200
    await still_works(node)


@pytest.mark.parametrize("node_id", ["", "x/y", "x\ny", "x" * 65])
async def test_an_id_that_no_node_can_have_is_not_let_in(
    cluster: MemoryCluster, node: EmbeddedCoordinator, node_id: str
) -> None:
    connection = await dial(cluster, node)
    await say(connection, Hello(facts=facts(node_id), intent="join"))
    assert "no id that a node can have" in await ending(connection)
    assert not node.peers_seen
    assert node.counts["incidents"]["peer_malformed"] == 1
    await still_works(node)


async def test_nobody_speaks_for_another_node(cluster: MemoryCluster, node: EmbeddedCoordinator) -> None:
    connection, welcome = await joined(cluster, node)
    memory = MemoryProfile(ram_total=666, ram_available=0, swap_total=0, swap_available=0)
    forged = NodeProfileUpdated(
        node_id=NodeId("a"), profile=NodePerformanceProfile(memory=memory, system=SystemProfile())
    )
    frame = TelemetryFrame(node_id=NodeId("a"), boot_id="a-1", seq=10**6, events=(forged,))
    await say(connection, Publish(frame=frame), proposal(term=welcome.facts.term, first_seq=1))
    while not isinstance(message := await hear(connection), Entries):
        pass
    assert message.entries[-1].origin == "x"
    assert node.state.live.get(NodeId("a")) is None or node.state.live[NodeId("a")].profile is None


async def test_a_call_of_a_follower_that_goes_away_is_carried_out_all_the_same(
    cluster: MemoryCluster, node: EmbeddedCoordinator
) -> None:
    began, goes_on = asyncio.Event(), asyncio.Event()

    async def slowly(command: object) -> None:
        began.set()
        await goes_on.wait()
        await still_works(node)

    node.set_command_handler(slowly)  # type: ignore[arg-type]
    connection, _ = await joined(cluster, node)
    command = DeleteInstance(command_id=CommandId("c"), instance_id=InstanceId("i"))
    await say(connection, Call(call_id=1, command=command))
    await began.wait()
    connection.close("gone")
    index = node.state.index
    goes_on.set()
    await cluster.until(lambda: node.state.index > index)


class FakeMaster:
    """Takes followers in, then says what it is told to say."""

    def __init__(self, cluster: MemoryCluster, listener: Listener) -> None:
        self.cluster = cluster
        self.listener = listener
        self.greeted = 0
        self.state = State(cluster_id=ClusterId("theirs"), namespace="test", index=3, term=1)

    @property
    def facts(self) -> ClusterFacts:
        address = self.listener.address
        return facts(cluster_address=address, master_address=address, instance_count=1)

    async def take_in(self, *messages: FromListener | bytes) -> Connection:
        """Greet the next that joins; those who only look are shown the facts."""
        while True:
            connection = await asyncio.wait_for(self.listener.accept(), 5)
            hello = decode_from_dialer(await connection.receive())
            assert isinstance(hello, Hello)
            self.greeted += 1
            if hello.intent == "join":
                await say(connection, *messages)
                return connection
            await say(connection, NotNow(code="look", facts=self.facts))

    def welcome(self) -> tuple[FromListener | bytes, ...]:
        return (
            Welcome(facts=self.facts, is_snapshot_next=True, last_seq=0),
            *encode_snapshot(self.state),
        )


@pytest.fixture
async def master(cluster: MemoryCluster) -> AsyncIterator[FakeMaster]:
    listener = await cluster.network.transport("x").listen(HostPort("x", 0))
    master = FakeMaster(cluster, listener)
    yield master
    await listener.close()


async def attract(cluster: MemoryCluster, master: FakeMaster, **changes: object) -> EmbeddedCoordinator:
    """Start a node that learns of the fake master."""
    node = await cluster.start("b", **changes)
    looking = await dial(cluster, node)
    await say(looking, Hello(facts=master.facts, intent="look"))
    await ending(looking)
    return node


@pytest.mark.parametrize(
    "rude",
    [
        Entries(term=1, entries=tuple(entries(6, 6))),
        Entries(term=2, entries=tuple(entries(4, 4))),
        FUTURE,
        NO_TEXT,
        DEEP,
        SnapshotPart(data=b"\xc1", is_last=True),
        NotNow(code="busy", facts=facts()),
    ],
    ids=[
        "gap",
        "another term",
        "the future",
        "no text",
        "too deep",
        "damage",
        "greets twice",
    ],
)
async def test_a_follower_leaves_a_master_that_breaks_the_rules_and_tries_again(
    cluster: MemoryCluster, master: FakeMaster, rude: FromListener | bytes
) -> None:
    node = await attract(cluster, master)
    connection = await master.take_in(*master.welcome(), rude)
    assert await ending(connection)
    assert node.counts["incidents"]["master_faulty"] == 1
    assert node.state.index == 3
    assert node.state.cluster_id == "theirs"
    connection = await master.take_in(*master.welcome(), Entries(term=1, entries=tuple(entries(4, 5))))
    await cluster.until(lambda: node.state.index == 5)
    connection.close("done")


@pytest.mark.parametrize(
    "start",
    [
        (FUTURE,),
        (NO_TEXT,),
        (DEEP,),
        (Entries(term=1, entries=()),),
        (Welcome(facts=facts(instance_count=1), is_snapshot_next=True, last_seq=0), LiveState(live={})),
        (
            Welcome(facts=facts(instance_count=1), is_snapshot_next=True, last_seq=0),
            SnapshotPart(data=b"\xc1", is_last=True),
        ),
        (Welcome(facts=facts(instance_count=0, cluster_id="~"), is_snapshot_next=False, last_seq=0),),
    ],
    ids=[
        "the future",
        "no text",
        "too deep",
        "no welcome",
        "no snapshot",
        "damaged snapshot",
        "junior after all",
    ],
)
async def test_a_node_keeps_its_own_cluster_when_joining_goes_wrong(
    cluster: MemoryCluster, master: FakeMaster, start: tuple[FromListener | bytes, ...]
) -> None:
    node = await attract(cluster, master)
    own = node.state.cluster_id
    connection = await master.take_in(*start)
    assert await ending(connection)
    assert node.state.cluster_id == own
    assert node.leadership.is_self
    await node.propose([tagged("b", "mine")], cause_id="c")
    assert cluster.stores["b"].log.last_index == node.state.index


@pytest.mark.parametrize("rude", [b"", b"\x00\xc1", b"\x00" + FUTURE, b"\x00" + NO_TEXT, b"\x00" + DEEP])
async def test_a_voter_that_talks_nonsense_loses_its_link(cluster: MemoryCluster, rude: bytes) -> None:
    nodes = await cluster.start_cluster("a", "b")
    other = next(node for node in nodes if not node.leadership.is_self)
    their_facts = facts(other.node_id, cluster_id=nodes[0].state.cluster_id, master_node_id=None)
    connection = await dial(cluster, nodes[0])
    await say(connection, Hello(facts=their_facts, intent="agree"))
    assert isinstance(await hear(connection), Agreed)
    await say(connection, rude)
    assert await ending(connection)
    assert nodes[0].counts["incidents"]["peer_malformed"] == 1
    await cluster.until_one()
    await nodes[0].propose([tagged("a", "still works")], cause_id="c")


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"term": 2**60}, "it is in term"),
        ({"term": 5, "last_term": 9}, "its log ends with"),
        ({"term": 5, "last_index": 2**60}, "its log ends with"),
    ],
    ids=["term", "term of its log", "length of its log"],
)
async def test_a_voter_that_says_what_cannot_be_loses_its_link_and_is_counted(
    cluster: MemoryCluster, lie: dict[str, int], reason: str
) -> None:
    nodes = await cluster.start_cluster("a", "b", "c")
    leader = next(node for node in nodes if node.leadership.is_self)
    other = next(node for node in nodes if node is not leader)
    before = leader.leadership.term
    their_facts = facts(other.node_id, cluster_id=leader.state.cluster_id, master_node_id=None)
    connection = await dial(cluster, leader)
    await say(connection, Hello(facts=their_facts, intent="agree"))
    assert isinstance(await hear(connection), Agreed)
    true = VoteRequest(
        incarnation=leader.leadership.incarnation,
        term=before,
        is_trial=False,
        last_index=0,
        last_term=0,
        is_hand_over=False,
    )
    await say(connection, *encode_peer_message(msgspec.structs.replace(true, **lie)))
    assert reason in await ending(connection)
    assert leader.counts["incidents"]["peer_distrusted"] == 1
    await cluster.until_one()
    assert max(node.leadership.term for node in nodes) < before + 10, "nobody has taken it over"
    await leader.propose([tagged(leader.node_id, "still works")], cause_id="c")


@pytest.mark.parametrize(("is_liar", "counted"), [(True, "peer_lied"), (False, "peer_malformed")])
async def test_somebody_else_in_a_voters_place_is_given_no_link_and_is_counted(
    cluster: MemoryCluster, is_liar: bool, counted: str
) -> None:
    nodes = await cluster.start_cluster("a", "b", "c")
    leader, gone = nodes[0], nodes[-1].node_id
    address = leader.state.nodes[gone].identity.cluster_address
    await cluster.until(lambda: len(leader.state.voters.voters) == 3)
    await cluster.stop(gone)
    own_facts = facts(gone, cluster_id=leader.state.cluster_id, master_node_id=None, cluster_address=address)
    incidents = leader.counts["incidents"]
    async with await cluster.network.transport(address.host, node_id=NodeId("z")).listen(address) as listener:
        for _ in range(20):
            connection = await asyncio.wait_for(listener.accept(), 5)
            hello = decode_from_dialer(await connection.receive())
            if isinstance(hello, Hello) and (hello.facts.node_id, hello.intent) == (leader.node_id, "agree"):
                await say(connection, Agreed(facts=own_facts) if is_liar else FUTURE)
                await ending(connection)
                break
            connection.close("not that one")
        assert incidents[counted] == 1
    await leader.propose([tagged(leader.node_id, "still works")], cause_id="c")


async def test_a_snapshot_may_take_long_as_long_as_it_comes(
    cluster: MemoryCluster, master: FakeMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exo.cluster.wire.SNAPSHOT_PART_BYTES", 16)
    options = msgspec.structs.replace(QUICK, answer_timeout_s=0.3)
    node = await attract(cluster, master, options=options)
    welcome, *parts = master.welcome()
    connection = await master.take_in(welcome)
    assert len(parts) >= 6
    for part in parts[:5]:
        await asyncio.sleep(0.1)
        await say(connection, part)
    await say(connection, *parts[5:])
    await cluster.until(lambda: node.state.cluster_id == "theirs")
    connection.close("done")
    # One that stops in the middle is given up.
    connection = await master.take_in(welcome, parts[0])
    assert await ending(connection)


async def test_telemetry_of_another_term_or_of_strangers_is_ignored(
    cluster: MemoryCluster, master: FakeMaster
) -> None:
    node = await attract(cluster, master)
    stranger = TelemetryFrame(node_id=NodeId("nobody"), boot_id="1", seq=0, events=())
    tick = TelemetryTick(term=1, tick=1, frames=(stranger,))
    connection = await master.take_in(
        *master.welcome(), tick, LiveState(live={}), Entries(term=1, entries=tuple(entries(4, 4)))
    )
    await cluster.until(lambda: node.state.index == 4)
    assert node.state.live == {}
    connection.close("done")
