"""What a leader admits: each proposal once, whole, in its origin's order; its own decisions without a number."""

import msgspec
import pytest

from exo.cluster.outbox import Outbox, Proposal
from exo.cluster.raft.messages import Append
from exo.cluster.raft.options import CoreOptions
from exo.cluster.raft.steps import Commit, Refuse, Send, Tick
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import NodeDisconnected, TermOpened
from exo.shared.types.ids import ClusterId, EventId, NodeId
from support.raft_lab import Desk, Lab, voters


def facts(count: int) -> list[NodeDisconnected]:
    return [NodeDisconnected(node_id=NodeId("x"), reason=str(number)) for number in range(count)]


def offer(desk: Desk, first_seq: int, count: int = 1, *, after_seq: int | None = None) -> str | None:
    """Offer a node's facts to a leader; returns why they were refused, if they were."""
    effects = desk.step(
        desk.proposal(*facts(count), origin="o", first_seq=first_seq, after_seq=after_seq, session=1)
    )
    return next((effect.reason for effect in effects if isinstance(effect, Refuse)), None)


def test_a_proposal_is_admitted_once_however_often_it_is_sent() -> None:
    lab = Lab(voters("a"))
    a = lab.elect("a")
    assert offer(a, 1) is None
    last_index = a.core.log.last_index
    assert offer(a, 1) is None
    assert a.core.log.last_index == last_index


def test_a_proposal_whose_forerunner_is_not_there_is_refused() -> None:
    a = Lab(voters("a")).elect("a")
    assert offer(a, 2) == "proposal 2 behind 1, and the last one is 0"
    assert offer(a, 7, count=2, after_seq=0) is None, "numbers may be left out"
    assert offer(a, 9, after_seq=7) == "proposal 9 behind 7, and the last one is 8"
    assert offer(a, 8, count=2, after_seq=8) == "proposal 8 behind 8, and the last one is 8"
    assert offer(a, 9) is None


def test_a_follower_admits_nothing() -> None:
    lab = Lab(voters("abc"))
    lab.elect("a")
    assert offer(lab["b"], 1) == "this node does not lead"


def test_nothing_is_admitted_before_the_term_is_opened() -> None:
    lab = Lab(voters("abc"), is_opening=False)
    a = lab.elect("a")
    assert offer(a, 1) == "term 1 is not opened yet"
    a.decide(TermOpened(master_node_id=a.node_id))
    assert offer(a, 1) is None


def test_a_new_leader_knows_what_the_one_before_admitted() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    assert offer(a, 1, count=3) is None
    lab.deliver()
    lab.cut("a", "bc")
    c = lab.elect_among("bc")
    assert c.core.admission.last_seq(NodeId("o")) == 3
    assert offer(c, 1, count=3) is None
    assert sum(one.origin == "o" for one in c.core.log.between(0, 100)) == 3


def test_what_was_admitted_and_lost_is_admitted_again() -> None:
    lab = Lab(voters("abc"))
    a = lab.elect("a")
    lab.cut("a", "bc")
    assert offer(a, 1) is None
    lab.drop()
    leader = lab.elect_among("bc")
    assert leader.core.admission.last_seq(NodeId("o")) == 0
    lab.heal()
    lab.run(5)
    assert a.core.admission.last_seq(NodeId("o")) == 0


def test_decisions_of_the_leader_take_no_number() -> None:
    """A number that a node's fact was offered under to an earlier leader must not come to mean something else."""
    a = Lab(voters("a")).elect("a")
    assert offer(a, 1) is None
    before = a.core.admission.last_seq(a.node_id)
    a.decide(*facts(2))
    assert a.core.admission.last_seq(a.node_id) == before
    assert a.core.log.last_index == 4


def test_only_the_leaders_own_decisions_go_without_a_number() -> None:
    a = Lab(voters("a")).elect("a")
    assert offer(a, 0) == "only the leader's own decisions go without a number"


# --- whole proposals -------------------------------------------------------------------------------------------------


def test_a_proposal_is_never_cut_in_two() -> None:
    """Where a message may carry four entries, one of five that began in it is carried to its end."""
    lab = Lab(voters("abc"), options=CoreOptions(entries_per_message=4, inflight_max=8))
    a = lab.elect("a")
    for count in (1, 2, 5, 3, 1):
        a.decide(*facts(count))
    lab.deliver()
    ends = {0, 1, 2, 4, 9, 12, 13}
    messages = [effect.message for effect in a.effects if isinstance(effect, Send)]
    appended = [one.entries[-1].index for one in messages if isinstance(one, Append) and one.entries]
    assert appended
    assert set(appended) <= ends
    commits = [effect.entries[-1].index for effect in a.effects if isinstance(effect, Commit)]
    assert set(commits) <= ends


def test_a_follower_that_is_far_behind_gets_whole_proposals() -> None:
    lab = Lab(voters("abc"), options=CoreOptions(entries_per_message=4, inflight_max=2))
    a = lab.elect("a")
    lab.cut("c", "ab")
    for _ in range(6):
        a.decide(*facts(3))
        lab.deliver()
    lab.heal()
    for _ in range(20):
        a.step(Tick())
        lab.deliver()
        assert (len(lab["c"].log) - 1) % 3 == 0
    assert len(lab["c"].log) == 19


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_remembered", [True, False], ids=["the same boot", "another boot"])
def test_nobody_is_told_that_a_proposal_is_done_when_another_is(is_remembered: bool) -> None:
    """o offers x to a leader that keeps it to itself, and y to the next one; then the first one leads again.

    Where o remembers x, y has the next number; where it was started again in between, y has the same one.
    """
    lab = Lab(voters("abcde"))
    cluster_id = ClusterId("c")
    outbox = Outbox()
    done: list[int] = []
    seen = 0

    def offer_all(leader: Desk) -> None:
        nonlocal seen
        outbox.pause()
        outbox.begin(cluster_id, leader.core.term, leader.core.admission.last_seq(NodeId("o")))
        for _ in range(3):
            for one in outbox.take():
                offered = leader.proposal(*facts(1), origin="o", first_seq=one.first_seq, session=1)
                leader.step(
                    msgspec.structs.replace(offered, after_seq=one.after_seq, events=one.proposal.events)
                )
            lab.deliver()
            for one in [one for one in leader.committed if one.origin == "o"][seen:]:
                done.extend(outbox.committed(one.seq, one.event_id))
                seen += 1

    def new(ticket: int, name: str) -> Proposal:
        event = ProposedEvent(event_id=EventId(name), event=facts(1)[0])
        return Proposal(ticket=ticket, events=(event,), cause_id="", at="")

    a = lab.elect("a")
    lab.cut("a", "bcde")
    outbox.add(new(1, "x"))
    offer_all(a)
    if not is_remembered:
        outbox = Outbox()
    lab.is_opening = False
    d = lab["d"]
    for name in "bce":
        lab[name].restart()
    lab.elect("d")
    lab.cut("d", "bce")
    lab.is_opening = True
    d.decide(TermOpened(master_node_id=d.node_id))
    outbox.add(new(2, "y"))
    offer_all(d)
    lab.heal()
    lab.cut("d", "abce")
    for name in "abce":
        lab[name].restart()
    lab.elect("a")
    offer_all(a)
    order = [one.event_id for one in a.committed if one.origin == "o"]
    assert order == ["x", "y"]
    assert done == ([1, 2] if is_remembered else [2])
