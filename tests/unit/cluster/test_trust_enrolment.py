"""Asking to join over a real socket: with a token, without one, with a wrong one, and only to do harm."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from exo.cluster.errors import ConnectionLostError, DialError, HandshakeError
from exo.cluster.transport.base import Connection, Heartbeat
from exo.cluster.transport.dialling import Dialling
from exo.cluster.transport.framing import FrameSplitter, Kind, encode_frame
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.transport.tcp_listener import TcpListener
from exo.cluster.transport.tls_channel import ENROL_PROTOCOL, TlsChannel
from exo.cluster.transport.tls_contexts import enrolment_context
from exo.cluster.trust.authority import create_key, create_request, issue_certificate
from exo.cluster.trust.certificates import to_der
from exo.cluster.trust.enrolment_client import EnrolledIdentity, EnrolProgress, enrol
from exo.cluster.trust.enrolment_server import EnrolmentLimits
from exo.cluster.trust.errors import EnrolmentError, WrongAuthorityError
from exo.cluster.trust.messages import (
    ENROL_FRAME_BYTES_MAX,
    EnrolAnswer,
    EnrolGranted,
    EnrolOffer,
    EnrolOrigin,
    EnrolRefused,
    EnrolRequest,
    EnrolWaiting,
    decode_from_server,
    encode_enrolment,
    verify_proof,
)
from exo.cluster.trust.token import PlainToken, authority_hash, create_token, token_id, token_verifier
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort
from support.memberships import Membership, utc_now

SAFETY_S = 20
LIMITS = EnrolmentLimits(pause_s=0.0, at_once_per_host_max=2)
HEARTBEAT = Heartbeat(ping_interval_s=0.1, silence_max_s=0.5)

Decide = Callable[[EnrolRequest, EnrolOrigin], Awaitable[EnrolAnswer]]


class Cluster:
    """A member that takes nodes in, and a decider like the master's."""

    def __init__(self, membership: Membership, limits: EnrolmentLimits = LIMITS) -> None:
        self.membership = membership
        self.token = create_token(membership.authority.certificate_der)
        self.asked: list[tuple[EnrolRequest, EnrolOrigin]] = []
        self.waits_left = 0
        self.limits = limits
        self.transport = self._transport("server")
        self.transport.set_enrol(self.decide)

    def _transport(self, node_id: str) -> TcpTransport:
        transport = TcpTransport(
            b"s" * 32, heartbeat=HEARTBEAT, is_local=lambda host: False, limits=self.limits
        )
        transport.set_identity(self.membership.identity(node_id))
        return transport

    async def decide(self, request: EnrolRequest, origin: EnrolOrigin) -> EnrolAnswer:
        self.asked.append((request, origin))
        verifier = token_verifier(self.token.secret)
        if request.token_id is not None:
            if request.token_id != token_id(verifier):
                return EnrolRefused(reason="there is no such token", code="unknown_token")
            if not verify_proof(verifier, request, origin.server_certificate_sha256):
                return EnrolRefused(reason="the proof is wrong", code="wrong_proof")
        elif self.waits_left:
            self.waits_left -= 1
            return EnrolWaiting(text=f"approve it: exo node approve {request.node_id}")
        return self.grant(request)

    def grant(self, request: EnrolRequest) -> EnrolGranted:
        authority = self.membership.authority
        certificate = issue_certificate(authority, request.csr, request.node_id, now=utc_now())
        return EnrolGranted(
            certificate=to_der(certificate),
            authority=authority.certificate_der,
            cluster_id=ClusterId("c1"),
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(Membership(tmp_path))


@pytest.fixture
async def listener(cluster: Cluster) -> AsyncIterator[TcpListener]:
    async with await cluster.transport.listen(HostPort("127.0.0.1", 0)) as listener:
        yield listener  # type: ignore[misc]


KEY = create_key()
REQUEST = EnrolRequest(
    node_id=NodeId("joiner"),
    name="laptop",
    platform="linux-x86_64",
    exo_version="0.1.0",
    csr=create_request(KEY, NodeId("joiner")),
    namespace="default",
)


async def ask(
    listener: TcpListener | HostPort,
    *,
    token: PlainToken | None = None,
    known_authority: str | None = None,
    told: list[EnrolProgress] | None = None,
) -> EnrolledIdentity:
    address = listener if isinstance(listener, HostPort) else listener.address
    return await asyncio.wait_for(
        enrol(
            address,
            request=REQUEST,
            token=token,
            known_authority=known_authority,
            on_progress=(told if told is not None else []).append,
            dial_timeout_s=5,
            answer_timeout_s=5,
            ask_again_s=0.01,
        ),
        SAFETY_S,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SAFETY_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def test_a_token_gets_a_certificate_that_lets_the_node_in(
    cluster: Cluster, listener: TcpListener, tmp_path: Path
) -> None:
    joiner = cluster.membership.store("joiner")
    request = msgspec.structs.replace(REQUEST, csr=joiner.create_request(NodeId("joiner")))
    enrolled = await enrol(
        listener.address, request=request, token=cluster.token, known_authority=None, on_progress=print
    )
    assert enrolled.cluster_id == "c1" and enrolled.certificate.node_id == "joiner"
    joiner.save_membership(certificate_pem=enrolled.certificate_pem, authority_pem=enrolled.authority_pem)
    transport = TcpTransport(b"t" * 32, is_local=lambda host: False)
    transport.set_identity(joiner.load_identity(NodeId("joiner")))
    near = await transport.dial(listener.address, timeout_s=2)
    far = await listener.accept()
    assert far.peer_node_id == "joiner" and near.peer_node_id == "server"
    near.close("done")
    assert cluster.transport.counts["accepted_enrolment"] == 2  # One to look, one to ask.
    [(asked, origin)] = cluster.asked
    assert asked.token_id == token_id(token_verifier(cluster.token.secret))
    assert origin.address.host == "127.0.0.1"


async def test_without_a_token_one_waits_until_somebody_approves(
    cluster: Cluster, listener: TcpListener
) -> None:
    cluster.waits_left = 3
    told: list[EnrolProgress] = []
    enrolled = await ask(listener, told=told)
    assert enrolled.certificate.node_id == "joiner"
    assert [progress.stage for progress in told] == ["authority", "waiting", "waiting", "waiting"]
    assert "exo node approve joiner" in told[1].text
    authority = authority_hash(cluster.membership.authority.certificate_der)
    assert {progress.authority_hash for progress in told} == {authority}
    assert cluster.transport.counts["accepted_enrolment"] == 2  # All of the asking on one connection.


async def test_one_who_waits_goes_on_when_the_server_comes_back(
    cluster: Cluster, listener: TcpListener
) -> None:
    cluster.waits_left = 10**9
    told: list[EnrolProgress] = []
    asking = asyncio.ensure_future(ask(listener, told=told))
    await until(lambda: bool(cluster.asked))
    await listener.close()
    await until(lambda: told[-1].stage == "unreachable")
    cluster.waits_left = 0
    async with await cluster.transport.listen(listener.address):
        assert (await asking).certificate.node_id == "joiner"


async def test_a_token_of_another_cluster_is_noticed_before_anything_is_sent(
    cluster: Cluster, listener: TcpListener, tmp_path: Path
) -> None:
    foreign = create_token(Membership(tmp_path, "theirs").authority.certificate_der)
    told: list[EnrolProgress] = []
    with pytest.raises(WrongAuthorityError, match="nothing was sent") as wrong:
        await ask(listener, token=foreign, told=told)
    assert wrong.value.code == "wrong_authority"
    assert not cluster.asked and not told


async def test_another_authority_than_the_last_time_is_noticed_before_anything_is_sent(
    cluster: Cluster, listener: TcpListener
) -> None:
    with pytest.raises(WrongAuthorityError, match="somebody in between"):
        await ask(listener, known_authority="b" * 32)
    assert not cluster.asked
    known = authority_hash(cluster.membership.authority.certificate_der)
    assert (await ask(listener, known_authority=known)).cluster_id == "c1"


async def test_who_does_not_like_the_authority_can_leave_before_anything_is_sent(
    cluster: Cluster, listener: TcpListener
) -> None:
    def leave(progress: EnrolProgress) -> None:
        raise ExoError("not that one")

    with pytest.raises(ExoError, match="not that one"):
        await enrol(listener.address, request=REQUEST, token=None, known_authority=None, on_progress=leave)
    assert not cluster.asked


@pytest.mark.parametrize(
    ("secret", "code"), [(b"w" * 20, "unknown_token"), (None, "wrong_proof")], ids=["unknown", "wrong proof"]
)
async def test_a_wrong_token_is_refused_in_words(
    cluster: Cluster, listener: TcpListener, secret: bytes | None, code: str
) -> None:
    token = msgspec.structs.replace(cluster.token, secret=secret or cluster.token.secret)
    if secret is None:  # As a server would do that passes on what it was told.
        decide = cluster.decide

        async def elsewhere(request: EnrolRequest, origin: EnrolOrigin) -> EnrolAnswer:
            other = msgspec.structs.replace(origin, server_certificate_sha256=bytes(32))
            return await decide(request, other)

        cluster.transport.set_enrol(elsewhere)
    with pytest.raises(EnrolmentError, match="the cluster refused") as refused:
        await ask(listener, token=token)
    assert refused.value.code == code


async def test_somebody_in_between_who_shows_the_right_authority_gets_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It can repeat the authority's certificate, which is public, but has none of its own from it."""
    impostor = Membership(tmp_path, "impostor").identity("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(impostor.certificate_file, impostor.key_file)
    context.set_alpn_protocols([ENROL_PROTOCOL])
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        offer = EnrolOffer(authority=cluster.membership.authority.certificate_der)
        writer.write(encode_frame(Kind.WELCOME, b"") + encode_frame(Kind.MESSAGE, encode_enrolment(offer)))
        heard.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    with pytest.raises(HandshakeError, match="authority of another cluster"):
        await ask(HostPort(*server.sockets[0].getsockname()[:2]), token=cluster.token)
    server.close()
    kinds = [kind for kind, _ in FrameSplitter().feed(bytes(heard))]
    assert Kind.MESSAGE not in kinds


@pytest.mark.parametrize("what", ["node", "key", "authority", "garbage"])
async def test_a_certificate_that_was_not_asked_for_is_not_taken(
    cluster: Cluster, listener: TcpListener, tmp_path: Path, what: str
) -> None:
    async def decide(request: EnrolRequest, origin: EnrolOrigin) -> EnrolAnswer:
        if what == "node":
            other = NodeId("other")
            return cluster.grant(
                msgspec.structs.replace(request, node_id=other, csr=create_request(KEY, other))
            )
        if what == "key":
            csr = create_request(create_key(), request.node_id)
            return cluster.grant(msgspec.structs.replace(request, csr=csr))
        if what == "authority":
            return Cluster(Membership(tmp_path, "theirs")).grant(request)
        return msgspec.structs.replace(cluster.grant(request), certificate=b"garbage")

    cluster.transport.set_enrol(decide)
    with pytest.raises(EnrolmentError, match="cannot be used") as wrong:
        await ask(listener, token=cluster.token)
    assert wrong.value.code == "bad_certificate"


async def test_a_node_that_takes_nobody_in_says_so(cluster: Cluster, listener: TcpListener) -> None:
    cluster.transport.set_enrol(None)
    with pytest.raises(HandshakeError, match="takes nobody in") as refused:
        await ask(listener)
    assert refused.value.code == "no_enrolment"


async def test_a_node_without_an_authority_says_so() -> None:
    transport = TcpTransport(b"s" * 32)
    async with await transport.listen(HostPort("127.0.0.1", 0)) as listener:
        with pytest.raises(HandshakeError, match="no certificate of a cluster yet") as refused:
            await ask(listener.address)
    assert refused.value.code == "no_identity"
    assert transport.counts["refused_no_identity"] == 1


async def test_nobody_there_is_said_at_once(listener: TcpListener) -> None:
    await listener.close()
    with pytest.raises(DialError, match=str(listener.address.port)):
        await ask(listener)


async def test_what_goes_wrong_while_deciding_is_told(cluster: Cluster, listener: TcpListener) -> None:
    async def fails(request: EnrolRequest, origin: EnrolOrigin) -> EnrolAnswer:
        raise ExoError("the request names another node")

    cluster.transport.set_enrol(fails)
    with pytest.raises(EnrolmentError, match="the request names another node"):
        await ask(listener)

    async def breaks(request: EnrolRequest, origin: EnrolOrigin) -> EnrolAnswer:
        raise ZeroDivisionError

    cluster.transport.set_enrol(breaks)
    with pytest.raises(DialError, match="its log says what"):
        await ask(listener)


async def test_a_cluster_without_a_master_lets_the_joiner_wait(
    cluster: Cluster, listener: TcpListener
) -> None:
    asked = 0

    async def decide(request: EnrolRequest, origin: EnrolOrigin) -> EnrolAnswer:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise NoMasterError("no master could be reached")
        return await cluster.decide(request, origin)

    cluster.transport.set_enrol(decide)
    told: list[EnrolProgress] = []
    assert (await ask(listener, token=cluster.token, told=told)).cluster_id == "c1"
    assert [one.stage for one in told] == ["authority", "waiting"]
    assert "no master could be reached" in told[1].text


# --- strangers ----------------------------------------------------------------------------------------------------


async def stranger(listener: TcpListener) -> Connection:
    """Connect as somebody without a certificate, and read the offer."""
    channel = TlsChannel(
        enrolment_context(None), is_listener=False, peer="it", check_peer=lambda der, protocol: None
    )
    connection = await Dialling(listener.address).open(channel, heartbeat=HEARTBEAT, timeout_s=5)
    assert isinstance(decode_from_server(await connection.receive()), EnrolOffer)
    return connection


async def ending(connection: Connection) -> str:
    with pytest.raises(ConnectionLostError) as end:
        while True:
            await asyncio.wait_for(connection.receive(), SAFETY_S)
    return end.value.message


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"x" * 1000, encode_enrolment(EnrolOffer(authority=b""))])
async def test_garbage_is_refused_and_asks_nobody(
    cluster: Cluster, listener: TcpListener, garbage: bytes
) -> None:
    connection = await stranger(listener)
    await connection.send(garbage)
    answer = decode_from_server(await connection.receive())
    assert isinstance(answer, EnrolRefused) and answer.code == "malformed"
    await ending(connection)
    assert cluster.transport.counts["ended_malformed"] == 1
    assert not cluster.asked


async def test_a_stranger_cannot_send_more_than_a_frame_of_16_kib(
    cluster: Cluster, listener: TcpListener
) -> None:
    context = enrolment_context(None)
    reader, writer = await asyncio.open_connection(*_of(listener), ssl=context)
    writer.write(encode_frame(Kind.MESSAGE, bytes(ENROL_FRAME_BYTES_MAX + 1)))
    assert b"a frame of 16386 bytes" in await asyncio.wait_for(reader.read(), SAFETY_S)
    assert cluster.transport.counts["ended_malformed"] == 1
    writer.close()
    connection = await stranger(listener)
    with pytest.raises(ValueError, match="at most 16384"):
        await connection.send(bytes(ENROL_FRAME_BYTES_MAX + 1))
    connection.close("done")
    assert not cluster.asked


async def test_a_stranger_is_never_taken_for_a_member(cluster: Cluster, listener: TcpListener) -> None:
    connection = await stranger(listener)
    await connection.send(b"hello, I want to lead")
    accepting = asyncio.ensure_future(listener.accept())
    await ending(connection)
    assert not accepting.done()
    accepting.cancel()


async def test_who_says_nothing_or_talks_on_for_ever_is_hung_up_on(tmp_path: Path) -> None:
    limits = EnrolmentLimits(request_timeout_s=0.1, pause_s=0.0)
    cluster = Cluster(Membership(tmp_path), limits)
    async with await cluster.transport.listen(HostPort("127.0.0.1", 0)) as listener:
        assert isinstance(listener, TcpListener)
        assert "no request in time" in await ending(await stranger(listener))
    limits = EnrolmentLimits(connection_timeout_s=0.3, pause_s=0.0)
    cluster = Cluster(Membership(tmp_path, "c2"), limits)
    cluster.waits_left = 10**9
    async with await cluster.transport.listen(HostPort("127.0.0.1", 0)) as listener:
        assert isinstance(listener, TcpListener)
        connection = await stranger(listener)
        with pytest.raises(ConnectionLostError, match="ask again"):
            async with asyncio.timeout(SAFETY_S):
                while True:
                    await connection.send(encode_enrolment(REQUEST))
                    await connection.receive()


async def test_a_cluster_that_does_not_decide_in_time_lets_the_joiner_wait(tmp_path: Path) -> None:
    cluster = Cluster(Membership(tmp_path), EnrolmentLimits(decision_timeout_s=0.05, pause_s=0.0))
    calls = 0

    async def slow_at_first(request: EnrolRequest, origin: EnrolOrigin) -> EnrolAnswer:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()
        return cluster.grant(request)

    cluster.transport.set_enrol(slow_at_first)
    told: list[EnrolProgress] = []
    async with await cluster.transport.listen(HostPort("127.0.0.1", 0)) as listener:
        await ask(listener.address, told=told)
    assert [progress.stage for progress in told] == ["authority", "waiting"]
    assert "did not decide in time" in told[1].text


async def test_only_a_few_ask_at_once_from_one_host(cluster: Cluster, listener: TcpListener) -> None:
    first, second = await stranger(listener), await stranger(listener)
    with pytest.raises(ConnectionLostError, match="too many nodes ask to join at once"):
        await stranger(listener)
    first.close("done")
    while True:
        try:
            third = await stranger(listener)
            break
        except ConnectionLostError:
            await asyncio.sleep(0.01)
    second.close("done")
    third.close("done")
    assert cluster.transport.counts["refused_too_many"] >= 1


async def test_closing_the_listener_ends_those_who_ask(cluster: Cluster, listener: TcpListener) -> None:
    connection = await stranger(listener)
    await listener.close()
    assert "the node is stopping" in await ending(connection)


async def test_those_who_ask_are_sent_away_when_the_cluster_changes(
    cluster: Cluster, listener: TcpListener, tmp_path: Path
) -> None:
    connection = await stranger(listener)
    cluster.transport.set_identity(Membership(tmp_path, "theirs").identity("server"))
    assert "another cluster" in await ending(connection)


def _of(listener: TcpListener) -> tuple[str, int]:
    return listener.address.host, listener.address.port
