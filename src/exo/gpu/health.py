"""Judges a device healthy, degraded or failed, with the reason, from what is observed of it. Pure.

One bad observation degrades, several in a row fail it, several good ones in a row heal it: a device that is right every
other time is never called healthy. Whether a failed device is looked at again, and when, is `quarantine`'s.
"""

import msgspec
from msgspec.structs import replace

from exo.gpu.failures import Failure, of_fault
from exo.gpu.reading import DeviceReading
from exo.shared.types.devices import Health


class HealthPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How much it takes."""

    bad_in_a_row_max: int = 3
    """With so many the device has failed."""
    good_in_a_row_min: int = 3
    """So many heal it."""
    corrected_errors_max: int = 100
    """Memory errors that were corrected between two readings; more degrade the device, however often it happens."""


class CheckPassed(msgspec.Struct, frozen=True):
    """The device computed something, and the answer was right."""


class CheckFailed(msgspec.Struct, frozen=True):
    """The device was asked to compute something, and the answer was wrong or did not come."""

    failure: Failure


class FailureSeen(msgspec.Struct, frozen=True):
    """Something went wrong while the device was in use."""

    failure: Failure


class ReadingTaken(msgspec.Struct, frozen=True):
    """The device was read.

    Attributes:
        reading: What it said.
        is_a_check: Nothing can be computed on this device: that it answers, and reports no faults, has to do.
    """

    reading: DeviceReading
    is_a_check: bool = False


Evidence = CheckPassed | CheckFailed | FailureSeen | ReadingTaken


class HealthRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a device's health."""

    health: Health = "healthy"
    reason: str | None = None
    """Why it is not healthy; of several reasons the last."""
    bad_in_a_row: int = 0
    good_in_a_row: int = 0
    is_suspected: bool = False
    """Something happened that may have been the device's doing: it should be checked soon."""
    ecc_uncorrected_count: int | None = None
    ecc_corrected_count: int | None = None
    standing: tuple[Failure, ...] = ()
    """The faults that the last reading reported: as long as they stand, nothing heals the device."""


_POLICY = HealthPolicy()


def judge(record: HealthRecord, evidence: Evidence, policy: HealthPolicy = _POLICY) -> HealthRecord:
    """Return what is known of the device with one more observation."""
    match evidence:
        case CheckPassed():
            return _good(replace(record, is_suspected=False), policy)
        case CheckFailed(failure=failure):
            # Whatever went wrong: the device did not compute when it was asked to. Short of memory it could not.
            if failure.weight == "none":
                return replace(record, is_suspected=False)
            weight = "bad" if failure.weight == "suspicious" else failure.weight
            return _weighed(replace(record, is_suspected=False), replace(failure, weight=weight), policy)
        case FailureSeen(failure=failure):
            return _weighed(record, failure, policy)
        case ReadingTaken():
            return _read(record, evidence, policy)


def _read(record: HealthRecord, taken: ReadingTaken, policy: HealthPolicy) -> HealthRecord:
    reading = taken.reading
    if not taken.is_a_check and _says_nothing_new(record, reading):
        return record
    faults = tuple(of_fault(fault) for fault in reading.faults)
    news = [fault for fault in faults if fault not in record.standing]
    uncorrected = _increase(record.ecc_uncorrected_count, reading.ecc_uncorrected_count)
    corrected = _increase(record.ecc_corrected_count, reading.ecc_corrected_count)
    after = replace(
        record,
        standing=faults,
        ecc_uncorrected_count=_latest(reading.ecc_uncorrected_count, record.ecc_uncorrected_count),
        ecc_corrected_count=_latest(reading.ecc_corrected_count, record.ecc_corrected_count),
    )
    if uncorrected:
        message = f"{uncorrected} memory error{'s' if uncorrected > 1 else ''} that could not be corrected"
        news.append(Failure(kind="ecc", message=message, weight="bad"))
    for failure in news:
        after = _weighed(after, failure, policy)
    if corrected > policy.corrected_errors_max and after.health != "failed":
        message = f"{corrected} memory errors corrected since the reading before"
        return replace(after, health="degraded", reason=message, good_in_a_row=0)
    if taken.is_a_check and not news:
        return _good(after, policy)
    return after


def _says_nothing_new(record: HealthRecord, reading: DeviceReading) -> bool:
    """As nearly all readings do."""
    return (
        not reading.faults
        and not record.standing
        and reading.ecc_uncorrected_count in (None, record.ecc_uncorrected_count)
        and reading.ecc_corrected_count in (None, record.ecc_corrected_count)
    )


def _good(record: HealthRecord, policy: HealthPolicy) -> HealthRecord:
    if any(fault.weight in ("fatal", "bad") for fault in record.standing):
        return record
    after = replace(record, good_in_a_row=record.good_in_a_row + 1, bad_in_a_row=0)
    if after.health != "healthy" and after.good_in_a_row >= policy.good_in_a_row_min:
        return replace(after, health="healthy", reason=None)
    return after


def _weighed(record: HealthRecord, failure: Failure, policy: HealthPolicy) -> HealthRecord:
    if failure.weight == "none":
        return record
    if failure.weight == "suspicious":
        return replace(record, is_suspected=True)
    bad = record.bad_in_a_row + 1
    has_failed = failure.weight == "fatal" or bad >= policy.bad_in_a_row_max or record.health == "failed"
    return replace(
        record,
        health="failed" if has_failed else "degraded",
        reason=failure.message,
        bad_in_a_row=bad,
        good_in_a_row=0,
    )


def _increase(before: int | None, now: int | None) -> int:
    """Return how much a counter has grown. One that fell was set back: then nothing is known of the time between."""
    return max(0, now - before) if before is not None and now is not None else 0


def _latest(now: int | None, before: int | None) -> int | None:
    return now if now is not None else before
