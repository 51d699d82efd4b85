"""The core, step by step: what it answers to what it is told."""

from typing import Any

import pytest

from exo.cluster.core import Core
from exo.cluster.core_messages import (
    Append,
    BecameDurable,
    CloseSession,
    Committed,
    Decide,
    DropMaster,
    Effect,
    EntriesReceived,
    Follow,
    FollowerArrived,
    FollowerLost,
    Lead,
    MasterLost,
    ProposalReceived,
    Stop,
    Tick,
)
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import ClusterFormed, Decision, NodeDisconnected, NodeJoined, TermOpened
from exo.shared.types.ids import ClusterId, EventId, NodeId
from support.entries import entries
from support.states import identity

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
CLUSTER = ClusterId("cluster")


def fact(tag: str = "x") -> Decision:
    return NodeDisconnected(node_id=NodeId("nobody"), reason=tag)


def proposal(
    *events: Decision, origin: NodeId = A, first_seq: int = 1, term: int = 1, session: int | None = None
) -> ProposalReceived:
    return ProposalReceived(
        session=session,
        origin=origin,
        term=term,
        first_seq=first_seq,
        cause_id="cause",
        at="now",
        events=tuple(
            ProposedEvent(event_id=EventId(f"{origin}{first_seq + n}"), event=event)
            for n, event in enumerate(events)
        ),
    )


def leading(
    *, index: int = 0, term: int = 0, last_seq: dict[NodeId, int] | None = None, **changes: Any
) -> tuple[Core, list[Effect]]:
    core = Core(A, recent_max=changes.pop("recent_max", 100), grace_ticks=2)
    effects = core.step(
        Lead(
            cluster_id=CLUSTER,
            namespace="test",
            index=index,
            term=term,
            last_seq=last_seq or {},
            connected=changes.pop("connected", frozenset()),
            recent=tuple(changes.pop("recent", entries(1, index))),
        )
    )
    return core, effects


def committed(core: Core, *messages: ProposalReceived) -> list[int]:
    """Indices of what the core commits once everything is durable."""
    for message in messages:
        core.step(message)
    found: list[int] = []
    for effect in core.step(BecameDurable(index=10**9)):
        assert isinstance(effect, Committed)
        found += [entry.index for entry in effect.entries]
    return found


def test_an_empty_log_becomes_a_cluster_in_term_one() -> None:
    core, effects = leading()
    formed = ClusterFormed(cluster_id=CLUSTER, namespace="test")
    assert effects == [Decide(events=(formed, TermOpened(master_node_id=A)), cause_id="term-1")]
    assert (core.role, core.term) == ("leader", 1)


def test_a_replayed_log_opens_the_next_term() -> None:
    core, effects = leading(index=5, term=3)
    assert effects == [Decide(events=(TermOpened(master_node_id=A),), cause_id="term-4")]
    assert core.term == 4


def test_entries_get_their_place_at_once_and_are_committed_when_durable() -> None:
    core, _ = leading()
    (first,) = core.step(proposal(fact(), fact()))
    (second,) = core.step(proposal(fact(), origin=B, session=None))
    assert isinstance(first, Append) and isinstance(second, Append)
    assert [(one.index, one.term, one.origin, one.seq) for one in (*first.entries, *second.entries)] == [
        (1, 1, "a", 1),
        (2, 1, "a", 2),
        (3, 1, "b", 1),
    ]
    assert core.commit_index == 0
    assert core.step(BecameDurable(index=2)) == [Committed(entries=first.entries)]
    assert core.commit_index == 2
    assert core.step(BecameDurable(index=2)) == []
    assert core.step(BecameDurable(index=3)) == [Committed(entries=second.entries)]


def test_each_proposal_is_admitted_once_and_in_order() -> None:
    core, _ = leading(index=3, last_seq={B: 7})
    core.step(FollowerArrived(session=1, node_id=B, index=None, term=0))
    assert core.step(proposal(fact(), origin=B, first_seq=7, session=1)) == [], "admitted before the restart"
    assert len(core.step(proposal(fact(), origin=B, first_seq=8, session=1))) == 1
    assert core.step(proposal(fact(), origin=B, first_seq=8, session=1)) == [], "sent again"
    (effect,) = core.step(proposal(fact(), origin=B, first_seq=10, session=1))
    assert isinstance(effect, CloseSession) and "9 was expected" in effect.reason
    (effect,) = core.step(proposal(fact(), fact(), origin=B, first_seq=8, session=1))
    assert isinstance(effect, CloseSession), "half known: cannot be what was sent before"
    assert core.last_seq(B) == 8


def test_a_proposal_for_another_term_is_refused() -> None:
    core, _ = leading(index=3, term=4)
    core.step(FollowerArrived(session=1, node_id=B, index=None, term=0))
    (effect,) = core.step(proposal(fact(), origin=B, first_seq=1, session=1, term=4))
    assert isinstance(effect, CloseSession) and "term" in effect.reason
    assert core.step(proposal(fact(), term=4)) == [], "this node's own: its outbox asks again"


def test_who_is_no_follower_and_who_does_not_lead_admits_nothing() -> None:
    core, _ = leading()
    assert core.step(proposal(fact(), origin=B, session=9)) == []
    core.step(Stop())
    assert core.step(proposal(fact())) == []
    assert core.step(BecameDurable(index=5)) == []


def test_a_level_follower_gets_the_tail_and_others_a_snapshot() -> None:
    core, _ = leading(index=6)
    cases = [(6, 1, ()), (4, 1, (5, 6)), (1, 1, (2, 3, 4, 5, 6)), (4, 2, None), (7, 1, None), (0, 0, None)]
    for session, (index, term, wanted) in enumerate(cases):
        core.step(FollowerArrived(session=session, node_id=NodeId(f"n{session}"), index=index, term=term))
        got = core.next_entries(session, 100)
        assert (None if got is None else tuple(one.index for one in got)) == wanted, (index, term)
        assert core.needs_snapshot(session) is (wanted is None)


def test_a_follower_is_sent_everything_in_order_and_in_parts() -> None:
    core, _ = leading(index=6)
    core.step(FollowerArrived(session=1, node_id=B, index=2, term=1))
    parts: list[int] = []
    while part := core.next_entries(1, 3):
        parts += [one.index for one in part]
    assert parts == [3, 4, 5, 6]
    assert committed(core, proposal(fact(), first_seq=1)) == [7]
    part = core.next_entries(1, 3)
    assert part is not None and [one.index for one in part] == [7]


def test_a_follower_that_falls_out_of_memory_gets_a_snapshot_and_goes_on() -> None:
    core, _ = leading(index=6, recent_max=3, recent=entries(4, 6))
    core.step(FollowerArrived(session=1, node_id=B, index=5, term=1))
    assert committed(core, *(proposal(fact(), first_seq=n) for n in range(1, 5))) == [7, 8, 9, 10]
    assert core.next_entries(1, 3) is None
    core.snapshot_sent(1)
    assert core.next_entries(1, 3) == ()
    committed(core, proposal(fact(), first_seq=5))
    part = core.next_entries(1, 3)
    assert part is not None and [one.index for one in part] == [11]


def test_a_node_that_connects_again_replaces_its_older_connection() -> None:
    core, _ = leading(connected=frozenset({A, B}))
    core.step(FollowerArrived(session=1, node_id=B, index=None, term=0))
    (effect,) = core.step(FollowerArrived(session=2, node_id=B, index=None, term=0))
    assert isinstance(effect, CloseSession) and effect.session == 1
    assert core.step(FollowerLost(session=1, reason="closed")) == [], "it is not gone"
    assert core.step(proposal(fact(), origin=B, session=1)) == [], (
        "what the old one still says does not count"
    )
    (effect,) = core.step(FollowerLost(session=2, reason="really"))
    assert isinstance(effect, Decide)
    assert effect.events == (NodeDisconnected(node_id=B, reason="really"),)


def test_a_lost_follower_is_declared_so_only_while_it_counts_as_connected() -> None:
    core, _ = leading()
    core.step(FollowerArrived(session=1, node_id=B, index=None, term=0))
    assert core.step(FollowerLost(session=1, reason="x")) == [], "it never joined"
    core.step(FollowerArrived(session=2, node_id=B, index=None, term=0))
    core.step(proposal(NodeJoined(identity=identity("b")), origin=B, session=2))
    (effect,) = core.step(FollowerLost(session=2, reason="x"))
    assert isinstance(effect, Decide), "even though its joining is not durable yet: it comes first"
    core.step(proposal(*effect.events))
    core.step(FollowerArrived(session=3, node_id=B, index=None, term=0))
    assert core.step(FollowerLost(session=3, reason="x")) == [], "that was said before"


def test_members_have_a_while_to_come_back_to_a_new_master() -> None:
    core, _ = leading(index=5, connected=frozenset({A, B, C}))
    core.step(FollowerArrived(session=1, node_id=B, index=None, term=0))
    assert core.step(Tick()) == []
    (effect,) = core.step(Tick())
    assert isinstance(effect, Decide)
    assert [event.node_id for event in effect.events if isinstance(event, NodeDisconnected)] == [C]
    assert core.step(Tick()) == []


def test_a_follower_takes_what_comes_next_from_its_master_and_nothing_else() -> None:
    core = Core(B, recent_max=10, grace_ticks=2)
    core.step(Follow(cluster_id=CLUSTER, term=2, index=3))
    sent = tuple(entries(4, 6))
    assert core.step(EntriesReceived(term=2, entries=sent)) == [Committed(entries=sent)]
    assert core.commit_index == 6
    for term, wrong in ((2, entries(8, 8)), (2, entries(6, 7)), (1, entries(7, 7)), (3, entries(7, 7))):
        (effect,) = core.step(EntriesReceived(term=term, entries=tuple(wrong)))
        assert isinstance(effect, DropMaster)
    assert core.commit_index == 6


def test_a_master_of_an_earlier_term_is_not_followed() -> None:
    core = Core(B, recent_max=10, grace_ticks=2)
    core.step(Follow(cluster_id=CLUSTER, term=2, index=3))
    core.step(MasterLost())
    assert core.role == "orphan"
    (effect,) = core.step(Follow(cluster_id=CLUSTER, term=1, index=3))
    assert isinstance(effect, DropMaster)
    assert core.role == "orphan"
    assert core.step(Follow(cluster_id=ClusterId("another"), term=1, index=9)) == [], (
        "another cluster counts its own"
    )
    assert (core.role, core.term, core.commit_index) == ("follower", 1, 9)


def test_what_is_recent_is_forgotten_where_it_has_a_gap() -> None:
    core = Core(B, recent_max=10, grace_ticks=2)
    core.step(Follow(cluster_id=CLUSTER, term=1, index=3))
    core.step(EntriesReceived(term=1, entries=tuple(entries(4, 6))))
    core.step(MasterLost())
    core.step(Follow(cluster_id=CLUSTER, term=2, index=6))
    recent = core.recent_after(4)
    assert recent is not None and [one.index for one in recent] == [5, 6]
    core.step(MasterLost())
    core.step(Follow(cluster_id=CLUSTER, term=3, index=20))
    assert core.recent_after(6) is None
    assert core.recent_after(20) == []
    assert core.recent_after(21) is None


@pytest.mark.parametrize("role_before", ["idle", "leader"])
def test_losing_a_master_makes_an_orphan_only_of_a_follower(role_before: str) -> None:
    core = Core(A, recent_max=10, grace_ticks=2) if role_before == "idle" else leading()[0]
    core.step(MasterLost())
    assert core.role == role_before
    core.step(EntriesReceived(term=1, entries=tuple(entries(1, 1))))
    assert core.commit_index == 0
