"""Nodes that were removed: they hear of it, are not let in, say what to do, and come back with a token."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exo.cluster import attempts
from exo.node_trust import joining
from exo.shared.types.commands import Done, Refusal
from exo.shared.types.events import NodeJoined
from exo.shared.types.ids import NodeId
from support.trusted_nodes import TrustedNode, TrustedNodes, trusted_nodes, until


@pytest.fixture
async def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TrustedNodes]:
    monkeypatch.setattr(joining, "RETRY_S", 0.2)
    monkeypatch.setattr(attempts, "UNWELCOME_S", 0.2)
    async with trusted_nodes(tmp_path) as nodes:
        yield nodes


async def pair(nodes: TrustedNodes, *, is_one_host: bool) -> tuple[TrustedNode, TrustedNode]:
    """Two nodes in sync, of one host or of two: the master and the other."""
    a = await nodes.start("a")
    b = await nodes.start("b", host="127.0.0.1" if is_one_host else "127.0.0.2", peers=[a])
    if not is_one_host:
        b.join(await a.make_token(), a.address)
    await until(
        lambda: all(
            one.coordinator.state.voters.members == {"a", "b"} and one.nodes == {"a", "b"} for one in (a, b)
        ),
        a,
        b,
    )
    return (a, b) if a.is_master else (b, a)


def notices(node: TrustedNode) -> list[str]:
    return [peer.detail for peer in node.coordinator.peers_seen if peer.status == "removed"]


def is_on_its_own(node: TrustedNode) -> bool:
    return node.nodes == {node.name} and node.is_master


@pytest.mark.parametrize("is_one_host", [True, False])
async def test_a_node_that_is_removed_hears_of_it_and_comes_back_with_a_token(
    nodes: TrustedNodes, is_one_host: bool
) -> None:
    master, other = await pair(nodes, is_one_host=is_one_host)
    cluster_id = master.coordinator.state.cluster_id
    assert isinstance(await master.remove(other.name), Done)
    await until(lambda: is_on_its_own(other), master, other)
    assert other.coordinator.state.cluster_id != cluster_id
    removal = other.coordinator.removed_from
    assert removal is not None and (removal.cluster_id, removal.reason) == (cluster_id, "sold")
    assert any("sold" in text and "exo join TOKEN" in text for text in notices(other))
    await until(lambda: other.trust.identity is None and not other.trust.store.load_authority(), other)
    # It finds its old cluster, which is the senior one, and is not let in: also not after a restart.
    await until(lambda: master.nodes == {master.name}, master)
    if is_one_host:
        await until(lambda: any("does not let it in" in text for text in notices(other)), other)
    await other.stop()
    await other.start()
    await until(lambda: is_on_its_own(other), other)
    assert set(master.coordinator.state.nodes) == {master.name}
    other.join(await master.make_token(), master.address)
    await until(lambda: master.nodes == other.nodes == {"a", "b"}, master, other)
    assert other.coordinator.removed_from is None and not notices(other)
    assert not master.coordinator.state.access.removed


@pytest.mark.parametrize("is_one_host", [True, False])
async def test_a_node_that_was_removed_while_it_was_away_is_told_so(
    nodes: TrustedNodes, is_one_host: bool
) -> None:
    master, other = await pair(nodes, is_one_host=is_one_host)
    await other.stop(is_killed=True)
    await until(lambda: master.nodes == {master.name}, master)
    assert isinstance(await master.remove(other.name), Done)
    await other.start()
    await until(lambda: bool(notices(other)), other)
    assert "exo join TOKEN" in notices(other)[0]
    assert other.name not in master.coordinator.state.nodes
    other.join(await master.make_token(), master.address)
    await until(lambda: master.nodes == other.nodes == {"a", "b"}, master, other)
    assert not notices(other)


async def test_a_master_is_removed_once_it_has_handed_over(nodes: TrustedNodes) -> None:
    master, other = await pair(nodes, is_one_host=True)
    refused = await other.remove(master.name)
    assert isinstance(refused, Refusal) and refused.code == "node_leads"
    assert "stop it first" in refused.message and f"exo node remove {master.name}" in refused.message
    await master.stop()
    await until(lambda: other.is_master, other)
    refused = await other.remove(other.name)
    assert isinstance(refused, Refusal) and "start another node first" in refused.message
    assert isinstance(await other.remove(master.name), Done)
    await master.start()
    await until(lambda: bool(notices(master)) and is_on_its_own(master), master)
    assert other.nodes == {other.name}


async def test_what_a_removed_node_says_counts_no_more(nodes: TrustedNodes) -> None:
    master, other = await pair(nodes, is_one_host=True)
    hosting = master.coordinator._kernel.hosting
    (session,) = hosting.sessions.values()
    own = other.coordinator.state.nodes[NodeId(other.name)].identity
    # It does not hear of it in time, and goes on.
    other.coordinator._kernel.situation.removed = lambda reason: None  # type: ignore[method-assign]
    assert isinstance(await master.remove(other.name), Done)
    assert session.is_removed
    other.coordinator._kernel.dispatch.submit([NodeJoined(identity=own)], "again")
    await until(lambda: not hosting.sessions, master)
    assert set(master.coordinator.state.nodes) == {master.name}
