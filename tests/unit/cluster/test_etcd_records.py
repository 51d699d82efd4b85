"""What stands in etcd under exo's keys and is something else is said to be so, whatever it is."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.etcd.records import Head, decode_batch, decode_record, decode_state
from exo.shared.errors import LogCorruptError

READERS: list[Callable[[bytes], object]] = [
    decode_batch,
    decode_state,
    lambda data: decode_record(data, Head),
]


@pytest.mark.parametrize("read", READERS, ids=("batch", "state", "head"))
@pytest.mark.parametrize("data", [b"", b"\x92\xa1\xff\x01", b"\x91" * 100_000, b"[" * 100_000])
def test_bytes_that_are_something_else_are_refused_in_words(
    read: Callable[[bytes], object], data: bytes
) -> None:
    with pytest.raises(LogCorruptError, match="cannot be read"):
        read(data)


@pytest.mark.parametrize("read", READERS, ids=("batch", "state", "head"))
@given(data=st.binary(max_size=200))
def test_no_bytes_end_in_another_error(read: Callable[[bytes], object], data: bytes) -> None:
    try:
        read(data)
    except LogCorruptError:
        pass
