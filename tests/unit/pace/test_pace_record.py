"""What is kept of a device's steps: outliers, changes of the device, stages of several sizes, hops."""

import random

import msgspec
import pytest

from exo.shared.step_reads import StepReads
from exo.shared.types.ids import DeviceId
from exo.shared.types.pace import DevicePace
from exo.worker.pace.fit import Prior
from exo.worker.pace.record import (
    KINDS_MAX,
    NEWEST,
    WINDOWS_MAX,
    PaceRecord,
    noted,
    noted_hops,
    pace_of,
    samples,
)
from exo.worker.runner.steps import StepWindow

PRIOR = Prior(bandwidth_bytes_per_s=10e9)
LAYER_BYTES = 25_000_000
A, B, C = DeviceId("a/cpu:0"), DeviceId("b/cpu:0"), DeviceId("c/cpu:0")


def reads(layers: int, cache_bytes: int = 0) -> StepReads:
    return StepReads(layers=layers, weight_bytes=layers * LAYER_BYTES, cache_bytes=cache_bytes)


def window(step_s: float, *, hop_s: float | None = None, count: int = 10) -> StepWindow:
    return StepWindow(step_count=count, step_s=step_s, position=30.0, hop_s=hop_s, round_count=count)


def told(record: PaceRecord) -> DevicePace:
    pace = pace_of(record, PRIOR, device_id=A, engine="mlx", dtype="float32")
    assert pace is not None
    return pace


def step_s(pace: DevicePace, layers: int) -> float:
    read = layers * LAYER_BYTES
    return pace.step_overhead_s + layers * pace.layer_overhead_s + read / pace.bandwidth_bytes_per_s


def test_nothing_measured_is_no_pace() -> None:
    assert pace_of(PaceRecord(), PRIOR, device_id=A, engine="mlx", dtype="float32") is None


def test_one_size_predicts_another() -> None:
    record = PaceRecord()
    source = random.Random(1)
    for _ in range(12):
        record = noted(record, reads(8), window(0.001 + 8 * 0.006 * source.uniform(0.95, 1.05)))
    for _ in range(12):
        record = noted(record, reads(3), window(0.001 + 3 * 0.006 * source.uniform(0.95, 1.05)))
    pace = told(record)
    assert step_s(pace, 20) == pytest.approx(0.121, rel=0.04)
    assert (pace.reads_min_bytes, pace.reads_max_bytes) == (3 * LAYER_BYTES, 8 * LAYER_BYTES)
    assert pace.measurement_count == 240 and pace.error_percent < 5


def test_seconds_in_which_something_else_had_the_device_do_not_count() -> None:
    record = PaceRecord()
    for number in range(12):
        record = noted(record, reads(8), window(0.5 if number in (3, 7, 8) else 0.05))
    assert samples(record)[0].seconds == pytest.approx(0.05)
    assert step_s(told(record), 8) == pytest.approx(0.05, rel=0.03)


def test_a_device_that_has_changed_for_good_is_learnt_anew() -> None:
    record = PaceRecord()
    for _ in range(WINDOWS_MAX):
        record = noted(record, reads(3), window(0.02))
    for _ in range(WINDOWS_MAX):
        record = noted(record, reads(8), window(0.05))
    for number in range(NEWEST):
        assert step_s(told(record), 8) == pytest.approx(0.05, rel=0.05), number
        record = noted(record, reads(8), window(0.1))
    # What stages of another size took before says nothing of the device as it is now.
    assert [one.layers for one in record.kinds] == [8]
    assert step_s(told(record), 8) == pytest.approx(0.1, rel=0.03)
    assert step_s(told(record), 3) == pytest.approx(0.0375, rel=0.1)


def test_stages_of_long_ago_count_less_than_those_of_today() -> None:
    record = noted(PaceRecord(), reads(8), window(0.05))
    for _ in range(300):
        record = noted(record, reads(4), window(0.05))
    weights = {one.layers: one.weight for one in samples(record)}
    assert weights[8] < 0.05 < weights[4]
    assert step_s(told(record), 4) == pytest.approx(0.05, rel=0.1)


def test_a_cache_that_grows_is_the_same_kind_of_stage_with_more_to_read() -> None:
    record = PaceRecord()
    for number in range(5):
        record = noted(record, reads(8, cache_bytes=number * 1_000_000), window(0.05))
    (one,) = samples(record)
    assert one.read_bytes == 8 * LAYER_BYTES + 2_000_000


def test_windows_that_cannot_be_are_left_out() -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        assert noted(PaceRecord(), reads(8), window(wrong)) == PaceRecord()
    assert noted(PaceRecord(), reads(8), window(0.1, count=0)) == PaceRecord()


def test_a_record_stays_small() -> None:
    record = PaceRecord()
    for layers in range(1, 60):
        for _ in range(20):
            record = noted(record, reads(layers), window(0.005 * layers))
    assert len(record.kinds) == KINDS_MAX
    assert all(len(one.windows) <= WINDOWS_MAX for one in record.kinds)
    assert len(msgspec.json.encode(record)) < 32_000


def test_hops_are_those_of_the_last_ring() -> None:
    record = noted(PaceRecord(), reads(8), window(0.05))
    record = noted_hops(record, (A, B), window(0.05))
    assert told(record).hop_s is None
    for hop_s in (0.001, 0.002, 0.3):
        record = noted_hops(record, (A, B), window(0.05, hop_s=hop_s))
    assert told(record).hop_s == pytest.approx(0.0015)
    assert (told(record).hop_count, told(record).hop_device_ids) == (30, (A, B))
    record = noted_hops(record, (A, C, B), window(0.05, hop_s=0.004))
    assert (told(record).hop_s, told(record).hop_count, told(record).hop_device_ids) == (0.004, 10, (A, C, B))


def test_stages_that_ran_days_ago_count_for_nothing_and_harm_nothing() -> None:
    record = noted(noted(PaceRecord(), reads(3), window(0.02)), reads(8), window(0.05))
    fresh = told(noted(PaceRecord(), reads(8), window(0.05)))
    days_later = msgspec.structs.replace(
        record,
        window_count=500_000,
        kinds=tuple(
            msgspec.structs.replace(one, seen_at=500_000) if one.layers == 8 else one for one in record.kinds
        ),
    )
    assert [one.layers for one in samples(days_later)] == [8]
    assert told(days_later).bandwidth_bytes_per_s == fresh.bandwidth_bytes_per_s
    # One without windows, which only a file that somebody changed has, is none either.
    empty = msgspec.structs.replace(
        record, kinds=tuple(msgspec.structs.replace(one, windows=()) for one in record.kinds)
    )
    assert pace_of(empty, PRIOR, device_id=A, engine="mlx", dtype="float32") is None
