"""A device that failed stays out, longer each time, and has to earn its trust; one that flaps does not get it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from exo.gpu import quarantine as circuit
from exo.gpu.condition import ConditionPolicy, DeviceCondition, check_due_s, observe
from exo.gpu.failures import Failure
from exo.gpu.health import CheckFailed, CheckPassed, Evidence, FailureSeen, HealthPolicy, ReadingTaken
from exo.gpu.quarantine import Quarantine, QuarantinePolicy, length_s, phase, remembered, tripped, trusted
from exo.gpu.reading import DeviceFault, DeviceReading

TIMES = QuarantinePolicy(first_s=10.0, growth=2.0, longest_s=100.0, forgiven_after_s=50.0)
POLICY = ConditionPolicy(
    health=HealthPolicy(bad_in_a_row_max=2, good_in_a_row_min=2),
    quarantine=TIMES,
    check_interval_s=60.0,
    recheck_interval_s=5.0,
)
LOST = FailureSeen(Failure(kind="device_lost", message="it no longer answers", weight="fatal"))
WRONG = CheckFailed(Failure(kind="wrong_result", message="a product was wrong", weight="bad"))
GOOD = CheckPassed()


def test_each_time_it_stays_out_for_longer_up_to_a_limit() -> None:
    assert [length_s(trips, TIMES) for trips in range(1, 7)] == [10, 20, 40, 80, 100, 100]
    assert length_s(10_000_000, TIMES) == 100


def test_closed_open_half_open_closed() -> None:
    kept = tripped(Quarantine(), 100.0, TIMES)
    assert phase(Quarantine(), 0.0) == "closed"
    assert phase(kept, 109.9) == "open" and phase(kept, 110.0) == "half_open"
    assert tripped(kept, 105.0, TIMES) == kept
    assert trusted(kept, 105.0) == kept
    again = tripped(kept, 112.0, TIMES)
    assert again.trips == 2 and again.until_s == 132.0
    assert phase(trusted(again, 140.0), 140.0) == "closed"


def test_trust_makes_up_for_failures_slowly() -> None:
    back = trusted(tripped(tripped(Quarantine(), 0.0, TIMES), 10.0, TIMES), 30.0)
    assert remembered(back, 79.0, TIMES) == 2
    assert remembered(back, 80.0, TIMES) == 1
    assert remembered(back, 1e9, TIMES) == 0
    assert tripped(back, 31.0, TIMES).trips == 3
    assert tripped(back, 1e9, TIMES).trips == 1


def after(*steps: tuple[float, Evidence], start: DeviceCondition | None = None) -> DeviceCondition:
    condition = start or DeviceCondition()
    for now_s, evidence in steps:
        condition = observe(condition, evidence, now_s, POLICY)
    return condition


def test_a_lost_device_is_kept_out_and_tried_again() -> None:
    lost = after((0.0, LOST))
    assert not lost.is_usable and lost.health == "failed"
    assert lost.reason(POLICY) == "it no longer answers; kept out for 10 s, then tried again"
    assert check_due_s(lost, POLICY) == 10.0
    # What it does while it is kept out is no trial.
    early = after((1.0, GOOD), (2.0, GOOD), (3.0, GOOD), start=lost)
    assert not early.is_usable and early.reason(POLICY) == lost.reason(POLICY)
    once = after((10.0, GOOD), start=lost)
    assert once.health == "failed" and check_due_s(once, POLICY) == 15.0
    assert once.reason(POLICY) == "it no longer answers; on trial, 1 of 2 checks passed"
    back = after((15.0, GOOD), start=once)
    assert back.is_usable and back.health == "healthy" and back.reason(POLICY) is None


def test_one_bad_check_on_trial_is_enough() -> None:
    again = after((0.0, LOST), (10.0, GOOD), (15.0, WRONG))
    assert not again.is_usable
    assert again.quarantine.until_s == 35.0
    assert (
        again.reason(POLICY) == "a product was wrong; kept out for 20 s, for the 2nd time, then tried again"
    )


def test_a_fault_that_stands_ends_the_trial() -> None:
    fault = DeviceFault(kind="xid", code=79, message="", is_fatal=True)
    faulty = ReadingTaken(DeviceReading(faults=(fault,)))
    stands = after((0.0, faulty), (10.0, GOOD))
    assert phase(stands.quarantine, 10.0) == "open" and stands.quarantine.trips == 2
    stands = after((0.0, faulty), (10.0, faulty))
    assert phase(stands.quarantine, 10.0) == "open" and stands.quarantine.trips == 2
    clean = ReadingTaken(DeviceReading())
    assert after((0.0, faulty), (9.0, clean), (10.0, GOOD), (15.0, GOOD)).is_usable


def test_bad_checks_in_a_row_fail_it_and_a_degraded_device_can_be_used() -> None:
    degraded = after((0.0, WRONG))
    assert degraded.health == "degraded" and degraded.is_usable
    assert degraded.reason(POLICY) == "a product was wrong"
    assert check_due_s(degraded, POLICY) == 5.0
    assert not after((5.0, WRONG), start=degraded).is_usable


def test_when_checks_are_due() -> None:
    assert check_due_s(DeviceCondition(), POLICY) == float("-inf")
    well = after((7.0, GOOD))
    assert check_due_s(well, POLICY) == 67.0
    killed = FailureSeen(Failure(kind="unknown", message="killed", weight="suspicious"))
    assert check_due_s(after((9.0, killed), start=well), POLICY) == 12.0
    assert check_due_s(after((9.0, killed), (12.0, GOOD), start=well), POLICY) == 72.0


def test_a_device_that_flaps_is_out_most_of_the_time() -> None:
    """It passes every trial and fails as soon as it is trusted, for as long as the story goes on."""
    condition, now_s, out_s = DeviceCondition(), 0.0, 0.0
    while now_s < 3000.0:
        if condition.is_usable:
            condition = observe(condition, LOST, now_s, POLICY)
            now_s += 1.0
        else:
            due_s = max(now_s, check_due_s(condition, POLICY))
            out_s += due_s - now_s
            now_s = due_s
            condition = observe(condition, GOOD, now_s, POLICY)
    assert condition.quarantine.trips > 20
    assert out_s / now_s > 0.95


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 40.0), st.sampled_from((LOST, WRONG, GOOD, ReadingTaken(DeviceReading())))),
        max_size=40,
    )
)
def test_in_every_story_quarantine_and_health_agree(steps: list[tuple[float, Evidence]]) -> None:
    condition, now_s, until_s = DeviceCondition(), 0.0, 0.0
    for wait_s, evidence in steps:
        now_s += wait_s
        before = condition
        condition = observe(condition, evidence, now_s, POLICY)
        if circuit.phase(before.quarantine, now_s) == "open":
            assert condition.quarantine == before.quarantine and not condition.is_usable
        if not before.is_usable and condition.is_usable:
            assert now_s >= until_s and evidence == GOOD and condition.record.good_in_a_row >= 2
        if condition.quarantine.until_s is not None:
            until_s = condition.quarantine.until_s
            assert condition.record.health == "failed" and condition.reason(POLICY)
        assert condition.is_usable == (condition.health != "failed")
        assert (condition.reason(POLICY) is None) == (condition.health == "healthy")


XID = DeviceFault(kind="xid", code=13, message="an exception of a program", is_fatal=False)
UNKNOWN = FailureSeen(Failure(kind="unknown", message="the process was killed", weight="suspicious"))
MEMORY = CheckFailed(Failure(kind="out_of_memory", message="out of memory", weight="none"))
BAD: tuple[Evidence, ...] = (
    WRONG,
    FailureSeen(Failure(kind="hang", message="it hung", weight="bad")),
    CheckFailed(Failure(kind="unknown", message="the check ended oddly", weight="suspicious")),
)
NEUTRAL: tuple[Evidence, ...] = (UNKNOWN, MEMORY, ReadingTaken(DeviceReading()))


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.floats(0.0, 40.0), st.sampled_from((*BAD, *NEUTRAL, GOOD))), max_size=40),
    st.integers(1, 5),
    st.sampled_from(BAD),
)
def test_failure_detection_takes_so_many_in_a_row_and_never_fewer(
    story: list[tuple[float, Evidence]], bad_max: int, last: Evidence
) -> None:
    """As long as it was trusted, it fails with the N-th failure in a row, exactly then, whatever came before."""
    policy = ConditionPolicy(health=HealthPolicy(bad_in_a_row_max=bad_max), quarantine=TIMES)
    condition, now_s, in_a_row = DeviceCondition(), 0.0, 0
    for wait_s, evidence in story:
        now_s += wait_s
        was_usable = condition.is_usable
        condition = observe(condition, evidence, now_s, policy)
        in_a_row = in_a_row + 1 if evidence in BAD else 0 if evidence is GOOD else in_a_row
        if was_usable:
            assert (condition.health == "failed") == (in_a_row >= bad_max)
    for _ in range(bad_max):
        condition = observe(condition, last, now_s, policy)
    assert condition.health == "failed" and not condition.is_usable


def test_one_fatal_failure_is_enough_and_programs_errors_are_none() -> None:
    assert after((0.0, LOST)).health == "failed"
    assert after(*[(0.0, ReadingTaken(DeviceReading(faults=(XID,))))] * 9).health != "failed"
