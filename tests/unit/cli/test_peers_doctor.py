"""`exo doctor --peers`: what the node here noticed, what this process hears by itself, and what to check."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from pathlib import Path

import msgspec
import pytest
from anyio.from_thread import start_blocking_portal

from exo.api.access_join import JoinOutcome, PendingJoin, write_join_outcome, write_pending_join
from exo.cli import listening, peers
from exo.cli.listening import explain_announced, explain_clock, explain_multicast, listen
from exo.cluster.discovery.interfaces import Interface
from exo.cluster.discovery.multicast import MulticastDiscovery
from exo.cluster.facts import ClusterFacts, PeerSeen
from exo.cluster.secret import load_host_secret
from exo.cluster.transport.tcp import TcpTransport
from exo.node_trust.trust import beacon_keys
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort
from support.cli_run import Run, RunningWorld
from support.discoveries import facts, free_udp_port
from support.memberships import Membership

LOOPBACK = [Interface("lo", 1, (IPv4Interface("127.0.0.1/8"),), ())]
SECRET = b"s" * 32


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A host of one's own: no secret, a free discovery port, loopback only. Returns the port."""
    port = free_udp_port()
    monkeypatch.setenv("EXO_HOST_SECRET_FILE", str(tmp_path / "host.secret"))
    monkeypatch.setenv("EXO_DISCOVERY_PORT", str(port))
    monkeypatch.delenv("EXO_NAMESPACE", raising=False)
    monkeypatch.setattr(peers, "read_interfaces", lambda: LOOPBACK)
    monkeypatch.setattr(peers, "LISTEN_S", 0.3)
    return port


@contextmanager
def announcing(port: int, *nodes: tuple[bytes, ClusterFacts, float]) -> Iterator[None]:
    """Have nodes announce themselves: under a key, with a clock so many seconds ahead."""
    import time

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            for key, own, ahead_s in nodes:
                discovery = MulticastDiscovery(
                    lambda key=key: [key],
                    port=port,
                    interval_s=0.1,
                    wall_clock=lambda ahead_s=ahead_s: time.time() + ahead_s,
                    interfaces=lambda: LOOPBACK,
                )
                tasks.create_task(discovery.run(lambda own=own: own, lambda _: None))

    with start_blocking_portal() as portal:
        future = portal.start_task_soon(run)
        try:
            yield
        finally:
            future.cancel()


def texts(report: str, name: str) -> list[dict[str, str]]:
    return [check for check in json.loads(report)["checks"] if check["name"] == name]


def test_without_a_node_and_without_others_it_says_what_to_check(
    run: Run, alone: int, tmp_path: Path
) -> None:
    outcome = run("doctor", "--peers", "--json", "--home", str(tmp_path / "home"))
    assert outcome.code == 0
    (here,) = texts(outcome.out, "node here")
    assert (here["status"], "exo" in here["next_step"]) == ("note", True)
    (multicast,) = texts(outcome.out, "multicast")
    assert (multicast["status"], "lo IPv4" in multicast["text"]) == ("ok", True)
    (nobody,) = texts(outcome.out, "peers")
    assert "exo doctor --peers ITS-ADDRESS" in nobody["next_step"]
    assert "'default'" in nobody["next_step"]
    assert texts(outcome.out, "host secret")
    assert not (tmp_path / "host.secret").exists(), "it changes nothing"
    assert not (tmp_path / "home").exists()


def test_who_announces_itself_is_told_with_what_it_needs(
    run: Run, alone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "LISTEN_S", 1.5)
    secret = load_host_secret(tmp_path / "host.secret")
    with announcing(
        alone,
        (secret, facts("friend", namespace="default", name="attic"), 0.0),
        (b"t" * 32, facts("stranger", namespace="default", name="cellar"), 0.0),
        (secret, facts("late", namespace="default", name="garden"), -3600.0),
        (secret, facts("elsewhere", namespace="n", name="shed"), 0.0),
    ):
        outcome = run("doctor", "--peers", "--json", "--home", str(tmp_path / "home"))
    assert outcome.code == 1, "a clock is wrong"
    heard = {check["text"].partition(" ")[0]: check for check in texts(outcome.out, "heard")}
    assert {name: check["status"] for name, check in heard.items()} == {
        "attic": "ok",
        "cellar": "note",
        "garden": "ok",
        "shed": "note",
    }
    assert "exo node approve stranger" in heard["cellar"]["next_step"]
    assert "--namespace default" in heard["shed"]["next_step"]
    (clock,) = texts(outcome.out, "clock")
    assert clock["status"] == "broken"
    assert "garden is 60 min behind" in clock["text"]
    assert "NTP" in clock["next_step"]
    assert not texts(outcome.out, "peers")


def test_a_member_on_another_host_is_known_by_the_clusters_key(
    run: Run, alone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "LISTEN_S", 1.5)
    membership, home = Membership(tmp_path / "elsewhere"), tmp_path / "home"
    identity = membership.identity("here")
    keys = home / "keys"
    keys.mkdir(parents=True, mode=0o700)
    for name, text in (
        ("node.key", identity.key_file.read_text()),
        ("node.pem", identity.certificate_file.read_text()),
        ("ca.pem", identity.authority_pem),
    ):
        (keys / name).write_text(text)
        (keys / name).chmod(0o600)
    (home / "node_id").write_text("here\n")
    theirs = beacon_keys(identity, b"the secret of another host")[0]
    with announcing(alone, (theirs, facts("member", namespace="default", name="attic"), 0.0)):
        outcome = run("doctor", "--peers", "--json", "--home", str(home))
    (heard,) = texts(outcome.out, "heard")
    assert (heard["status"], "under a key of this host" in heard["text"]) == ("ok", True)


def test_whom_the_node_here_noticed_is_told_with_the_reason(
    run: Run, ready: RunningWorld, alone: int
) -> None:
    ready.world.coordinator.peers = (
        PeerSeen(
            address=HostPort("10.0.0.2", 7),
            node_id=NodeId("b"),
            name="[attic]",
            namespace="default",
            cluster_id=ClusterId("x"),
            via="multicast",
            status="both_have_instances",
            detail="both have instances",
            age_s=60.0,
        ),
        PeerSeen(address=None, via="multicast", status="malformed", detail="noise", age_s=0.0),
        PeerSeen(
            address=HostPort("10.0.0.3", 7), via="static", status="unreachable", detail="no answer", age_s=0.0
        ),
    )
    outcome = run("doctor", "--peers")
    assert outcome.code == 0
    assert "in the namespace 'test', with 2 nodes" in outcome.out
    assert "[attic] at 10.0.0.2:7, by multicast: both_have_instances" in outcome.out
    assert "last noticed 60 s ago" in outcome.out
    assert "exo delete ID" in outcome.out
    assert "exo doctor --peers 10.0.0.3:7" in outcome.out
    assert "was not heard announcing itself" in outcome.out
    assert "--discovery-port" in outcome.out


def test_another_node_than_the_usual_one_is_asked(run: Run, alone: int) -> None:
    outcome = run("doctor", "--peers", "--json", "--url", "http://127.0.0.1:1")
    (here,) = texts(outcome.out, "node here")
    assert "http://127.0.0.1:1" in here["text"]


def test_an_address_is_tried_from_here(run: Run, alone: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    outcome = run("doctor", "--peers", f"127.0.0.1:{port}", "--json", "--home", str(tmp_path / "home"))
    assert outcome.code == 1
    (refused,) = texts(outcome.out, "port")
    assert "refuses" in refused["text"]


@pytest.mark.parametrize("target", ["", "host:0", "host:99999"])
def test_what_is_no_address_is_refused(run: Run, alone: int, target: str) -> None:
    outcome = run("doctor", "--peers", target)
    assert outcome.code == 2
    assert "is not an address" in outcome.err


@pytest.mark.parametrize(
    ("is_waiting", "status", "step"), [(True, "note", "goes on"), (False, "broken", "exo token create")]
)
def test_why_this_node_was_not_let_in_is_told(
    run: Run, alone: int, tmp_path: Path, is_waiting: bool, status: str, step: str
) -> None:
    home = tmp_path / "home"
    write_join_outcome(home, JoinOutcome(text="the cluster refused: a wrong token", is_waiting=is_waiting))
    outcome = run("doctor", "--peers", "--json", "--home", str(home))
    assert outcome.code == (0 if is_waiting else 1)
    (joining,) = texts(outcome.out, "joining")
    assert (joining["status"], joining["text"]) == (status, "the cluster refused: a wrong token")
    assert step in joining["next_step"]
    # A token given anew has not been tried yet.
    write_pending_join(home, PendingJoin())
    assert not texts(run("doctor", "--peers", "--json", "--home", str(home)).out, "joining")
    (home / "keys" / "join").write_text("noise")
    assert not texts(run("doctor", "--peers", "--json", "--home", str(home)).out, "joining")


def test_a_certificate_that_cannot_be_used_is_told(run: Run, alone: int, tmp_path: Path) -> None:
    keys = tmp_path / "home" / "keys"
    keys.mkdir(parents=True, mode=0o700)
    for name in ("node.key", "node.pem", "ca.pem"):
        path = keys / name
        path.write_text("junk")
        path.chmod(0o600)
    outcome = run("doctor", "--peers", "127.0.0.1:1", "--json", "--home", str(tmp_path / "home"))
    assert outcome.code == 1
    (broken,) = texts(outcome.out, "certificate")
    assert "exo join TOKEN" in broken["next_step"]


def test_an_address_needs_its_flag(run: Run) -> None:
    outcome = run("doctor", "10.0.0.2")
    assert outcome.code == 2
    assert "exo doctor --peers" in outcome.err


async def test_the_running_node_is_asked_for(ready: RunningWorld, tmp_path: Path) -> None:
    import httpx

    async with httpx.AsyncClient() as client:
        state = (await client.get(f"{ready.url}/state")).json()
    myself = peers.make_myself(state, tmp_path, SECRET, "test")
    assert myself.is_running
    assert (myself.facts.node_id, myself.facts.namespace) == ("a", "test")
    assert myself.facts.master_node_id == state["master_node_id"]
    assert isinstance(myself.transport, TcpTransport)
    nobody = peers.make_myself(None, tmp_path, SECRET, "test")
    assert not nobody.is_running
    assert (nobody.facts.node_id, nobody.facts.cluster_id) == ("doctor", None)
    (tmp_path / "node_id").write_text("n7\n")
    assert peers.make_myself(None, tmp_path, SECRET, "test").facts.node_id == "n7"


def test_multicast_that_does_not_come_back_names_firewall_and_machine() -> None:
    port = free_udp_port()
    silent = Interface("void0", 0, (IPv4Interface("127.0.0.1/8"),), ())
    found = listen(port, [], [silent], seconds=0.4)
    (ok,) = explain_multicast(found, port)
    assert ok.status == "ok"
    found.tests[0].is_heard = False
    (note,) = explain_multicast(found, port)
    assert note.status == "note"
    assert "nothing came back" in note.text
    for word in (str(port), "firewall", "virtual machine", "--peer"):
        assert word in note.next_step
    found.tests[0].problem = "Network is unreachable"
    (note,) = explain_multicast(found, port)
    assert "cannot be sent: Network is unreachable" in note.text
    (none,) = explain_multicast(listen(port, [], [], seconds=0.01), port)
    assert "no network interface" in none.text


def test_an_interface_that_takes_no_part_is_told() -> None:
    port = free_udp_port()
    gone = Interface("gone0", 0, (IPv4Interface("203.0.113.77/24"),), ())
    found = listen(port, [], [gone, *LOOPBACK], seconds=0.7)
    findings = explain_multicast(found, port)
    assert [finding.status for finding in findings] == ["ok", "note"]
    assert "gone0 IPv4" in findings[1].text


def test_a_port_that_is_taken_is_told() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as v4,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as v6,
    ):
        v4.bind(("", 0))
        port = v4.getsockname()[1]
        try:
            v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            v6.bind(("::", port))
        except OSError:
            pytest.skip("this host has no IPv6, or something else has the port there")
        found = listen(port, [], LOOPBACK, seconds=0.1)
    (broken,) = explain_multicast(found, port)
    assert broken.status == "broken"
    assert "in use" in broken.text


def test_clocks_in_words() -> None:
    assert explain_clock(30.0, "attic", is_told_when_right=False) == []
    assert explain_clock(-5.0, "attic", is_told_when_right=True)[0].status == "ok"
    assert "31 s ahead of" in explain_clock(31.0, "attic", is_told_when_right=False)[0].text
    assert "5 min behind" in explain_clock(-300.0, "attic", is_told_when_right=False)[0].text
    assert "3 h ahead of" in explain_clock(10800.0, "attic", is_told_when_right=False)[0].text


def test_beacons_of_another_release_are_told() -> None:
    found = listening.Listened()
    head = msgspec.msgpack.encode(
        {
            "namespace": "test",
            "node_id": "b",
            "name": "attic",
            "cluster_address": {"host": "0.0.0.0", "port": 7},
            "cluster_id": None,
            "exo_version": "9.9",
            "sent_at_s": 0.0,
        }
    )
    listening._note(found, b"EXOB\x07\x00" + len(head).to_bytes(2, "big") + head, "10.0.0.2", [])  # pyright: ignore[reportPrivateUsage]
    listening._note(found, b"noise", "10.0.0.2", [])  # pyright: ignore[reportPrivateUsage]
    heard, clock = explain_announced(found, own_node_id=None, namespace="test")
    assert "exo 9.9" in heard.text
    assert "10.0.0.2:7" in heard.text
    assert "same release" in heard.next_step
    assert clock.status == "broken"
    assert explain_announced(found, own_node_id="b", namespace="test") == []
