"""Nodes that become members and stay so: keys handed on, certificates renewed, tokens used, members removed."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest

from exo.cluster.trust.key_store import KeyStore
from exo.cluster.wire import KeepAuthority
from exo.node_trust.authority import Heirloom
from exo.shared.types.events import AuthorityCreated
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State
from support.coordinator import MemoryCoordinator
from support.memberships import Membership
from support.simulated_cluster import tagged
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
