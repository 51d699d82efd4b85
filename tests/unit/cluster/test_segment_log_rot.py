"""Bit rot and arbitrary bytes: a log is read as it was written, or refused in words, and nothing else ever happens."""

import struct
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.cluster.log import format
from exo.cluster.log.checksum import crc32c
from exo.cluster.log.mark import MARK_NAME
from exo.cluster.log.packed import pack, unpack
from exo.cluster.log.segment import packed_name, raw_name
from exo.cluster.log.segments import SegmentLog
from exo.cluster.log.store import open_store
from exo.cluster.raft.steps import HardState
from exo.shared.errors import LogCorruptError
from support.entries import entries, entry, snapshot
from support.power_loss import PowerLossFiles

HERE = Path("somewhere")


@cache
def written() -> dict[str, bytes]:
    """Every kind of file: compressed segments and a raw one, a mark, a vote, a snapshot."""
    files = PowerLossFiles()
    store = open_store(HERE, files=files, segment_bytes=1000)
    for first in range(1, 25, 3):
        store.log.append(entries(first, first + 2))
        store.log.sync()
    store.votes.save(HardState(term=1))
    store.snapshots.save(snapshot(9))
    while store.tidy():
        pass
    kept = {name: files.read(name) for name in files.names()}
    assert [name[20:] for name in kept if ".log" in name] == [".log.zst", ".log.zst", ".log"]
    return kept


def disk(content: dict[str, bytes]) -> PowerLossFiles:
    files = PowerLossFiles()
    for name, data in content.items():
        files.overwrite(name, data)
    return files


def read_back(files: PowerLossFiles) -> list | None:
    """What a log holds; None: it is refused."""
    try:
        log = SegmentLog(HERE, files=files)
        found = list(log.read())
    except LogCorruptError as error:
        assert len(error.message) > 20
        return None
    assert [one.index for one in found] == list(range(log.first_index, log.last_index + 1))
    return found


NAMES = st.sampled_from(sorted(written()))


@given(NAMES, st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=300)
def test_one_flipped_byte_anywhere_is_harmless_or_refused(name: str, position: int, flip: int) -> None:
    content = dict(written())
    damaged = bytearray(content[name])
    damaged[position % len(damaged)] ^= flip
    content[name] = bytes(damaged)
    files = disk(content)
    try:
        store = open_store(HERE, files=files)
        found = (store.votes.load(), store.snapshots.load(), list(store.log.read()))
    except LogCorruptError:
        return
    assert found == (HardState(term=1), snapshot(9), entries(1, 24))


@pytest.mark.parametrize("suffix", [".log", ".log.zst"])
def test_any_flipped_bit_of_a_segment_that_was_acknowledged_is_refused(suffix: str) -> None:
    name = min(name for name in written() if name.endswith(suffix))
    good = written()[name]
    for position in range(len(good.rstrip(b"\0"))):
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        assert read_back(disk({**written(), name: bytes(damaged)})) is None


@pytest.mark.parametrize("name", sorted(written()))
def test_a_file_that_is_missing_is_noticed(name: str) -> None:
    content = dict(written())
    del content[name]
    files = disk(content)
    if name == MARK_NAME:
        assert read_back(files) == entries(1, 24), "what is there is trusted, with a warning"
        return
    if name == "vote" or name.endswith(".snapshot"):
        open_store(HERE, files=files).close()  # A node that never voted, or never made a snapshot, looks so.
        return
    assert read_back(files) is None


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """A few pieces overwritten, cut out, doubled, moved or filled in."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        size_bytes = len(data)
        start = draw(st.integers(0, max(0, size_bytes - 1)))
        end = min(size_bytes, start + draw(st.integers(0, 200)))
        match draw(st.sampled_from(["overwrite", "cut", "double", "zero", "insert", "shorten"])):
            case "overwrite":
                piece = draw(st.binary(max_size=40))
                data[start : start + len(piece)] = piece
            case "cut":
                del data[start:end]
            case "double":
                data[start:start] = data[start:end]
            case "zero":
                data[start:end] = bytes(end - start)
            case "insert":
                data[start:start] = draw(st.binary(max_size=40))
            case _:
                del data[start:]
    return bytes(data)


@given(st.data())
@settings(max_examples=200)
def test_mutated_segments_are_read_as_they_were_or_refused(data: st.DataObject) -> None:
    content = dict(written())
    name = data.draw(st.sampled_from([name for name in sorted(content) if ".log" in name]))
    content[name] = data.draw(mutated(content[name].rstrip(b"\0")))
    assert read_back(disk(content)) in (None, entries(1, 24))


@given(st.data(), st.booleans())
@settings(max_examples=200)
def test_without_a_mark_mutated_segments_lose_no_more_than_their_end(
    data: st.DataObject, is_one: bool
) -> None:
    """With nothing to say how far it was acknowledged, the end may be gone. What is read was written."""
    files = PowerLossFiles()
    log = SegmentLog(HERE, files=files, segment_bytes=10**6 if is_one else 1000)
    for first in range(1, 25, 3):
        log.append(entries(first, first + 2))
    content = {name: files.read(name).rstrip(b"\0") for name in files.names() if name.endswith(".log")}
    name = data.draw(st.sampled_from(sorted(content)))
    content[name] = data.draw(mutated(content[name]))
    found = read_back(disk(content))
    assert found is None or found == entries(1, len(found))


@given(NAMES, st.binary(max_size=400), st.booleans())
@settings(max_examples=200)
def test_arbitrary_bytes_are_never_taken_for_entries(name: str, data: bytes, is_alone: bool) -> None:
    content = {name: data} if is_alone else {**written(), name: data}
    assert read_back(disk(content)) in (None, [], entries(1, 24))
    try:
        open_store(HERE, files=disk(content)).close()
    except LogCorruptError:
        pass


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**64 - 1) | st.integers(0, 9),
            st.integers(0, 2**32 - 1) | st.integers(0, 3),
            st.binary(),
        ),
        max_size=4,
    ),
    st.booleans(),
)
@settings(max_examples=200)
def test_frames_with_a_good_checksum_and_nonsense_within_are_refused(
    frames: list[tuple[int, int, bytes]], is_packed: bool
) -> None:
    data = format.encode_header()
    for first_index, entry_count, payload in frames:
        checked = struct.pack(">IQI", len(payload), first_index, entry_count)
        checksum = crc32c(payload, crc32c(checked))
        data += format.MARKER + checked + struct.pack(">I", checksum) + payload
    name = packed_name(1) if is_packed else raw_name(1)
    found = read_back(disk({name: pack(b"EXOLOGZ1", 1, data) if is_packed else data}))
    assert found in (None, [])


@pytest.mark.parametrize(
    "payload",
    [
        msgspec.msgpack.encode([entry(2)]),
        msgspec.msgpack.encode([entry(1), entry(2)]),
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        msgspec.msgpack.encode([entry(1)]).replace(b"reason 1", b"reason \xff"),
    ],
)
def test_a_frame_that_does_not_hold_what_it_says_is_refused(payload: bytes) -> None:
    checked = struct.pack(">IQI", len(payload), 1, 1)
    frame = format.MARKER + checked + struct.pack(">I", crc32c(payload, crc32c(checked))) + payload
    assert read_back(disk({raw_name(1): format.encode_header() + frame})) is None


@pytest.mark.timeout(20)
def test_a_damaged_segment_full_of_what_looks_like_frames_takes_no_time() -> None:
    """Each of the million claims a length of megabytes, whose checksum would have to be computed."""
    size_bytes = 4 * 1024 * 1024
    claim = format.MARKER + struct.pack(">I", size_bytes // 2)
    data = format.encode_header() + format.encode_frame([entry(1)]) + claim * (size_bytes // len(claim))
    assert read_back(disk({raw_name(1): data})) is None


def test_a_compressed_file_that_claims_to_be_huge_is_not_unpacked() -> None:
    packed = bytearray(pack(b"EXOLOGZ1", 1, b"x" * 1000))
    struct.pack_into(">Q", packed, 10, 2**60)
    struct.pack_into(">I", packed, 18, crc32c(bytes(packed[22:]), crc32c(bytes(packed[:18]))))
    assert unpack(b"EXOLOGZ1", 1, bytes(packed), "x") is None
