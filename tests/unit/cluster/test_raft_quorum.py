"""Counting, held against the most naive way to count."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.raft.log_window import LogWindow
from exo.cluster.raft.quorum import agreed_index, has_majority
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters
from support.raft_lab import log_of, voters

NAMES = tuple(NodeId(name) for name in "abcdefg")


@given(st.integers(1, 7), st.integers(0, 2), st.lists(st.integers(0, 9), min_size=9, max_size=9))
def test_agreed_is_what_some_majority_and_every_replica_have(
    voter_count: int, replica_count: int, reached: list[int]
) -> None:
    replicas = (NodeId("x"), NodeId("y"))[:replica_count]
    who = Voters(voters=NAMES[:voter_count], replicas=replicas)
    at = dict(zip((*who.voters, *who.replicas), reached, strict=False))
    groups = list(combinations(who.voters, voter_count // 2 + 1))
    naive = max(min(at[node_id] for node_id in (*group, *replicas)) for group in groups)
    assert agreed_index(who, at.__getitem__) == naive


@given(st.sets(st.sampled_from(NAMES), min_size=1), st.sets(st.sampled_from(NAMES)))
def test_two_majorities_meet(members: set[NodeId], present: set[NodeId]) -> None:
    who = Voters(voters=tuple(sorted(members)))
    assert not (has_majority(who, present) and has_majority(who, members - present))


terms = st.lists(st.integers(1, 5), max_size=12).map(sorted)


@given(terms, terms)
def test_the_place_that_is_asked_about_next_is_never_too_early(here: list[int], there: list[int]) -> None:
    """Both skip what cannot agree; the last place at which they do agree is never skipped."""
    follower = LogWindow(0, 0, voters("a"), log_of(here))
    leader = LogWindow(0, 0, voters("a"), log_of(there))
    agree = 0
    while agree < min(len(here), len(there)) and here[agree] == there[agree]:
        agree += 1
    index, rounds = leader.last_index, 0
    while follower.term_at(index) != leader.term_at(index):
        hint_index, hint_term = follower.agreement_hint(index, leader.term_at(index) or 0)
        retry, _ = leader.agreement_hint(hint_index, hint_term)
        index = min(retry, index - 1)
        rounds += 1
        assert index >= agree
    assert rounds <= len(set(here)) + len(set(there)) + 1, "a whole term is skipped at a time"


@given(terms, st.integers(0, 12), st.integers(0, 12))
def test_a_window_that_was_trimmed_says_the_same(log: list[int], trimmed: int, cut: int) -> None:
    trimmed, cut = sorted((min(trimmed, len(log)), min(cut, len(log))))
    window = LogWindow(0, 0, voters("a"), log_of(log))
    window.trim(trimmed)
    window.truncate_after(cut)
    assert (window.base_index, window.last_index) == (trimmed, cut)
    assert [window.term_at(index) for index in range(trimmed, cut + 1)] == [0, *log][trimmed : cut + 1]
    assert window.term_at(cut + 1) is None
    assert window.term_at(trimmed - 1) is None
