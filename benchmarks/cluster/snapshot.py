"""A snapshot of 1,000 nodes of 8 GPUs: encoded, decoded, and what the state takes in memory."""

import statistics
import time
import tracemalloc

from benchmarks.cluster import large
from benchmarks.cluster.measuring import Sheet
from benchmarks.results import Result
from exo.cluster.wire import SnapshotPart, decode_from_listener, decode_snapshot, encode_snapshot
from exo.shared.types.state import State


def run(*, quick: bool) -> list[Result]:
    """The worst of several rounds: a node stands still meanwhile."""
    sheet = Sheet()
    state = large.measured()
    encoding_s: list[float] = []
    decoding_s: list[float] = []
    parts: list[bytes] = []
    for _ in range(3 if quick else 15):
        started_s = time.perf_counter()
        parts = encode_snapshot(state)
        encoded_s = time.perf_counter()
        decoded = _decode(parts)
        decoding_s.append(time.perf_counter() - encoded_s)
        encoding_s.append(encoded_s - started_s)
        assert decoded == state
        del decoded
    sheet.add("snapshot: encode, worst", max(encoding_s), "s", at_most=1)
    sheet.add("snapshot: encode, median", statistics.median(encoding_s), "s")
    sheet.add("snapshot: decode, worst", max(decoding_s), "s", at_most=1)
    sheet.add("snapshot: size", sum(map(len, parts)) / 1e6, "MB")
    tracemalloc.start()
    before_bytes = tracemalloc.get_traced_memory()[0]
    decoded = _decode(parts)
    state_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    tracemalloc.stop()
    assert decoded == state
    sheet.add("state in memory", state_bytes / 1e6, "MB", at_most=50)
    return sheet.results


def _decode(parts: list[bytes]) -> State:
    """Take the messages in, as a newcomer does."""
    data = bytearray()
    for part in parts:
        message = decode_from_listener(part)
        assert isinstance(message, SnapshotPart)
        data += message.data
    return decode_snapshot(bytes(data))
