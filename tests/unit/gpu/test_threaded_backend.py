"""What the backend makes of drivers that hang, lose devices, talk nonsense and find others than before."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from loguru import logger

from exo.gpu.driver import MatrixShape
from exo.gpu.errors import (
    BackendUnavailableError,
    DeviceHangError,
    DeviceLostError,
    DriverError,
    FreedMemoryError,
    MemoryRangeError,
)
from exo.gpu.limits import CallLimits
from exo.gpu.reading import DeviceReading, MemoryInfo
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.ids import DeviceId, NodeId
from support.scripted_driver import GIB, ScriptedDriver, found

FIRST = DeviceId("n/simulated:0")
HASTY = CallLimits(open_s=0.05, find_s=0.05, read_s=0.05, memory_s=0.05, compute_s=0.05, close_s=0.2)


@pytest.fixture
def driver() -> ScriptedDriver:
    return ScriptedDriver(found(0))


@pytest.fixture
async def backend(driver: ScriptedDriver) -> AsyncIterator[ThreadedBackend]:
    made = ThreadedBackend(driver, NodeId("n"))
    await made.initialize()
    yield made
    for gate in driver.hanging.values():
        gate.set()
    await made.shutdown()


@pytest.fixture
async def hasty(driver: ScriptedDriver) -> AsyncIterator[ThreadedBackend]:
    made = ThreadedBackend(driver, NodeId("n"), limits=HASTY)
    await made.initialize()
    yield made
    for gate in driver.hanging.values():
        gate.set()
    await made.shutdown()


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    heard: list[str] = []
    sink = logger.add(lambda message: heard.append(message.record["message"]), level="WARNING")
    yield heard
    logger.remove(sink)


async def blocked(driver: ScriptedDriver) -> None:
    """Wait until a call hangs in the driver."""
    assert await asyncio.to_thread(driver.blocked.acquire, timeout=20)


async def test_a_device_is_named_after_its_uuid_and_keeps_its_id_when_others_go(
    driver: ScriptedDriver, backend: ThreadedBackend
) -> None:
    driver.devices = [found(0, uuid="GPU-a"), found(1, uuid="GPU-b")]
    ids = [one.device_id for one in await backend.refresh_devices()]
    assert ids == ["n/simulated:GPU-a", "n/simulated:GPU-b"]
    driver.devices = [found(0, uuid="GPU-b", name="Other GPU")]
    (left,) = await backend.refresh_devices()
    assert (left.device_id, left.local_alias, left.name) == (ids[1], "simulated:0", "Other GPU")
    driver.readings[0] = DeviceReading(temperature_c=44.0)
    assert await backend.get_device_temperature(ids[1]) == 44.0
    with pytest.raises(DeviceLostError, match="does not list it any more"):
        await backend.read_device(ids[0])


async def test_one_uuid_for_two_devices_leaves_two_devices(
    driver: ScriptedDriver, backend: ThreadedBackend
) -> None:
    driver.devices = [found(0, uuid="same"), found(1, uuid="same"), found(2, uuid="a/b")]
    ids = [one.device_id for one in await backend.refresh_devices()]
    assert ids == ["n/simulated:0", "n/simulated:1", "n/simulated:a-b"]


async def test_hundreds_of_devices_and_none(driver: ScriptedDriver, backend: ThreadedBackend) -> None:
    driver.devices = [found(index, uuid=f"GPU-{index}") for index in range(300)]
    devices = await backend.refresh_devices()
    assert [one.local_alias for one in devices] == [f"simulated:{index}" for index in range(300)]
    driver.devices = []
    assert await backend.refresh_devices() == ()


async def test_nonsense_is_unknown_and_logged_once_for_each_field(
    driver: ScriptedDriver, backend: ThreadedBackend, warnings: list[str]
) -> None:
    driver.readings[0] = DeviceReading(
        memory_total_bytes=10, memory_used_bytes=11, temperature_c=255.0, power_watts=-3.0, clock_mhz=1500.0
    )
    for _ in range(3):
        reading = await backend.read_device(FIRST)
    assert reading == DeviceReading(memory_total_bytes=10, clock_mhz=1500.0)
    assert len(warnings) == 3
    assert all("simulated:0" in one and "nonsense" in one for one in warnings)
    assert any("temperature_c: 255.0" in one for one in warnings)


async def test_a_total_that_is_nonsense_is_what_the_device_had(
    driver: ScriptedDriver, backend: ThreadedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "memory_info", lambda _: MemoryInfo(total_bytes=0, used_bytes=5))
    assert await backend.get_device_memory_info(FIRST) == MemoryInfo(total_bytes=GIB, used_bytes=5)


async def test_a_lost_device_says_so_and_is_used_again_when_it_answers(
    driver: ScriptedDriver, backend: ThreadedBackend
) -> None:
    driver.lost.add(0)
    with pytest.raises(DeviceLostError, match="GPU is lost"):
        await backend.read_device(FIRST)
    driver.lost.clear()
    assert (await backend.read_device(FIRST)).memory_total_bytes == GIB


async def test_what_a_device_held_before_it_went_is_not_used_after_it_came_back(
    driver: ScriptedDriver, backend: ThreadedBackend
) -> None:
    memory, other = [await backend.allocate(FIRST, 8) for _ in range(2)]
    devices, driver.devices = driver.devices, []
    await backend.refresh_devices()
    with pytest.raises(DeviceLostError, match="does not list it"):
        await backend.copy_from_device(memory)
    driver.devices = devices
    await backend.refresh_devices()
    for call in (backend.copy_from_device(memory), backend.copy_device_to_device(memory, other)):
        with pytest.raises(DeviceLostError, match="came back without what it held"):
            await call
    await backend.deallocate(memory)
    with pytest.raises(FreedMemoryError):
        await backend.deallocate(memory)
    new = await backend.allocate(FIRST, 8)
    assert len(await backend.copy_from_device(new)) == 8


async def test_memory_of_a_device_that_is_gone_can_be_given_back(
    driver: ScriptedDriver, backend: ThreadedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = await backend.allocate(FIRST, 8)

    def gone(_: object) -> None:
        raise DeviceLostError("GPU is lost")

    monkeypatch.setattr(driver, "free", gone)
    await backend.deallocate(memory)
    with pytest.raises(FreedMemoryError):
        await backend.deallocate(memory)


async def test_a_hang_of_one_device_concerns_no_other(driver: ScriptedDriver, hasty: ThreadedBackend) -> None:
    driver.devices = [found(0), found(1)]
    await hasty.refresh_devices()
    driver.hanging[0] = threading.Event()
    with pytest.raises(DeviceHangError, match=r"simulated:0 has not answered .*reading its telemetry"):
        await hasty.read_device(FIRST)
    with pytest.raises(DeviceHangError):
        await hasty.allocate(FIRST, 8)
    assert (await hasty.read_device(DeviceId("n/simulated:1"))).memory_total_bytes == GIB
    driver.hanging.pop(0).set()
    with anyio.fail_after(20):
        while True:
            try:
                await hasty.read_device(FIRST)
                break
            except DeviceHangError:
                await anyio.sleep(0.001)


async def test_memory_that_a_cancelled_caller_would_have_got_is_freed(
    driver: ScriptedDriver, backend: ThreadedBackend
) -> None:
    gate = driver.hanging[0] = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.allocate, FIRST, 8)
        await blocked(driver)
        tasks.cancel_scope.cancel()
    gate.set()
    await backend.synchronize(FIRST)
    assert driver.buffers == [] and driver.calls.count("free") == 1


async def test_memory_that_comes_after_the_deadline_is_freed(
    driver: ScriptedDriver, hasty: ThreadedBackend
) -> None:
    driver.hanging[0] = threading.Event()
    with pytest.raises(DeviceHangError, match="allocating 8 bytes"):
        await hasty.allocate(FIRST, 8)
    driver.hanging[0].set()
    await hasty.shutdown()
    assert driver.buffers == []


async def test_memory_is_freed_even_if_who_frees_it_is_cancelled_before_its_turn(
    driver: ScriptedDriver, backend: ThreadedBackend
) -> None:
    memory = await backend.allocate(FIRST, 8)
    gate = driver.hanging[0] = threading.Event()
    async with anyio.create_task_group() as outer:
        outer.start_soon(backend.read_device, FIRST)
        await blocked(driver)
        async with anyio.create_task_group() as inner:
            inner.start_soon(backend.deallocate, memory)
            await anyio.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        gate.set()
    await backend.synchronize(FIRST)
    assert driver.buffers == []


async def test_the_shutdown_frees_everything_and_closes_the_driver(
    driver: ScriptedDriver, backend: ThreadedBackend
) -> None:
    for _ in range(3):
        await backend.allocate(FIRST, 8)
    await backend.shutdown()
    assert driver.buffers == [] and not driver.is_open
    assert driver.calls.count("close") == 1


async def test_a_hanging_device_holds_up_no_shutdown_and_its_driver_stays_open(
    driver: ScriptedDriver, hasty: ThreadedBackend
) -> None:
    driver.hanging[0] = threading.Event()
    with pytest.raises(DeviceHangError):
        await hasty.read_device(FIRST)
    with anyio.fail_after(10):
        await hasty.shutdown()
    assert driver.is_open


async def test_a_driver_that_hangs_when_it_starts_is_missing_and_is_closed_should_it_start_later() -> None:
    driver = ScriptedDriver(found(0))
    driver.open_gate = threading.Event()
    backend = ThreadedBackend(driver, NodeId("n"), limits=HASTY)
    with pytest.raises(BackendUnavailableError, match=r"simulated has not answered .*starting it"):
        await backend.initialize()
    assert await backend.list_devices() == ()
    driver.open_gate.set()
    with anyio.fail_after(20):
        while True:
            try:
                await backend.initialize()
                break
            except BackendUnavailableError:
                await anyio.sleep(0.001)
    assert driver.calls == ["open", "close", "open"]
    assert len(await backend.list_devices()) == 1
    await backend.shutdown()


async def test_a_driver_that_cannot_list_its_devices_is_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ScriptedDriver()

    def fail() -> None:
        raise KeyError("libamd_smi.so")

    monkeypatch.setattr(driver, "find_devices", fail)
    backend = ThreadedBackend(driver, NodeId("n"))
    with pytest.raises(DriverError, match=r"cannot list its devices: 'libamd_smi.so'"):
        await backend.initialize()
    with pytest.raises(DriverError):
        await backend.initialize()
    assert driver.calls[:3] == ["open", "close", "open"]


async def test_errors_that_are_none_of_ours_become_sentences(
    driver: ScriptedDriver, backend: ThreadedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("error 999")

    monkeypatch.setattr(driver, "read", fail)
    with pytest.raises(
        DriverError, match=r"simulated:0 \(Test GPU\): reading its telemetry failed: error 999"
    ):
        await backend.read_device(FIRST)
    driver.open_error = KeyError("libamd_smi.so")
    other = ThreadedBackend(driver, NodeId("n"))
    with pytest.raises(BackendUnavailableError, match=r"cannot be used: 'libamd_smi.so'"):
        await other.initialize()


async def test_matrices_of_two_devices_have_no_product(
    driver: ScriptedDriver, backend: ThreadedBackend
) -> None:
    driver.devices = [found(0), found(1)]
    first, second = [one.device_id for one in await backend.refresh_devices()]
    left, right = await backend.allocate(first, 8), await backend.allocate(second, 8)
    with pytest.raises(MemoryRangeError, match="copy one to the other"):
        await backend.matrix_multiply(left, right, MatrixShape(rows=1, inner=1, columns=1), "int8")


async def test_two_starts_at_once_open_the_driver_once() -> None:
    driver = ScriptedDriver(found(0))
    backend = ThreadedBackend(driver, NodeId("n"))
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(backend.initialize)
    assert driver.calls == ["open"]
    await backend.shutdown()
