"""The API node's client towards other hosts: who is let in, who is not, and what changes while it runs."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from loguru import logger

from exo.dataplane import frames as f
from exo.dataplane.client import GenerationClient
from exo.dataplane.codec import encode
from exo.dataplane.connection import FrameConnection
from exo.dataplane.errors import GenerationFailedError, HandshakeError, StageUnreachableError
from exo.dataplane.gate import Gate
from exo.dataplane.generation import GenerationRequest
from exo.dataplane.handshake import REPLIES, REQUESTS
from exo.dataplane.identity import DataIdentity, DataTrust
from exo.dataplane.opening import Opening
from exo.dataplane.tls_pipe import DATA_PROTOCOL
from exo.shared.addresses import is_loopback
from exo.shared.errors import ConfigurationError
from exo.shared.tls import ACCESS_DENIED_ALERT
from exo.shared.types.ids import InstanceId, NodeId, RequestId
from exo.shared.types.nodes import HostPort
from support.data_hosts import data_identity, is_nobody_local, member, mixed_up
from support.memberships import Membership, odd_certificate, utc_now

SECRET = b"k" * 32
OTHER_SECRET = b"o" * 32
"""Of another host: nothing but certificates is shared."""
SAFETY_S = 10
LONG_AGO = utc_now() - timedelta(days=40)
LATER = utc_now() + timedelta(days=2)


@pytest.fixture
def membership(tmp_path: Path) -> Membership:
    return Membership(tmp_path)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    told: list[str] = []
    sink = logger.add(lambda message: told.append(message.record["message"]), level="WARNING")
    yield told
    logger.remove(sink)


class FarStage:
    """A first and last stage on another host, which does what the test says."""

    def __init__(self, trust: DataTrust, node_id: str = "stage") -> None:
        self.gate = Gate(OTHER_SECRET, node_id=NodeId(node_id), sender=node_id, is_local=is_nobody_local)
        self.gate.set_revoked(trust.removed_node_ids, trust.revoked_serials)
        self.gate.set_identity(trust.identity)
        self.frames: asyncio.Queue[f.Frame] = asyncio.Queue()
        self.connections: list[FrameConnection] = []
        self.lost: list[str] = []
        self.address = HostPort("127.0.0.1", 1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FarStage"]:
        def accept(connection: FrameConnection, host: str) -> Opening:
            self.connections.append(connection)
            return self.gate.accept(host)

        server = await asyncio.get_running_loop().create_server(
            lambda: FrameConnection(None, accept=accept, on_frame=self._received, on_lost=self._lost),
            "127.0.0.1",
            0,
        )
        self.address = HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            for connection in self.connections:
                connection.abort()
                await connection.lost

    def _received(self, connection: FrameConnection, frame: f.Frame, payload: bytes | bytearray) -> None:
        if isinstance(frame, f.Generate):
            connection.send(f.Accepted(request_id=frame.request_id, prompt_tokens=7))
        self.frames.put_nowait(frame)

    def _lost(self, connection: FrameConnection, reason: str) -> None:
        self.lost.append(reason)

    async def next(self, kind: type[f.Frame]) -> f.Frame:
        async with asyncio.timeout(SAFETY_S):
            frame = await self.frames.get()
        assert isinstance(frame, kind)
        return frame

    async def dial(
        self, client: GenerationClient, *, purpose: str = REPLIES, node_id: str = "api"
    ) -> FrameConnection:
        """Connect to where the client takes tokens."""
        target, opening = self.gate.dial(client.address, node_id=NodeId(node_id), purpose=purpose)
        connection = FrameConnection(opening, on_frame=lambda *_: None, on_lost=lambda *_: None)
        await asyncio.get_running_loop().create_connection(lambda: connection, target.host, target.port)
        self.connections.append(connection)
        async with asyncio.timeout(SAFETY_S):
            await asyncio.shield(connection.ready)
        return connection


def api_node(identity: DataIdentity | None) -> GenerationClient:
    """Return a client to which everybody seems to be on another host."""
    client = GenerationClient(secret=SECRET, node_id=NodeId("api"), is_local=is_nobody_local)
    client.set_identity(identity)
    return client


def request(name: str = "r1", *nodes: str) -> GenerationRequest:
    return GenerationRequest(
        request_id=RequestId(name),
        instance_id=InstanceId("i1"),
        generation=1,
        prompt="Hello",
        node_ids=tuple(NodeId(node) for node in nodes or ("stage",)),
    )


def chunk(index: int, name: str = "r1", *, is_last: bool = False) -> f.TokenChunk:
    return f.TokenChunk(
        request_id=RequestId(name),
        index=index,
        token_id=index,
        text=f"{index} ",
        finish_reason="stop" if is_last else None,
    )


@asynccontextmanager
async def hosts(
    membership: Membership,
    *,
    api: DataIdentity | None = None,
    stage: DataTrust | None = None,
    stage_node_id: str = "stage",
) -> AsyncIterator[tuple[GenerationClient, FarStage]]:
    async with (
        api_node(api or member(membership, "api").identity) as client,
        FarStage(stage or member(membership, stage_node_id), stage_node_id).running() as far,
    ):
        yield client, far


async def unreachable(client: GenerationClient, far: FarStage, *nodes: str) -> str:
    with pytest.raises(StageUnreachableError) as error:
        await client.start(far.address, request("r1", *nodes))
    return error.value.message


# --- good -------------------------------------------------------------------------------------------------------


async def test_a_request_goes_there_and_its_tokens_come_back(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        generation = await client.start(far.address, request())
        assert generation.prompt_tokens == 7
        asked = await far.next(f.Generate)
        assert isinstance(asked, f.Generate)
        assert asked.reply_to == f.ReplyTo(client.address, NodeId("api"))
        assert far.connections[0].node_id == "api"
        reply = await far.dial(client)
        for index in range(300):
            reply.send(chunk(index, is_last=index == 299))
        async with asyncio.timeout(SAFETY_S):
            assert [one.token_id async for one in generation] == list(range(300))


async def test_a_prompt_longer_than_every_buffer_arrives(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        long = GenerationRequest(
            request_id=RequestId("r1"),
            instance_id=InstanceId("i1"),
            generation=1,
            prompt="word " * 1_000_000,
            node_ids=(NodeId("stage"),),
        )
        await client.start(far.address, long)
        asked = await far.next(f.Generate)
        assert isinstance(asked, f.Generate)
        assert asked.prompt == long.prompt


async def test_one_connection_carries_many_requests(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        await asyncio.gather(*(client.start(far.address, request(f"r{number}")) for number in range(8)))
        assert len(far.connections) == 1


async def test_what_a_node_asks_of_itself_stays_on_its_host_in_plain(membership: Membership) -> None:
    async with api_node(member(membership, "api").identity) as client:
        # Whatever address its stages have for others.
        with pytest.raises(StageUnreachableError, match="Connect call failed"):
            await client.start(HostPort("192.0.2.1", 1), request("r1", "api"))


# --- who is dialled ---------------------------------------------------------------------------------------------


async def test_another_host_without_a_certificate(membership: Membership) -> None:
    async with api_node(None) as client, FarStage(member(membership, "stage")).running() as far:
        assert "has no certificate of a cluster to show there" in await unreachable(client, far)
        assert far.connections == []


async def test_another_host_without_knowing_whose_it_is(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        asked = GenerationRequest(
            request_id=RequestId("r1"), instance_id=InstanceId("i1"), generation=1, prompt="Hello"
        )
        with pytest.raises(StageUnreachableError, match="nobody said which node should be there"):
            await client.start(far.address, asked)
        assert far.connections == []


async def test_another_node_than_the_plan_says_is_there(membership: Membership) -> None:
    async with hosts(membership, stage_node_id="impostor") as (client, far):
        message = await unreachable(client, far)
        assert "is the node impostor, and stage should be there" in message
        assert far.frames.empty()


async def test_a_stage_of_another_cluster(membership: Membership, tmp_path: Path) -> None:
    other = Membership(tmp_path, "c2")
    async with hosts(membership, stage=member(other, "stage")) as (client, far):
        assert "is from the authority of another cluster" in await unreachable(client, far)


async def test_a_stage_that_has_been_thrown_out(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        client.set_revoked(node_ids=["stage"], serials=[])
        assert "was revoked; that node has to be taken in again" in await unreachable(client, far)
        serial = membership.identity("stage").certificate.serial
        client.set_revoked(node_ids=[], serials=[serial])
        far.gate.set_identity(data_identity(membership.identity("stage")))
        assert (await client.start(far.address, request("r2"))).prompt_tokens == 7


async def test_a_stage_with_a_revoked_certificate(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        identity = membership.identity("stage")
        far.gate.set_identity(data_identity(identity))
        client.set_revoked(node_ids=[], serials=[identity.certificate.serial])
        assert "was revoked" in await unreachable(client, far)


@pytest.mark.parametrize(("at", "words"), [(LONG_AGO, "has expired"), (LATER, "is not valid yet")])
async def test_a_stage_whose_certificate_is_not_of_today(
    membership: Membership, at: datetime, words: str
) -> None:
    identity = membership.identity("stage", at=at)
    async with hosts(membership, stage=DataTrust(identity=data_identity(identity))) as (client, far):
        assert words in await unreachable(client, far)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
        (ACCESS_DENIED_ALERT, "it has no certificate of a cluster yet"),
        (b"\x16\x03\x03\x00\x10" + b"\xff" * 16, "does not speak exo's data plane"),
        (b"\x16" + b"\x03\x03\x40\x00" + b"x" * 70_000, "does not speak exo's data plane|made too much"),
        (b"", "closed the connection"),
    ],
)
async def test_somebody_else_listens_there(membership: Membership, said: bytes, words: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(said)
        with suppress(OSError):
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with api_node(member(membership, "api").identity) as client:
        address = HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(StageUnreachableError, match=words):
            await client.start(address, request())
    server.close()
    await server.wait_closed()


async def test_a_stage_that_is_not_on_this_host_says_so(membership: Membership) -> None:
    async with GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
        with pytest.raises(StageUnreachableError, match="if that is another one, place the model again"):
            await client.start(HostPort("127.0.0.1", 1), request())


# --- who dials --------------------------------------------------------------------------------------------------


async def refused(far: FarStage, client: GenerationClient) -> str:
    with pytest.raises(HandshakeError) as error:
        await far.dial(client)
    return error.value.message


async def still_works(membership: Membership, client: GenerationClient) -> None:
    async with FarStage(member(membership, "good"), "good").running() as good:
        assert (await good.dial(client)).is_open


async def test_a_dialler_of_another_cluster(
    membership: Membership, tmp_path: Path, warnings: list[str]
) -> None:
    identity = mixed_up(membership, Membership(tmp_path, "c2"), "stage", tmp_path)
    async with hosts(membership, stage=DataTrust(identity=identity)) as (client, far):
        assert "does not know the authority of this node's certificate" in await refused(far, client)
        assert "is from the authority of another cluster" in warnings[0]
        await refused(far, client)
        assert len(warnings) == 1
        await still_works(membership, client)


async def test_a_dialler_whose_certificate_has_expired(membership: Membership) -> None:
    expired = data_identity(membership.identity("stage", at=LONG_AGO))
    async with hosts(membership, stage=DataTrust(identity=expired)) as (client, far):
        assert "this node's certificate has expired" in await refused(far, client)
        await still_works(membership, client)


async def test_a_dialler_that_has_been_thrown_out_hears_why(
    membership: Membership, warnings: list[str]
) -> None:
    async with hosts(membership) as (client, far):
        client.set_revoked(node_ids=["stage"], serials=[])
        assert "refused: the certificate of the node connecting from 127.0.0.1 (node stage) was revoked" in (
            await refused(far, client)
        )
        assert "was revoked" in warnings[0]
        await still_works(membership, client)


async def test_a_dialler_with_a_certificate_that_names_no_node(membership: Membership) -> None:
    identity = membership.identity("stage")
    pem = odd_certificate(membership, identity.key_file.read_text(), name="stage", uris=())
    identity.certificate_file.write_text(pem)
    async with hosts(membership, stage=DataTrust(identity=data_identity(identity))) as (client, far):
        assert "does not name exactly one node" in await refused(far, client)
        await still_works(membership, client)


async def test_a_dialler_that_meant_another_node(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        with pytest.raises(HandshakeError, match="is the node api, and somebody should be there"):
            await far.dial(client, node_id="somebody")


async def test_plain_from_another_host_is_refused_even_with_the_secret(
    membership: Membership, warnings: list[str]
) -> None:
    near = Gate(SECRET, node_id=NodeId("x"), sender="x", is_local=is_loopback)
    async with api_node(member(membership, "api").identity) as client:
        _, opening = near.dial(client.address, node_id=None, purpose=REPLIES)
        connection = FrameConnection(opening, on_frame=lambda *_: None, on_lost=lambda *_: None)
        await asyncio.get_running_loop().create_connection(
            lambda: connection, client.address.host, client.address.port
        )
        with pytest.raises(HandshakeError, match="closed the connection"):
            await connection.ready
        assert "is on another host and shows no certificate" in warnings[0]
        await still_works(membership, client)


def context(protocol: str | None, identity: DataIdentity | None = None) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if identity is not None:
        made.load_cert_chain(identity.certificate_file, identity.key_file)
    if protocol is not None:
        made.set_alpn_protocols([protocol])
    return made


async def said_to(client: GenerationClient, tls: ssl.SSLContext | None, data: bytes) -> bytes:
    """Return what the client answers to somebody who sends bytes until it closes."""
    reader, writer = await asyncio.open_connection(client.address.host, client.address.port, ssl=tls)
    answer = b""
    with suppress(OSError, ssl.SSLError):
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(SAFETY_S):
            answer = await reader.read()
    writer.transport.abort()
    return answer


async def test_no_certificate_at_all(membership: Membership) -> None:
    async with api_node(member(membership, "api").identity) as client:
        assert await said_to(client, context(DATA_PROTOCOL), encode(chunk(0))) == b""
        await still_works(membership, client)


@pytest.mark.parametrize("protocol", [None, "exo-cluster/1", "h2"])
async def test_a_member_that_speaks_something_else(membership: Membership, protocol: str | None) -> None:
    identity = data_identity(membership.identity("stage"))
    async with api_node(member(membership, "api").identity) as client:
        answer = await said_to(client, context(protocol, identity), encode(chunk(0)))
        assert b"speaks another version of the data plane" in answer
        await still_works(membership, client)


async def test_a_member_that_does_not_greet(membership: Membership) -> None:
    identity = data_identity(membership.identity("stage"))
    async with api_node(member(membership, "api").identity) as client:
        answer = await said_to(client, context(DATA_PROTOCOL, identity), encode(chunk(0)))
        assert b"began with TokenChunk instead of a handshake" in answer
        await still_works(membership, client)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16" + b"\xff" * 100,
        b"\x16\x03\x01\x02\x00" + b"\0" * 5000,
        b"\x16\x03\x03\x40\x00" + b"\x01\x00\xff\xff" + b"x" * 200_000,
        b"\xff" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_garbage(membership: Membership, data: bytes) -> None:
    async with api_node(member(membership, "api").identity) as client:
        # Perhaps an alert of TLS, never a frame.
        assert (await said_to(client, None, data))[:1] in (b"", b"\x15")
        await still_works(membership, client)


async def test_tls_without_a_certificate_of_ones_own(membership: Membership) -> None:
    async with (
        GenerationClient(secret=SECRET, node_id=NodeId("api")) as client,
        FarStage(member(membership, "stage")).running() as far,
    ):
        assert "closed the connection" in await refused(far, client)


async def test_strangers_from_one_host_cannot_take_all_the_room(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exo.dataplane.gate.STRANGERS_PER_HOST_MAX", 3)
    async with api_node(member(membership, "api").identity) as client:
        address = (client.address.host, client.address.port)
        waiting = [await asyncio.open_connection(*address) for _ in range(3)]
        reader, writer = await asyncio.open_connection(*address)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        for _, one in [*waiting, (reader, writer)]:
            one.transport.abort()
        async with FarStage(member(membership, "stage")).running() as far, asyncio.timeout(SAFETY_S):
            while True:
                with suppress(HandshakeError):
                    assert (await far.dial(client)).is_open
                    return


async def test_the_port_for_tokens_refuses_another_purpose(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        generation = await client.start(far.address, request())
        reply = await far.dial(client, purpose=REQUESTS)
        reply.send(chunk(0))
        async with asyncio.timeout(SAFETY_S):
            await reply.lost
        await generation.cancel()


async def test_a_member_cannot_speak_for_a_model_that_does_not_run_there(membership: Membership) -> None:
    async with (
        hosts(membership) as (client, far),
        FarStage(member(membership, "liar"), "liar").running() as liar,
    ):
        generation = await client.start(far.address, request())
        lie = await liar.dial(client)
        lie.send(f.Failed(request_id=RequestId("r1"), code="x", message="lies"))
        async with asyncio.timeout(SAFETY_S):
            await lie.lost
        reply = await far.dial(client)
        reply.send(chunk(0, is_last=True))
        async with asyncio.timeout(SAFETY_S):
            assert [one.token_id async for one in generation] == [0]


# --- what changes while running ---------------------------------------------------------------------------------


async def test_a_stage_that_is_thrown_out_is_cut_off(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        generation = await client.start(far.address, request())
        client.set_revoked(node_ids=[], serials=["abc"])
        assert far.connections[0].is_open
        client.set_revoked(node_ids=["stage"], serials=[])
        async with asyncio.timeout(SAFETY_S):
            with pytest.raises(GenerationFailedError, match="certificate of the node stage was revoked"):
                await generation.next_batch()


async def test_a_last_stage_that_is_thrown_out_is_cut_off(membership: Membership) -> None:
    async with (
        hosts(membership) as (client, far),
        FarStage(member(membership, "last"), "last").running() as last,
    ):
        generation = await client.start(far.address, request("r1", "stage", "last"))
        (await last.dial(client)).send(chunk(0))
        async with asyncio.timeout(SAFETY_S):
            assert len(await generation.next_batch()) == 1
            client.set_revoked(node_ids=["last"], serials=[])
            with pytest.raises(GenerationFailedError, match="last stage was lost: the certificate"):
                await generation.next_batch()


async def test_a_renewed_certificate_is_shown_and_cuts_nothing(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        generation = await client.start(far.address, request())
        before = far.connections[0].opening
        client.set_identity(data_identity(membership.identity("api")))
        reply = await far.dial(client)
        reply.send(chunk(0, is_last=True))
        async with asyncio.timeout(SAFETY_S):
            assert [one.token_id async for one in generation] == [0]
        assert before is not None
        assert before.certificate is not None
        # Whoever looks at a new connection sees the new one.
        assert reply.opening is not None
        assert reply.opening.certificate is not None
        assert reply.opening.certificate.serial != before.certificate.serial


async def test_with_another_cluster_everything_is_cut(membership: Membership, tmp_path: Path) -> None:
    other = Membership(tmp_path, "c2")
    async with hosts(membership) as (client, far):
        generation = await client.start(far.address, request())
        client.set_identity(data_identity(other.identity("api")))
        async with asyncio.timeout(SAFETY_S):
            with pytest.raises(GenerationFailedError, match="belongs to another cluster now"):
                await generation.next_batch()
        assert "is from the authority of another cluster" in await unreachable(client, far)


async def test_a_certificate_that_cannot_be_read_changes_nothing(
    membership: Membership, tmp_path: Path
) -> None:
    async with hosts(membership) as (client, far):
        good = data_identity(membership.identity("api"))
        bad = DataIdentity(
            certificate_file=str(tmp_path / "none"), key_file=good.key_file, authority_pem=good.authority_pem
        )
        with pytest.raises(ConfigurationError, match="cannot use this node's certificate"):
            client.set_identity(bad)
        assert (await client.start(far.address, request())).prompt_tokens == 7


async def test_a_node_gets_its_certificate_while_a_local_stage_answers(membership: Membership) -> None:
    near = Gate(SECRET, node_id=NodeId("api"), sender="near", is_local=is_loopback)
    connections: list[FrameConnection] = []

    def accept(connection: FrameConnection, host: str) -> Opening:
        connections.append(connection)
        return near.accept(host)

    def received(connection: FrameConnection, frame: f.Frame, payload: object) -> None:
        if isinstance(frame, f.Generate):
            connection.send(f.Accepted(request_id=frame.request_id, prompt_tokens=1))

    server = await asyncio.get_running_loop().create_server(
        lambda: FrameConnection(None, accept=accept, on_frame=received, on_lost=lambda *_: None),
        "127.0.0.1",
        0,
    )
    address = HostPort("127.0.0.1", server.sockets[0].getsockname()[1])
    async with GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
        generation = await client.start(address, request("r1", "api"))
        port = client.address.port
        client.set_identity(data_identity(membership.identity("api")))
        await client.widen("0.0.0.0", advertised_host="192.0.2.7")
        assert client.address == HostPort("192.0.2.7", port)
        connections[0].send(chunk(0, is_last=True))
        async with asyncio.timeout(SAFETY_S):
            assert [one.token_id async for one in generation] == [0]
        # This host's own stages find the client on loopback, whatever they are told.
        target, opening = near.dial(client.address, node_id=NodeId("api"), purpose=REPLIES)
        assert target == HostPort("127.0.0.1", port)
        reply = FrameConnection(opening, on_frame=lambda *_: None, on_lost=lambda *_: None)
        await asyncio.get_running_loop().create_connection(lambda: reply, target.host, target.port)
        await reply.ready
        assert not reply.is_secured
        reply.abort()
        await reply.lost
    server.close()
    for connection in connections:
        connection.abort()
        await connection.lost


async def test_listening_for_others_takes_a_certificate(membership: Membership) -> None:
    async with GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
        before = client.address
        with pytest.raises(ConfigurationError, match="exo token create"):
            await client.widen("0.0.0.0")
        assert client.address == before
    with pytest.raises(ConfigurationError, match="exo token create"):
        async with GenerationClient(secret=SECRET, node_id=NodeId("api"), listen_host="0.0.0.0"):
            pass


async def test_a_host_that_is_not_ones_own_leaves_all_as_it_was(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        before = client.address
        with pytest.raises(ConfigurationError, match=r"cannot take tokens on 192\.0\.2\.1"):
            await client.widen("192.0.2.1", advertised_host="192.0.2.1")
        assert client.address == before
        assert (await far.dial(client)).is_open


async def test_widening_and_narrowing_keep_port_and_connections(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        generation = await client.start(far.address, request())
        port = client.address.port
        reply = await far.dial(client)
        for host in ("0.0.0.0", "127.0.0.1", "0.0.0.0"):
            await client.widen(host, advertised_host="127.0.0.1")
            assert client.address == HostPort("127.0.0.1", port)
            assert (await far.dial(client)).is_open
        reply.send(chunk(0, is_last=True))
        async with asyncio.timeout(SAFETY_S):
            assert [one.token_id async for one in generation] == [0]


def test_all_of_it_on_uvloop(membership: Membership) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def story() -> None:
        await test_a_request_goes_there_and_its_tokens_come_back(membership)
        await test_widening_and_narrowing_keep_port_and_connections(membership)
        await test_a_stage_that_is_thrown_out_is_cut_off(membership)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())


async def test_idle_connections_are_pinged_and_pings_are_no_frames(membership: Membership) -> None:
    async with hosts(membership) as (client, far):
        generation = await client.start(far.address, request())
        connection = far.connections[0]
        sent: list[f.Frame] = []
        send = connection.send

        def noting(frame: f.Frame) -> None:
            sent.append(frame)
            send(frame)

        connection.send = noting
        now_s = 0.0
        async with asyncio.timeout(SAFETY_S):
            # Until the other side has acknowledged what was said so far, there is no need for pings.
            while len(sent) < 3:
                now_s += 1
                connection.check(now_s)
                await asyncio.sleep(0.005)
        assert sent == [f.Ping()] * 3
        connection.send(chunk(0, is_last=True))
        async with asyncio.timeout(SAFETY_S):
            assert [one.token_id async for one in generation] == [0]
