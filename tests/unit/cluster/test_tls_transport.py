"""The cluster port towards other hosts: who is let in, who is not, and what they are told."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from loguru import logger

from exo.cluster.errors import ConnectionLostError, DialError, HandshakeError
from exo.cluster.transport import tcp_listener
from exo.cluster.transport.base import Connection, Heartbeat, Listener
from exo.cluster.transport.framing import FrameSplitter, Kind, encode_frame
from exo.cluster.transport.refusals import COUNTED
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.transport.tcp_connection import TcpConnection
from exo.cluster.transport.tls_channel import CLUSTER_PROTOCOL, TlsChannel
from exo.cluster.trust.identity import TlsIdentity
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.memberships import Membership, odd_certificate, utc_now

SECRET = b"s" * 32
SAFETY_S = 20
HEARTBEAT = Heartbeat(ping_interval_s=0.05, silence_max_s=0.4)
LONG_AGO = utc_now() - timedelta(days=40)
LATER = utc_now() + timedelta(days=2)


def afar(
    identity: TlsIdentity | None, *, now: Callable[[], datetime] = utc_now, secret: bytes = SECRET
) -> TcpTransport:
    """Return a transport to which everybody seems to be on another host."""
    transport = TcpTransport(secret, heartbeat=HEARTBEAT, is_local=lambda host: False, now=now)
    transport.set_identity(identity)
    return transport


def _bare_context(identity: TlsIdentity | None, protocol: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity.certificate_file, identity.key_file)
    if protocol is not None:
        context.set_alpn_protocols([protocol])
    return context


@pytest.fixture
def membership(tmp_path: Path) -> Membership:
    return Membership(tmp_path)


@pytest.fixture
def server(membership: Membership) -> TcpTransport:
    return afar(membership.identity("server"))


@pytest.fixture
async def listener(server: TcpTransport) -> AsyncIterator[Listener]:
    async with await server.listen(HostPort("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    told: list[str] = []
    sink = logger.add(lambda message: told.append(message.record["message"]), level="WARNING")
    yield told
    logger.remove(sink)


_opened: list[Connection] = []


@pytest.fixture(autouse=True)
async def nothing_left_open() -> AsyncIterator[None]:
    yield
    for connection in _opened:
        connection.close("the test is over")
    _opened.clear()
    for _ in range(5):  # A transport of asyncio needs some turns of the loop to close.
        await asyncio.sleep(0)


async def connected(transport: TcpTransport, listener: Listener) -> tuple[Connection, Connection]:
    near = await transport.dial(listener.address, timeout_s=5)
    _opened.append(near)
    far = await asyncio.wait_for(listener.accept(), SAFETY_S)
    _opened.append(far)
    await near.send(b"hello")
    assert await far.receive() == b"hello"
    return near, far


async def still_works(membership: Membership, listener: Listener) -> None:
    _, far = await connected(afar(membership.identity("good")), listener)
    assert far.peer_node_id == "good"


async def refused(transport: TcpTransport, address: HostPort) -> HandshakeError:
    with pytest.raises(HandshakeError) as error:
        await transport.dial(address, timeout_s=5)
    return error.value


async def ending(connection: Connection) -> ConnectionLostError:
    with pytest.raises(ConnectionLostError) as end:
        await asyncio.wait_for(connection.receive(), SAFETY_S)
    return end.value


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SAFETY_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


# --- certificates that are not let in -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "code", "words"),
    [
        ("foreign", "foreign_certificate", "another cluster"),
        ("expired", "expired_certificate", "has expired"),
        ("early", "early_certificate", "not valid"),
    ],
)
async def test_a_bad_certificate_is_refused_by_both_ends_told_counted_and_logged_once(
    membership: Membership,
    server: TcpTransport,
    listener: Listener,
    warnings: list[str],
    tmp_path: Path,
    certificate: str,
    code: str,
    words: str,
) -> None:
    bad = {
        "foreign": lambda: Membership(tmp_path, "theirs").identity("bad"),
        "expired": lambda: membership.identity("bad", at=LONG_AGO),
        "early": lambda: membership.identity("bad", at=LATER),
    }[certificate]()
    if certificate == "foreign":  # Its own trust would refuse first: it trusts this cluster, falsely.
        bad = TlsIdentity(
            certificate=bad.certificate,
            certificate_file=bad.certificate_file,
            key_file=bad.key_file,
            authority_pem=membership.authority.certificate_pem,
        )
    for _ in range(3):
        told = await refused(afar(bad), listener.address)
        assert told.code == code and words in told.message and "refused" in told.message
    await until(lambda: server.counts[f"refused_{code}"] == 3)
    [logged] = [text for text in warnings if "refused a connection" in text]
    assert words in logged
    # And the other way round: dialling somebody that has such a certificate.
    async with await afar(bad).listen(HostPort("127.0.0.1", 0)) as impostor:
        error = await refused(server, impostor.address)
        assert error.code == code and words in error.message
    await still_works(membership, listener)


async def test_a_certificate_that_names_no_node_or_two_is_refused(
    membership: Membership, server: TcpTransport, listener: Listener
) -> None:
    for uris in ((), ("exo://node/other",), ("exo://node/a", "exo://node/b")):
        good = membership.identity("a")
        text = odd_certificate(membership, good.key_file.read_text(), name="a", uris=uris)
        good.certificate_file.write_text(text)
        told = await refused(afar(good), listener.address)
        assert told.code == "malformed_certificate"
    assert server.counts["refused_malformed_certificate"] == 3
    await still_works(membership, listener)


async def test_without_a_certificate_nothing_is_said_but_why(
    server: TcpTransport, listener: Listener
) -> None:
    answer = await raw_tls(listener, None, b"", protocol=CLUSTER_PROTOCOL)
    [(kind, payload)] = FrameSplitter().feed(answer)
    assert kind is Kind.REFUSED and b"no_certificate" in payload and b"exo join" in payload
    assert server.counts["refused_no_certificate"] == 1


async def test_another_version_of_the_protocol_is_told_so(
    membership: Membership, server: TcpTransport, listener: Listener
) -> None:
    for protocol in (None, "exo-cluster/2"):
        answer = await raw_tls(listener, membership.identity("a"), b"", protocol=protocol)
        assert b"same release of exo on both" in answer
    assert server.counts["refused_other_protocol"] == 2


async def test_an_old_version_of_tls_is_not_spoken(listener: Listener) -> None:
    context = _bare_context(None, CLUSTER_PROTOCOL)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection(
            listener.address.host, listener.address.port, ssl=context, server_hostname="x"
        )


# --- what changes while it runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["node id", "serial"])
async def test_who_is_revoked_loses_the_connection_and_is_let_in_no_more(
    membership: Membership, server: TcpTransport, listener: Listener, by: str
) -> None:
    bad, other = membership.identity("bad"), membership.identity("other")
    near, far = await connected(afar(bad), listener)
    other_near, other_far = await connected(afar(other), listener)
    if by == "serial":
        server.set_revoked(serials={bad.certificate.serial})
    else:
        server.set_revoked(node_ids={NodeId("bad")})
    for end in (near, far):
        lost = await ending(end)
        assert "was revoked" in lost.message and lost.is_ended
    told = await refused(afar(bad), listener.address)
    assert told.code == "revoked_certificate" and "exo join" in told.message
    assert (server.counts["ended_revoked"], server.counts["refused_revoked_certificate"]) == (1, 1)
    await other_near.send(b"still here")
    assert await other_far.receive() == b"still here"
    # It is not dialled either.
    async with await afar(bad).listen(HostPort("127.0.0.1", 0)) as theirs:
        assert (await refused(server, theirs.address)).code == "revoked_certificate"
    if by == "serial":  # Taken in again, with another certificate.
        await connected(afar(membership.identity("bad")), listener)


async def test_a_connection_does_not_outlive_the_certificate(membership: Membership) -> None:
    now = utc_now()
    server = afar(membership.identity("server"), now=lambda: now)
    async with await server.listen(HostPort("127.0.0.1", 0)) as listener:
        brief = membership.identity("brief", life=timedelta(minutes=5))
        near, _ = await connected(afar(brief), listener)
        await near.send(b"until the end")
        now += timedelta(minutes=6)
        lost = await ending(near)
    assert "has expired" in lost.message
    assert server.counts["ended_expired"] == 1


async def test_a_node_gets_its_first_certificate_while_it_runs(
    membership: Membership, tmp_path: Path
) -> None:
    server = TcpTransport(SECRET, heartbeat=HEARTBEAT)
    async with await server.listen(HostPort("127.0.0.1", 0)) as listener:
        local, local_far = await connected(TcpTransport(SECRET), listener)
        member = afar(membership.identity("a"))
        told = await refused(member, listener.address)
        assert told.code == "no_identity" and "no certificate of a cluster yet" in told.message
        server.set_identity(membership.identity("server"))
        near, far = await connected(member, listener)
        assert (near.peer_node_id, far.peer_node_id) == ("server", "a")
        # Then it leaves that cluster: what was built on its certificate ends, what was not stays.
        server.set_identity(None)
        assert "another cluster, or of none" in (await ending(near)).message
        await local.send(b"same host, same user")
        assert await local_far.receive() == b"same host, same user"
        assert (await refused(member, listener.address)).code == "no_identity"


async def test_a_renewed_certificate_is_shown_from_then_on_and_ends_nothing(
    membership: Membership, server: TcpTransport, listener: Listener
) -> None:
    near, far = await connected(afar(membership.identity("a")), listener)
    renewed = membership.identity("server")
    server.set_identity(renewed)
    again, _ = await connected(afar(membership.identity("b")), listener)
    assert isinstance(again, TcpConnection) and again.certificate is not None
    assert again.certificate.serial == renewed.certificate.serial
    await near.send(b"still here")
    assert await far.receive() == b"still here"


async def test_a_certificate_that_cannot_be_used_changes_nothing(
    membership: Membership, server: TcpTransport, listener: Listener
) -> None:
    damaged = membership.identity("damaged")
    damaged.key_file.write_text("garbage")
    with pytest.raises(ConfigurationError, match="cannot use this node's certificate"):
        server.set_identity(damaged)
    await still_works(membership, listener)


# --- plain and TLS on one port ------------------------------------------------------------------------------------


async def test_plain_from_another_host_is_refused_and_told_even_with_the_right_secret(
    server: TcpTransport, listener: Listener
) -> None:
    told = await refused(TcpTransport(SECRET), listener.address)
    assert told.code == "plain_from_afar" and "exo join" in told.message
    assert server.counts["refused_plain_from_afar"] == 1
    assert server.counts["accepted_plain"] == 0


async def test_on_one_host_the_secret_is_enough_and_a_certificate_helps_where_it_is_not(
    membership: Membership, tmp_path: Path
) -> None:
    server = TcpTransport(SECRET, heartbeat=HEARTBEAT)
    server.set_identity(membership.identity("server"))
    async with await server.listen(HostPort("127.0.0.1", 0)) as listener:
        same_user = TcpTransport(SECRET)
        same_user.set_identity(membership.identity("a"))
        near, far = await connected(same_user, listener)
        assert near.peer_node_id is None and far.peer_node_id is None
        # Another user's node of this host, taken in by the same cluster.
        other_user = TcpTransport(b"t" * 32)
        other_user.set_identity(membership.identity("b"))
        near, far = await connected(other_user, listener)
        assert far.peer_node_id == "b"
        # And one of another cluster.
        stranger = TcpTransport(b"u" * 32)
        stranger.set_identity(Membership(tmp_path, "theirs").identity("b"))
        told = await refused(stranger, listener.address)
        assert told.is_secret_wrong and told.code == "foreign_certificate"
        assert "host secret" in told.message and "with certificates" in told.message
    assert (server.counts["accepted_plain"], server.counts["accepted_tls"]) == (1, 1)


async def test_what_is_counted_never_changes_its_names(server: TcpTransport) -> None:
    assert set(TcpTransport(SECRET).counts) == set(server.counts) == set(COUNTED)


async def test_turned_away_before_tls_has_begun_one_still_learns_why(
    membership: Membership,
    server: TcpTransport,
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The listener does not know yet whether TLS is wanted, and says it in plain.
    channel = TlsChannel(
        _bare_context(None, CLUSTER_PROTOCOL),
        is_listener=False,
        peer="the node at X",
        check_peer=lambda der, protocol: None,
    )
    channel.begin()
    with pytest.raises(HandshakeError, match="the node at X refused: too many connections at once"):
        channel.unseal(encode_frame(Kind.GOODBYE, b"too many connections at once"))
    monkeypatch.setattr(tcp_listener, "STRANGERS_PER_HOST_MAX", 0)
    with pytest.raises(DialError):
        await afar(membership.identity("a")).dial(listener.address, timeout_s=5)
    assert server.counts["refused_too_many"] == 1


# --- strangers ----------------------------------------------------------------------------------------------------


def _client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = _bare_context(None, CLUSTER_PROTOCOL).wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16" + b"x" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\x16\x03\x01\xff\xff" + bytes(100),
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 100,
        encode_frame(Kind.HELLO, b"EXOC" + bytes(34)),
        b"\x16\x03\x01\x00\x04\x01\x01\xff\xff" * 20_000,
        _client_hello() + b"garbage instead of an answer",
    ],
)
async def test_garbage_is_hung_up_on_and_harms_nobody(
    membership: Membership, server: TcpTransport, listener: Listener, garbage: bytes
) -> None:
    reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
    writer.write(garbage)
    with suppress(ConnectionResetError):
        await asyncio.wait_for(reader.read(), SAFETY_S)
    await hung_up(writer)
    await until(lambda: sum(server.counts.values()) > 0)
    assert server.counts["accepted_tls"] == 0
    await still_works(membership, listener)


@pytest.mark.parametrize("is_tls", [True, False])
async def test_a_handshake_that_trickles_is_hung_up_on(
    membership: Membership, monkeypatch: pytest.MonkeyPatch, is_tls: bool
) -> None:
    monkeypatch.setattr(tcp_listener, "HANDSHAKE_TIMEOUT_S", 0.3)
    server = TcpTransport(SECRET, heartbeat=HEARTBEAT)
    server.set_identity(membership.identity("server"))
    async with await server.listen(HostPort("127.0.0.1", 0)) as listener:
        data = _client_hello() if is_tls else encode_frame(Kind.HELLO, bytes(500))
        _, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
        for byte in data:
            if server.counts["refused_too_slow"]:
                break
            writer.write(bytes([byte]))  # Never silent for long, and never done.
            await asyncio.sleep(0.02)
        assert server.counts["refused_too_slow"] == 1
        await hung_up(writer)
        await connected(TcpTransport(SECRET), listener)


async def test_a_member_that_sends_too_long_a_frame_loses_its_connection(
    membership: Membership, server: TcpTransport, listener: Listener
) -> None:
    accepted = asyncio.ensure_future(listener.accept())
    frame = struct.pack(">IB", 2**31, Kind.MESSAGE) + b"x" * 100
    answer = await raw_tls(listener, membership.identity("a"), frame, protocol=CLUSTER_PROTOCOL)
    kinds = [kind for kind, _ in FrameSplitter().feed(answer)]
    assert kinds == [Kind.WELCOME, Kind.GOODBYE] and b"a frame of 2147483648 bytes" in answer
    assert "a frame of 2147483648 bytes" in (await ending(await accepted)).message
    assert (server.counts["ended_malformed"], server.counts["ended_truncated"]) == (1, 0)
    await still_works(membership, listener)


async def test_half_a_frame_is_no_message(
    membership: Membership, server: TcpTransport, listener: Listener
) -> None:
    accepted = asyncio.ensure_future(listener.accept())
    frames = encode_frame(Kind.MESSAGE, b"whole") + encode_frame(Kind.MESSAGE, b"x" * 1000)[:500]
    await raw_tls(listener, membership.identity("a"), frames, protocol=CLUSTER_PROTOCOL, is_hanging_up=True)
    connection = await accepted
    assert await connection.receive() == b"whole"
    lost = await ending(connection)
    assert lost.is_ended and "went away" in lost.message
    assert (server.counts["ended_malformed"], server.counts["ended_truncated"]) == (0, 1)


async def test_bytes_that_were_changed_on_the_way_end_the_connection(
    membership: Membership, server: TcpTransport, listener: Listener
) -> None:
    near, far = await connected(afar(membership.identity("a")), listener)
    assert isinstance(near, TcpConnection)
    transport = near._transport  # pyright: ignore[reportPrivateUsage]
    assert transport is not None
    transport.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    lost = await ending(far)
    assert "does not speak" in lost.message
    assert server.counts["ended_malformed"] == 1
    await still_works(membership, listener)


async def test_a_member_that_goes_away_between_frames_broke_nothing(
    membership: Membership, server: TcpTransport, listener: Listener
) -> None:
    accepted = asyncio.ensure_future(listener.accept())
    frame = encode_frame(Kind.MESSAGE, b"whole")
    await raw_tls(listener, membership.identity("a"), frame, protocol=CLUSTER_PROTOCOL, is_hanging_up=True)
    assert await (await accepted).receive() == b"whole"
    await ending(await accepted)
    assert (server.counts["ended_malformed"], server.counts["ended_truncated"]) == (0, 0)


async def test_a_dialer_counts_what_a_member_sends_that_cannot_be_read(
    membership: Membership, listener: Listener
) -> None:
    dialer = afar(membership.identity("a"))
    near, far = await connected(dialer, listener)
    assert isinstance(far, TcpConnection)
    transport, channel = far._transport, far._channel  # pyright: ignore[reportPrivateUsage]
    assert transport is not None and channel is not None
    transport.write(channel.seal(struct.pack(">IB", 2**31, Kind.MESSAGE)))
    assert "a frame of 2147483648 bytes" in (await ending(near)).message
    assert dialer.counts["ended_malformed"] == 1


async def hung_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def raw_tls(
    listener: Listener,
    identity: TlsIdentity | None,
    data: bytes,
    *,
    protocol: str | None,
    is_hanging_up: bool = False,
) -> bytes:
    """Connect with Python's own TLS, send bytes, and return all that comes back."""
    reader, writer = await asyncio.open_connection(
        listener.address.host,
        listener.address.port,
        ssl=_bare_context(identity, protocol),
        server_hostname="x",
    )
    writer.write(data)
    answer = b""
    if not is_hanging_up:
        answer = await asyncio.wait_for(reader.read(), SAFETY_S)
    else:
        await writer.drain()
    await hung_up(writer)
    return answer
