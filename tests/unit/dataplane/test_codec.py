"""The codec: whatever is sent comes out again however it is cut, and garbage is refused, never guessed at."""

import itertools
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.dataplane import frames as f
from exo.dataplane.codec import FrameDecoder, encode
from exo.dataplane.errors import ProtocolError
from exo.shared.types.ids import RequestId

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
request_ids = texts.map(RequestId)
chunks = st.builds(
    f.TokenChunk,
    request_id=request_ids,
    index=st.integers(0, 2**31),
    token_id=st.integers(0, 2**31),
    text=texts,
    finish_reason=st.sampled_from([None, "stop", "length", "cancelled", "error"]),
)
activations = st.builds(
    f.Activation,
    request_id=request_ids,
    position=st.integers(0, 2**31),
    shape=st.lists(st.integers(0, 2**20), max_size=4).map(tuple),
    dtype=texts,
    wants_token=st.booleans(),
)
frames = chunks | activations | st.builds(f.Consumed, request_id=request_ids, count=st.integers(0, 2**40))
frames_with_payloads = st.lists(st.tuples(frames, st.binary(max_size=300)), max_size=8)


@given(sent=frames_with_payloads, cuts=st.lists(st.integers(0, 4000), max_size=12))
def test_frames_survive_any_cut(sent: list[tuple[f.Frame, bytes]], cuts: list[int]) -> None:
    stream = b"".join(encode(frame, payload) for frame, payload in sent)
    positions = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    decoder = FrameDecoder()
    got = [pair for start, end in itertools.pairwise(positions) for pair in decoder.feed(stream[start:end])]
    assert got == sent


@given(sent=frames_with_payloads)
def test_frames_survive_byte_by_byte(sent: list[tuple[f.Frame, bytes]]) -> None:
    decoder = FrameDecoder()
    stream = b"".join(encode(frame, payload) for frame, payload in sent)
    got = [pair for value in stream for pair in decoder.feed(bytes([value]))]
    assert got == sent


@given(sent=frames_with_payloads.filter(bool))
def test_one_at_a_time_gives_the_same(sent: list[tuple[f.Frame, bytes]]) -> None:
    decoder = FrameDecoder()
    got = [decoder.feed_one(b"".join(encode(frame, payload) for frame, payload in sent))]
    while (found := decoder.feed_one(b"")) is not None:
        got.append(found)
    assert got == sent


@given(sent=frames_with_payloads.filter(bool), lost=st.integers(1, 400))
def test_a_cut_off_tail_is_waited_for(sent: list[tuple[f.Frame, bytes]], lost: int) -> None:
    stream = b"".join(encode(frame, payload) for frame, payload in sent)
    assert (
        FrameDecoder().feed(stream[: max(0, len(stream) - lost)]) == sent[: _whole(sent, len(stream) - lost)]
    )


def _whole(sent: list[tuple[f.Frame, bytes]], size: int) -> int:
    count = end = 0
    for frame, payload in sent:
        end += len(encode(frame, payload))
        count += end <= size
    return count


@given(garbage=st.binary(max_size=400))
def test_garbage_gives_nothing_or_a_protocol_error(garbage: bytes) -> None:
    header = struct.pack("!II", len(garbage), 0) + garbage
    try:
        decoded = FrameDecoder().feed(header)
    except ProtocolError:
        return
    # What did decode must really be such a frame.
    assert [msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=f.Frame) for frame, _ in decoded] == [
        frame for frame, _ in decoded
    ]


@given(garbage=st.binary(max_size=400))
def test_raw_garbage_never_raises_anything_else(garbage: bytes) -> None:
    try:
        FrameDecoder().feed(garbage)
    except ProtocolError:
        pass


@pytest.mark.parametrize(("header_bytes", "payload_bytes"), [(101, 0), (10, 51), (2**32 - 1, 2**32 - 1)])
def test_what_is_too_long_is_refused_before_it_is_kept(header_bytes: int, payload_bytes: int) -> None:
    decoder = FrameDecoder(header_bytes_max=100, payload_bytes_max=50)
    with pytest.raises(ProtocolError, match=f"{header_bytes} bytes .* at most 100 and 50 bytes"):
        decoder.feed(struct.pack("!II", header_bytes, payload_bytes))


def test_a_deeply_nested_header_is_refused() -> None:
    header = b"\x91" * 100_000
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(struct.pack("!II", len(header), 0) + header)


def test_an_oversized_frame_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        encode(f.Close(request_id=RequestId("r")), memoryview(bytearray(256 * 1024 * 1024 + 1)))


def test_a_payload_may_be_a_view_of_numbers() -> None:
    view = memoryview(bytearray(range(16))).cast("I")
    assert FrameDecoder().feed(encode(f.Close(request_id=RequestId("r")), view)) == [
        (f.Close(request_id=RequestId("r")), bytes(range(16)))
    ]
