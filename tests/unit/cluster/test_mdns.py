"""Finding each other by mDNS, between instances on this host's loopback interface, and hosts without a network."""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator

import pytest
import zeroconf
from loguru import logger

from exo.cluster.discovery.mdns import MdnsDiscovery
from exo.cluster.facts import ClusterFacts
from exo.shared.types.nodes import HostPort
from support.discoveries import Ear, eventually, facts, with_nodes

LOOPBACK = ("127.0.0.1",)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    said: list[str] = []
    handle = logger.add(lambda message: said.append(str(message)), level="INFO", format="{message}")
    yield said
    logger.remove(handle)


async def test_two_nodes_find_each_other_and_follow_what_changes(lines: list[str]) -> None:
    # Whatever else runs on this host announces itself on the same port: a namespace of one's own keeps it apart.
    namespace = secrets.token_hex(4)
    a, b, stranger = (f"{letter}-{namespace}" for letter in ("a", "b", "z"))
    now = {
        a: facts(a, namespace=namespace, cluster_address=HostPort("127.0.0.1", 7001)),
        b: facts(b, namespace=namespace, cluster_address=HostPort("127.0.0.1", 7002)),
        stranger: facts(
            stranger, namespace=f"other-{namespace}", cluster_address=HostPort("127.0.0.1", 7003)
        ),
    }
    nodes = {name: MdnsDiscovery(only_on=LOOPBACK, repeat_s=0.2) for name in now}
    ears = {name: Ear() for name in now}

    def source(name: str) -> ClusterFacts:
        return now[name]

    def namespaces_seen(ear: Ear) -> set[str | None]:
        return {seen.namespace for seen in ear.seen if seen.status == "other_namespace"}

    async def story() -> None:
        await ears[a].until(lambda: ears[a].addresses() == {"127.0.0.1:7002"})
        await ears[b].until(lambda: ears[b].addresses() == {"127.0.0.1:7001"})
        await ears[a].until(lambda: namespaces_seen(ears[a]) >= {f"other-{namespace}"})
        await ears[stranger].until(lambda: namespaces_seen(ears[stranger]) >= {namespace})
        assert not ears[stranger].sightings, "seen and said, never tried"
        reports = len(ears[a].sightings)
        await ears[a].until(lambda: len(ears[a].sightings) >= reports + 2)
        now[stranger] = facts(stranger, namespace=namespace, cluster_address=HostPort("127.0.0.1", 7003))
        nodes[stranger].nudge()
        await ears[a].until(lambda: "127.0.0.1:7003" in ears[a].addresses())
        assert all(sighting.facts is None for sighting in ears[a].sightings), "hints only"

    await with_nodes(nodes, ears, story, {name: lambda name=name: source(name) for name in now})
    assert lines == []


async def test_who_leaves_is_forgotten_and_who_comes_back_is_found() -> None:
    namespace = secrets.token_hex(4)
    a = facts(f"a-{namespace}", namespace=namespace, cluster_address=HostPort("127.0.0.1", 7001))
    b = facts(f"b-{namespace}", namespace=namespace, cluster_address=HostPort("127.0.0.1", 7002))
    ear = Ear()
    watcher = MdnsDiscovery(only_on=LOOPBACK, repeat_s=0.1)

    async def come_and_go() -> None:
        task = asyncio.ensure_future(MdnsDiscovery(only_on=LOOPBACK).run(lambda: b, lambda _: None))
        ear.sightings.clear()
        await ear.until(lambda: ear.addresses() == {"127.0.0.1:7002"})
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await eventually(lambda: b.node_id not in {one.node_id for one in watcher.known})

    async def story() -> None:
        await come_and_go()
        await come_and_go()

    await with_nodes({"a": watcher}, {"a": ear}, story, {"a": lambda: a})


@pytest.mark.parametrize(
    "error",
    [OSError(19, "No such device"), RuntimeError("No interfaces to listen on"), zeroconf.EventLoopBlocked()],
)
async def test_without_a_network_it_says_so_once_and_tries_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    attempts: list[object] = []

    def refuse(only_on: object) -> None:
        attempts.append(only_on)
        raise error

    monkeypatch.setattr("exo.cluster.discovery.mdns._open", refuse)

    async def story() -> None:
        await eventually(lambda: len(attempts) >= 3)

    await with_nodes({"a": MdnsDiscovery(only_on=LOOPBACK, retry_s=0.01)}, {"a": Ear()}, story)
    assert len(lines) == 1
    assert (getattr(error, "strerror", None) or str(error) or "EventLoopBlocked") in lines[0]


async def test_a_copied_node_id_is_told_and_the_others_are_found_all_the_same(lines: list[str]) -> None:
    namespace = secrets.token_hex(4)
    names = ("first", "copy", "third")
    ids = {"first": f"a-{namespace}", "copy": f"a-{namespace}", "third": f"b-{namespace}"}
    ears = {name: Ear() for name in names}
    sources = {
        name: lambda name=name, port=port: facts(
            ids[name], namespace=namespace, cluster_address=HostPort("127.0.0.1", port)
        )
        for port, name in enumerate(names, start=7001)
    }

    async def copy_comes_later() -> None:
        await ears["third"].until(lambda: ears["third"].addresses() == {"127.0.0.1:7001"})
        await with_nodes({"copy": MdnsDiscovery(only_on=LOOPBACK, repeat_s=0.2)}, ears, copy_is_told, sources)

    async def copy_is_told() -> None:
        await ears["copy"].until(lambda: "127.0.0.1:7003" in ears["copy"].addresses())
        await eventually(lambda: bool(lines))

    others = {name: MdnsDiscovery(only_on=LOOPBACK, repeat_s=0.2) for name in ("first", "third")}
    await with_nodes(others, ears, copy_comes_later, sources)
    assert len(lines) == 1
    assert "node_id" in lines[0]


async def test_a_node_of_loopback_takes_no_part_until_others_can_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[object] = []

    def refuse(only_on: object) -> None:
        opened.append(only_on)
        raise OSError(19, "No such device")

    monkeypatch.setattr("exo.cluster.discovery.mdns._open", refuse)
    now = [facts()]
    discovery = MdnsDiscovery(retry_s=0.01, reread_s=0.01)

    async def story() -> None:
        await asyncio.sleep(0.1)
        assert not opened
        now[0] = facts(cluster_address=HostPort("0.0.0.0", 7))
        await eventually(lambda: len(opened) >= 2)

    await with_nodes({"a": discovery}, {"a": Ear()}, story, {"a": lambda: now[0]})
