"""A device's health and its quarantine as one: what may be done with it, and when it is to be checked. Pure."""

import msgspec
from msgspec.structs import replace

from exo.gpu import quarantine as circuit
from exo.gpu.health import CheckFailed, CheckPassed, Evidence, HealthPolicy, HealthRecord, ReadingTaken, judge
from exo.gpu.quarantine import Quarantine, QuarantinePolicy
from exo.shared.types.devices import Health


class ConditionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How devices are judged and checked; times in seconds."""

    health: HealthPolicy = HealthPolicy()
    quarantine: QuarantinePolicy = QuarantinePolicy()
    check_interval_s: float = 60.0
    """Between checks of a healthy device."""
    recheck_interval_s: float = 5.0
    """Between those of one that is suspected, degraded or on trial."""


class DeviceCondition(msgspec.Struct, frozen=True, kw_only=True):
    """All that is kept of one device."""

    record: HealthRecord = HealthRecord()
    quarantine: Quarantine = Quarantine()
    checked_at_s: float | None = None
    """When the last check ended; None: it was never checked."""

    @property
    def is_usable(self) -> bool:
        """Whether work may be placed on it: it is trusted, if need be degraded."""
        return self.quarantine.until_s is None and self.record.health != "failed"

    @property
    def health(self) -> Health:
        """What to tell others. On trial it counts as failed: nobody is to rely on it."""
        return self.record.health if self.is_usable else "failed"

    def reason(self, policy: ConditionPolicy) -> str | None:
        """Return why it is not healthy, for people. The words change only when something has happened."""
        if self.quarantine.until_s is None:
            return self.record.reason
        reason = self.record.reason or "it failed"
        trips = self.quarantine.trips
        passed, needed = self.record.good_in_a_row, policy.health.good_in_a_row_min
        if passed:
            return f"{reason}; on trial, {passed} of {needed} checks passed"
        out_s = circuit.length_s(trips, policy.quarantine)
        times = "" if trips == 1 else f", for the {_ordinal(trips)} time"
        return f"{reason}; kept out for {out_s:g} s{times}, then tried again"


_POLICY = ConditionPolicy()


def observe(
    condition: DeviceCondition, evidence: Evidence, now_s: float, policy: ConditionPolicy = _POLICY
) -> DeviceCondition:
    """Return the condition with one more observation.

    Args:
        condition: As it was.
        evidence: What was observed.
        now_s: Present time, monotonic.
        policy: How strict to be.
    """
    phase = circuit.phase(condition.quarantine, now_s)
    before = condition.record
    record = judge(before, evidence, policy.health)
    if (
        record is before
        and phase == "closed"
        and before.health != "failed"
        and isinstance(evidence, ReadingTaken)
    ):
        return condition
    checked_at_s = now_s if isinstance(evidence, CheckPassed | CheckFailed) else condition.checked_at_s
    quarantine = condition.quarantine
    if phase == "open":
        # Kept out is kept out: what it does meanwhile is no trial.
        record = replace(record, health="failed", reason=record.reason or before.reason, good_in_a_row=0)
    elif phase == "half_open":
        if record.bad_in_a_row > before.bad_in_a_row or _stays_faulty(record, evidence):
            record = replace(record, health="failed", good_in_a_row=0)
            quarantine = circuit.tripped(quarantine, now_s, policy.quarantine)
        elif record.health == "healthy":
            quarantine = circuit.trusted(quarantine, now_s)
        else:
            record = replace(record, health="failed")
    elif record.health == "failed":
        quarantine = circuit.tripped(quarantine, now_s, policy.quarantine)
    return DeviceCondition(record=record, quarantine=quarantine, checked_at_s=checked_at_s)


def _stays_faulty(record: HealthRecord, evidence: Evidence) -> bool:
    """Say whether a trial is over before it began: the driver still reports that the device has to be reset."""
    return isinstance(evidence, CheckPassed | ReadingTaken) and any(
        fault.weight == "fatal" for fault in record.standing
    )


class Absence(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a device while it is not there.

    Attributes:
        condition: As it was.
        gone_at_s: Since when, monotonic.
        is_counted: It had failed before it went, and its quarantine says so already.
    """

    condition: DeviceCondition
    gone_at_s: float
    is_counted: bool


def left(condition: DeviceCondition, arrived: DeviceCondition, now_s: float) -> Absence:
    """Return what to keep of a device that goes now; `arrived` is how it was when it was first there."""
    quarantine = condition.quarantine
    is_counted = (
        circuit.phase(quarantine, now_s) == "open" and quarantine.until_s != arrived.quarantine.until_s
    )
    return Absence(condition=condition, gone_at_s=now_s, is_counted=is_counted)


def came_back(absence: Absence, now_s: float, policy: ConditionPolicy = _POLICY) -> DeviceCondition:
    """Return the condition of a device that is there again: it is kept out, and longer each time it goes.

    A device whose failure made it go away has failed once, not twice.
    """
    condition = absence.condition
    if absence.is_counted:
        return condition
    quarantine = circuit.returned(condition.quarantine, absence.gone_at_s, now_s, policy.quarantine)
    if quarantine is condition.quarantine:
        return condition
    reason = f"it was gone for {max(0.0, now_s - absence.gone_at_s):.0f} s"
    record = replace(condition.record, health="failed", reason=reason, good_in_a_row=0)
    return replace(condition, record=record, quarantine=quarantine)


def check_due_s(condition: DeviceCondition, policy: ConditionPolicy = _POLICY) -> float:
    """Return the time from which on the device should be checked: minus infinity is at once."""
    last_s = condition.checked_at_s
    if condition.quarantine.until_s is not None:
        trial_s = condition.quarantine.until_s
        return trial_s if last_s is None else max(trial_s, last_s + policy.recheck_interval_s)
    if last_s is None:
        return float("-inf")
    is_well = condition.record.health == "healthy" and not condition.record.is_suspected
    return last_s + (policy.check_interval_s if is_well else policy.recheck_interval_s)


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
