"""One bad check degrades, several in a row fail, several good ones heal: held against a naive reading of the story."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu.failures import Failure
from exo.gpu.health import (
    CheckFailed,
    CheckPassed,
    Evidence,
    FailureSeen,
    HealthPolicy,
    HealthRecord,
    ReadingTaken,
    judge,
)
from exo.gpu.reading import DeviceFault, DeviceReading

WRONG = Failure(kind="wrong_result", message="row 3 of a product was wrong", weight="bad")
LOST = Failure(kind="device_lost", message="it no longer answers", weight="fatal")
MEMORY = Failure(kind="out_of_memory", message="out of memory", weight="none")
UNKNOWN = Failure(kind="unknown", message="the process was killed", weight="suspicious")
POLICY = HealthPolicy(bad_in_a_row_max=3, good_in_a_row_min=2)


def story(*steps: Evidence, policy: HealthPolicy = POLICY) -> HealthRecord:
    record = HealthRecord()
    for step in steps:
        record = judge(record, step, policy)
    return record


def reading(
    *faults: DeviceFault,
    uncorrected: int | None = None,
    corrected: int | None = None,
    is_a_check: bool = False,
) -> ReadingTaken:
    return ReadingTaken(
        DeviceReading(faults=faults, ecc_uncorrected_count=uncorrected, ecc_corrected_count=corrected),
        is_a_check,
    )


def test_one_bad_check_degrades_and_three_in_a_row_fail() -> None:
    bad = CheckFailed(WRONG)
    assert story().health == "healthy"
    once = story(bad)
    assert once.health == "degraded" and once.reason == WRONG.message
    assert story(bad, bad).health == "degraded"
    assert story(bad, bad, bad).health == "failed"
    assert story(bad, bad, CheckPassed(), bad, bad).health == "degraded"


def test_a_lost_device_has_failed_at_once() -> None:
    assert story(FailureSeen(LOST)).health == "failed"
    assert story(CheckFailed(LOST)).health == "failed"


def test_good_checks_in_a_row_heal_and_one_bad_one_begins_anew() -> None:
    bad, good = CheckFailed(WRONG), CheckPassed()
    assert story(bad, good).health == "degraded"
    healed = story(bad, good, good)
    assert healed.health == "healthy" and healed.reason is None
    assert story(bad, good, bad, good).health == "degraded"
    assert story(FailureSeen(LOST), good).health == "failed"
    assert story(FailureSeen(LOST), good, good).health == "healthy"


def test_running_out_of_memory_says_nothing_of_the_device() -> None:
    assert story(*[FailureSeen(MEMORY)] * 9) == HealthRecord()
    assert story(*[CheckFailed(MEMORY)] * 9) == HealthRecord()


def test_an_unknown_end_makes_it_suspected_until_it_is_checked() -> None:
    suspected = story(FailureSeen(UNKNOWN))
    assert suspected.health == "healthy" and suspected.is_suspected
    assert not story(FailureSeen(UNKNOWN), CheckPassed()).is_suspected
    # Whatever the reason: the device was asked for something and did not do it.
    assert story(CheckFailed(UNKNOWN)).health == "degraded"


def test_memory_errors_count_from_the_first_reading_on() -> None:
    assert story(reading(uncorrected=7)).health == "healthy"
    worse = story(reading(uncorrected=7), reading(uncorrected=9))
    assert worse.health == "degraded" and worse.reason == "2 memory errors that could not be corrected"
    assert story(reading(uncorrected=7), reading(), reading(uncorrected=8)).health == "degraded"
    assert story(reading(uncorrected=7), reading(uncorrected=0)).health == "healthy"
    failed = story(*[reading(uncorrected=count) for count in range(4)])
    assert failed.health == "failed"


def test_many_corrected_errors_degrade_and_never_fail() -> None:
    record = story(*[reading(corrected=1000 * count) for count in range(20)])
    assert (
        record.health == "degraded"
        and record.reason is not None
        and "1000 memory errors corrected" in record.reason
    )
    assert story(reading(corrected=0), reading(corrected=POLICY.corrected_errors_max)).health == "healthy"
    assert story(FailureSeen(LOST), reading(corrected=0), reading(corrected=1000)).reason == LOST.message


def test_a_fault_counts_once_and_nothing_heals_while_it_stands() -> None:
    fault = DeviceFault(kind="xid", code=74, message="NVLink", is_fatal=False)
    good = CheckPassed()
    assert story(*[reading(fault)] * 9).health == "degraded"
    assert story(reading(fault), good, good, good, good).health == "degraded"
    assert story(reading(fault), reading(), good, good).health == "healthy"
    assert story(reading(fault), reading(), reading(fault), reading(), reading(fault)).health == "failed"
    fatal = DeviceFault(kind="xid", code=79, message="", is_fatal=True)
    gone = story(reading(fatal))
    assert gone.health == "failed" and gone.reason is not None and "fallen off the bus" in gone.reason
    assert story(reading(fatal), *[good] * 9).health == "failed"


def test_where_nothing_can_be_computed_clean_readings_heal() -> None:
    clean = reading(is_a_check=True)
    assert story(FailureSeen(LOST), clean).health == "failed"
    assert story(FailureSeen(LOST), clean, clean).health == "healthy"
    assert story(FailureSeen(LOST), reading(), reading(), reading()).health == "failed"


STEPS: Sequence[Evidence] = (
    CheckPassed(),
    CheckFailed(WRONG),
    FailureSeen(LOST),
    FailureSeen(MEMORY),
    FailureSeen(UNKNOWN),
    reading(),
)


def naive(steps: Sequence[Evidence], policy: HealthPolicy) -> str:
    """Judge the whole story at its end: what the last bad run made of it, and whether it has healed since."""
    matters = [
        "good" if s == STEPS[0] else "bad" if s == STEPS[1] else "lost" for s in steps if s in STEPS[:3]
    ]
    health = "healthy"
    run: list[str] = []
    for word in matters:
        run = [*run, word] if not run or (run[-1] == "good") == (word == "good") else [word]
        if word == "good":
            if len(run) >= policy.good_in_a_row_min:
                health = "healthy"
        elif word == "lost" or len(run) >= policy.bad_in_a_row_max or health == "failed":
            health = "failed"
        else:
            health = "degraded"
    return health


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(STEPS), max_size=30),
    st.builds(HealthPolicy, bad_in_a_row_max=st.integers(1, 4), good_in_a_row_min=st.integers(1, 4)),
)
def test_failure_detection_agrees_with_a_naive_reading(steps: list[Evidence], policy: HealthPolicy) -> None:
    record = story(*steps, policy=policy)
    assert record.health == naive(steps, policy)
    assert (record.reason is None) == (record.health == "healthy")


@settings(max_examples=200)
@given(st.lists(st.sampled_from(STEPS), max_size=30), st.integers(1, 5), st.integers(1, 5))
def test_from_any_past_enough_bad_fails_and_enough_good_heals(
    past: list[Evidence], bad_max: int, good_min: int
) -> None:
    policy = HealthPolicy(bad_in_a_row_max=bad_max, good_in_a_row_min=good_min)
    failed = story(*past, *[CheckFailed(WRONG)] * bad_max, policy=policy)
    assert failed.health == "failed"
    for passed in range(1, good_min):
        assert (
            story(*past, *[CheckFailed(WRONG)] * bad_max, *[CheckPassed()] * passed, policy=policy).health
            == "failed"
        )
    assert (
        story(*past, *[CheckFailed(WRONG)] * bad_max, *[CheckPassed()] * good_min, policy=policy).health
        == "healthy"
    )


@pytest.mark.parametrize("step", STEPS[3:])
def test_what_says_nothing_changes_no_health(step: Evidence) -> None:
    for past in ([], [CheckFailed(WRONG)], [FailureSeen(LOST)]):
        assert story(*past, step).health == story(*past).health
