"""What two that hold themselves to be the master can do at a real etcd: only one of them commits."""

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from exo.cluster.etcd.address import EtcdAddress
from exo.cluster.etcd.client import EtcdClient
from exo.cluster.etcd.errors import DeposedError, EtcdCompactedError, EtcdLeaseGoneError
from exo.cluster.etcd.records import Head, Keys, MasterRecord, decode_record
from exo.cluster.etcd.store import EtcdStore, Hold, Tail
from exo.shared.errors import LogCorruptError
from exo.shared.types.events import LogEntry
from exo.shared.types.ids import EventId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State
from support.etcd_server import EtcdServer, running_etcd
from support.simulated_cluster import tagged


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


class World:
    """One namespace, and several clients of it."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server
        self.address = EtcdAddress(endpoints=(server.address,), prefix=uuid4().hex)
        self.keys = Keys(self.address.prefix, "test")
        self.clients: list[EtcdClient] = []

    def store(self) -> EtcdStore:
        client = EtcdClient(self.address)
        self.clients.append(client)
        return EtcdStore(client, self.keys)

    async def elect(self, store: EtcdStore, name: str) -> Hold | None:
        lease = await store.client.grant(30)
        tail = await read_all(store)
        return await store.campaign(record(name, tail), lease.ID, tail)


@pytest.fixture
async def world(etcd: EtcdServer) -> AsyncIterator[World]:
    world = World(etcd)
    yield world
    for client in world.clients:
        await client.close()


def record(name: str, tail: Tail) -> MasterRecord:
    return MasterRecord(
        node_id=NodeId(name),
        boot_id=f"{name}-1",
        term=tail.head.term + 1,
        address=HostPort(name, 1),
        name=name,
    )


async def read_all(store: EtcdStore) -> Tail:
    tail = await store.read_after(0)
    entries = list(tail.entries)
    while not tail.is_complete:
        tail = await store.read_after(entries[-1].index)
        entries += tail.entries
    return Tail(
        **{field: getattr(tail, field) for field in tail.__struct_fields__} | {"entries": tuple(entries)}
    )


def entries(first: int, count: int, *, term: int, by: str = "a") -> tuple[LogEntry, ...]:
    return tuple(
        LogEntry(
            index=index,
            term=term,
            event_id=EventId(f"{by}-{term}-{index}"),
            cause_id="c",
            origin=NodeId(by),
            seq=index,
            at="2026-01-01T00:00:00.000Z",
            event=tagged(NodeId(by), str(index)),
        )
        for index in range(first, first + count)
    )


async def test_of_many_that_stand_one_is_elected(world: World) -> None:
    stores = [world.store() for _ in range(5)]
    tail = await stores[0].read_after(0)
    won: list[Hold] = []
    for number, store in enumerate(stores):
        lease = await store.client.grant(30)
        hold = await store.campaign(record(f"n{number}", tail), lease.ID, tail)
        won += [hold] if hold is not None else []
    assert len(won) == 1
    found = await stores[1].read_after(0)
    assert found.master is not None and found.master.record.node_id == "n0"
    assert found.master.create_revision == won[0].create_revision
    assert found.head == Head(index=0, term=1)


async def test_a_master_that_was_replaced_commits_nothing_more(world: World) -> None:
    old, new = world.store(), world.store()
    first = await world.elect(old, "old")
    assert first is not None
    first = await old.commit(first, entries(1, 3, term=1))
    await new.client.revoke(
        first.lease_id
    )  # As when its time is up at etcd, whatever the old one's clock says.
    second = await world.elect(new, "new")
    assert second is not None and second.term == 2
    with pytest.raises(DeposedError, match="no longer leads in term 1"):
        await old.commit(first, entries(4, 1, term=1))
    second = await new.commit(second, entries(4, 2, term=2, by="b"))
    with pytest.raises(DeposedError):
        await old.commit(first, entries(4, 1, term=1))
    with pytest.raises(DeposedError):
        await old.save_snapshot(first, State(index=5), keep_after_index=5)
    tail = await read_all(new)
    assert [(entry.index, entry.term) for entry in tail.entries] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert tail.snapshot is None


async def test_a_master_without_its_lease_commits_nothing_even_if_nobody_else_leads(world: World) -> None:
    store = world.store()
    hold = await world.elect(store, "a")
    assert hold is not None
    await store.client.revoke(hold.lease_id)
    assert await store.client.keep_alive(hold.lease_id) == 0
    with pytest.raises(EtcdLeaseGoneError):
        await store.client.revoke(hold.lease_id)
    with pytest.raises(DeposedError):
        await store.commit(hold, entries(1, 1, term=1))
    again = await world.elect(store, "a")
    assert again is not None and again.create_revision != hold.create_revision
    with pytest.raises(DeposedError):
        await store.commit(hold, entries(1, 1, term=1))


async def test_an_election_on_old_news_is_lost(world: World) -> None:
    """A commit or another election since the candidate has read: it lacks what it would have to lead with."""
    a, b = world.store(), world.store()
    old = await b.read_after(0)
    hold = await world.elect(a, "a")
    assert hold is not None
    hold = await a.commit(hold, entries(1, 1, term=1))
    await a.client.revoke(hold.lease_id)
    lease = await b.client.grant(30)
    assert await b.campaign(record("b", old), lease.ID, old) is None
    assert await b.campaign(record("b", await read_all(b)), lease.ID, await read_all(b)) is not None


async def test_what_is_tried_again_after_a_lost_answer_counts_once(world: World) -> None:
    store = world.store()
    lease = await store.client.grant(30)
    tail = await store.read_after(0)
    hold = await store.campaign(record("a", tail), lease.ID, tail)
    assert hold is not None
    assert await store.campaign(record("a", tail), lease.ID, tail) == hold
    one = await store.commit(hold, entries(1, 2, term=1))
    assert await store.commit(hold, entries(1, 2, term=1)) == one
    two = await store.commit(one, entries(3, 1, term=1))
    assert await store.commit(one, entries(3, 1, term=1)) == two
    with pytest.raises(DeposedError):
        await store.commit(one, entries(3, 1, term=1, by="someone else"))
    assert [entry.index for entry in (await read_all(store)).entries] == [1, 2, 3]


async def test_an_answer_lost_to_a_successor_is_found_out_too(world: World) -> None:
    """Committed, the answer lost, then replaced: the entries count, and the next commit does not."""
    old, new = world.store(), world.store()
    hold = await world.elect(old, "old")
    assert hold is not None
    await old.commit(hold, entries(1, 1, term=1))
    await new.client.revoke(hold.lease_id)
    assert await world.elect(new, "new") is not None
    found = await old.commit(hold, entries(1, 1, term=1))
    with pytest.raises(DeposedError):
        await old.commit(found, entries(2, 1, term=1))


async def test_a_long_log_is_read_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exo.cluster.etcd.store.BATCHES_PER_READ", 4)
    store = world.store()
    hold = await world.elect(store, "a")
    assert hold is not None
    for number in range(10):
        hold = await store.commit(hold, entries(1 + 2 * number, 2, term=1))
    first = await store.read_after(0)
    assert not first.is_complete and first.master is None
    tail = await read_all(store)
    assert [entry.index for entry in tail.entries] == list(range(1, 21))
    assert tail.master is not None
    middle = await store.read_after(17)
    assert [entry.index for entry in middle.entries] == [18, 19, 20], "in the middle of a commit"


async def test_a_snapshot_replaces_the_one_before_and_the_entries_it_holds(world: World) -> None:
    store = world.store()
    hold = await world.elect(store, "a")
    assert hold is not None
    for number in range(6):
        hold = await store.commit(hold, entries(1 + number, 1, term=1))
    assert await store.load_snapshot() == State()
    small = State(index=2, namespace="test")
    await store.save_snapshot(hold, small, keep_after_index=1)
    assert await store.load_snapshot() == small
    large = State(index=6, namespace="test", last_seq={NodeId(f"node-{n}"): n for n in range(100_000)})
    manifest = await store.save_snapshot(hold, large, keep_after_index=4)
    assert manifest.part_count > 2
    assert await store.load_snapshot() == large
    tail = await read_all(store)
    assert [entry.index for entry in tail.entries] == [5, 6]
    keys = world.server.keys(f"/{world.address.prefix}/test/snapshot/")
    assert len(keys) == manifest.part_count
    world.server.delete(keys[0])
    with pytest.raises(LogCorruptError, match="instead of"):
        await store.load_snapshot()


async def test_a_watch_sees_decisions_and_masters_in_order_and_no_snapshots(world: World) -> None:
    store = world.store()
    tail = await store.read_after(0)
    hold = await world.elect(store, "a")
    assert hold is not None
    hold = await store.commit(hold, entries(1, 1, term=1))
    await store.save_snapshot(hold, State(index=1), keep_after_index=0)
    await store.client.revoke(hold.lease_id)
    seen: list[tuple[str, bytes]] = []
    watch = store.client.watch(world.keys.watch_start, world.keys.watch_end, tail.revision + 1)
    async for answer in watch:
        seen += [(change.type, change.kv.key) for change in answer.events]
        if len(seen) >= 3:
            break
    await watch.aclose()
    master, log = world.keys.master, world.keys.log(1)
    assert seen == [("PUT", master), ("PUT", log), ("DELETE", master)]


async def test_a_watch_of_what_is_forgotten_says_so(world: World) -> None:
    store = world.store()
    assert await world.elect(store, "a") is not None
    world.server.compact()
    with pytest.raises(EtcdCompactedError):
        async for _ in store.client.watch(world.keys.watch_start, world.keys.watch_end, 1):
            pass


def test_the_keys_lie_as_the_watch_needs_them() -> None:
    keys = Keys("exo", "a/b c")
    assert keys.head == b"/exo/a%2Fb%20c/head"
    ordered = [keys.head, keys.watch_start, keys.log(0), keys.log(10**19), keys.master, keys.watch_end]
    assert ordered == sorted(ordered)
    assert keys.watch_end < keys.snapshot < keys.snapshot_part(0, 0)
    parts = [keys.snapshot_part(7, 0), keys.snapshot_part(7, 10**7), keys.snapshot_parts_end(7)]
    assert parts == sorted(parts)
    assert keys.snapshot_parts_end(7) < keys.snapshot_part(8, 0)


def test_what_is_no_record_says_what_to_do() -> None:
    with pytest.raises(LogCorruptError, match=r"a Head in etcd cannot be read .* choose another prefix"):
        decode_record(b"?", Head)
