"""One peer that says anything at all: the core never fails, goes back in nothing, and asks for nothing impossible."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.cluster.raft.messages import (
    Append,
    AppendAnswer,
    Heartbeat,
    HeartbeatAnswer,
    InstallSnapshot,
    PeerMessage,
    Snapshot,
    StandNow,
    VoteAnswer,
    VoteRequest,
)
from exo.cluster.raft.options import CoreOptions
from exo.cluster.raft.steps import Campaign, ConfirmRead, Effect, Received, Send, Tick, Write
from exo.shared.types.ids import NodeId
from support.raft_lab import Desk, Lab, entry, voters

number = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 4, 5, 6, 7, 40, 2**31, 2**53, 2**63 - 1, 2**64 - 1])
small = st.integers(0, 8)
some_number = st.one_of(small, small, number)
"""Mostly something that could be."""
flag = st.booleans()


@st.composite
def entries(draw: st.DrawFn) -> Append:
    index, term = draw(some_number), draw(some_number)
    terms = draw(st.lists(small, max_size=4))
    is_in_order = draw(flag)
    first = min(index, 50) + 1
    told = [entry(first + at if is_in_order else draw(small), of_term) for at, of_term in enumerate(terms)]
    told = [msgspec.structs.replace(one, more=draw(st.sampled_from([0, 0, 0, 1, 9, -1]))) for one in told]
    return Append(
        incarnation=draw(st.sampled_from([1, 1, 1, 0])),
        term=draw(some_number),
        previous_index=index,
        previous_term=term,
        entries=tuple(told),
        commit_index=draw(some_number),
    )


snapshots = st.builds(
    Snapshot,
    index=st.one_of(small, st.sampled_from([-1, 2**63 - 1, 2**64 - 1])),
    term=some_number,
    incarnation=st.just(1),
    voters=st.sampled_from([voters("abc"), voters("c"), voters("b"), voters("")]),
    last_seq=st.just({}),
    data=st.just(b""),
)
one = st.just(1)
messages: st.SearchStrategy[PeerMessage] = st.one_of(
    entries(),
    st.builds(
        VoteRequest,
        incarnation=one,
        term=some_number,
        is_trial=flag,
        last_index=some_number,
        last_term=some_number,
        is_hand_over=flag,
    ),
    st.builds(VoteAnswer, incarnation=one, term=some_number, is_trial=flag, is_granted=flag),
    st.builds(
        AppendAnswer,
        incarnation=one,
        term=some_number,
        is_accepted=flag,
        index=some_number,
        hint_index=some_number,
        hint_term=some_number,
    ),
    st.builds(Heartbeat, incarnation=one, term=some_number, commit_index=some_number, read_id=some_number),
    st.builds(HeartbeatAnswer, incarnation=one, term=some_number, read_id=some_number),
    st.builds(InstallSnapshot, incarnation=one, term=some_number, snapshot=snapshots),
    st.builds(StandNow, incarnation=one, term=some_number),
)
moves = st.one_of(
    messages.map(lambda message: Received(source=NodeId("c"), message=message)),
    messages.map(lambda message: Received(source=NodeId("z"), message=message)),
    st.sampled_from([Tick(), Campaign(), ConfirmRead(read_id=3)]),
)


def require_sane(desk: Desk, effects: list[Effect]) -> None:
    core = desk.core
    assert core.log.base_index <= core.commit_index <= core.log.last_index
    for effect in effects:
        if isinstance(effect, Send):
            msgspec.msgpack.encode(effect.message)
        elif isinstance(effect, Write):
            msgspec.msgpack.encode(effect.hard_state)
            indices = [told.index for told in effect.entries]
            assert indices == sorted(set(indices))


@settings(max_examples=300, deadline=None)
@given(st.lists(moves, max_size=40), st.booleans(), st.booleans())
def test_whatever_a_peer_says(said: list[Received | Tick], is_leading: bool, is_syncing: bool) -> None:
    options = CoreOptions(entries_per_message=2, inflight_max=2, recent_max=2)
    lab = Lab(voters("abc"), {"a": [1, 1, 2], "b": [1, 1, 2]}, options=options)
    lab.elect("a")
    desk = lab["a" if is_leading else "b"]
    desk.is_syncing = is_syncing
    lab.drop()
    term, commit_index = desk.core.term, desk.core.commit_index
    for move in said:
        require_sane(desk, desk.step(move))
        assert desk.core.term >= term
        assert desk.core.commit_index >= commit_index
        term, commit_index = desk.core.term, desk.core.commit_index
