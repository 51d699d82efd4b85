"""The examples of the Raft paper (Ongaro and Ousterhout 2014): figure 7's follower logs, figure 8's old entry."""

import pytest

from exo.cluster.raft.messages import AppendAnswer
from exo.cluster.raft.steps import Send
from support.raft_lab import Lab, voters

LEADER = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
FOLLOWERS = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("follower", FOLLOWERS)
def test_figure_7_every_log_becomes_the_leaders(follower: str) -> None:
    others = dict.fromkeys("gh", LEADER)
    lab = Lab(
        voters("l" + follower + "".join(others)),
        {"l": LEADER, follower: FOLLOWERS[follower], **others},
        terms={"l": 7},
    )
    leader = lab.elect("l")
    assert leader.core.term == 8
    lab.run(10)
    assert lab[follower].terms == [*LEADER, 8]
    assert [(one.index, one.term) for one in lab[follower].committed] == list(
        enumerate([*LEADER, 8], start=1)
    )
    assert [one.event_id for one in lab[follower].log] == [one.event_id for one in leader.log], (
        "on disk as well"
    )


def test_figure_7_as_a_whole() -> None:
    """The leader of term 8 with all six followers: who may vote for it does, and all logs become its own."""
    lab = Lab(voters("abcdefl"), {"l": LEADER, **FOLLOWERS}, terms=dict.fromkeys("abcdefl", 7))
    leader = lab.elect("l")
    lab.run(20)
    assert leader.core.term == 8
    assert {name: desk.terms for name, desk in lab.desks.items()} == {
        name: [*LEADER, 8] for name in "abcdefl"
    }


def test_figure_7_a_whole_term_of_differences_takes_one_question() -> None:
    """f differs by two terms from the leader: it is asked once for each, not once for each entry."""
    lab = Lab(voters("fgl"), {"l": LEADER, "g": LEADER, "f": FOLLOWERS["f"]}, terms={"l": 7})
    lab.cut("f", "gl")
    lab.elect("l")
    lab.heal()
    lab.run(10)
    assert lab["f"].terms == [*LEADER, 8]
    said = [effect.message for effect in lab["f"].effects if isinstance(effect, Send)]
    refusals = [
        one for one in said if isinstance(one, AppendAnswer) and not one.is_accepted and one.term == 8
    ]
    assert 1 <= len(refusals) <= 3, "its log differs in eight entries"


def test_figure_8_an_old_entry_is_not_committed_by_counting_its_copies() -> None:
    """(c): s1 leads term 4 and has its entry of term 2 on a majority. (d): s5 may still overwrite it."""
    s = {"a": [1, 2], "b": [1, 2], "c": [1], "d": [1], "e": [1, 3]}
    lab = Lab(voters("abcde"), s, terms=dict.fromkeys("abcde", 3), is_opening=False)
    lab.cut("e", "abcd")
    a = lab.elect("a")  # With the votes of b, c and d; nothing of its own term yet.
    assert a.core.term == 4
    lab.run(10)
    assert lab["c"].terms == [1, 2], "the old entry is on a, b, c and d"
    assert a.committed == [], "and is not committed: it is not of this term"
    # (d): a crashes; e, whose last entry is of a later term, may be elected, and overwrites it.
    for name in "bcde":
        lab[name].restart()
    lab.heal()
    lab.cut("a", "bcde")
    lab.is_opening = True
    lab.elect("e")
    lab.run(10)
    assert lab["c"].terms[:2] == [1, 3]
    assert [one.term for one in lab["c"].committed][:2] == [1, 3]


def test_figure_8_an_entry_of_the_own_term_commits_the_old_one() -> None:
    """(e): once an entry of term 4 is on a majority, e cannot win any more."""
    s = {"a": [1, 2], "b": [1, 2], "c": [1], "d": [1], "e": [1, 3]}
    lab = Lab(voters("abcde"), s, terms=dict.fromkeys("abcde", 3))
    lab.cut("e", "abcd")
    a = lab.elect("a")
    lab.run(10)
    assert [one.term for one in a.committed] == [1, 2, 4]
    for name in "bcde":
        lab[name].restart()
    lab.heal()
    lab.cut("a", "bcde")
    lab["e"].tick(40)
    lab.deliver()
    assert not lab["e"].leads
