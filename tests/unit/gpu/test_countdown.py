"""Several readings that are waited for together: one wake-up for all, and nobody is waited for beyond the patience."""

import asyncio
import threading

import anyio

from exo.gpu.countdown import Countdown
from exo.gpu.reading import DeviceReading
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.ids import DeviceId, NodeId
from support.inline_backend import InlineBackend
from support.scripted_driver import GIB, ScriptedDriver, found

LONG_S = 20.0


async def test_whoever_waits_is_woken_when_the_last_one_is_over_and_not_before() -> None:
    countdown = Countdown()
    for _ in range(3):
        countdown.one_begins()
    wakes = 0

    async def wait() -> None:
        nonlocal wakes
        await countdown.wait(LONG_S)
        wakes += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        for left in (2, 1, 0):
            await anyio.wait_all_tasks_blocked()
            assert wakes == 0, left
            await asyncio.to_thread(countdown.one_is_over)
    assert wakes == 1


async def test_nothing_under_way_is_not_waited_for_and_patience_ends() -> None:
    countdown = Countdown()
    with anyio.fail_after(LONG_S):
        await countdown.wait(1000)
        countdown.one_begins()
        await countdown.wait(0.001)
        # One that ends after everybody has gone wakes nobody.
        countdown.one_is_over()
        await countdown.wait(1000)


async def test_the_loop_is_woken_once_for_all_devices_of_a_backend() -> None:
    driver = ScriptedDriver(*[found(index, uuid=f"GPU-{index}") for index in range(20)])
    gates = [driver.hanging.setdefault(index, threading.Event()) for index in range(20)]
    backend = ThreadedBackend(driver, NodeId("n"))
    await backend.initialize()
    together = Countdown()
    ids = [one.device_id for one in await backend.list_devices()]
    readings = [backend.begin_reading(one, together) for one in ids]
    loop = asyncio.get_running_loop()
    wakes: list[object] = []
    real = loop.call_soon_threadsafe

    def counted(callback: object, *arguments: object, **options: object) -> asyncio.Handle:
        wakes.append(callback)
        return real(callback, *arguments, **options)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
    for gate in gates:
        gate.set()
    with anyio.fail_after(LONG_S):
        await together.wait(LONG_S)
    assert len(wakes) == 1
    assert all(one.is_done for one in readings)
    assert [(await one.outcome()).memory_total_bytes for one in readings] == [GIB] * 20
    await backend.shutdown()


async def test_a_backend_without_threads_of_its_own_takes_part() -> None:
    backend = InlineBackend(ScriptedDriver(found(0)), NodeId("n"))
    together = Countdown()
    reading = backend.begin_reading(DeviceId(backend.devices[0].device_id), together)
    with anyio.fail_after(LONG_S):
        await together.wait(LONG_S)
    assert reading.is_done and isinstance(await reading.outcome(), DeviceReading)
