"""Who leads: votes, and what keeps a node that cannot win, or need not, from deposing a leader that works."""

import pytest

from exo.cluster.raft.messages import VoteAnswer, VoteRequest
from exo.cluster.raft.steps import Campaign, HandOver, PeerLost, Received
from support.raft_lab import Lab, Mail, voters


def granted(mail: list[Mail], source: str, *, is_trial: bool = False) -> list[int]:
    """The terms of the votes that a node has given and that are on the table."""
    return [
        one.message.term
        for one in mail
        if one.source == source
        and isinstance(one.message, VoteAnswer)
        and one.message.is_granted
        and one.message.is_trial == is_trial
    ]


def request(term: int, last_index: int, last_term: int, *, incarnation: int = 1) -> VoteRequest:
    return VoteRequest(
        incarnation=incarnation, term=term, is_trial=False, last_index=last_index, last_term=last_term
    )


def test_three_nodes_elect_one() -> None:
    lab = Lab(voters("abc"))
    lab.run(30)
    assert len(lab.leaders()) == 1
    leader = lab[lab.leaders()[0]]
    assert {desk.core.leader_id for desk in lab.desks.values()} == {leader.node_id}
    assert all(len(desk.committed) == 1 for desk in lab.desks.values()), "the opening of the term"


def test_a_sole_voter_leads_without_waiting() -> None:
    lab = Lab(voters("a"))
    lab["a"].tick()
    assert lab["a"].leads


def test_a_vote_is_given_once_in_a_term() -> None:
    lab = Lab(voters("abc"))
    c = lab["c"]
    c.step(Received(source=lab["a"].node_id, message=request(5, 0, 0)))
    c.step(Received(source=lab["b"].node_id, message=request(5, 0, 0)))
    assert [(one.to, one.message.term) for one in lab.mail if granted([one], "c")] == [("a", 5)]


def test_the_same_candidate_is_answered_again() -> None:
    lab = Lab(voters("abc"))
    for _ in range(2):
        lab["c"].step(Received(source=lab["a"].node_id, message=request(5, 0, 0)))
    assert granted(lab.mail, "c") == [5, 5]


def test_a_vote_is_remembered_over_a_restart() -> None:
    lab = Lab(voters("abc"))
    c = lab["c"]
    c.step(Received(source=lab["a"].node_id, message=request(5, 0, 0)))
    lab.drop()
    c.restart()
    c.step(Received(source=lab["b"].node_id, message=request(5, 0, 0)))
    assert granted(lab.mail, "c") == []


def test_a_vote_is_said_only_once_it_is_on_disk() -> None:
    lab = Lab(voters("abc"))
    c = lab["c"]
    c.is_syncing = False
    c.step(Received(source=lab["a"].node_id, message=request(5, 0, 0)))
    assert granted(lab.mail, "c") == []
    c.sync()
    assert granted(lab.mail, "c") == [5]


@pytest.mark.parametrize(
    ("last_index", "last_term", "is_granted"),
    [(3, 2, True), (2, 3, True), (4, 2, True), (2, 2, False), (9, 1, False)],
)
def test_only_a_log_that_is_no_older_gets_a_vote(last_index: int, last_term: int, is_granted: bool) -> None:
    lab = Lab(voters("abc"), {"c": [1, 1, 2]})
    lab["c"].step(Received(source=lab["a"].node_id, message=request(5, last_index, last_term)))
    assert bool(granted(lab.mail, "c")) == is_granted


def test_a_node_that_lost_its_log_gives_no_vote_and_does_not_stand() -> None:
    lab = Lab(voters("abc"))
    c = lab["c"]
    c.may_vote = False
    c.restart()
    c.step(Received(source=lab["a"].node_id, message=request(5, 7, 4)))
    assert granted(lab.mail, "c") == []
    c.tick(60)
    assert c.core.role == "follower"


def test_a_candidate_counts_its_own_vote_only_once_it_is_on_disk() -> None:
    lab = Lab(voters("abc"))
    a = lab["a"]
    a.is_syncing = False
    a.step(Campaign())
    lab.deliver()
    assert not a.leads
    a.sync()
    lab.deliver()
    assert a.leads


# --- nobody deposes a leader that works ------------------------------------------------------------------------------


def test_a_node_that_was_cut_off_comes_back_without_deposing_the_leader() -> None:
    """PreVote: alone, it never gets to a later term than the others are in."""
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    term = a.core.term
    lab.cut("c", "ab")
    lab.run(200)
    assert lab["c"].core.term == term, "it asked whether it would win, and nobody answered"
    lab.heal()
    lab.run(30)
    assert lab.leaders() == ["a"]
    assert a.core.term == term
    assert lab["c"].core.leader_id == "a"


def test_a_leader_that_is_cut_off_from_the_majority_steps_down_and_says_so() -> None:
    """CheckQuorum: within two election timeouts it no longer believes in itself."""
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.cut("a", "bc")
    for _ in range(20):
        a.tick()
        lab.deliver()
    assert not a.leads
    assert a.core.leader_id is None


def test_a_leader_that_hears_the_majority_stays() -> None:
    lab = Lab(voters("abcde"))
    a = lab.elect("a")
    lab.cut("de", "abc")
    lab.run(100)
    assert a.leads


def test_who_does_not_hear_the_leader_cannot_depose_it() -> None:
    """Stickiness: the leader reaches b only, and c, whose log is as good, reaches everybody."""
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.run(10)
    term = a.core.term
    lab.cut("a", "c", is_one_way=True)
    lab.run(200)
    assert lab.leaders() == ["a"]
    assert a.core.term == term


def test_who_cannot_be_heard_does_not_depose_anybody() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.run(10)
    term = a.core.term
    lab.cut("c", "ab", is_one_way=True)
    lab.run(200)
    assert lab.leaders() == ["a"]
    assert a.core.term == term


def test_a_leader_that_nobody_hears_is_replaced() -> None:
    """It hears everybody, so that it does not notice; the others elect somebody, who tells it."""
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.cut("a", "bc", is_one_way=True)
    lab.run(60)
    assert not a.leads
    assert len(lab.leaders()) == 1


def test_nodes_in_a_row_keep_their_leader() -> None:
    """a - b - c: a leads, c reaches b only."""
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.run(10)
    term = a.core.term
    lab.cut("a", "c")
    lab.run(200)
    assert lab.leaders() == ["a"]
    assert a.core.term == term


def test_the_end_of_the_leaders_process_is_noticed_at_once() -> None:
    lab = Lab(voters("abc"))
    lab.elect("a")
    lab.run(4)
    lab.cut("a", "bc")
    for name in "bc":
        lab[name].step(PeerLost(node_id=lab["a"].node_id, is_ended=True))
    for _ in range(6):
        for name in "bc":
            lab[name].tick()
        lab.deliver()
    assert len(set(lab.leaders()) - {"a"}) == 1


@pytest.mark.parametrize("silent", ["", "b"])
def test_those_who_are_left_stand_one_after_the_other(silent: str) -> None:
    """Two at the same moment would share the votes, and wait for a whole timeout to try again."""
    lab = Lab(voters("abcde"))
    term = lab.elect("a").core.term
    lab.run(4)
    lab.cut("a" + silent, "abcde")
    left = "bcde".strip(silent)
    for name in left:
        lab[name].step(PeerLost(node_id=lab["a"].node_id, is_ended=True))
    for _ in range(8):
        for name in left:
            lab[name].tick()
        lab.deliver()
    assert [lab[name].core.term for name in left] == [term + 1] * len(left)
    assert [name for name in left if lab[name].leads] == [left[0]]


# --- handing over ----------------------------------------------------------------------------------------------------


def test_a_leader_hands_over_to_whom_it_is_told() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    a.step(HandOver(to=lab["c"].node_id))
    lab.deliver()
    assert lab.leaders() == ["c"]
    assert a.core.leader_id == "c"


def test_nothing_is_admitted_while_a_leader_hands_over() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    last_index = a.core.log.last_index
    a.step(HandOver(to=lab["c"].node_id))
    a.fact()
    assert a.core.log.last_index == last_index


def test_a_leader_that_cannot_hand_over_goes_on() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.cut("c", "ab")
    a.step(HandOver(to=lab["c"].node_id))
    lab.run(15)
    assert a.leads
    a.fact()
    lab.deliver()
    assert a.committed[-1].index == a.core.log.last_index


def test_the_heir_is_given_everything_first() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.cut("c", "ab")
    a.fact()
    lab.deliver()
    lab.heal()
    a.step(HandOver(to=lab["c"].node_id))
    lab.run(12)
    assert lab.leaders() == ["c"]
    assert len(lab["c"].core.log.between(0, 100)) == 3
