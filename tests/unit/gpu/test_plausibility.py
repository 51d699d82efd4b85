"""What a device cannot have measured is dropped, and nothing else."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.plausibility import FAULTS_MAX, PROCESSES_MAX, plausible, plausible_memory
from exo.gpu.reading import DeviceFault, DeviceReading, MemoryInfo, ProcessMemory

GIB = 2**30

GOOD = DeviceReading(
    memory_total_bytes=24 * GIB,
    memory_used_bytes=3 * GIB,
    compute_utilization_percent=100.0,
    temperature_c=83.0,
    throttle_threshold_c=95.0,
    is_thermal_throttling=False,
    throttle_reasons=("power",),
    power_watts=449.7,
    power_limit_watts=450.0,
    clock_mhz=2520.0,
    clock_max_mhz=3105.0,
    battery_percent=0.0,
    is_plugged_in=True,
    ecc_corrected_count=0,
    ecc_uncorrected_count=3,
    energy_joules=2.5e9,
    processes=(ProcessMemory(pid=7, used_bytes=GIB), ProcessMemory(pid=8)),
)


def test_what_can_be_true_stays_as_it_is() -> None:
    for reading in (GOOD, DeviceReading(), DeviceReading(memory_total_bytes=1, memory_used_bytes=1)):
        assert plausible(reading) == (reading, ())
    cold = DeviceReading(temperature_c=-10.0, power_watts=0, clock_mhz=0)
    assert plausible(cold) == (cold, ())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature_c", 255.0),
        ("temperature_c", 127),
        ("temperature_c", -128.0),
        ("temperature_c", math.nan),
        ("temperature_c", "hot"),
        ("throttle_threshold_c", 0.0),
        ("power_watts", -1.0),
        ("power_watts", math.inf),
        ("power_watts", 4_294_967.295),
        ("power_limit_watts", 0.0),
        ("energy_joules", -1.0),
        ("energy_joules", 1.8e16),
        ("compute_utilization_percent", 101.0),
        ("compute_utilization_percent", -0.5),
        ("compute_utilization_percent", True),
        ("battery_percent", 255),
        ("clock_mhz", -1),
        ("clock_max_mhz", 0),
        ("memory_total_bytes", 0),
        ("memory_total_bytes", -5),
        ("memory_used_bytes", -1),
        ("memory_used_bytes", 1.5),
        ("memory_used_bytes", 2**64 - 1),
        ("memory_used_bytes", 25 * GIB),
        ("ecc_corrected_count", -1),
        ("ecc_uncorrected_count", 2**64 - 1),
    ],
)
def test_nonsense_becomes_unknown_and_is_named_once(field: str, value: Any) -> None:
    changed: dict[str, Any] = {field: value}
    kept, complaints = plausible(DeviceReading(**{**_fields(GOOD), **changed}))
    assert getattr(kept, field) is None
    assert [one.field for one in complaints] == [field]
    assert str(value) in complaints[0].text
    for other, good in _fields(GOOD).items():
        if other != field:
            assert getattr(kept, other) == good


def test_without_a_total_any_amount_in_use_may_be_true() -> None:
    reading = DeviceReading(memory_used_bytes=25 * GIB)
    assert plausible(reading) == (reading, ())


def test_processes_are_those_that_hold_most_and_have_sizes_that_fit() -> None:
    many = tuple(ProcessMemory(pid=pid, used_bytes=pid) for pid in range(1, 100))
    odd = (
        ProcessMemory(pid=0, used_bytes=5),
        ProcessMemory(pid=200, used_bytes=2**64 - 1),
        ProcessMemory(pid=201, used_bytes=-1),
    )
    kept, complaints = plausible(DeviceReading(memory_total_bytes=GIB, processes=(*odd, *many)))
    assert complaints == ()
    assert kept.processes == tuple(ProcessMemory(pid=pid, used_bytes=pid) for pid in range(99, 83, -1))
    assert len(kept.processes) == PROCESSES_MAX
    kept, _ = plausible(DeviceReading(memory_total_bytes=GIB, processes=odd))
    assert kept.processes == (ProcessMemory(pid=200), ProcessMemory(pid=201))


def test_the_latest_faults_are_kept() -> None:
    faults = tuple(DeviceFault(kind="xid", code=code, message="", is_fatal=False) for code in range(40))
    kept, _ = plausible(DeviceReading(faults=faults))
    assert kept.faults == faults[-FAULTS_MAX:]


def test_memory_alone_is_judged_alike() -> None:
    assert plausible_memory(MemoryInfo(total_bytes=10, used_bytes=4)) == (
        MemoryInfo(total_bytes=10, used_bytes=4),
        (),
    )
    memory, (complaint,) = plausible_memory(MemoryInfo(total_bytes=10, used_bytes=11))
    assert memory == MemoryInfo(total_bytes=10) and complaint.field == "memory_used_bytes"


@given(
    st.builds(
        DeviceReading,
        memory_total_bytes=st.none() | st.integers(),
        memory_used_bytes=st.none() | st.integers(),
        compute_utilization_percent=st.none() | st.floats(),
        temperature_c=st.none() | st.floats(),
        power_watts=st.none() | st.floats(),
        clock_mhz=st.none() | st.floats(),
        ecc_corrected_count=st.none() | st.integers(),
    )
)
def test_what_is_left_is_plausible(reading: DeviceReading) -> None:
    kept, complaints = plausible(reading)
    assert plausible(kept) == (kept, ())
    changed = {field for field, value in _fields(reading).items() if value != getattr(kept, field)}
    assert changed == {one.field for one in complaints}
    if kept.memory_used_bytes is not None and kept.memory_total_bytes is not None:
        assert 0 <= kept.memory_used_bytes <= kept.memory_total_bytes


def _fields(reading: DeviceReading) -> dict[str, Any]:
    return {field: getattr(reading, field) for field in reading.__struct_fields__}
