"""Reads that are confirmed first, and a history that an operator begins anew."""

from exo.cluster.raft.messages import Append, Heartbeat
from exo.cluster.raft.steps import (
    ConfirmRead,
    Effect,
    Follow,
    ForceHistory,
    Outlived,
    ReadConfirmed,
    ReadRefused,
    Received,
    RoleChanged,
)
from exo.shared.types.events import HistoryForced, TermOpened
from support.raft_lab import Desk, Lab, voters


def answers(desk: Desk) -> list[Effect]:
    return [effect for effect in desk.effects if isinstance(effect, ReadConfirmed | ReadRefused)]


def test_a_read_waits_for_a_majority() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    a.step(ConfirmRead(read_id=1))
    assert answers(a) == []
    lab.deliver()
    assert answers(a) == [ReadConfirmed(read_id=1, index=1)]


def test_a_follower_refuses_a_read() -> None:
    lab = Lab(voters("abc"))
    lab.elect("a")
    lab["b"].step(ConfirmRead(read_id=1))
    assert answers(lab["b"]) == [ReadRefused(read_id=1)]


def test_a_leader_that_was_cut_off_does_not_answer_with_what_is_old() -> None:
    """It still believes in itself while another leads and commits."""
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.cut("a", "bc")
    other = lab.elect_among("bc")
    other.fact()
    lab.deliver()
    assert a.leads
    assert other.core.commit_index == 3
    a.step(ConfirmRead(read_id=1))
    lab.deliver()
    assert answers(a) == []
    for _ in range(20):
        a.tick()
        lab.deliver()
    assert answers(a) == [ReadRefused(read_id=1)]


def test_a_heartbeat_that_was_answered_before_confirms_nothing() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    a.tick(2)
    lab.deliver(lambda mail: isinstance(mail.message, Heartbeat))  # The answers stay on the table.
    lab.cut("a", "bc", is_one_way=True)
    a.step(ConfirmRead(read_id=1))
    lab.deliver()
    assert answers(a) == []


def test_a_new_leader_does_not_answer_before_it_knows_what_is_committed() -> None:
    lab = Lab(voters("abc"), {"a": [1, 1], "b": [1, 1], "c": [1]}, is_opening=False)
    a = lab.elect("a")
    a.step(ConfirmRead(read_id=1))
    lab.run(4)
    assert answers(a) == [], "what the leader before it committed may be further than it knows"
    a.decide(TermOpened(master_node_id=a.node_id))
    lab.run(4)
    assert answers(a) == [ReadConfirmed(read_id=1, index=3)]


def test_reads_of_a_sole_voter_are_confirmed_at_once() -> None:
    a = Lab(voters("a")).elect("a")
    a.step(ConfirmRead(read_id=1))
    assert answers(a) == [ReadConfirmed(read_id=1, index=1)]


# --- force -----------------------------------------------------------------------------------------------------------


FORCE = ForceHistory(forgotten=(), event_id="forced", cause_id="operator", at="")


def two_nodes() -> Lab:
    """a has voted alone and is gone; b was its replica."""
    lab = Lab(voters("a", "b"))
    lab.elect("a").fact()
    lab.deliver()
    lab.cut("a", "b")
    return lab


def test_a_replica_that_is_told_to_goes_on_alone() -> None:
    lab = two_nodes()
    b = lab["b"]
    b.step(FORCE)
    assert b.leads
    assert b.core.incarnation == 2
    assert b.core.voters == voters("b")
    assert [type(one.event) for one in b.committed][2:3] == [HistoryForced]
    assert b.core.commit_index == b.core.log.last_index == 4


def test_nobody_hears_of_a_new_incarnation_before_it_is_on_disk() -> None:
    """A crash may undo it, and whoever has heard of it has given its log up."""
    lab = two_nodes()
    b = lab["b"]
    b.is_syncing = False
    lab.drop()
    b.step(FORCE)
    b.step(Follow(node_id=lab["a"].node_id, is_wanted=True))
    b.tick(100)
    assert lab.mail == []
    assert not any(isinstance(one, RoleChanged) and one.role == "leader" for one in b.effects)
    b.restart()
    assert b.core.incarnation == 1


def test_a_forced_history_takes_no_number_of_the_nodes_own() -> None:
    lab = two_nodes()
    b = lab["b"]
    before = b.core.admission.last_seq(b.node_id)
    b.step(FORCE)
    assert b.core.admission.last_seq(b.node_id) == before


def test_who_was_forgotten_learns_that_its_log_does_not_count() -> None:
    lab = two_nodes()
    a, b = lab["a"], lab["b"]
    b.step(FORCE)
    lab.heal()
    b.step(Follow(node_id=a.node_id, is_wanted=True))
    lab.deliver()
    assert [effect for effect in a.effects if isinstance(effect, Outlived)][-1].incarnation == 2
    assert len(a.log) == 2, "nothing of the new history is put behind the old one"


def test_what_is_said_in_an_older_incarnation_is_not_heard() -> None:
    lab = two_nodes()
    a, b = lab["a"], lab["b"]
    b.step(FORCE)
    term, last_index = b.core.term, b.core.log.last_index
    old = Append(incarnation=1, term=term + 5, previous_index=0, previous_term=0, entries=(), commit_index=0)
    b.step(Received(source=a.node_id, message=old))
    assert b.leads
    assert (b.core.term, b.core.log.last_index) == (term, last_index)
