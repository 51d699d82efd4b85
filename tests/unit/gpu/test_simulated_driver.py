"""Simulated devices over time: load, heat, faults, and memory of the host that plays theirs."""

import asyncio
import threading
from pathlib import Path

import anyio
import numpy as np
import pytest

from exo.gpu.backends.simulated import machine as m
from exo.gpu.backends.simulated.driver import SimulatedDriver
from exo.gpu.backends.simulated.machine import SimulatedDevice, SimulatedMachine, load_machine
from exo.gpu.driver import MatrixShape
from exo.gpu.errors import DeviceHangError, DeviceLostError, OutOfDeviceMemoryError
from exo.gpu.limits import CallLimits
from exo.gpu.reading import ProcessMemory
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.ids import DeviceId, NodeId

HARDWARE = Path(__file__).parents[2] / "hardware"
MIB = 2**20
ONLY = DeviceId("n/simulated:0")


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(machine: SimulatedMachine, clock: Clock) -> SimulatedDriver:
    driver = SimulatedDriver(machine, clock)
    driver.open()
    return driver


def machine(*faults: m.Fault) -> SimulatedMachine:
    device = SimulatedDevice(
        name="GPU", vendor="nvidia", memory_kind="vram", memory_total_bytes=64 * MIB, faults=faults
    )
    return SimulatedMachine(name="one", sources=("none",), devices=(device,))


def test_a_device_warms_up_under_its_load_as_the_clock_says(clock: Clock) -> None:
    driver = opened(load_machine(HARDWARE / "pc-4090.toml"), clock)
    (device,) = driver.find_devices()
    assert device.name == "NVIDIA GeForce RTX 4090 (simulated)"
    cold = driver.read(0)
    assert (cold.temperature_c, cold.compute_utilization_percent, cold.clock_mhz) == (28.0, 5.0, 2520.0)
    assert driver.read(0) == cold
    clock.now_s += 200
    hot = driver.read(0)
    assert hot.compute_utilization_percent == 100.0 and hot.memory_used_bytes == 18_000_000_000
    assert hot.power_watts == 450.0 and hot.temperature_c is not None and 65 <= hot.temperature_c <= 73
    assert hot.throttle_reasons == () and hot.is_thermal_throttling is False


def test_a_small_heat_sink_throttles_and_the_battery_drains(clock: Clock) -> None:
    driver = opened(load_machine(HARDWARE / "jetson-agx-orin.toml"), clock)
    clock.now_s += 900
    hot = driver.read(0)
    assert hot.is_thermal_throttling and hot.throttle_reasons == ("thermal",) and hot.temperature_c == 99.0
    assert hot.clock_mhz is not None and hot.clock_mhz < 1300
    assert hot.battery_percent is not None and hot.battery_percent < 80 and hot.is_plugged_in is False


def test_two_plays_of_one_file_are_equal(clock: Clock) -> None:
    file = load_machine(HARDWARE / "pc-mixed-failing.toml")
    often, rarely = opened(file, clock), opened(file, clock)
    for _ in range(100):
        clock.now_s += 1
        often.read(0)
    assert often.read(0) == rarely.read(0)


def test_the_failing_card_is_lost_then_gone_then_back(clock: Clock) -> None:
    driver = opened(load_machine(HARDWARE / "pc-mixed-failing.toml"), clock)
    clock.now_s += 119
    memory = driver.allocate(1, 16)
    driver.write(memory, memoryview(b"0123456789abcdef"), 0)
    clock.now_s += 2
    with pytest.raises(DeviceLostError, match=r"RTX 3060 \(simulated\) is lost"):
        driver.read(1)
    assert [one.index for one in driver.find_devices()] == [0, 1, 2]
    clock.now_s += 60
    assert [one.index for one in driver.find_devices()] == [0, 2]
    clock.now_s += 60
    assert [one.index for one in driver.find_devices()] == [0, 1, 2]
    assert driver.read(1).temperature_c is not None
    with pytest.raises(DeviceLostError, match="without what it held"):
        driver.fetch(memory, 0, 16)
    new = driver.allocate(1, 16)
    driver.write(new, memoryview(b"0123456789abcdef"), 0)
    assert driver.fetch(new, 0, 16) == b"0123456789abcdef"


def test_memory_is_counted_and_refused_by_what_the_simulated_device_has(clock: Clock) -> None:
    driver = opened(machine(), clock)
    driver.set_load(0, 10.0, memory_used_bytes=40 * MIB)
    with pytest.raises(OutOfDeviceMemoryError, match=r"25165824 bytes free, 1 fewer than the 25165825"):
        driver.allocate(0, 24 * MIB + 1)
    memory = driver.allocate(0, 24 * MIB)
    reading = driver.read(0)
    assert reading.memory_used_bytes == 64 * MIB and reading.processes is not None
    assert [one.used_bytes for one in reading.processes] == [24 * MIB]
    assert driver.memory_info(0).used_bytes == 64 * MIB
    driver.free(memory)
    driver.set_load(0, None)
    after = driver.read(0)
    assert (after.memory_used_bytes, after.processes) == (0, ())
    assert isinstance(reading.processes[0], ProcessMemory)


def test_faults_that_the_driver_reports(clock: Clock) -> None:
    driver = opened(
        machine(
            m.Xid(at_s=10, until_s=20, code=79, message="fallen off the bus", is_fatal=True),
            m.Ecc(at_s=5, corrected_count=7),
            m.Ecc(at_s=15, corrected_count=1, uncorrected_count=2),
            m.Nonsense(at_s=30, until_s=31, values={"temperature_c": 255}),
        ),
        clock,
    )
    assert driver.read(0).ecc_corrected_count is None
    clock.now_s += 16
    reading = driver.read(0)
    assert [(one.kind, one.code, one.is_fatal) for one in reading.faults] == [("xid", 79, True)]
    assert (reading.ecc_corrected_count, reading.ecc_uncorrected_count) == (8, 2)
    clock.now_s += 5
    assert driver.read(0).faults == ()
    clock.now_s += 9.5
    assert driver.read(0).temperature_c == 255


def test_wrong_answers_and_a_full_memory(clock: Clock) -> None:
    driver = opened(machine(m.WrongAnswers(at_s=5, until_s=6), m.OutOfMemory(at_s=8)), clock)
    shape = MatrixShape(rows=1, inner=1, columns=1)

    def product() -> float:
        left, right = driver.allocate(0, 4), driver.allocate(0, 4)
        for memory, value in ((left, 3.0), (right, 2.0)):
            driver.write(memory, memoryview(np.float32(value).tobytes()), 0)
        made = driver.multiply(left, right, shape, "float32")
        return float(np.frombuffer(driver.fetch(made, 0, 4), np.float32)[0])

    assert product() == 6.0
    clock.now_s += 5
    assert product() != 6.0
    clock.now_s += 1
    assert product() == 6.0
    clock.now_s += 2
    with pytest.raises(OutOfDeviceMemoryError):
        driver.allocate(0, 1)


async def test_a_hang_lasts_as_long_as_the_file_says(clock: Clock) -> None:
    driver = SimulatedDriver(machine(m.Hang(at_s=5, until_s=10)), clock)
    backend = ThreadedBackend(driver, NodeId("n"), limits=CallLimits(read_s=0.05))
    await backend.initialize()
    await backend.read_device(ONLY)
    clock.now_s += 6
    with pytest.raises(DeviceHangError):
        await backend.read_device(ONLY)
    clock.now_s += 5
    with anyio.fail_after(20):
        while True:
            try:
                await backend.read_device(ONLY)
                break
            except DeviceHangError:
                await anyio.sleep(0.001)
    await backend.shutdown()


async def test_closing_ends_a_hang(clock: Clock) -> None:
    driver = opened(machine(m.Hang(at_s=0)), clock)
    hanging = threading.Thread(target=driver.synchronize, args=(0,))
    hanging.start()
    driver.close()
    await asyncio.to_thread(hanging.join, 20)
    assert not hanging.is_alive()
