"""The synchronous middle of a node on etcd: what it makes of news that come late, twice or out of turn."""

import asyncio

import pytest

from exo.cluster.board import Board
from exo.cluster.etcd.errors import LogGapError
from exo.cluster.etcd.link import Link
from exo.cluster.etcd.member import Member
from exo.cluster.etcd.options import EtcdOptions
from exo.cluster.etcd.records import MasterRecord
from exo.cluster.etcd.store import Hold, MasterSeen
from exo.cluster.etcd.wire import (
    Level,
    LivePart,
    Welcome,
    decode_from_follower,
    decode_from_master,
    encode_live,
)
from exo.cluster.lane import Lane
from exo.cluster.proposals import Proposals
from exo.cluster.wire import Propose, Publish
from exo.shared.types.events import LinkMeasured, LogEntry, NodeJoined, TermOpened
from exo.shared.types.ids import ClusterId, EventId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import NodeTelemetry
from support.simulated_cluster import tagged
from support.states import identity

A = NodeId("a")


class Node:
    """A member with a clock that stands still unless it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.ids = iter(range(10**6))
        self.member = Member(
            identity=identity("a"),
            namespace="test",
            options=EtcdOptions(),
            clock=lambda: self.now_s,
            wall_clock=lambda: "2026-01-01T00:00:00.000Z",
            new_id=lambda: f"id-{next(self.ids)}",
            is_checking_invariants=True,
        )

    def elect(self, revision: int = 5, *, term: int = 1) -> None:
        self.member.in_touch()
        self.member.master_seen(seen("a", revision, term=term), revision)
        hold = Hold(term=term, lease_id=1, create_revision=revision, head_revision=revision)
        self.member.lead(hold, self.now_s + 2.4)

    def commit(self) -> tuple[LogEntry, ...]:
        assert self.member.seat is not None
        entries = self.member.seat.take_batch()
        self.member.fold(entries)
        return entries


def seen(name: str, revision: int, *, term: int = 1) -> MasterSeen:
    record = MasterRecord(
        node_id=NodeId(name), boot_id=f"{name}-boot", term=term, address=HostPort(name, 1), name=name
    )
    return MasterSeen(record=record, create_revision=revision, lease_id=1)


@pytest.fixture
async def node() -> Node:
    return Node()


async def test_a_term_begins_with_its_opening_and_the_node_itself(node: Node) -> None:
    early = asyncio.ensure_future(_propose(node, "early"))
    await asyncio.sleep(0)
    node.elect()
    assert not node.member.leadership.is_self, "the term is not opened before that is committed"
    kinds = [type(entry.event).__name__ for entry in node.commit()]
    assert kinds == ["ClusterFormed", "TermOpened", "NodeJoined", "DeviceLost"]
    assert node.member.leadership.is_self
    assert await early == 4


async def _propose(node: Node, tag: str) -> int:
    _, future = node.member.submit([tagged(A, tag)], "c")
    return await future


async def test_old_news_of_who_leads_changes_nothing(node: Node) -> None:
    node.elect(revision=5)
    node.commit()
    node.member.master_seen(None, 4)
    node.member.master_seen(seen("b", 3), 5)
    assert node.member.leadership.is_self
    node.member.master_seen(seen("a", 5), 9)
    assert node.member.leadership.is_self, "the same key"
    node.member.master_seen(None, 10)
    assert node.member.seat is None and node.member.leadership.master_node_id is None


async def test_a_lease_that_is_over_is_over_without_anyone_noticing(node: Node) -> None:
    node.elect()
    node.commit()
    node.now_s = 2.3
    assert node.member.leadership.is_self
    node.now_s = 2.4
    assert not node.member.leadership.is_self


async def test_what_comes_twice_is_folded_once_and_gaps_are_not_jumped(node: Node) -> None:
    node.elect()
    entries = node.commit()
    state = node.member.state
    node.member.fold(entries)
    node.member.fold(entries[1:])
    assert node.member.state is state
    later = LogEntry(
        index=9, term=1, event_id=EventId("x"), cause_id="c", origin=A, seq=9, at="", event=tagged(A, "x")
    )
    with pytest.raises(LogGapError, match="entry 9 came where 4 was expected"):
        node.member.fold([later])


async def test_what_this_node_decided_in_a_term_that_is_over_is_not_offered_again(node: Node) -> None:
    node.elect()
    node.commit()
    fact = asyncio.ensure_future(_propose(node, "a fact"))
    await asyncio.sleep(0)
    _, decision = node.member.submit([TermOpened(master_node_id=A)], "c")
    node.member.step_down("a test")
    node.now_s = 10.0
    node.elect(revision=8, term=2)
    assert decision.exception() is not None
    events = [entry.event for entry in node.commit()]
    assert events[0] == TermOpened(master_node_id=A)
    assert tagged(A, "a fact") in events and len(events) == 2
    await fact


def link(index: int) -> Link:
    welcome = Welcome(term=1, cluster_id=ClusterId("c"), index=index, last_seq=0)
    return Link(_Unused(), 5, welcome)  # type: ignore[arg-type]


class _Unused:
    def close(self, reason: str) -> None: ...


async def test_telemetry_and_calls_say_what_they_presuppose() -> None:
    """The master may fold a commit a moment later than a follower: it has to wait before it reads on."""
    board = Board(A, feed_backlog=10, is_checking_invariants=True)
    joined = LogEntry(
        index=1,
        term=1,
        event_id=EventId("j"),
        cause_id="c",
        origin=A,
        seq=1,
        at="",
        event=NodeJoined(identity=identity("a")),
    )
    board.fold([joined])
    lane = Lane(board, A, identity("a").boot_id)
    proposals = Proposals(wall_clock=lambda: "", new_id=lambda: "id")
    proposals.add([tagged(A, "x")], "c", position=(ClusterId("c"), 1))
    proposals.begin(ClusterId("c"), 1, 0)
    up = link(index=1)

    def publish() -> None:
        event = LinkMeasured(source_node_id=A, dest_node_id=NodeId("b"), link_type="wifi")
        lane.publish([event])
        lane.flush_own(is_leading=False, is_following=True)

    publish()
    assert up.take_uplink(proposals, lane, 1) == (), "it does not know yet whether it is a member"
    up.is_level = True
    said = [decode_from_follower(data) for data in up.take_uplink(proposals, lane, 1)]
    assert [type(message) for message in said] == [Propose, Level, Publish]
    assert said[1] == Level(index=1)
    publish()
    assert [type(decode_from_follower(data)) for data in up.take_uplink(proposals, lane, 1)] == [Publish]


def test_telemetry_of_a_large_cluster_comes_in_parts() -> None:
    live = {NodeId(f"n{number}"): NodeTelemetry(boot_id="b", seq=number) for number in range(600)}
    parts = [decode_from_master(data) for data in encode_live(live, 7)]
    assert len(parts) == 3
    down = link(index=0)
    found = [down.live_received(part) for part in parts if isinstance(part, LivePart)]
    assert found[:2] == [None, None]
    assert found[2] is not None and found[2].live == live and found[2].index == 7
    assert [decode_from_master(data) for data in encode_live({}, 1)] == [
        LivePart(live={}, index=1, is_last=True)
    ]


async def test_a_snapshot_keeps_the_telemetry_of_the_same_boots(node: Node) -> None:
    node.elect()
    node.commit()
    member = node.member
    telemetry = LinkMeasured(source_node_id=A, dest_node_id=NodeId("b"), link_type="wifi")
    member.lane.publish([telemetry])
    member.flush_telemetry()
    assert A in member.state.live
    member.go_on_from(member.state.decided())
    assert A in member.state.live
