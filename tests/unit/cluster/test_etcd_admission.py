"""A master's intake: each origin's proposals in order and once, whatever arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.etcd.admission import Intake, commit_bytes
from exo.cluster.etcd.records import BATCH_BYTES_MAX, decode_batch, encode_batch
from exo.cluster.raft.steps import Propose
from exo.cluster.wire import ProposedEvent
from exo.shared.types.events import Decision, NodeDisconnected, NodeJoined
from exo.shared.types.ids import EventId, NodeId
from support.simulated_cluster import tagged
from support.states import identity

A, B = NodeId("a"), NodeId("b")


def events(*tags: str) -> list[ProposedEvent]:
    return [ProposedEvent(event_id=EventId(tag), event=tagged(A, tag)) for tag in tags]


def proposal(origin: NodeId, first_seq: int, proposed: list[ProposedEvent], *, term: int = 3) -> Propose:
    return Propose(
        session=None,
        origin=origin,
        term=term,
        first_seq=first_seq,
        after_seq=first_seq - 1,
        cause_id="c",
        at="t",
        events=tuple(proposed),
    )


def admit(intake: Intake, origin: NodeId, first_seq: int, *tags: str, term: int = 3) -> str | None:
    return intake.admit(proposal(origin, first_seq, events(*tags), term=term))


@pytest.fixture
def intake() -> Intake:
    return Intake(term=3, index=10, last_seq={A: 5}, connected=[A])


def test_what_follows_is_admitted_and_gets_its_place(intake: Intake) -> None:
    assert admit(intake, A, 6, "x", "y") is None
    assert admit(intake, B, 1, "z") is None
    entries = intake.take()
    assert [(entry.index, entry.term, entry.origin, entry.seq) for entry in entries] == [
        (11, 3, A, 6),
        (12, 3, A, 7),
        (13, 3, B, 1),
    ]
    assert [entry.event_id for entry in entries] == ["x", "y", "z"]
    assert (intake.last_seq(A), intake.last_seq(B)) == (7, 1)
    assert intake.take() == ()


def test_what_was_admitted_before_is_passed_over_and_gaps_are_refused(intake: Intake) -> None:
    assert admit(intake, A, 4, "old", "older") is None
    assert admit(intake, A, 8, "x") == "proposal 8 behind 7, and the last one is 5"
    assert admit(intake, A, 5, "half", "known") == "proposal 5 behind 4, and the last one is 5"
    assert admit(intake, A, 6, "x", term=2) == "it is for term 2, this is term 3"
    assert not intake.has_waiting
    assert admit(intake, A, 6, "x") is None
    assert intake.has_waiting


def test_a_commit_has_whole_proposals_and_a_limit(intake: Intake) -> None:
    large = "x" * (BATCH_BYTES_MAX // 6)
    for seq in range(6, 12, 2):
        assert admit(intake, A, seq, large, "small") is None
    assert [entry.seq for entry in intake.take()] == [6, 7, 8, 9]
    assert [entry.seq for entry in intake.take()] == [10, 11]
    refusal = admit(intake, A, 12, "x" * BATCH_BYTES_MAX)
    assert refusal is not None and f"at most {BATCH_BYTES_MAX} fit" in refusal
    assert admit(intake, A, 12, "goes on") is None


def test_who_is_connected_follows_what_is_admitted(intake: Intake) -> None:
    def decide(seq: int, event: Decision) -> None:
        proposed = [ProposedEvent(event_id=EventId(str(seq)), event=event)]
        assert intake.admit(proposal(A, seq, proposed)) is None

    decide(6, NodeJoined(identity=identity("b")))
    assert intake.connected == {A, B}
    decide(7, NodeDisconnected(node_id=A, reason="gone"))
    assert intake.connected == {B}


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B]), st.integers(1, 8), st.integers(1, 3), st.booleans()), max_size=40
    )
)
def test_whatever_arrives_each_number_is_admitted_once_and_in_order(
    arrivals: list[tuple[NodeId, int, int, bool]],
) -> None:
    intake = Intake(term=1, index=0, last_seq={}, connected=[])
    taken = []
    for origin, first_seq, count, is_taken in arrivals:
        intake.admit(proposal(origin, first_seq, events(*map(str, range(count))), term=1))
        if is_taken:
            taken += intake.take()
    while intake.has_waiting:
        taken += intake.take()
    assert [entry.index for entry in taken] == list(range(1, len(taken) + 1))
    for origin in (A, B):
        numbers = [entry.seq for entry in taken if entry.origin == origin]
        assert numbers == list(range(1, len(numbers) + 1))
        assert intake.last_seq(origin) == len(numbers)
    if taken:
        assert decode_batch(encode_batch(tuple(taken))) == tuple(taken)


def test_the_length_that_is_reckoned_with_is_never_less_than_the_true_one() -> None:
    proposed = events(*map(str, range(50)))
    intake = Intake(term=3, index=2**40, last_seq={A: 2**40}, connected=[])
    assert intake.admit(proposal(A, 2**40 + 1, proposed)) is None
    true_bytes = len(encode_batch(intake.take()))
    assert true_bytes <= commit_bytes(proposed, origin=A, cause_id="c", at="t") <= true_bytes + 50 * 40
