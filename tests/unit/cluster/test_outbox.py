"""The outbox against a naive twin: whatever is lost on the way, each proposal is admitted once and in order."""

import random

from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.outbox import Fence, Numbered, Outbox, Proposal
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import NodeDisconnected
from exo.shared.types.ids import ClusterId, EventId, NodeId

X, Y = ClusterId("x"), ClusterId("y")


def proposal(ticket: int, size: int = 1, fence: Fence | None = None) -> Proposal:
    event = NodeDisconnected(node_id=NodeId("n"), reason=str(ticket))
    return Proposal(
        ticket=ticket,
        events=tuple(ProposedEvent(event_id=EventId(f"{ticket}.{n}"), event=event) for n in range(size)),
        cause_id="c",
        at="now",
        fence=fence,
    )


def sent(outbox: Outbox) -> list[tuple[int, int]]:
    return [(numbered.first_seq, numbered.proposal.ticket) for numbered in outbox.take()]


def test_numbers_begin_behind_what_was_admitted_before() -> None:
    outbox = Outbox()
    outbox.add(proposal(1, 2))
    outbox.add(proposal(2))
    assert not outbox.has_waiting and sent(outbox) == [], "closed until a master is known"
    outbox.begin(X, 1, 7)
    assert outbox.has_waiting
    assert sent(outbox) == [(8, 1), (10, 2)]
    assert outbox.committed(8) == [], "half of it"
    assert outbox.committed(9) == [1]
    assert outbox.committed(10) == [2]


def test_what_was_admitted_is_awaited_and_the_rest_is_sent_again() -> None:
    outbox = Outbox()
    outbox.begin(X, 1, 0)
    for ticket in (1, 2, 3):
        outbox.add(proposal(ticket))
    assert sent(outbox) == [(1, 1), (2, 2), (3, 3)]
    outbox.pause()
    outbox.add(proposal(4))
    assert sent(outbox) == []
    assert outbox.begin(X, 2, 1) == []
    assert sent(outbox) == [(2, 2), (3, 3), (4, 4)]
    assert outbox.committed(4) == [1, 2, 3, 4]


def test_another_cluster_has_admitted_nothing_of_it() -> None:
    outbox = Outbox()
    outbox.begin(X, 1, 0)
    outbox.add(proposal(1))
    sent(outbox)
    outbox.pause()
    outbox.begin(Y, 5, 30)
    assert sent(outbox) == [(31, 1)]


def test_a_decision_goes_without_a_number_and_is_void_in_another_term() -> None:
    outbox = Outbox()
    outbox.begin(X, 1, 0)
    outbox.add(proposal(1, fence=(X, 1)))
    outbox.add(proposal(2, fence=(X, 1)))
    outbox.add(proposal(3))
    assert sent(outbox) == [(0, 1), (0, 2), (1, 3)]
    outbox.add(proposal(4, fence=(X, 1)))
    assert outbox.has_fenced()
    assert outbox.committed(0, EventId("1.0")) == [1]
    outbox.pause()
    assert outbox.begin(X, 2, 1) == [2, 4]
    assert sent(outbox) == []
    assert outbox.committed(1) == [3]
    assert not outbox.has_fenced()


def test_a_number_stays_bound_to_what_was_sent_under_it() -> None:
    outbox = Outbox()
    outbox.begin(X, 1, 4)
    outbox.add(proposal(1))
    outbox.add(proposal(2))
    assert sent(outbox) == [(5, 1), (6, 2)]
    outbox.begin(X, 2, 4)  # Another master, which has admitted neither.
    outbox.add(proposal(3), is_first=True)
    assert sent(outbox) == [(5, 1), (6, 2), (7, 3)]
    outbox.begin(X, 3, 6)  # The first one leads again, with both in its log.
    assert sent(outbox) == [(7, 3)]
    assert outbox.committed(6) == [1, 2]


def test_what_an_earlier_boot_sent_under_the_same_number_is_not_taken_for_this() -> None:
    outbox = Outbox()
    outbox.begin(X, 1, 4)
    outbox.add(proposal(1))
    outbox.add(proposal(2))
    outbox.add(proposal(3))
    assert sent(outbox) == [(5, 1), (6, 2), (7, 3)]
    outbox.begin(X, 2, 8)
    outbox.add(proposal(4), is_first=True)
    assert outbox.committed(5, EventId("of an earlier boot")) == []
    assert outbox.committed(8, EventId("of that boot, too")) == [], (
        "whatever it left out is not committed either"
    )
    outbox.add(proposal(5))
    assert sent(outbox) == [(9, 4), (10, 1), (11, 2), (12, 3), (13, 5)]
    for number, (ticket, event_id) in enumerate(
        ((4, "4.0"), (1, "1.0"), (2, "2.0"), (3, "3.0"), (5, "5.0")), 9
    ):
        assert outbox.committed(number, EventId(event_id)) == [ticket]


def test_only_what_was_never_sent_can_be_withdrawn() -> None:
    outbox = Outbox()
    outbox.begin(X, 1, 0)
    outbox.add(proposal(1))
    sent(outbox)
    outbox.add(proposal(2))
    outbox.add(proposal(3))
    assert not outbox.withdraw(1)
    assert outbox.withdraw(2)
    assert not outbox.withdraw(2)
    assert sent(outbox) == [(2, 3)]


def test_first_is_before_all_that_was_not_sent() -> None:
    outbox = Outbox()
    outbox.begin(X, 1, 0)
    outbox.add(proposal(1))
    sent(outbox)
    outbox.add(proposal(2))
    outbox.add(proposal(3), is_first=True)
    assert sent(outbox) == [(2, 3), (3, 2)]


def test_a_number_stays_bound_though_those_before_it_are_gone() -> None:
    """As the simulator's seed 10758: a fact in two logs under two numbers was committed, and then offered again."""
    outbox = Outbox()
    outbox.begin(X, 7, 19)  # This node's own log has up to 19; the other nodes have up to 18.
    outbox.add(proposal(1))
    assert sent(outbox) == [(20, 1)]
    outbox.begin(X, 8, 18)
    (again,) = outbox.take()
    assert (again.first_seq, again.after_seq) == (20, 18)
    outbox.begin(X, 9, 20)  # This node leads again: what it had is committed now.
    assert outbox.committed(19, EventId("of an earlier boot")) == []
    assert sent(outbox) == [], "it is in the log"
    assert outbox.committed(20, EventId("1.0")) == [1]


def test_a_start_uses_no_number_of_an_earlier_one() -> None:
    outbox = Outbox(numbers_behind=100)
    outbox.begin(X, 1, 7)
    outbox.add(proposal(1, 2))
    outbox.add(proposal(2))
    assert [(one.first_seq, one.after_seq) for one in outbox.take()] == [(101, 7), (103, 102)]
    later = Outbox(numbers_behind=100)
    later.begin(X, 1, 200)  # The count of starts was lost.
    later.add(proposal(3))
    assert sent(later) == [(201, 3)]


@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=1, max_value=60))
def test_each_is_admitted_once_and_in_order_whatever_breaks(seed: int, steps: int) -> None:
    """A master that admits only behind the last one, over connections that lose a suffix of what was sent."""
    chance = random.Random(seed)
    outbox = Outbox()
    admitted: list[int] = []
    last_seq = 0
    in_flight: list[Numbered] = []
    is_open = False
    tickets = 0
    done: list[int] = []
    reported = 0
    for step in range(steps + 2):
        action = chance.choice(["add", "add", "send", "arrive", "break", "open", "report"])
        if step >= steps:  # In the end everything heals.
            action = "open" if step == steps else "send"
        if action == "add":
            tickets += 1
            outbox.add(proposal(tickets, chance.randint(1, 3)))
        if action == "send":
            in_flight += outbox.take()
        if action == "arrive" or step == steps + 1:
            count = len(in_flight) if step == steps + 1 else chance.randint(0, len(in_flight))
            for one in in_flight[:count]:
                assert one.after_seq == last_seq, "never refused: the master said where it stands"
                assert one.first_seq > last_seq
                last_seq = one.last_seq
                admitted.append(one.proposal.ticket)
            in_flight = in_flight[count:]
        if action == "break":
            in_flight, is_open = [], False
            outbox.pause()
        if action == "open" and (not is_open or step == steps):
            in_flight, is_open = [], True
            outbox.pause()
            assert outbox.begin(X, 1, last_seq) == []
        if action == "report" or step == steps + 1:
            reported = last_seq if step == steps + 1 else chance.randint(reported, last_seq)
            done += outbox.committed(reported)
    assert admitted == list(range(1, tickets + 1))
    assert done == admitted
