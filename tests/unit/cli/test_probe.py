"""`exo doctor --peers HOST`: each thing that can be wrong between two hosts, with its next step, on real sockets."""

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import msgspec
import pytest

from exo.cli import advice, probe
from exo.cli.checks import Finding
from exo.cli.probe import Myself, ask, compare_clocks, examine, knock, resolve, sniff
from exo.cluster.facts import PROTOCOL_VERSION, ClusterFacts
from exo.cluster.transport.tcp import TcpTransport
from exo.cluster.wire import Hello, NotNow, Welcome, decode_from_dialer, encode
from exo.shared.types.nodes import HostPort
from support.discoveries import facts

SECRET = b"s" * 32
OWN = facts("own", cluster_address=HostPort("127.0.0.1", 9))


def myself(secret: bytes = SECRET, *, is_running: bool = True, own: ClusterFacts = OWN) -> Myself:
    return Myself(own, TcpTransport(secret), is_running)


@asynccontextmanager
async def node(
    theirs: ClusterFacts, *, answer: bytes | None = None, secret: bytes = SECRET
) -> AsyncIterator[HostPort]:
    """A node that answers looks with these facts, or with these bytes."""

    async def serve() -> None:
        while True:
            connection = await listener.accept()
            hello = decode_from_dialer(await connection.receive())
            assert isinstance(hello, Hello)
            assert hello.intent == "look"
            await connection.send(answer or encode(NotNow(code="look", facts=theirs)))
            connection.close("that was all")

    async with await TcpTransport(secret).listen(HostPort("127.0.0.1", 0)) as listener:
        task = asyncio.ensure_future(serve())
        try:
            yield listener.address
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def program(says: bytes) -> AsyncIterator[HostPort]:
    """Some other program, which says this to whatever it is told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield HostPort(*server.sockets[0].getsockname()[:2])


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


async def test_a_member_is_found_to_be_one() -> None:
    theirs = facts("b", name="attic", master_node_id="own")
    async with node(theirs) as address:
        found = by_name(await examine(address, myself(), api_port=1))
    assert {name: finding.status for name, finding in found.items()} == {
        "port": "ok",
        "node": "ok",
        "cluster": "ok",
    }, "and on this host there is no clock to compare"
    assert "attic (b) answers" in found["node"].text


@pytest.mark.parametrize(
    ("changes", "name", "status", "words", "step"),
    [
        ({"namespace": "n"}, "namespace", "broken", "'n'", "--namespace test"),
        ({"version": PROTOCOL_VERSION + 1}, "protocol", "broken", str(PROTOCOL_VERSION + 1), "same release"),
        ({"exo_version": "9.9"}, "release", "note", "exo 9.9", "same release"),
        ({"cluster_id": "d" * 32}, "cluster", "note", "so has this one", "exo delete"),
        ({"cluster_id": "d" * 32, "master_node_id": None}, "cluster", "note", "waits", "exo status"),
        ({"node_id": "own"}, "cluster", "broken", "copied", "node_id"),
        ({"cluster_id": "d" * 32, "instance_count": 0}, "cluster", "ok", "join", ""),
    ],
)
async def test_what_the_facts_say(
    changes: dict[str, Any], name: str, status: str, words: str, step: str
) -> None:
    own = facts("own", cluster_address=HostPort("127.0.0.1", 9), instance_count=2)
    theirs = msgspec.structs.replace(facts("b", master_node_id="own"), **changes)
    async with node(theirs) as address:
        found = by_name(await ask(address, myself(own=own)))[name]
    assert found.status == status
    assert words in found.text
    assert step in found.next_step


async def test_the_node_itself_and_a_host_without_one() -> None:
    async with node(OWN) as address:
        (found,) = await ask(address, myself())
        assert "it is the node that runs here" in found.text
    async with node(facts("b")) as address:
        found = by_name(await ask(address, myself(is_running=False)))["cluster"]
        assert (found.status, found.next_step) == ("ok", f"exo --peer {address}")
        assert "1000 nodes" in found.text


async def test_another_secret_is_told() -> None:
    async with node(facts("b")) as address:
        (found,) = await ask(address, myself(b"t" * 32))
    assert found.status == "broken"
    assert "EXO_HOST_SECRET_FILE" in found.next_step
    assert "exo join TOKEN" in found.next_step


async def test_answers_that_make_no_sense_are_told() -> None:
    async with node(facts("b"), answer=b"\xc1") as address:
        (found,) = await ask(address, myself())
        assert "no answer that can be read" in found.text
    welcome = encode(Welcome(facts=facts("b"), is_snapshot_next=False, last_seq=0))
    async with node(facts("b"), answer=welcome) as address:
        (found,) = await ask(address, myself())
        assert "another answer" in found.text


@pytest.mark.parametrize(
    ("says", "sniffed", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "http", "web server"),
        (b"\x15\x03\x03\x00\x02\x02\x32", "tls", "TLS"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "'SSH-2.0-OpenSSH_9.9'", "SSH-2.0"),
        (b"\r\n\r\n", "''", "another program"),
        (b"", "silent", "says nothing"),
    ],
)
async def test_another_program_is_recognised(says: bytes, sniffed: str, words: str) -> None:
    async with program(says) as address:
        assert await sniff(address) == sniffed
        (found,) = await ask(address, myself())
    assert found.status == "broken"
    assert words in found.text
    assert "52416" in found.next_step


async def test_a_node_is_recognised_by_its_first_word() -> None:
    async with node(facts("b")) as address:
        assert await sniff(address) == "exo"


async def test_from_another_host_without_a_certificate_a_token_is_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def recognised(_: HostPort) -> str:
        return "exo"

    monkeypatch.setattr(probe, "sniff", recognised)
    (found,) = await ask(HostPort("192.0.2.77", 7), myself())
    assert found.status == "broken"
    assert "certificates" in found.text
    assert "exo join TOKEN" in found.next_step


async def test_a_port_where_nobody_listens_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = HostPort("127.0.0.1", server.getsockname()[1])
    (found,) = await examine(address, myself(), api_port=1)
    assert (found.name, found.status) == ("port", "broken")
    assert "refuses" in found.text
    assert "--cluster-port" in found.next_step


async def test_a_firewall_that_drops_is_told_from_one_that_refuses() -> None:
    # A listener whose queue is full drops what comes, as such a firewall does.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = HostPort(*full.getsockname())
        waiting: list[socket.socket] = []
        try:
            for _ in range(8):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex((address.host, address.port))
                waiting.append(one)
            knocked = await knock(address, timeout_s=0.3)
        finally:
            for one in waiting:
                one.close()
    assert knocked.outcome == "silent"
    found = advice.explain_knock(knocked, is_other_open=False)
    assert found.status == "broken"
    assert "a firewall drops it" in found.text
    assert f"open TCP {address.port}" in found.next_step
    assert advice.explain_knock(knocked, is_other_open=True).status == "note"


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ETIMEDOUT, "silent"),
        (errno.ECONNRESET, "refused"),
        (errno.EADDRNOTAVAIL, "failed"),
    ],
)
async def test_errors_of_the_network_have_their_meaning(
    number: int, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise OSError(number, "the reason")

    monkeypatch.setattr(asyncio, "open_connection", fail)
    knocked = await knock(HostPort("10.0.0.2", 7))
    assert (knocked.outcome, knocked.reason) == (outcome, "the reason")
    found = advice.explain_knock(knocked, is_other_open=False)
    assert found.status == "broken"
    assert found.next_step


async def test_names_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "127.0.0.1" in await resolve(HostPort("localhost", 7))
    assert await resolve(HostPort("::1", 7)) == ["::1"]
    (found,) = await examine(HostPort("nowhere.invalid", 7), myself(), api_port=1)
    assert (found.name, found.status) == ("name", "broken")
    assert "exo doctor --peers ADDRESS:7" in found.next_step
    (found,) = await examine(HostPort("a" * 70 + ".b", 7), myself(), api_port=1)
    assert found.name == "name"
    found = by_name(await examine(HostPort("localhost", 1), myself(), api_port=1))
    assert "localhost is" in found["name"].text


@pytest.mark.parametrize(
    ("offset_s", "status", "words"),
    [
        (0, "ok", "agrees"),
        (29, "ok", "agrees"),
        (45, "broken", "45 s ahead of"),
        (-7200, "broken", "2 h behind"),
    ],
)
async def test_clocks_are_compared(offset_s: float, status: str, words: str) -> None:
    now_s = time.time()
    answer = f"HTTP/1.1 200 OK\r\ndate: {formatdate(now_s + offset_s, usegmt=True)}\r\n\r\n".encode()
    async with program(answer) as api:
        (found,) = await compare_clocks(api, now_s=lambda: float(int(now_s)))
    assert found.status == status
    assert words in found.text
    assert bool(found.next_step) == (status == "broken")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nDate: never\r\n\r\n"]
)
async def test_a_clock_that_cannot_be_read_is_compared_by_hand(answer: bytes) -> None:
    async with program(answer) as api:
        (found,) = await compare_clocks(api)
    assert found.status == "note"
    assert "date -u" in found.next_step


def test_every_status_of_a_peer_has_a_next_step() -> None:
    from typing import get_args

    from exo.cluster.facts import PeerStatus

    for status in get_args(PeerStatus):
        found = advice.explain_status("peer", status, "text", HostPort("10.0.0.2", 7))
        assert bool(found.next_step) == (found.status != "ok"), status
    assert "10.0.0.2:7" in advice.explain_status("p", "unreachable", "t", HostPort("10.0.0.2", 7)).next_step
    assert advice.explain_status("p", "unreachable", "t", None).next_step
