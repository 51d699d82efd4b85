"""Voters that change, one at a time, and the two-node cluster: one voter and a replica that is in sync or is not."""

import pytest

from exo.cluster.membership import Presence, choose_voters
from exo.cluster.raft.quorum import change_fault
from exo.cluster.raft.steps import Follow, Refuse
from exo.shared.types.events import VotersChanged
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import Node
from exo.shared.types.voters import Voters
from exo_sim.policy import identity
from support.raft_lab import Desk, Lab, voters


def refusals(desk: Desk) -> list[str]:
    return [effect.reason for effect in desk.effects if isinstance(effect, Refuse)]


def follow(desk: Desk, name: str, *, is_wanted: bool = True) -> None:
    desk.step(Follow(node_id=desk.lab[name].node_id, is_wanted=is_wanted))
    desk.lab.deliver()


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        (voters("ab"), voters("abc"), None),
        (voters("abc"), voters("ab"), None),
        (voters("a"), voters("a", "b"), None),
        (voters("a", "b"), voters("a"), None),
        (voters("a", "b"), voters("ab"), None),
        (voters("ab"), voters("a", "b"), None),
        (voters("a"), voters("abc"), "more than one voter would change at once"),
        (voters("a"), voters("b"), "more than one voter would change at once"),
        (voters("abc"), voters("abd"), "more than one voter would change at once"),
        (voters("a"), voters(""), "nobody would be left to vote"),
        (voters("a"), voters("ba"), "the voters are not sorted, or one is named twice"),
        (voters("a"), voters("aa"), "the voters are not sorted, or one is named twice"),
        (voters("ab"), voters("ab", "c"), "replicas are for a single voter"),
        (voters("a"), voters("a", "bb"), "a replica is named twice, or is a voter too"),
        (voters("a"), voters("a", "a"), "a replica is named twice, or is a voter too"),
    ],
)
def test_what_may_change_in_one_step(before: Voters, after: Voters, fault: str | None) -> None:
    assert change_fault(before, after) == fault


# --- one voter at a time (Ongaro's thesis, 4.1) ----------------------------------------------------------------------


def test_a_change_counts_as_soon_as_it_is_in_the_log() -> None:
    lab = Lab(voters("abc"), names="d")
    a = lab.elect("a")
    follow(a, "d")
    lab.cut("c", "ab")
    a.change(voters("abcd"))
    assert a.core.voters == voters("abcd")
    lab.cut("d", "abc")
    lab.deliver()
    assert a.core.commit_index == 1, "two of four are no majority"
    lab.heal()
    lab.run(4)
    assert a.core.commit_index == 2


def test_a_second_change_waits_for_the_first() -> None:
    lab = Lab(voters("abc"), names="de")
    a = lab.elect("a")
    a.change(voters("abcd"))
    a.change(voters("abcde"))
    assert refusals(a) == ["an earlier change is not committed yet"]


def test_a_change_waits_for_the_opening_of_the_term() -> None:
    """The bug of the thesis' first edition: changes of two leaders, none with a committed entry of its own term,
    may have majorities that do not meet."""
    lab = Lab(voters("abcd"), names="e")
    lab.is_opening = False
    a = lab.elect("a")
    assert a.core.voters_fault(voters("abcde")) == "this node does not lead, or its term is not committed yet"
    a.change(voters("abcde"))
    assert a.core.log.last_index == 0
    assert len(refusals(a)) == 1


def test_the_bug_of_changing_voters_one_at_a_time_and_its_fix() -> None:
    """The sequence that Ongaro posted to raft-dev in 2015: four voters, and two leaders that each change one.

    a adds e on itself and e only; b, in the next term, removes a with a majority of three; a comes back and, with
    four of five, would commit its old change. The fix: b had to commit an entry of its own term before it changed
    anything, which is on a majority of the old voters, and a's log is then older than theirs.
    """
    lab = Lab(voters("abcd"), names="e")
    a = lab.elect("a")
    follow(a, "e")
    lab.cut("ae", "bcd")
    a.change(voters("abcde"))
    lab.deliver()
    assert a.core.commit_index == 1
    b = lab.elect_among("bcd")
    leader = b.node_id
    b.change(voters("bcd"))
    lab.deliver()
    assert b.core.voters == voters("bcd")
    assert b.core.commit_index == 3
    for name in "ae":
        lab[name].restart()
    lab.heal()
    lab.cut(leader, "ae" + "bcd".replace(leader, ""))
    for _ in range(5):
        lab["a"].tick(25)
        lab.deliver()
        assert not lab["a"].leads, "its log is older than those of a majority of any voters"
    lab.heal()
    lab.run(80)
    assert [one.event_id for one in b.committed[:3]] == [one.event_id for one in lab["c"].committed[:3]]


def test_only_the_leader_changes_voters() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    change = VotersChanged(voters=voters("ab"), reason="")
    a.step(a.proposal(change, origin="b", first_seq=1, session=7))
    assert refusals(a) == ["only the leader itself decides VotersChanged"]


def test_a_leader_that_was_removed_sees_that_through_and_leaves() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    a.change(voters("bc"))
    assert a.leads
    lab.deliver()
    assert not a.leads
    assert a.core.commit_index == 2
    lab.run(30)
    assert len(lab.leaders()) == 1
    assert lab.leaders() != ["a"]


def test_a_removed_node_does_not_disturb() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    a.change(voters("ab"))
    lab.run(10)
    term = a.core.term
    lab.run(200)
    assert lab.leaders() == ["a"]
    assert a.core.term == term


def test_an_uncommitted_change_is_undone_with_its_entry() -> None:
    lab = Lab(voters("abc"), names="d")
    a = lab.elect("a")
    lab.cut("a", "bc")
    a.change(voters("abcd"))
    lab.drop()
    leader = lab.elect_among("bc")
    leader.fact()
    lab.heal()
    lab.run(10)
    assert a.core.voters == voters("abc")
    assert a.terms == leader.terms


# --- learners --------------------------------------------------------------------------------------------------------


def test_a_learner_gets_everything_and_counts_for_nothing() -> None:
    lab = Lab(voters("abc"), names="d")
    a = lab.elect("a")
    follow(a, "d")
    assert [one.index for one in lab["d"].committed] == [1]
    lab.cut("bc", "ad")
    a.fact()
    lab.deliver()
    assert a.core.commit_index == 1
    lab["d"].tick(100)
    assert lab["d"].core.role == "follower"


def test_a_node_that_lost_its_log_is_followed_anew() -> None:
    """As long as it is a voter the leader believes it to have what it acknowledged."""
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    c = lab["c"]
    c.log.clear()
    c.may_vote = False
    c.restart()
    lab.run(20)
    assert c.core.log.last_index == 0
    a.change(voters("ab"))
    lab.deliver()
    follow(a, "c")
    lab.run(4)
    assert [one.index for one in c.committed] == [1, 2]


# --- two nodes -------------------------------------------------------------------------------------------------------


def test_nothing_counts_before_the_replica_has_it() -> None:
    lab = Lab(voters("a", "b"))
    a = lab.elect("a")
    lab.cut("b", "a")
    a.fact()
    lab.run(3)
    assert a.core.commit_index == 1
    lab.heal()
    lab.run(3)
    assert a.core.commit_index == 2
    assert len(lab["b"].log) == 2, "on its disk"


def test_a_replica_is_let_go_once_that_is_on_the_voters_disk() -> None:
    """Kept in memory only, a crash would bring back the belief that the replica has everything."""
    lab = Lab(voters("a", "b"))
    a = lab.elect("a")
    lab.cut("b", "a")
    a.is_syncing = False
    a.fact()
    a.change(voters("a"))
    a.sync(1)
    assert a.core.voters == voters("a")
    assert a.core.commit_index == 1, "the fact is on this disk; the change is not, and nothing on b's"
    a.sync()
    assert a.core.commit_index == 3


def test_a_replica_counts_from_the_moment_it_is_appended() -> None:
    lab = Lab(voters("a"), names="b")
    a = lab.elect("a")
    follow(a, "b")
    lab.cut("b", "a")
    a.change(voters("a", "b"))
    a.fact()
    assert a.core.commit_index == 1, "b is not asked about the opening, but about its own admission"
    lab.heal()
    lab.run(4)
    assert a.core.commit_index == 3


def test_what_was_let_go_and_lost_in_a_crash_still_needs_the_replica() -> None:
    lab = Lab(voters("a", "b"))
    a = lab.elect("a")
    lab.cut("b", "a")
    a.is_syncing = False
    a.change(voters("a"))
    a.restart()
    a.is_syncing = True
    a.tick()
    a.fact()
    assert a.leads
    assert a.core.voters == voters("a", "b")
    assert a.core.commit_index == 0


def test_a_voter_that_restarts_without_its_replica_goes_on_alone() -> None:
    """It cannot commit the opening of its term, and must be able to let the replica go all the same."""
    lab = Lab(voters("a", "b"))
    lab.elect("a")
    lab.cut("b", "a")
    a = lab["a"]
    a.restart()
    a.tick()
    assert a.leads
    assert not a.core.is_term_committed
    a.change(voters("a"))
    lab.deliver()
    assert refusals(a) == []
    assert a.core.commit_index == a.core.log.last_index == 3


def test_a_replica_neither_votes_nor_stands() -> None:
    lab = Lab(voters("a", "b"))
    lab.elect("a")
    lab.cut("a", "b")
    lab["b"].tick(200)
    assert lab["b"].core.role == "follower"
    assert lab["b"].core.leader_id is None


def test_two_voters_hand_over_in_steps() -> None:
    """a stops for good: b becomes a voter, then the leader, and then the only one."""
    lab = Lab(voters("a", "b"))
    a = lab.elect("a")
    a.change(voters("ab"))
    lab.deliver()
    a.change(voters("b"))
    lab.deliver()
    lab.run(30)
    assert lab.leaders() == ["b"]
    assert lab["b"].core.voters == voters("b")
    lab.cut("a", "b")
    lab["b"].fact()
    assert lab["b"].core.commit_index == lab["b"].core.log.last_index


# --- the rule that leaders follow ------------------------------------------------------------------------------------


def test_who_lost_its_log_goes_before_anybody_else_does() -> None:
    """With one of two voters voteless, no further change could be agreed on."""
    nodes = {NodeId(name): Node(identity=identity(NodeId(name))) for name in "abc"}
    everybody = frozenset(nodes)
    presence = Presence(present=everybody, level=everybody, voteless=frozenset({NodeId("c")}))
    choice = choose_voters(NodeId("b"), nodes, voters("abc"), presence)
    assert choice.voters == voters("ab")
