"""What voters say to each other survives the wire, whole or in pieces; and what is no message is called that."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster import peer_wire
from exo.cluster.peer_wire import PART_BYTES, PeerMessageReader, encode_peer_message
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
from exo.shared.types.events import NodeRemoved, TermOpened, VotersChanged
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters
from support.entries import entry, snapshot

numbers = st.integers(0, 2**64 - 1)
flags = st.booleans()
node_ids = st.text(max_size=12).map(NodeId)
members = st.lists(node_ids, max_size=5).map(tuple)
voters = st.builds(Voters, voters=members, replicas=members)
events = (
    st.builds(TermOpened, master_node_id=node_ids)
    | st.builds(VotersChanged, voters=voters, reason=st.text(max_size=40))
    | st.builds(NodeRemoved, node_id=node_ids, reason=st.text(max_size=40))
)
log_entries = st.builds(
    lambda index, term, event: entry(index, term=term, event=event), numbers, numbers, events
)
snapshots = st.builds(
    Snapshot,
    index=numbers,
    term=numbers,
    incarnation=numbers,
    voters=voters,
    last_seq=st.dictionaries(node_ids, numbers, max_size=4),
    data=st.binary(max_size=300),
)
KINDS: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    VoteRequest: {"is_trial": flags, "last_index": numbers, "last_term": numbers, "is_hand_over": flags},
    VoteAnswer: {"is_trial": flags, "is_granted": flags},
    Append: {
        "previous_index": numbers,
        "previous_term": numbers,
        "entries": st.lists(log_entries, max_size=4).map(tuple),
        "commit_index": numbers,
    },
    AppendAnswer: {
        "is_accepted": flags,
        "index": numbers,
        "hint_index": numbers,
        "hint_term": numbers,
        "is_level": flags,
    },
    Heartbeat: {"commit_index": numbers, "read_id": numbers},
    HeartbeatAnswer: {"read_id": numbers, "is_level": flags},
    InstallSnapshot: {"snapshot": snapshots},
    StandNow: {},
}
messages = st.one_of(
    *(st.builds(kind, incarnation=numbers, term=numbers, **fields) for kind, fields in KINDS.items())
)


def large(data_bytes: int) -> InstallSnapshot:
    """The only message that has to be long."""
    data = bytes(number % 251 for number in range(data_bytes))
    return InstallSnapshot(incarnation=1, term=2, snapshot=snapshot(9, data=data))


def read(pieces: list[bytes], reader: PeerMessageReader | None = None) -> list[PeerMessage]:
    """Feed pieces, and return what they complete."""
    reader = reader or PeerMessageReader()
    found = [reader.feed(piece) for piece in pieces]
    return [message for message in found if message is not None]


# --- there and back --------------------------------------------------------------------------------------------------


def test_every_kind_of_message_is_tried() -> None:
    assert set(KINDS) == set(get_args(PeerMessage))
    for kind, fields in KINDS.items():
        assert set(fields) | {"incarnation", "term"} == set(kind.__struct_fields__)


@given(messages)
def test_a_message_comes_back_as_it_was(message: PeerMessage) -> None:
    pieces = encode_peer_message(message)
    assert len(pieces) == 1
    assert read(pieces) == [message]


@given(st.lists(messages, max_size=6), st.integers(1, 200))
def test_messages_in_pieces_of_any_size_come_back_in_their_order(
    sent: list[PeerMessage], part_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer_wire, "PART_BYTES", part_bytes)
        pieces = [encode_peer_message(message) for message in sent]
    assert all(len(piece) <= part_bytes + 1 for one in pieces for piece in one)
    assert read([piece for one in pieces for piece in one]) == sent


@pytest.mark.parametrize("beyond", [-1, 0, 1, PART_BYTES, PART_BYTES + 1])
def test_a_message_is_cut_where_a_piece_is_full(beyond: int) -> None:
    frame_bytes = len(encode_peer_message(large(70_000))[0]) - 1 - 70_000
    message = large(PART_BYTES - frame_bytes + beyond)
    pieces = encode_peer_message(message)
    assert sum(len(piece) - 1 for piece in pieces) == PART_BYTES + beyond
    assert len(pieces) == 1 + (beyond > 0) + (beyond > PART_BYTES)
    assert all(0 < len(piece) - 1 <= PART_BYTES for piece in pieces)
    assert read(pieces) == [message]


def test_a_snapshot_of_several_pieces_leaves_the_reader_as_it_found_it() -> None:
    reader = PeerMessageReader()
    for size in (3 * PART_BYTES, 10, PART_BYTES + 5):
        assert read(encode_peer_message(large(size)), reader) == [large(size)]


# --- what is no message ----------------------------------------------------------------------------------------------


def outcome(*pieces: bytes) -> PeerMessage | None:
    """Return what the last piece completes; anything but a message and the documented error is a failure."""
    reader = PeerMessageReader()
    message = None
    for piece in pieces:
        try:
            message = reader.feed(piece)
        except msgspec.DecodeError:
            return None
    assert message is None or isinstance(message, get_args(PeerMessage))
    return message


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=5))
def test_any_bytes_are_refused_or_wait_for_more(pieces: list[bytes]) -> None:
    outcome(*pieces)


@given(st.binary(max_size=120))
def test_any_bytes_that_claim_to_be_a_whole_message(data: bytes) -> None:
    outcome(b"\x00" + data)


@given(messages, st.data())
def test_a_message_with_a_few_bytes_changed(message: PeerMessage, data: st.DataObject) -> None:
    garbled = bytearray(encode_peer_message(message)[0])
    for _ in range(data.draw(st.integers(1, 4))):
        garbled[data.draw(st.integers(0, len(garbled) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(garbled))


@given(messages, st.data())
def test_a_message_that_is_cut_off_is_none(message: PeerMessage, data: st.DataObject) -> None:
    (whole,) = encode_peer_message(message)
    with pytest.raises(msgspec.DecodeError):
        PeerMessageReader().feed(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(messages, st.binary(min_size=1, max_size=20))
def test_a_message_with_something_behind_it_is_none(message: PeerMessage, more: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        PeerMessageReader().feed(encode_peer_message(message)[0] + more)


@pytest.mark.parametrize("order", [(0, 2), (1, 2), (0, 0, 1, 2), (0, 1, 1, 2), (0, 1, 3)])
def test_a_message_that_lacks_a_piece_or_has_one_twice_is_none(order: tuple[int, ...]) -> None:
    pieces = encode_peer_message(large(2 * PART_BYTES + 100))
    assert len(pieces) == 3
    pieces += encode_peer_message(StandNow(incarnation=1, term=1))
    reader = PeerMessageReader()
    assert read([pieces[number] for number in order[:-1]], reader) == [], "it waits for the end"
    with pytest.raises(msgspec.DecodeError):
        reader.feed(pieces[order[-1]])


@pytest.mark.parametrize("data", [b"", b"\x02", b"\xff\x00"])
def test_a_piece_says_whether_more_follows(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError, match="unknown shape"):
        PeerMessageReader().feed(data)


@pytest.mark.parametrize(
    "data",
    [
        msgspec.msgpack.encode({"t": "MessageOfTheFuture", "incarnation": 1, "term": 1}),
        msgspec.msgpack.encode({"t": "StandNow", "incarnation": "one", "term": 1}),
        msgspec.msgpack.encode({"t": "StandNow", "incarnation": 1}),
        msgspec.msgpack.encode({"t": "StandNow", "term": -(2**63)}),
        msgspec.msgpack.encode(["StandNow", 1, 1]),
        msgspec.msgpack.encode(None),
        msgspec.msgpack.encode({"t": "????", "incarnation": 1, "term": 1}).replace(
            b"????", b"\xff\xfe\xff\xfe"
        ),
        msgspec.msgpack.encode({"t": "StandNow", "incarnation": 1, "term": 1, "more": []})[:-1]
        + b"\x91" * 100_000
        + b"\x90",
        b"\xdf\xff\xff\xff\xff",  # A map of four milliards, of which nothing comes.
        b"\x81\xa1t\xdb\xff\xff\xff\xff",
    ],
    ids=["future", "type", "lacking", "both", "array", "nil", "no text", "deep", "huge map", "huge text"],
)
def test_what_only_looks_like_a_message(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        PeerMessageReader().feed(b"\x00" + data)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12))
def test_nobody_can_make_a_reader_keep_more_than_a_message(sizes: list[int]) -> None:
    """Everything counts, also the byte that says whether more follows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer_wire, "MESSAGE_BYTES_MAX", 1000)
        reader, fed_bytes = PeerMessageReader(), 0
        for size in sizes:
            fed_bytes += size + 1
            if fed_bytes > 1000:
                with pytest.raises(msgspec.DecodeError, match="too long"):
                    reader.feed(b"\x01" + b"x" * size)
                return
            assert reader.feed(b"\x01" + b"x" * size) is None


def test_a_reader_takes_any_number_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_wire, "MESSAGE_BYTES_MAX", 1000)
    reader, message = PeerMessageReader(), Heartbeat(incarnation=1, term=2, commit_index=3)
    assert read(encode_peer_message(message) * 100, reader) == [message] * 100
