"""What is kept of a device's decoding steps, for one engine and one type of weights, and what follows from it. Pure.

Of each kind of stage (so many layers, so many bytes) the last windows are kept, and the mean of those that belong
together counts: a second in which something else had the device says nothing. Where the windows of a kind of stage
have moved for good, the device is no longer what it was, and all that was known before is forgotten.
"""

from collections.abc import Sequence
from statistics import median

import msgspec
from msgspec.structs import replace

from exo.shared.step_reads import StepReads
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId
from exo.shared.types.pace import DevicePace
from exo.worker.pace.fit import Prior, Sample, fit
from exo.worker.runner.steps import StepWindow, usual_mean

WINDOWS_MAX = 16
KINDS_MAX = 16
RINGS_MAX = 16
"""Windows of hops that are kept."""
CHANGED_SHARE = 0.2
"""When the newest windows are this far from those before, the device has changed."""
NEWEST = 4
HALF_LIFE_WINDOWS = 60
"""Of a kind of stage that runs no more: after so many windows of others it counts half."""
WEIGHT_LEAST = 1e-6
"""What a kind of stage counts less than counts for nothing."""
_BYTES_APART = 0.01
"""Stages whose reads differ less are of one kind."""


class Window(msgspec.Struct, frozen=True):
    """One report of a stage."""

    step_s: float
    read_bytes: int
    step_count: int


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """Stages of one size."""

    layers: float
    weight_bytes: int
    windows: tuple[Window, ...] = ()
    seen_at: int = 0
    """The record's count of windows when this kind was last seen."""


class PaceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is kept; small enough for a file."""

    kinds: tuple[Kind, ...] = ()
    window_count: int = 0
    used_by_others_percent: float | None = None
    """What others used of the device when its stages were idle."""
    hop_windows: tuple[tuple[float, int], ...] = ()
    """(seconds of a hop, rounds) in the ring that a stage on this device began last."""
    hop_device_ids: tuple[DeviceId, ...] = ()


def noted(record: PaceRecord, reads: StepReads, window: StepWindow) -> PaceRecord:
    """Return the record with another window of a stage that reads so much in a step."""
    if window.step_count < 1 or not 0 < window.step_s < float("inf"):
        return record
    count = record.window_count + 1
    known = next(
        (one for one in record.kinds if _is_of(one, reads)),
        Kind(layers=reads.layers, weight_bytes=reads.weight_bytes),
    )
    others = tuple(one for one in record.kinds if one is not known)
    windows = (*known.windows, Window(window.step_s, reads.total_bytes, window.step_count))[-WINDOWS_MAX:]
    if _has_changed(windows):
        windows, others = windows[-NEWEST:], ()
    kind = replace(known, windows=windows, seen_at=count)
    return replace(record, kinds=(*others, kind)[-KINDS_MAX:], window_count=count)


def noted_hops(record: PaceRecord, ring: tuple[DeviceId, ...], window: StepWindow) -> PaceRecord:
    """Return the record with another window of the ring that a stage on this device begins."""
    if window.hop_s is None:
        return record
    before = record.hop_windows if record.hop_device_ids == ring else ()
    windows = (*before, (window.hop_s, window.round_count))[-RINGS_MAX:]
    return replace(record, hop_windows=windows, hop_device_ids=ring)


def samples(record: PaceRecord) -> list[Sample]:
    """Return what the record says of each kind of stage."""
    found: list[Sample] = []
    for kind in record.kinds:
        # A weight that is too small for a number is no weight.
        age = record.window_count - kind.seen_at
        weight = len(kind.windows) * 0.5 ** (age / HALF_LIFE_WINDOWS)
        if weight < WEIGHT_LEAST:
            continue
        found.append(
            Sample(
                layers=kind.layers,
                read_bytes=sum(one.read_bytes for one in kind.windows) / len(kind.windows),
                seconds=usual_mean(
                    [one.step_s for one in kind.windows], [one.step_count for one in kind.windows]
                ),
                weight=weight,
            )
        )
    return found


def pace_of(
    record: PaceRecord, prior: Prior, *, device_id: DeviceId, engine: str, dtype: str
) -> DevicePace | None:
    """Return what the record says of the device; None where nothing was measured."""
    measured = samples(record)
    if not measured:
        return None
    found = fit(measured, prior)
    hops = record.hop_windows
    return DevicePace(
        device_id=device_id,
        engine=engine,
        dtype=dtype,
        step_overhead_s=found.step_overhead_s,
        layer_overhead_s=found.layer_overhead_s,
        bandwidth_bytes_per_s=1.0 / found.byte_s,
        reads_min_bytes=int(min(one.read_bytes for one in measured)),
        reads_max_bytes=int(max(one.read_bytes for one in measured)),
        measurement_count=sum(one.step_count for kind in record.kinds for one in kind.windows),
        error_percent=found.error * 100,
        used_by_others_percent=record.used_by_others_percent,
        hop_s=usual_mean([seconds for seconds, _ in hops]) if hops else None,
        hop_count=sum(count for _, count in hops),
        hop_device_ids=record.hop_device_ids,
    )


def hardware_of(device: GPUDevice) -> tuple[str, ...]:
    """Return what makes a device another one when it changes: what was measured before says nothing then."""
    return (
        device.name,
        device.uuid or "",
        device.driver_version or "",
        str(device.memory_total_bytes),
    )


def _is_of(kind: Kind, reads: StepReads) -> bool:
    return (
        abs(kind.layers - reads.layers) <= _BYTES_APART * kind.layers
        and abs(kind.weight_bytes - reads.weight_bytes) <= _BYTES_APART * kind.weight_bytes
    )


def _has_changed(windows: Sequence[Window]) -> bool:
    """Say whether the newest windows have all moved to the same side of what was usual before."""
    if len(windows) < 2 * NEWEST:
        return False
    before = median(one.step_s for one in windows[:-NEWEST])
    newest = [one.step_s for one in windows[-NEWEST:]]
    return min(newest) > before * (1 + CHANGED_SHARE) or max(newest) < before / (1 + CHANGED_SHARE)
