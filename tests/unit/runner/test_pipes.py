"""Messages between a worker and its stage process, cut anywhere, and garbage."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.worker.runner.messages import FromChild, Heartbeat, LoadProgressed, RunnerFailed, RunnerReady
from exo.worker.runner.pipes import MessageDecoder, PipeError, encode_message

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
messages = (
    st.builds(RunnerReady)
    | st.builds(RunnerFailed, reason=texts, is_permanent=st.booleans())
    | st.builds(
        LoadProgressed, loaded_layers=st.integers(0, 99), total_layers=st.integers(0, 99), detail=texts
    )
    | st.builds(
        Heartbeat,
        step_running_s=st.floats(0, 1e6),
        requests_active=st.integers(0, 99),
        tokens_total=st.integers(0, 2**50),
    )
)


@given(sent=st.lists(messages, max_size=6), size=st.integers(1, 50))
def test_messages_survive_any_cut(sent: list[FromChild], size: int) -> None:
    stream = b"".join(encode_message(message) for message in sent)
    decoder = MessageDecoder.of_child()
    got = [one for start in range(0, len(stream), size) for one in decoder.feed(stream[start : start + size])]
    assert got == sent


@given(garbage=st.binary(max_size=60))
def test_garbage_is_refused(garbage: bytes) -> None:
    try:
        MessageDecoder.of_child().feed(struct.pack("!I", len(garbage)) + garbage)
    except PipeError:
        return
    assert garbage == b"" or MessageDecoder.of_child().feed(struct.pack("!I", len(garbage)) + garbage)


def test_a_parents_message_is_none_of_a_childs() -> None:
    with pytest.raises(PipeError, match="no message"):
        MessageDecoder.of_parent().feed(encode_message(RunnerReady()))


def test_a_message_that_is_too_long_is_refused_before_it_comes() -> None:
    with pytest.raises(PipeError, match="at most"):
        MessageDecoder.of_child().feed(b"\xff\xff\xff\xff")
