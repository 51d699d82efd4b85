"""From transfers to figures, and which way is next: pure, held against links that are known."""

import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.shared.types.ids import DeviceId, NodeId
from exo.worker.bandwidth.estimate import (
    Sample,
    TransferLimits,
    estimate,
    next_size_bytes,
    without_outliers,
)
from exo.worker.bandwidth.planner import DeviceWay, NodeWay, Pace, Tried, Way, choose, due_s, noted

LIMITS = TransferLimits()
PACE = Pace(refresh_s=1000, jitter=0.2, spacing_s=10, retry_first_s=15, retry_max_s=100, settle_s=1)
B, C = NodeWay(NodeId("b")), NodeWay(NodeId("c"))


def test_a_link_in_figures() -> None:
    samples = [Sample(1_000_000, 0.1)] * 5
    found = estimate(samples, [0.004] * 7)
    assert found is not None
    assert (found.bandwidth_mbps, found.latency_ms, found.measurement_count) == (80.0, 2.0, 5)
    assert found.outlier_count == 0


def test_one_that_stalled_does_not_count() -> None:
    rates = [0.1, 0.101, 0.099, 0.1, 0.9]
    found = estimate([Sample(1_000_000, duration) for duration in rates], [0.002, 0.002, 0.0021, 0.4])
    assert found is not None
    assert (found.measurement_count, found.outlier_count) == (4, 1)
    assert found.bandwidth_mbps == pytest.approx(80, rel=0.02)
    assert found.latency_ms == pytest.approx(1.0)


def test_what_took_no_time_says_nothing() -> None:
    assert estimate([Sample(10, 0.0)], [0.1]) is None
    assert estimate([Sample(0, 1.0)], [0.1]) is None
    assert estimate([Sample(10, -1.0)], [0.1]) is None
    assert estimate([], [0.1]) is None
    assert estimate([Sample(10, 1.0)], []) is None


@settings(max_examples=200)
@given(
    st.lists(st.floats(0.9, 1.1), min_size=5, max_size=9),
    st.lists(st.one_of(st.floats(20, 1e3), st.floats(0.001, 0.05)), max_size=2),
)
def test_up_to_two_odd_values_of_seven_change_nothing_much(good: list[float], odd: list[float]) -> None:
    kept = without_outliers(good + odd)
    assert 0.85 <= median(kept) <= 1.15
    assert set(kept) <= set(good + odd)


@given(st.lists(st.floats(0, 1e9), max_size=20))
def test_more_than_half_are_always_kept(values: list[float]) -> None:
    assert 2 * len(without_outliers(values)) >= len(values)


@settings(max_examples=200)
@given(st.floats(1e3, 1e11), st.floats(0, 0.3), st.integers(0, 2**32))
def test_transfers_grow_until_they_take_long_enough_and_say_what_the_link_is(
    bytes_per_s: float, latency_s: float, seed: int
) -> None:
    """Over links from a modem to the inside of a machine, with noise."""
    source = random.Random(seed)

    def send(size_bytes: int) -> Sample:
        return Sample(size_bytes, size_bytes / bytes_per_s * source.uniform(0.97, 1.03))

    size_bytes, sent_bytes, steps = LIMITS.first_bytes, 0, 0
    while True:
        sample = send(size_bytes)
        sent_bytes += size_bytes
        steps += 1
        larger_bytes = next_size_bytes(size_bytes, sample, LIMITS)
        if larger_bytes is None:
            break
        assert size_bytes < larger_bytes <= LIMITS.bytes_max
        size_bytes = larger_bytes
    assert steps < 12
    assert sent_bytes <= 2 * LIMITS.bytes_max
    assert size_bytes == LIMITS.bytes_max or sample.duration_s >= LIMITS.wanted_s
    # No longer than it has to be: on a slow link the first one may be too long already.
    assert size_bytes == LIMITS.first_bytes or sample.duration_s < 8 * LIMITS.wanted_s
    found = estimate([send(size_bytes) for _ in range(5)], [2 * latency_s + 1e-6] * 7)
    assert found is not None
    assert found.bandwidth_mbps == pytest.approx(bytes_per_s * 8 / 1e6, rel=0.04)
    assert found.latency_ms == pytest.approx(latency_s * 1000, abs=0.01)


# --- which is next ---------------------------------------------------------------------------------------------------


def test_what_was_never_measured_comes_first_then_the_oldest() -> None:
    assert choose([], {}, last_s=None, pace=PACE) is None
    ways: list[Way] = [C, B]
    first = choose(ways, {}, last_s=None, pace=PACE)
    assert first is not None and first.way == B and first.at_s == float("-inf")
    second = choose(ways, {B: Tried(at_s=5)}, last_s=5, pace=PACE)
    assert second is not None and second.way == C and second.at_s == 15
    third = choose(ways, {B: Tried(at_s=5), C: Tried(at_s=20)}, last_s=20, pace=PACE)
    assert third is not None and third.way == B and third.at_s == 1005


def test_ways_between_devices_and_to_nodes_take_turns() -> None:
    devices: list[Way] = [
        DeviceWay(DeviceId(f"z/cuda:{one}"), DeviceId(f"z/cuda:{other}")) for one, other in ((0, 1), (1, 0))
    ]
    history: dict[Way, Tried] = {}
    for number in range(4):
        found = choose([B, C, *devices], history, last_s=None, pace=PACE)
        assert found is not None
        history[found.way] = Tried(at_s=number)
    assert list(history) == [devices[0], B, devices[1], C]


def test_a_way_that_fails_is_tried_less_and_less_often() -> None:
    tried: Tried | None = None
    waits: list[float] = []
    for _ in range(6):
        tried = noted(tried, at_s=0, has_failed=True, random=lambda: 0.5)
        waits.append(due_s(tried, PACE))
    assert waits == [15, 30, 60, 100, 100, 100]
    assert due_s(noted(tried, at_s=0, has_failed=False, random=lambda: 0.5), PACE) == 1000


def test_the_next_time_lies_within_the_jitter() -> None:
    times = [
        due_s(noted(None, at_s=0, has_failed=False, random=lambda part=part: part), PACE)
        for part in (0, 0.5, 1)
    ]
    assert times == [800, 1000, 1200]


@settings(max_examples=100)
@given(st.integers(1, 12), st.integers(0, 2**32), st.floats(0, 0.6))
def test_every_way_gets_its_turn_and_never_two_at_once(count: int, seed: int, failing: float) -> None:
    """A naive run of the plan: no way waits for ever, and there is always the time in between that was asked for."""
    source = random.Random(seed)
    ways: list[Way] = [NodeWay(NodeId(f"n{number}")) for number in range(count)]
    history: dict[Way, Tried] = {}
    last_s: float | None = None
    now_s, measured = 0.0, dict.fromkeys(ways, 0)
    while now_s < 20_000:
        planned = choose(ways, history, last_s=last_s, pace=PACE)
        assert planned is not None
        assert last_s is None or planned.at_s >= last_s + PACE.spacing_s
        now_s = max(now_s, planned.at_s) + 1
        has_failed = source.random() < failing
        measured[planned.way] += not has_failed
        history[planned.way] = noted(
            history.get(planned.way), at_s=now_s, has_failed=has_failed, random=source.random
        )
        last_s = now_s
    assert min(measured.values()) >= 10
    # A way is not measured more often than asked for: after each success it waits at least 0.8 of the time.
    assert max(measured.values()) <= 20_000 / 800 + 1
