"""What is told of a device, what counts as a change, and the host's sum."""

from typing import Any

import pytest
from msgspec.structs import replace

from exo.gpu.reading import DeviceFault, DeviceReading, ProcessMemory
from exo.shared.types.devices import DeviceGPUState, ThermalStatus
from exo.shared.types.ids import DeviceId, NodeId
from exo.worker.device_states import (
    HostReading,
    Thresholds,
    has_changed,
    node_profile,
    profile_changed,
    state_of,
)
from support.states import GIB, cpu, gpu

DEVICE = gpu("n", 8 * GIB)
HOST = HostReading(ram_total=100 * GIB, ram_available=25 * GIB, swap_total=GIB, swap_available=GIB)
READING = DeviceReading(
    memory_total_bytes=7 * GIB,
    memory_used_bytes=GIB,
    compute_utilization_percent=50.0,
    temperature_c=60.0,
    throttle_threshold_c=90.0,
    is_thermal_throttling=False,
    throttle_reasons=("power",),
    power_watts=100.0,
    power_limit_watts=300.0,
    clock_mhz=1500.0,
    clock_max_mhz=2000.0,
    battery_percent=80.0,
    is_plugged_in=True,
    ecc_corrected_count=1,
    ecc_uncorrected_count=0,
    faults=(DeviceFault(kind="xid", code=13, message="m", is_fatal=False),),
    processes=(ProcessMemory(pid=5, used_bytes=GIB),),
    is_memory_pressed=False,
    energy_joules=3e6,
)


THERMAL = ThermalStatus(
    state="slowed",
    reason="Slowed to 80% at 60 C.",
    work_fraction=0.8,
    limit_c=90.0,
    predicted_temperature_c=80.0,
    prediction_error_c=2.0,
    sustained_fraction=0.7,
    is_calibrated=True,
    power_source="measured",
)


def state(**changes: Any) -> DeviceGPUState:
    made = state_of(DEVICE, NodeId("n"), READING, health=("healthy", None), now="then", thermal=THERMAL)
    return replace(made, **changes)


def test_everything_that_a_device_says_is_told() -> None:
    told = state()
    names = {"temperature_c": "thermal_temperature_c", "throttle_threshold_c": "thermal_throttle_threshold_c"}
    for field in READING.__struct_fields__:
        assert getattr(told, names.get(field, field)) == getattr(READING, field)
    assert (told.device_id, told.node_id, told.last_update) == ("n/cuda:0", "n", "then")
    assert told.thermal == THERMAL


def test_what_does_not_answer_has_no_values_but_its_size_and_its_health() -> None:
    told = state_of(DEVICE, NodeId("n"), None, health=("failed", "GPU is lost"), now="then")
    assert (told.health, told.health_reason, told.memory_total_bytes) == ("failed", "GPU is lost", 8 * GIB)
    silent = DeviceGPUState(
        device_id=DEVICE.device_id,
        node_id=NodeId("n"),
        memory_total_bytes=8 * GIB,
        health="failed",
        health_reason="GPU is lost",
        last_update="then",
    )
    assert told == silent


@pytest.mark.parametrize(
    "change",
    [
        {"memory_used_bytes": GIB + 64 * 2**20},
        {"compute_utilization_percent": 45.0},
        {"thermal_temperature_c": 61.0},
        {"power_watts": 105.0},
        {"power_watts": None},
        {"battery_percent": 79.0},
        {"memory_total_bytes": 6 * GIB},
        {"is_thermal_throttling": True},
        {"throttle_reasons": ("power", "thermal")},
        {"throttle_reasons": None},
        {"power_limit_watts": 250.0},
        {"is_plugged_in": False},
        {"health": "degraded"},
        {"health_reason": "so"},
        {"ecc_corrected_count": 2},
        {"ecc_uncorrected_count": 1},
        {"faults": ()},
        {"is_memory_pressed": True},
        {"processes": None},
        {"processes": ()},
        {"processes": (ProcessMemory(pid=6, used_bytes=GIB),)},
        {"processes": (ProcessMemory(pid=5, used_bytes=2 * GIB),)},
        {"processes": (ProcessMemory(pid=5),)},
        {"thermal": None},
        {"thermal": replace(THERMAL, state="paused")},
        {"thermal": replace(THERMAL, limit_c=85.0)},
        {"thermal": replace(THERMAL, work_fraction=0.75)},
        {"thermal": replace(THERMAL, sustained_fraction=None)},
        {"thermal": replace(THERMAL, predicted_temperature_c=83.0)},
        {"thermal": replace(THERMAL, prediction_error_c=2.5)},
        {"thermal": replace(THERMAL, is_calibrated=False)},
        {"thermal_throttle_threshold_c": 70.0},
        {"clock_max_mhz": 900.0},
    ],
)
def test_a_change_is_told(change: dict[str, Any]) -> None:
    assert has_changed(state(), state(**change), Thresholds())
    assert has_changed(state(**change), state(), Thresholds())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"last_update": "now"},
        {"memory_used_bytes": GIB + 64 * 2**20 - 1},
        {"compute_utilization_percent": 54.9},
        {"thermal_temperature_c": 60.9},
        {"power_watts": 95.1},
        {"clock_mhz": 300.0},
        {"energy_joules": 4e6},
        {"processes": (ProcessMemory(pid=5, used_bytes=GIB + 1000),)},
        {"thermal": replace(THERMAL, reason="Slowed to 79% at 61 C.", work_fraction=0.79)},
        {"thermal": replace(THERMAL, predicted_temperature_c=81.0, prediction_error_c=2.2)},
    ],
)
def test_a_trembling_is_not(change: dict[str, Any]) -> None:
    assert not has_changed(state(), state(**change), Thresholds())


def test_vram_and_ram_are_kept_apart_and_the_processor_is_no_gpu() -> None:
    processor = cpu("n", 64 * GIB)
    cpu_state = replace(state(), device_id=processor.device_id, compute_utilization_percent=10.0)
    gpu_state = replace(state(), memory_total_bytes=8 * GIB)
    profile = node_profile([(processor, cpu_state), (DEVICE, gpu_state)], HOST)
    assert (profile.memory.gpu_vram_total, profile.memory.gpu_vram_used) == (8 * GIB, GIB)
    assert profile.memory.gpu_vram_available == 7 * GIB
    assert (profile.memory.ram_total, profile.memory.swap_available) == (100 * GIB, GIB)
    assert (profile.system.gpu_count, profile.system.gpu_names) == (1, ("Test GPU",))
    assert (profile.system.pcpu_usage, profile.system.gpu_usage) == (10.0, 50.0)
    assert (profile.system.gpu_power_watts, profile.system.temp) == (100.0, 60.0)
    assert profile.system.utilization_memory_percent == 75.0
    unified = replace(DEVICE, memory_kind="unified")
    assert node_profile([(unified, gpu_state)], HOST).memory.gpu_vram_total == 0


def test_a_sum_of_which_a_part_is_unknown_is_unknown() -> None:
    other = replace(DEVICE, device_id=DeviceId("n/cuda:1"), local_alias="cuda:1")
    silent = replace(state(), device_id=other.device_id, memory_used_bytes=None, power_watts=None)
    profile = node_profile([(DEVICE, state()), (other, silent)], HOST)
    assert profile.memory.gpu_vram_total == DEVICE.memory_total_bytes + other.memory_total_bytes
    assert profile.memory.gpu_vram_used is None and profile.memory.gpu_vram_available is None
    assert profile.system.sys_power is None
    assert node_profile([(DEVICE, state()), (other, None)], HOST).memory.gpu_vram_used is None


def test_what_the_machine_draws_is_what_it_counts_itself_else_its_parts_together() -> None:
    processor = cpu("n", 64 * GIB)
    cpu_state = replace(state(), device_id=processor.device_id, power_watts=35.0)
    both = [(processor, cpu_state), (DEVICE, state(power_watts=100.0))]
    assert node_profile(both, HOST).system.sys_power == 135.0
    assert node_profile(both, replace(HOST, power_watts=210.0)).system.sys_power == 210.0
    untold = [(processor, replace(cpu_state, power_watts=None)), (DEVICE, state(power_watts=100.0))]
    assert node_profile(untold, HOST).system.sys_power is None


def test_efficiency_cores_are_told_apart_where_there_are_some() -> None:
    processor = cpu("n", 64 * GIB)
    told = [(processor, replace(state(), device_id=processor.device_id, compute_utilization_percent=30.0))]
    alike = node_profile(told, HOST).system
    assert (alike.pcpu_usage, alike.ecpu_usage) == (30.0, None)
    two_kinds = replace(HOST, efficiency_cores_percent=80.0, performance_cores_percent=5.0)
    apart = node_profile(told, two_kinds).system
    assert (apart.pcpu_usage, apart.ecpu_usage) == (5.0, 80.0)


def test_a_host_without_devices_has_no_made_up_numbers() -> None:
    system = node_profile([], HOST).system
    assert (system.gpu_usage, system.temp, system.pcpu_usage, system.gpu_power_watts) == (None,) * 4
    assert system.gpu_count == 0


def test_a_host_is_told_when_its_sum_changes() -> None:
    before = node_profile([(DEVICE, state())], HOST)
    assert not profile_changed(before, before, Thresholds())
    others = (
        node_profile([], HOST),
        node_profile([(DEVICE, state())], replace(HOST, ram_available=24 * GIB)),
        node_profile([(DEVICE, state(memory_used_bytes=2 * GIB))], HOST),
        node_profile([(DEVICE, state()), (cpu("n", GIB), state())], HOST),
    )
    for other in others:
        assert profile_changed(before, other, Thresholds())


@pytest.mark.parametrize(
    ("memory", "system"),
    [
        ({"ram_total": 90 * GIB}, {}),
        ({"swap_total": 3 * GIB}, {}),
        ({"swap_available": 0}, {}),
        ({"gpu_vram_total": 80 * GIB}, {}),
        ({"gpu_vram_available": None}, {}),
        ({"gpu_vram_used": 5 * GIB}, {}),
        ({}, {"gpu_usage": 90.0}),
        ({}, {"pcpu_usage": 90.0}),
        ({}, {"ecpu_usage": 90.0}),
        ({}, {"temp": 95.0}),
        ({}, {"sys_power": 900.0}),
        ({}, {"gpu_power_watts": None}),
    ],
)
def test_whatever_a_host_tells_of_itself_is_told_at_once(
    memory: dict[str, Any], system: dict[str, Any]
) -> None:
    before = node_profile([(DEVICE, state(power_watts=100.0))], HOST)
    after = replace(before, memory=replace(before.memory, **memory), system=replace(before.system, **system))
    assert profile_changed(before, after, Thresholds()) and profile_changed(after, before, Thresholds())
