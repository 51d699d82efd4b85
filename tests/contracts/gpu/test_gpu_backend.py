"""What every backend of devices promises, over each driver that runs on this machine."""

from collections.abc import AsyncIterator

import anyio
import pytest

from exo.gpu.backend import GPUBackend
from exo.gpu.driver import MatrixShape
from exo.gpu.errors import (
    DeviceNotFoundError,
    FreedMemoryError,
    MemoryRangeError,
    NotComputingError,
    OutOfDeviceMemoryError,
)
from exo.gpu.memory import DeviceMemory
from exo.gpu.plausibility import plausible
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.ids import DeviceId, NodeId
from support.gpu_drivers import CASES, DriverCase

NODE = NodeId("n")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> DriverCase:
    found: DriverCase = request.param
    reason = found.why_not()
    if reason is not None:
        pytest.skip(reason)
    return found


@pytest.fixture
async def backend(case: DriverCase) -> AsyncIterator[GPUBackend]:
    made = ThreadedBackend(case.make(), NODE)
    await made.initialize()
    yield made
    await made.shutdown()


@pytest.fixture
async def computing(backend: GPUBackend) -> GPUBackend:
    if not backend.computes:
        pytest.skip(f"{backend.name} only watches its devices")
    return backend


@pytest.fixture
async def device_id(backend: GPUBackend) -> DeviceId:
    return (await backend.list_devices())[0].device_id


async def test_devices_have_ids_of_their_own_and_say_what_they_are(backend: GPUBackend) -> None:
    devices = await backend.list_devices()
    assert devices
    assert (
        len({one.device_id for one in devices}) == len({one.local_alias for one in devices}) == len(devices)
    )
    for one in devices:
        assert one.device_id.startswith(f"{NODE}/{backend.name}:")
        assert one.local_alias.startswith(f"{backend.name}:")
        assert one.backend == backend.name
        assert one.name and one.vendor and one.memory_total_bytes > 0
        assert one.support_level == ("full" if backend.computes else "monitoring")
        assert one.is_simulated == (backend.name == "simulated")
        assert ("simulated" in one.name) == one.is_simulated
        assert await backend.get_device(one.device_id) == one


async def test_ids_stay_the_same_when_looked_at_again_and_after_a_restart(
    backend: GPUBackend, case: DriverCase
) -> None:
    before = [one.device_id for one in await backend.list_devices()]
    assert [one.device_id for one in await backend.refresh_devices()] == before
    again = ThreadedBackend(case.make(), NODE)
    await again.initialize()
    assert [one.device_id for one in await again.list_devices()] == before
    await again.shutdown()


async def test_an_unknown_device_is_refused_everywhere(backend: GPUBackend) -> None:
    nobody = DeviceId(f"{NODE}/{backend.name}:no-such-device")
    for call in (
        backend.get_device(nobody),
        backend.allocate(nobody, 1),
        backend.synchronize(nobody),
        backend.can_reach(nobody, nobody),
        backend.read_device(nobody),
        backend.get_device_memory_info(nobody),
    ):
        with pytest.raises(DeviceNotFoundError, match="no-such-device"):
            await call


async def test_initializing_twice_changes_nothing(backend: GPUBackend) -> None:
    devices = await backend.list_devices()
    await backend.initialize()
    assert await backend.list_devices() == devices


async def test_after_the_shutdown_there_is_nothing_and_it_can_begin_again(backend: GPUBackend) -> None:
    before = [one.device_id for one in await backend.list_devices()]
    memory = await backend.allocate(before[0], 16) if backend.computes else None
    await backend.shutdown()
    await backend.shutdown()
    assert await backend.list_devices() == ()
    assert await backend.refresh_devices() == ()
    if memory is not None:
        with pytest.raises(FreedMemoryError):
            await backend.copy_from_device(memory)
    await backend.initialize()
    assert [one.device_id for one in await backend.list_devices()] == before
    await backend.read_device(before[0])


async def test_a_reading_is_plausible(backend: GPUBackend) -> None:
    for one in await backend.list_devices():
        reading = await backend.read_device(one.device_id)
        assert plausible(reading) == (reading, ())
        memory = await backend.get_device_memory_info(one.device_id)
        assert memory.used_bytes is None or 0 <= memory.used_bytes <= memory.total_bytes
        if reading.memory_total_bytes is not None:
            assert reading.memory_total_bytes == memory.total_bytes


async def test_single_values_are_those_of_a_reading(backend: GPUBackend, device_id: DeviceId) -> None:
    reading = await backend.read_device(device_id)
    utilization = await backend.get_device_utilization(device_id)
    temperature = await backend.get_device_temperature(device_id)
    power = await backend.get_device_power(device_id)
    # They may have changed meanwhile, but not become known or unknown.
    assert [utilization is None, temperature is None, power is None] == [
        reading.compute_utilization_percent is None,
        reading.temperature_c is None,
        reading.power_watts is None,
    ]


async def test_a_backend_that_only_watches_says_so(backend: GPUBackend, device_id: DeviceId) -> None:
    if backend.computes:
        pytest.skip(f"{backend.name} computes")
    with pytest.raises(NotComputingError):
        await backend.allocate(device_id, 16)


async def test_what_was_copied_to_a_device_comes_back(computing: GPUBackend, device_id: DeviceId) -> None:
    content = bytes(range(256)) * 40
    memory = await computing.allocate(device_id, len(content))
    assert (memory.device_id, memory.size_bytes) == (device_id, len(content))
    await computing.copy_to_device(memory, content)
    assert await computing.copy_from_device(memory) == content
    await computing.copy_to_device(memory, bytearray(b"abc"), offset_bytes=5)
    await computing.copy_to_device(memory, memoryview(b"-xyz-")[1:4], offset_bytes=len(content) - 3)
    await computing.copy_to_device(memory, b"", offset_bytes=7)
    expected = content[:5] + b"abc" + content[8:-3] + b"xyz"
    assert await computing.copy_from_device(memory) == expected
    assert await computing.copy_from_device(memory, offset_bytes=4, size_bytes=5) == expected[4:9]
    assert await computing.copy_from_device(memory, offset_bytes=len(content) - 2) == b"yz"
    assert await computing.copy_from_device(memory, offset_bytes=len(content)) == b""
    await computing.synchronize(device_id)
    await computing.deallocate(memory)


async def test_memory_is_worth_nothing_once_it_is_freed(computing: GPUBackend, device_id: DeviceId) -> None:
    memory, other = [await computing.allocate(device_id, 64) for _ in range(2)]
    await computing.deallocate(memory)
    shape = MatrixShape(rows=2, inner=2, columns=2)
    for call in (
        computing.copy_to_device(memory, b"x"),
        computing.copy_from_device(memory),
        computing.copy_device_to_device(memory, other),
        computing.copy_device_to_device(other, memory),
        computing.matrix_multiply(memory, other, shape, "float32"),
        computing.matrix_multiply(other, memory, shape, "float32"),
        computing.deallocate(memory),
    ):
        with pytest.raises(FreedMemoryError, match="given back"):
            await call
    await computing.deallocate(other)


async def test_memory_of_another_backend_is_refused(
    computing: GPUBackend, device_id: DeviceId, case: DriverCase
) -> None:
    other = ThreadedBackend(case.make(), NODE)
    await other.initialize()
    foreign = await other.allocate(device_id, 8)
    own = await computing.allocate(device_id, 8)
    for call in (
        computing.copy_from_device(foreign),
        computing.copy_device_to_device(own, foreign),
        computing.deallocate(foreign),
        computing.deallocate(DeviceMemory(device_id, 8)),
    ):
        with pytest.raises(FreedMemoryError, match="another backend"):
            await call
    assert len(await other.copy_from_device(foreign)) == 8
    await other.shutdown()


async def test_more_than_there_is_is_refused_and_changes_nothing(
    computing: GPUBackend, device_id: DeviceId
) -> None:
    for size_bytes in (2**44, 2**60):
        with pytest.raises(OutOfDeviceMemoryError):
            await computing.allocate(device_id, size_bytes)
    for size_bytes in (0, -1):
        with pytest.raises(ValueError, match="cannot allocate"):
            await computing.allocate(device_id, size_bytes)
    memory = await computing.allocate(device_id, 4)
    await computing.copy_to_device(memory, b"good")
    assert await computing.copy_from_device(memory) == b"good"


async def test_copies_stay_within_their_memory(computing: GPUBackend, device_id: DeviceId) -> None:
    memory = await computing.allocate(device_id, 8)
    large = await computing.allocate(device_id, 9)
    await computing.copy_to_device(memory, b"contents")
    for call in (
        computing.copy_to_device(memory, b"123456789"),
        computing.copy_to_device(memory, b"12", offset_bytes=7),
        computing.copy_to_device(memory, b"1", offset_bytes=-1),
        computing.copy_from_device(memory, size_bytes=9),
        computing.copy_from_device(memory, offset_bytes=4, size_bytes=5),
        computing.copy_from_device(memory, offset_bytes=-1, size_bytes=2),
        computing.copy_from_device(memory, size_bytes=-1),
        computing.copy_from_device(memory, offset_bytes=9),
        computing.copy_device_to_device(large, memory),
        computing.copy_device_to_device(memory, large, size_bytes=9),
        computing.matrix_multiply(memory, large, MatrixShape(rows=1, inner=3, columns=1), "float32"),
        computing.matrix_multiply(large, memory, MatrixShape(rows=1, inner=2, columns=2), "float32"),
        computing.matrix_multiply(memory, large, MatrixShape(rows=0, inner=1, columns=1), "int8"),
    ):
        with pytest.raises(MemoryRangeError):
            await call
    assert await computing.copy_from_device(memory) == b"contents"
    with pytest.raises(ValueError, match="contiguous"):
        await computing.copy_to_device(memory, memoryview(b"1234")[::2])


async def test_copies_between_all_devices_of_a_backend(computing: GPUBackend) -> None:
    devices = await computing.list_devices()
    for source_device in devices:
        for device in devices:
            source = await computing.allocate(source_device.device_id, 1000)
            destination = await computing.allocate(device.device_id, 1200)
            content = (f"{source.device_id}>{destination.device_id}|" * 200).encode()[:1000]
            await computing.copy_to_device(source, content)
            await computing.copy_to_device(destination, bytes(1200))
            await computing.copy_device_to_device(source, destination, size_bytes=0)
            await computing.copy_device_to_device(source, destination, size_bytes=10)
            assert await computing.copy_from_device(destination, size_bytes=12) == content[:10] + b"\0\0"
            await computing.copy_device_to_device(source, destination)
            assert await computing.copy_from_device(destination) == content + bytes(200)
            await computing.deallocate(source)
            await computing.deallocate(destination)


async def test_which_devices_reach_each_other_is_said_or_unknown(computing: GPUBackend) -> None:
    devices = await computing.list_devices()
    for one in devices:
        for other in devices:
            assert await computing.can_reach(one.device_id, other.device_id) in {True, False, None}


async def test_many_callers_at_once_each_get_their_own(computing: GPUBackend) -> None:
    devices = await computing.list_devices()

    async def use(number: int) -> None:
        memory = await computing.allocate(devices[number % len(devices)].device_id, 4096)
        for turn in range(3):
            content = bytes([number, turn]) * 2048
            await computing.copy_to_device(memory, content)
            assert await computing.copy_from_device(memory) == content
        await computing.deallocate(memory)

    async with anyio.create_task_group() as tasks:
        for number in range(24):
            tasks.start_soon(use, number)


async def test_a_device_is_read_while_it_computes_for_others(
    computing: GPUBackend, device_id: DeviceId
) -> None:
    memory = await computing.allocate(device_id, 2**20)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(computing.copy_from_device, memory)
            tasks.start_soon(computing.read_device, device_id)
