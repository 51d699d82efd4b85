"""Nodes that become members and stay so: keys handed on, certificates renewed, tokens used, members removed."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from exo.api.access_join import TOKEN_FILE, read_join_outcome, reason_not_to_join
from exo.cluster.trust.authority import issue_certificate
from exo.cluster.trust.certificates import NodeCertificate
from exo.cluster.trust.errors import CertificateError
from exo.cluster.trust.key_store import NODE_CERTIFICATE, KeyStore
from exo.cluster.trust.token import authority_hash
from exo.cluster.wire import KeepAuthority
from exo.node_trust import certificate
from exo.node_trust.authority import Heirloom
from exo.shared.types.access import KeyId
from exo.shared.types.commands import Done
from exo.shared.types.events import AuthorityCreated, Decision, InstanceCreated, KeyCreated, NodeJoined
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State
from support.coordinator import MemoryCoordinator
from support.faulty_story import instance
from support.memberships import Membership
from support.simulated_cluster import tagged
from support.states import cluster, fold, identity
from support.trusted_nodes import TrustedNode, TrustedNodes, trusted_nodes, until


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[TrustedNodes]:
    async with trusted_nodes(tmp_path) as nodes:
        yield nodes


async def pair(nodes: TrustedNodes) -> tuple[TrustedNode, TrustedNode]:
    """Two nodes of one host, in sync: the master and the other."""
    a = await nodes.start("a")
    b = await nodes.start("b", peers=[a])
    await until(
        lambda: all(
            one.coordinator.state.voters.members == {"a", "b"} and one.nodes == {"a", "b"} for one in (a, b)
        ),
        a,
        b,
    )
    return (a, b) if a.is_master else (b, a)


async def test_the_authoritys_key_is_made_while_others_follow_and_reaches_whoever_may_lead_next(
    nodes: TrustedNodes,
) -> None:
    master, other = await pair(nodes)
    await master.make_token()
    await until(lambda: other.trust.store.load_authority() is not None, master, other)
    assert master.trust.store.load_authority() == other.trust.store.load_authority()
    await until(lambda: master.trust.identity is not None and other.trust.identity is not None, master, other)


async def test_the_key_of_another_clusters_authority_is_not_passed_on(
    nodes: TrustedNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = Membership(tmp_path / "elsewhere").authority
    for name in ("a", "b"):
        KeyStore(tmp_path / name).save_authority(foreign)
    heard: list[KeepAuthority] = []
    monkeypatch.setattr(Heirloom, "_receive", lambda _, message: heard.append(message))
    master, other = await pair(nodes)
    index = await other.coordinator.propose([tagged(other.name, "x")], cause_id="test")
    await until(lambda: master.coordinator.state.index >= index, master, other)
    assert heard == []


class HeldBack(MemoryCoordinator):
    """Hands the callback for a master's key to the test."""

    pass_on: Callable[[KeepAuthority], None]

    def share_authority(self, authority: KeepAuthority | None, keep: Callable[[KeepAuthority], None]) -> None:
        self.pass_on = keep
        self.shared = authority


async def test_a_key_that_comes_before_its_decision_is_kept_once_that_is_there(tmp_path: Path) -> None:
    authority, other = Membership(tmp_path, "c1").authority, Membership(tmp_path, "c2").authority
    coordinator, store = HeldBack(NodeId("a"), State()), KeyStore(tmp_path)
    heirloom = Heirloom(store, coordinator)  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heirloom.run)
        coordinator.pass_on(
            KeepAuthority(certificate_pem=authority.certificate_pem, key_pem=authority.key_pem)
        )
        await coordinator.propose([AuthorityCreated(certificate_pem=other.certificate_pem)], cause_id="c")
        await anyio.wait_all_tasks_blocked()
        assert store.load_authority() is None
        await coordinator.propose([AuthorityCreated(certificate_pem=authority.certificate_pem)], cause_id="c")
        with anyio.fail_after(5):
            while coordinator.shared is None:
                await anyio.wait_all_tasks_blocked()
        assert store.load_authority() == authority
        # A key that is not the certificate's is of no use to anybody.
        coordinator.pass_on(KeepAuthority(certificate_pem=authority.certificate_pem, key_pem=other.key_pem))
        coordinator.set_state(coordinator.state)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert store.load_authority() == authority


# --- certificates --------------------------------------------------------------------------------------------------


async def test_nodes_of_one_host_have_their_certificates_renewed_over_the_way_they_have(
    nodes: TrustedNodes,
) -> None:
    both = await pair(nodes)
    await both[0].make_token()
    await until(lambda: all(one.trust.identity is not None for one in both), *both)
    before = {one.name: certificate_of(one) for one in both}
    for one in both:
        one.later = timedelta(days=21)
    for one in both:
        await one.trust.own.renew(one.coordinator)
        renewed = certificate_of(one)
        assert renewed.serial != before[one.name].serial
        assert renewed.fingerprint == before[one.name].fingerprint
        assert renewed.valid_until - one.now() > timedelta(days=29)
    # A master that was away for longer than a certificate lasts renews its own first.
    both[0].later = timedelta(days=100)
    assert both[0].trust.own.has_expired
    await both[0].trust.own.renew(both[0].coordinator)
    assert not both[0].trust.own.has_expired


async def test_a_cluster_that_was_away_for_longer_than_a_certificate_lasts_comes_back(
    nodes: TrustedNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "CHECK_S", 0.1)
    a = await nodes.start("a")
    token = await a.make_token()
    b = await nodes.start("b", host="127.0.0.2")
    b.join(token, a.address)
    await until(lambda: a.nodes == b.nodes == {"a", "b"}, a, b)
    await until(lambda: all(one.trust.store.load_authority() for one in (a, b)), a, b)
    await nodes.stop_all()
    for one in (a, b):
        expire(one)
    await a.start()
    await b.start()
    await until(lambda: a.nodes == b.nodes == {"a", "b"}, a, b)
    assert not a.trust.own.has_expired and not b.trust.own.has_expired


async def test_a_certificate_that_is_not_this_nodes_is_not_kept(nodes: TrustedNodes, tmp_path: Path) -> None:
    a = await nodes.start("a")
    await a.make_token()
    await until(lambda: a.trust.identity is not None, a)
    before = a.trust.identity
    foreign = Membership(tmp_path / "elsewhere")
    other = foreign.identity("a")
    with pytest.raises(CertificateError):
        await a.trust.own.keep(other.certificate_file.read_text(), foreign.authority.certificate_pem)
    assert a.trust.identity == before == a.trust.store.load_identity(NodeId("a"))


def certificate_of(node: TrustedNode) -> NodeCertificate:
    assert node.trust.identity is not None
    return node.trust.identity.certificate


def expire(node: TrustedNode) -> None:
    """Let the node's certificate be one that ran out ten days ago."""
    store, node_id = node.trust.store, NodeId(node.name)
    authority = store.load_authority()
    assert authority is not None
    request = store.create_request(node_id)
    long_ago = datetime.now(UTC) - timedelta(days=40)
    expired = issue_certificate(authority, request, node_id, now=long_ago)
    store._write(NODE_CERTIFICATE, expired)
    identity = store.load_identity(node_id)
    assert identity is not None and not identity.certificate.is_valid_at(datetime.now(UTC))


# --- tokens --------------------------------------------------------------------------------------------------------


async def test_a_token_finds_its_cluster_among_others_and_waits_for_its_master(nodes: TrustedNodes) -> None:
    other = await nodes.start("other")
    await other.make_token()
    master, copy = await pair(nodes)
    token = await master.make_token()
    await until(lambda: copy.trust.identity is not None, master, copy)
    await master.stop(is_killed=True)
    joiner = await nodes.start("joiner", host="127.0.0.2", peers=[other, copy])
    joiner.join(token)
    await until(lambda: len(joiner.coordinator.peers_seen) == 2, joiner)
    await master.start()
    await until(lambda: joiner.nodes == {"a", "b", "joiner"}, joiner, master)
    assert not (joiner.home / TOKEN_FILE).exists()
    assert joiner.trust.identity is not None and master.trust.identity is not None
    assert joiner.trust.identity.authority_hash == master.trust.identity.authority_hash
    assert other.nodes == {"other"}


async def test_a_node_without_a_token_waits_until_somebody_lets_it_in(nodes: TrustedNodes) -> None:
    a = await nodes.start("a")
    await a.make_token()
    b = await nodes.start("b", host="127.0.0.2", peers=[a])
    await until(lambda: len(b.coordinator.peers_seen) == 1, b)
    assert not a.coordinator.state.access.wishes, "nobody asks unless told to"
    b.join(None)
    await until(lambda: set(a.coordinator.state.access.wishes) == {"b"}, a, b)
    await until(lambda: outcome_of(b) != "", b)
    outcome = read_join_outcome(b.home)
    assert outcome is not None and outcome.is_waiting and "exo node approve b" in outcome.text
    assert b.nodes == {"b"} and b.trust.identity is None
    assert isinstance(await a.approve("b"), Done)
    await until(lambda: a.nodes == b.nodes == {"a", "b"}, a, b)
    await until(lambda: not (b.home / TOKEN_FILE).exists(), b)
    assert read_join_outcome(b.home) is None
    assert b.trust.identity is not None
    assert b.trust.store.known_authority(a.address) == b.trust.identity.authority_hash


async def test_a_token_that_comes_while_a_node_waits_is_used_at_once(nodes: TrustedNodes) -> None:
    a = await nodes.start("a")
    token = await a.make_token()
    b = await nodes.start("b", host="127.0.0.2")
    b.join(None, a.address)
    await until(lambda: "b" in a.coordinator.state.access.wishes, a, b)
    b.join(token, a.address)
    await until(lambda: a.nodes == b.nodes == {"a", "b"}, a, b)


async def test_a_node_that_waited_and_has_something_to_lose_by_then_stays(nodes: TrustedNodes) -> None:
    a = await nodes.start("a")
    await a.make_token()
    b = await nodes.start("b", host="127.0.0.2")
    b.join(None, a.address)
    await until(lambda: "b" in a.coordinator.state.access.wishes, a, b)
    await b.make_token()
    await until(lambda: b.trust.identity is not None, b)
    identity = b.trust.identity
    assert isinstance(await a.approve("b"), Done)
    await until(lambda: "its own has an authority" in outcome_of(b), b)
    await until(lambda: not (b.home / TOKEN_FILE).exists(), b)
    assert b.trust.identity == identity and b.nodes == {"b"}


async def test_of_several_clusters_a_node_without_a_token_asks_none(nodes: TrustedNodes) -> None:
    a, b = await nodes.start("a"), await nodes.start("b", host="127.0.0.2")
    await a.make_token()
    await b.make_token()
    c = await nodes.start("c", host="127.0.0.3", peers=[a, b])
    await until(lambda: len(c.coordinator.peers_seen) == 2, c)
    c.join(None)
    await until(lambda: "exo join --address" in outcome_of(c), c)
    assert not a.coordinator.state.access.wishes and not b.coordinator.state.access.wishes
    c.join(None, b.address)
    await until(lambda: "c" in b.coordinator.state.access.wishes, b, c)
    assert not a.coordinator.state.access.wishes


async def test_why_a_token_did_not_help_is_noted_for_people(nodes: TrustedNodes) -> None:
    a = await nodes.start("a")
    token = await a.make_token()
    b = await nodes.start("b", host="127.0.0.2")
    wrong = token[:-4] + ("aaaa" if not token.endswith("aaaa") else "bbbb")
    b.join(wrong, a.address)
    await until(lambda: "exo token create" in outcome_of(b), b)
    outcome = read_join_outcome(b.home)
    assert outcome is not None and not outcome.is_waiting and str(a.address) in outcome.text
    assert wrong not in outcome.text
    await until(lambda: not (b.home / TOKEN_FILE).exists(), b)
    b.join(token, a.address)
    await until(lambda: a.nodes == b.nodes == {"a", "b"}, a, b)
    assert read_join_outcome(b.home) is None


def outcome_of(node: TrustedNode) -> str:
    outcome = read_join_outcome(node.home)
    return "" if outcome is None else outcome.text


async def test_a_node_whose_cluster_has_an_authority_keeps_its_key_when_told_to_join_another(
    nodes: TrustedNodes,
) -> None:
    a, b = await nodes.start("a"), await nodes.start("b", host="127.0.0.2")
    token = await b.make_token()
    await a.make_token()
    await until(lambda: a.trust.identity is not None, a)
    identity, authority = a.trust.identity, a.trust.store.load_authority()
    a.join(token, b.address)
    await until(lambda: not (a.home / TOKEN_FILE).exists(), a)
    assert a.trust.identity == identity and a.trust.store.load_authority() == authority
    assert a.nodes == {"a"} and b.nodes == {"b"}


def test_what_would_be_lost_is_named(tmp_path: Path) -> None:
    home, other = Membership(tmp_path, "c1").authority, Membership(tmp_path, "c2").authority
    wanted = authority_hash(home.certificate_der)
    empty = cluster(identity("a"))
    assert reason_not_to_join(empty, wanted, has_master=True) is None

    def reason(*events: Decision, has_master: bool = True) -> str:
        state = fold(empty, *events)
        return reason_not_to_join(state, wanted, has_master=has_master) or "it can"

    assert "already" in reason(AuthorityCreated(certificate_pem=home.certificate_pem))
    away = AuthorityCreated(certificate_pem=home.certificate_pem)
    assert reason(away, has_master=False) == "it can", "it may have been removed, or away for too long"
    foreign = AuthorityCreated(certificate_pem=other.certificate_pem)
    assert "new data directory" in reason(foreign) and "exo node remove" not in reason(foreign)
    assert "exo node remove" in reason(foreign, NodeJoined(identity=identity("b")))
    key = KeyCreated(
        key_id=KeyId("k"),
        hash="",
        name="",
        scopes=("read",),
        created_at_s=0.0,
        expires_at_s=None,
        created_by="",
    )
    assert "exo key delete" in reason(key)
    assert "exo delete" in reason(InstanceCreated(instance=instance()))
