"""Where implementations of Raft are known to go wrong, and peers that say what cannot be: one test for each."""

import msgspec
import pytest

from exo.cluster.raft.messages import (
    Append,
    AppendAnswer,
    Heartbeat,
    HeartbeatAnswer,
    InstallSnapshot,
    PeerMessage,
    Snapshot,
    VoteAnswer,
    VoteRequest,
)
from exo.cluster.raft.options import CoreOptions
from exo.cluster.raft.steps import (
    Campaign,
    ConfirmRead,
    Distrust,
    Follow,
    ForceHistory,
    HardState,
    PeerLost,
    ReadConfirmed,
    Received,
    Refuse,
    Send,
    Tick,
    Write,
)
from exo.shared.types.events import (
    ClusterDissolved,
    ClusterFormed,
    Decision,
    HistoryForced,
    TermOpened,
    VotersChanged,
)
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.voters import Voters
from support.raft_lab import Desk, Lab, entry, log_of, voters


def hear(desk: Desk, source: str, message: PeerMessage) -> None:
    desk.step(Received(source=NodeId(source), message=message))


def distrusted(desk: Desk) -> list[str]:
    return [effect.reason for effect in desk.effects if isinstance(effect, Distrust)]


def refusals(desk: Desk) -> list[str]:
    return [effect.reason for effect in desk.effects if isinstance(effect, Refuse)]


# --- a leader that is heard stays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience_ticks", range(20, 30))
def test_a_snapshot_that_takes_long_is_no_absence(patience_ticks: int) -> None:
    """b is sent a snapshot and is heard all the time; that the snapshot is sent again says nothing about b."""
    options = CoreOptions(recent_max=2, snapshot_patience_ticks=patience_ticks)
    lab = Lab(voters("abc"), options=options)
    a = lab.elect("a")
    lab.cut("b", "ac")
    for _ in range(8):
        a.fact()
        lab.deliver()
    lab.heal()
    lab.cut("c", "ab")
    for _ in range(60):
        a.tick()
        assert a.leads
        lab.deliver(lambda mail: not isinstance(mail.message, InstallSnapshot))
    lab.deliver()
    assert lab["b"].core.commit_index == a.core.commit_index


def test_a_connection_that_ends_and_begins_anew_is_no_absence() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.cut("c", "ab")
    for number in range(40):
        lab.deliver()
        if number % 10 == 9:
            a.step(PeerLost(node_id=NodeId("b"), is_ended=False))
        a.tick()
        assert a.leads


def test_a_follower_whose_disk_is_slow_is_no_absence() -> None:
    """It answers what promises nothing while it writes."""
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.run(4)
    for name in "bc":
        lab[name].is_syncing = False
    a.fact()
    lab.deliver()
    for _ in range(40):
        a.tick()
        lab.deliver()
    assert a.leads
    assert a.core.commit_index == 1


def test_a_term_that_is_not_on_disk_is_told_to_nobody_as_heard() -> None:
    lab = Lab(voters("abc"))
    b = lab["b"]
    b.is_syncing = False
    hear(b, "a", Heartbeat(incarnation=1, term=5, commit_index=0, read_id=1))
    assert lab.mail == []
    b.sync()
    assert [type(one.message) for one in lab.mail] == [HeartbeatAnswer]


def test_a_candidate_whose_disk_is_slow_waits_for_its_own_vote() -> None:
    """It would never win an election if it began the next one before it asked for votes in this one."""
    lab = Lab(voters("abc"))
    a = lab["a"]
    a.step(Campaign())
    a.is_syncing = False
    lab.deliver()
    assert (a.core.role, a.core.term) == ("candidate", 1)
    for name in "bc":
        lab[name].tick(9)
    a.tick(50)
    a.sync()
    lab.deliver()
    assert a.leads
    assert a.core.term == 1


# --- what is admitted ------------------------------------------------------------------------------------------------


def test_voters_change_once_in_a_proposal() -> None:
    """Each is one voter away from the present ones, and the two are two away from each other."""
    lab = Lab(voters("abc"), names="de")
    a = lab.elect("a")
    a.decide(
        VotersChanged(voters=voters("abcd"), reason=""),
        VotersChanged(voters=voters("abce"), reason=""),
    )
    assert refusals(a) == ["who has to agree changes once in a proposal"]
    assert a.core.voters == voters("abc")


def test_a_change_of_voters_is_judged_by_what_the_log_says_when_it_is_admitted() -> None:
    """Two proposals in one step are two changes all the same."""
    lab = Lab(voters("abc"), names="de")
    a = lab.elect("a")
    changes = [VotersChanged(voters=voters(text), reason="") for text in ("abcd", "abce")]
    a.step(*(a.proposal(change) for change in changes))
    assert refusals(a) == ["an earlier change is not committed yet"]


FORCED = HistoryForced(incarnation=9, forgotten=(), voters=voters("z"))


@pytest.mark.parametrize(
    "event",
    [
        ClusterFormed(cluster_id=ClusterId("other"), namespace="", voters=voters("z")),
        FORCED,
        VotersChanged(voters=voters("ab"), reason=""),
        ClusterDissolved(into_cluster_id=ClusterId("other"), address=HostPort("z", 1)),
        TermOpened(master_node_id=NodeId("z")),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_holds_a_cluster_together_is_not_for_others_to_propose(event: Decision) -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    before = a.core.log.last_index
    a.step(a.proposal(event, origin="z", first_seq=1, session=3))
    assert a.core.log.last_index == before
    assert a.core.voters == voters("abc")
    assert len(refusals(a)) == 1


def test_a_history_is_forced_by_an_operator_and_formed_once_only() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    a.decide(HistoryForced(incarnation=9, forgotten=(), voters=voters("a")))
    a.decide(ClusterFormed(cluster_id=ClusterId("other"), namespace="", voters=voters("a")))
    assert len(refusals(a)) == 2
    assert a.core.voters == voters("abc")


def test_a_new_leader_admits_nothing_behind_a_farewell_that_it_found() -> None:
    """Whoever led before has dissolved the cluster, and nobody knows yet whether that is committed.

    It will be, with the opening of the term; what stood behind it would be acknowledged and then given up.
    """
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.cut("c", "ab")
    a.decide(ClusterDissolved(into_cluster_id=ClusterId("other"), address=HostPort("z", 1)))
    lab.deliver(lambda mail: isinstance(mail.message, Append))
    lab.drop()
    lab.heal()
    lab.cut("a", "bc")
    lab.is_opening = False
    b = lab["b"]
    lab["c"].tick(15)
    lab.elect("b")
    assert b.core.is_admitting, "its term has to be opened"
    b.decide(TermOpened(master_node_id=b.node_id), ClusterFormed(cluster_id=ClusterId("x"), namespace=""))
    assert b.core.log.last_index == 2, "and nothing else is admitted with that"
    b.decide(TermOpened(master_node_id=b.node_id))
    assert not b.core.is_admitting
    b.fact()
    b.step(b.proposal(entry(1, 1).event, origin="o", first_seq=1, session=1))
    lab.deliver()
    assert [type(one.event) for one in b.committed][1:] == [ClusterDissolved, TermOpened]


def test_a_newcomer_counts_once_its_disk_has_the_change_that_made_it_count() -> None:
    """Before that it knows of no promise, and may leave its log behind when it starts again."""
    lab = Lab(voters("ab"), names="c")
    a = lab.elect("a")
    a.step(Follow(node_id=NodeId("c"), is_wanted=True))
    lab.deliver()
    lab.cut("b", "ac")
    a.fact()
    lab.deliver()
    assert lab["c"].core.log.last_index == 2
    assert a.core.commit_index == 1
    lab.cut("c", "ab")
    a.change(voters("abc"))
    lab.deliver()
    assert a.core.commit_index == 1, "c has the fact, and does not know that it votes"
    lab.heal()
    lab.cut("b", "ac")
    lab.run(6)
    assert a.core.commit_index == 3


def test_only_what_was_compared_is_committed() -> None:
    """What stands behind the place that the leader asks about may be another leader's."""
    lab = Lab(voters("abc"), {"b": [1, 1, 2, 2]})
    b = lab["b"]
    hear(b, "a", append(term=3, previous=(2, 1), commit_index=4))
    assert b.core.commit_index == 2
    hear(b, "a", append(term=3, previous=(2, 1), entries=(entry(3, 3),), commit_index=4))
    assert b.core.commit_index == 3


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_vote_is_not_taken_for_one_in_a_later_term() -> None:
    """The log is of a later term than the vote: whom it voted for in that is forgotten, so that it votes for nobody."""
    lab = Lab(voters("abc"), {"c": [5]})
    c = lab["c"]
    c.hard_state = HardState(term=3, voted_for=NodeId("a"))
    c.restart()
    assert c.core.term == 5
    for name in "ab":
        hear(c, name, VoteRequest(incarnation=1, term=5, is_trial=False, last_index=9, last_term=5))
    answers = [one.message for one in lab.mail if isinstance(one.message, VoteAnswer)]
    assert [one.is_granted for one in answers] == [False, False]


def test_several_messages_in_many_steps_lead_to_a_disk() -> None:
    assert_disk_of_many_messages(is_one_step=False)


def test_several_messages_in_one_step_lead_to_the_same_disk() -> None:
    assert_disk_of_many_messages(is_one_step=True)


def assert_disk_of_many_messages(*, is_one_step: bool) -> None:
    """What was appended is cut off again, replaced by a snapshot, and appended to, before anything is written."""
    lab = Lab(voters("abc"), {"c": [1, 1]})
    c = lab["c"]

    def append(term: int, previous: tuple[int, int], *entries: tuple[int, int]) -> Append:
        return Append(
            incarnation=1,
            term=term,
            previous_index=previous[0],
            previous_term=previous[1],
            entries=tuple(entry(index, of_term) for index, of_term in entries),
            commit_index=0,
        )

    snapshot = Snapshot(index=6, term=5, incarnation=1, voters=voters("abc"), last_seq={}, data=b"")
    said: list[tuple[str, PeerMessage]] = [
        ("a", append(2, (2, 1), (3, 2), (4, 2), (5, 2))),
        ("b", append(3, (3, 2), (4, 3), (5, 3))),
        ("b", append(3, (5, 3), (6, 3))),
        ("a", append(4, (2, 1), (3, 4))),
        ("b", InstallSnapshot(incarnation=1, term=5, snapshot=snapshot)),
        ("b", append(5, (6, 5), (7, 5), (8, 5))),
        ("a", append(6, (7, 5), (8, 6))),
    ]
    inputs = [Received(source=NodeId(source), message=message) for source, message in said]
    writes: list[Write] = []
    c.is_syncing = False
    if is_one_step:
        c.step(*inputs)
    else:
        for one in inputs:
            c.step(one)
    writes, c.unsynced = c.unsynced, []
    index, log = 0, log_of([1, 1])
    for write in writes:
        if write.snapshot is not None:
            index, log = write.snapshot.index, []
        if write.truncate_after is not None:
            assert write.truncate_after >= index
            del log[write.truncate_after - index :]
        for one in write.entries:
            assert one.index == index + len(log) + 1
            log.append(one)
    assert [(one.index, one.term) for one in log] == [(7, 5), (8, 6)]
    assert index == 6


# --- who forgot what it promised -------------------------------------------------------------------------------------


def history_with_d_alone() -> list[Decision]:
    """d was the only voter for a while, and is none any more: a clean stop of either of two nodes leads to that."""
    changes = [voters("a"), voters("a", "d"), voters("ad"), voters("d"), voters("ad"), voters("a")]
    return [VotersChanged(voters=one, reason="") for one in changes]


def newcomer() -> Lab:
    """a leads; d has come back with nothing in its log, and learns."""
    lab = Lab(voters("a"), names="d")
    lab["a"].log = [entry(number, 1, event) for number, event in enumerate(history_with_d_alone(), start=1)]
    lab["a"].restart()
    lab["a"].tick()
    d = lab["d"]
    d.may_vote = False
    d.restart()
    d.core.may_vote = (
        True  # Its state says that nobody counts on it: that it has from the master, not from its log.
    )
    lab["a"].step(Follow(node_id=NodeId("d"), is_wanted=True))
    return lab


@pytest.mark.parametrize("is_restarted", [False, True])
def test_who_is_sent_the_log_from_its_beginning_does_not_act_on_the_half_of_it(is_restarted: bool) -> None:
    """There it may read that it is a voter, or even the only one."""
    lab = newcomer()
    a, d = lab["a"], lab["d"]
    lab.drop()
    half = tuple(a.log[:4])
    hear(d, "a", append(term=a.core.term, entries=half, commit_index=a.core.commit_index))
    lab.drop()
    assert d.core.voters == voters("d"), "as far as its log goes by now"
    if is_restarted:
        d.may_vote = True
        d.restart()
    d.tick(100)
    d.step(Campaign())
    assert d.core.role == "follower"
    hear(d, "b", VoteRequest(incarnation=1, term=9, is_trial=False, last_index=4, last_term=1))
    assert not any(isinstance(one.message, VoteAnswer) and one.message.is_granted for one in lab.mail)
    lab.drop()


@pytest.mark.parametrize("is_restarted", [False, True])
def test_who_has_everything_again_may_vote_again(is_restarted: bool) -> None:
    lab = newcomer()
    a, d = lab["a"], lab["d"]
    lab.run(10)
    assert d.core.log.last_index == a.core.log.last_index == 7
    a.change(voters("a", "d"))
    lab.deliver()
    a.change(voters("ad"))
    lab.deliver()
    a.change(voters("d"))
    lab.deliver()
    if is_restarted:
        d.may_vote = True
        d.restart()
    lab.run(10)
    assert lab.leaders() == ["d"]


def test_half_of_a_log_is_known_by_what_the_leader_called_committed() -> None:
    """Entries of the leader's own term alone do not tell: it may have led since the cluster began."""
    lab = Lab(voters("ab"), names="d")
    d = lab["d"]
    d.may_vote = False
    d.restart()
    d.core.may_vote = True
    half = tuple(entry(number, 1, event) for number, event in enumerate(history_with_d_alone()[:4], start=1))
    refused = append(term=1, previous=(6, 1), commit_index=6)
    hear(d, "a", refused)
    hear(d, "a", append(term=1, entries=half, commit_index=6))
    assert d.core.commit_index == 4
    d.tick(100)
    assert d.core.role == "follower"
    rest = tuple(entry(number, 1) for number in (5, 6))
    hear(d, "a", append(term=1, previous=(4, 1), entries=rest, commit_index=6))
    d.tick(2)
    assert d.leads


def test_everything_is_on_disk_before_a_newcomer_may_vote() -> None:
    """The vote is written before the log: a power cut between them must not leave a voter with half of a log."""
    lab = newcomer()
    a, d = lab["a"], lab["d"]
    lab.drop()
    d.is_syncing = False
    entries = tuple(a.core.log.between(0, a.core.commit_index))
    hear(d, "a", append(term=a.core.term, entries=entries, commit_index=a.core.commit_index))
    assert d.core.commit_index == a.core.commit_index
    assert not d.core.has_vote
    d.sync()
    assert d.core.has_vote
    assert not d.hard_state.is_level, "that is on its way to the disk"
    d.sync()
    assert d.hard_state.is_level


def test_who_could_not_vote_is_made_no_voter() -> None:
    """The leader crashes right after that change: it needs the newcomer's vote, which has half of its log.

    Simulated schedules came to a stand there.
    """
    lab = newcomer()
    a, d = lab["a"], lab["d"]
    lab.drop()
    entries = tuple(a.core.log.between(0, 6))
    hear(d, "a", append(term=a.core.term, entries=entries, commit_index=a.core.commit_index))
    lab.deliver(lambda mail: mail.to == "a")
    lab.drop()
    a.change(voters("ad"))
    assert refusals(a) == ["d has not caught up yet, and could not vote"]
    lab.run(6)
    a.change(voters("ad"))
    lab.drop()
    assert a.core.voters == voters("ad")
    a.restart()
    lab.elect("a")


def test_who_has_forgotten_its_term_confirms_no_read() -> None:
    """c has made b the leader of a later term, and lost all memory of that; a has not heard of it yet."""
    lab = Lab(voters("abc"))
    a, c = lab.elect("a"), lab["c"]
    lab.cut("a", "bc")
    b = lab.elect_among("bc")
    b.fact()
    lab.deliver()
    forgetful, other = (c, b) if b is not c else (lab["b"], c)
    forgetful.log, forgetful.hard_state, forgetful.may_vote = [], HardState(), False
    forgetful.restart()
    lab.heal()
    lab.cut(other.node_id, "a" + forgetful.node_id)
    lab.drop()
    a.step(ConfirmRead(read_id=1))
    lab.deliver()
    assert forgetful.core.leader_id == "a"
    assert not any(isinstance(effect, ReadConfirmed) for effect in a.effects)


def test_who_was_told_to_go_on_alone_may_vote_from_then_on() -> None:
    """Nobody is left who counts on what it has forgotten; after a restart it would wait for ever."""
    lab = Lab(voters("ab"))
    lab.elect("a")
    lab.run(2)
    b = lab["b"]
    lab.cut("a", "b")
    b.may_vote = False
    b.restart()
    b.step(ForceHistory(forgotten=(NodeId("a"),), event_id="forced", cause_id="operator", at=""))
    assert b.leads
    assert b.core.may_vote
    b.may_vote = b.core.may_vote
    b.restart()
    b.tick(2)
    assert b.leads


# --- peers that say what cannot be -----------------------------------------------------------------------------------


def append(term: int = 1, previous: tuple[int, int] = (0, 0), **changes: object) -> Append:
    said = Append(
        incarnation=1,
        term=term,
        previous_index=previous[0],
        previous_term=previous[1],
        entries=(),
        commit_index=0,
    )
    return msgspec.structs.replace(said, **changes)


HUGE = 2**63
FAR_TERM = Heartbeat(incarnation=1, term=HUGE, commit_index=0)


@pytest.mark.parametrize(
    "message",
    [
        VoteRequest(incarnation=1, term=HUGE, is_trial=False, last_index=1, last_term=1),
        VoteRequest(incarnation=1, term=HUGE, is_trial=True, last_index=1, last_term=1),
        VoteAnswer(incarnation=1, term=HUGE, is_trial=False, is_granted=False),
        VoteAnswer(incarnation=1, term=HUGE, is_trial=True, is_granted=True),
        VoteRequest(incarnation=1, term=2, is_trial=False, last_index=1, last_term=3),
        VoteRequest(incarnation=1, term=2, is_trial=False, last_index=-1, last_term=0),
        FAR_TERM,
        append(term=HUGE),
        append(term=-1),
        append(term=1, previous=(5, 2)),
        append(term=1, previous=(-5, 0)),
        append(term=1, entries=(entry(2, 1),)),
        append(term=1, entries=(entry(1, 2),)),
        append(term=1, entries=(entry(1, 1), entry(2, 0))),
        append(term=1, entries=(msgspec.structs.replace(entry(1, 1), more=3),)),
        append(term=1, entries=(msgspec.structs.replace(entry(1, 1), more=-1),)),
        AppendAnswer(incarnation=1, term=HUGE, is_accepted=True, index=0),
        AppendAnswer(incarnation=1, term=1, is_accepted=True, index=-4),
        AppendAnswer(incarnation=1, term=1, is_accepted=False, index=4, hint_index=-4),
        InstallSnapshot(
            incarnation=1,
            term=1,
            snapshot=Snapshot(index=HUGE, term=2, incarnation=1, voters=Voters(), last_seq={}, data=b""),
        ),
        InstallSnapshot(
            incarnation=1,
            term=1,
            snapshot=Snapshot(index=4, term=1, incarnation=2, voters=Voters(), last_seq={}, data=b""),
        ),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_cannot_be_is_not_believed(message: PeerMessage) -> None:
    lab = Lab(voters("abc"))
    b = lab["b"]
    hear(b, "a", message)
    assert len(distrusted(b)) == 1
    assert (b.core.term, b.core.log.last_index, b.core.role) == (0, 0, "follower")
    assert lab.mail == []


def test_nobody_speaks_with_this_nodes_own_name() -> None:
    """A copied data directory: its vote would be counted as this node's own, before that is on disk."""
    lab = Lab(voters("abc"))
    a = lab["a"]
    a.is_syncing = False
    a.step(Campaign())
    hear(a, "b", VoteAnswer(incarnation=1, term=1, is_trial=True, is_granted=True))
    hear(a, "b", VoteAnswer(incarnation=1, term=1, is_trial=False, is_granted=True))
    hear(a, "a", VoteAnswer(incarnation=1, term=1, is_trial=False, is_granted=True))
    assert not a.leads
    assert len(distrusted(a)) == 1


def test_an_answer_to_a_read_that_nobody_asked_confirms_none() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.drop()
    a.step(ConfirmRead(read_id=1))
    hear(a, "b", HeartbeatAnswer(incarnation=1, term=1, read_id=5))
    assert not any(isinstance(effect, ReadConfirmed) for effect in a.effects)
    assert len(distrusted(a)) == 1


def test_a_place_beyond_the_log_is_looked_for_within_it() -> None:
    """A refusal may name any place; the question that follows is about one that exists."""
    lab = Lab(voters("abc"), {"a": [1, 1, 1], "b": [1], "c": [1]})
    a = lab.elect("a")
    lab.drop()
    for index, hint_index, hint_term in ((HUGE, HUGE, HUGE), (4, HUGE, 0), (3, 2, HUGE)):
        hear(
            a,
            "b",
            AppendAnswer(
                incarnation=1,
                term=2,
                is_accepted=False,
                index=index,
                hint_index=hint_index,
                hint_term=hint_term,
            ),
        )
        a.step(Tick())
        said = [one.message for one in lab.mail if isinstance(one.message, Append)]
        assert all(0 <= one.previous_index <= 4 for one in said)
    lab.run(4)
    assert lab["b"].terms == a.terms


def test_a_term_can_be_far_ahead_of_a_node_that_slept() -> None:
    lab = Lab(voters("abc"))
    hear(lab["b"], "a", Heartbeat(incarnation=1, term=1_000_000, commit_index=0))
    assert lab["b"].core.term == 1_000_000
    assert [one for one in lab["b"].effects if isinstance(one, Send)]
