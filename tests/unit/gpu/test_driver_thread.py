"""Blocking calls on a device's thread: order, deadlines, hangs, and callers that do not wait for the end."""

import asyncio
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator

import anyio
import pytest

from exo.gpu.driver_thread import DriverThread
from exo.gpu.errors import DeviceHangError, DeviceLostError
from exo.gpu.together import call_together

LONG_S = 30.0
"""A deadline that no test lives to see."""
SHORT_S = 0.03


class Gate:
    """A call that returns when the test lets it."""

    def __init__(self, result: object = None) -> None:
        self.begun = threading.Event()
        self.is_open = threading.Event()
        self.result = result

    def __call__(self) -> object:
        self.begun.set()
        assert self.is_open.wait(20)
        return self.result

    async def wait_begun(self) -> None:
        await asyncio.to_thread(self.begun.wait, 20)


@pytest.fixture
async def thread() -> AsyncIterator[DriverThread]:
    made = DriverThread("cuda:0")
    yield made
    made.stop()


def threads_of(name: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == f"exo {name}"]


async def until_over(thread: DriverThread) -> None:
    """Wait until a hang is over."""
    with anyio.fail_after(20):
        while True:
            try:
                return thread.check()
            except DeviceHangError:
                await anyio.sleep(0.001)


async def until_idle(thread: DriverThread) -> None:
    """Wait until nothing is left to do: a thread hands its result over before it tidies up."""
    with anyio.fail_after(LONG_S):
        while True:
            if not thread.backlog_s:
                return
            await anyio.sleep(0.001)


async def test_a_call_runs_on_the_devices_thread_and_its_outcome_comes_back(thread: DriverThread) -> None:
    name = await thread.call(lambda: threading.current_thread().name, doing="a test", timeout_s=LONG_S)
    assert name == "exo cuda:0"

    def fail() -> None:
        raise DeviceLostError("it is gone")

    with pytest.raises(DeviceLostError, match="it is gone"):
        await thread.call(fail, doing="a test", timeout_s=LONG_S)
    assert await thread.call(lambda: 2, doing="a test", timeout_s=LONG_S) == 2
    assert len(threads_of("cuda:0")) == 1


async def test_several_callers_are_served_in_the_order_in_which_they_asked(thread: DriverThread) -> None:
    order: list[int] = []
    gate = Gate()

    async def ask(number: int) -> None:
        await thread.call(lambda: order.append(number), doing="a test", timeout_s=LONG_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: thread.call(gate, doing="a test", timeout_s=LONG_S))
        await gate.wait_begun()
        for number in range(50):
            tasks.start_soon(ask, number)
        await anyio.wait_all_tasks_blocked()
        gate.is_open.set()
    assert order == list(range(50))


async def test_a_slow_device_holds_up_neither_the_loop_nor_another_device(thread: DriverThread) -> None:
    gate, other = Gate(), DriverThread("cuda:1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: thread.call(gate, doing="a test", timeout_s=LONG_S))
        await gate.wait_begun()
        assert await other.call(lambda: 1, doing="a test", timeout_s=LONG_S) == 1
        gate.is_open.set()
    other.stop()


async def test_a_call_that_hangs_is_given_up_at_its_deadline_and_works_again_when_it_returns(
    thread: DriverThread,
) -> None:
    gate = Gate()
    with pytest.raises(DeviceHangError, match=r"cuda:0 has not answered for \d.* \(reading its telemetry\)"):
        await thread.call(gate, doing="reading its telemetry", timeout_s=SHORT_S)
    assert thread.hanging_s is not None and thread.hanging_s >= SHORT_S
    started_s = anyio.current_time()
    for _ in range(20):
        with pytest.raises(DeviceHangError, match="reading its telemetry"):
            await thread.call(lambda: 1, doing="something else", timeout_s=LONG_S)
    assert anyio.current_time() - started_s < LONG_S / 3
    assert len(threads_of("cuda:0")) == 1
    gate.is_open.set()
    await until_over(thread)
    assert await thread.call(lambda: 1, doing="a test", timeout_s=LONG_S) == 1
    assert thread.backlog_s == 0


async def test_who_waits_behind_a_call_that_hangs_is_refused_at_its_deadline_and_never_runs(
    thread: DriverThread,
) -> None:
    gate = Gate()
    ran: list[str] = []
    refused = 0

    async def behind() -> None:
        nonlocal refused
        with pytest.raises(DeviceHangError, match="a hang"):
            await thread.call(lambda: ran.append("behind"), doing="a test", timeout_s=LONG_S)
        refused += 1

    async with anyio.create_task_group() as tasks:

        async def hangs() -> None:
            with pytest.raises(DeviceHangError):
                await thread.call(gate, doing="a hang", timeout_s=SHORT_S)

        tasks.start_soon(hangs)
        await gate.wait_begun()
        for _ in range(5):
            tasks.start_soon(behind)
    assert refused == 5
    gate.is_open.set()
    await until_over(thread)
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert ran == []


async def test_a_deadline_counts_from_the_calls_own_begin(thread: DriverThread) -> None:
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: thread.call(gate, doing="long work", timeout_s=LONG_S))
        await gate.wait_begun()
        outcomes: list[int] = []

        async def patient() -> None:
            outcomes.append(await thread.call(lambda: 1, doing="a test", timeout_s=SHORT_S))

        tasks.start_soon(patient)
        await anyio.sleep(3 * SHORT_S)
        assert outcomes == []
        gate.is_open.set()
    assert outcomes == [1]


async def test_a_call_behind_long_work_is_still_given_up_at_its_own_deadline(thread: DriverThread) -> None:
    first, second = Gate(), Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: thread.call(first, doing="long work", timeout_s=LONG_S))
        await first.wait_begun()

        async def hangs() -> None:
            with anyio.fail_after(LONG_S / 2), pytest.raises(DeviceHangError, match="the second"):
                await thread.call(second, doing="the second", timeout_s=SHORT_S)

        tasks.start_soon(hangs)
        await anyio.wait_all_tasks_blocked()
        first.is_open.set()
    second.is_open.set()


async def test_what_a_cancelled_caller_would_have_got_is_thrown_away_on_the_thread(
    thread: DriverThread,
) -> None:
    gate = Gate("memory")
    thrown: list[tuple[object, str]] = []

    def discard(result: object) -> None:
        thrown.append((result, threading.current_thread().name))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: thread.call(gate, doing="allocating", timeout_s=LONG_S, discard=discard),
        )
        await gate.wait_begun()
        tasks.cancel_scope.cancel()
    assert thrown == []
    gate.is_open.set()
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert thrown == [("memory", "exo cuda:0")]


async def test_a_result_that_comes_at_the_moment_of_the_cancellation_is_thrown_away_too(
    thread: DriverThread,
) -> None:
    thrown: list[object] = []
    done = threading.Event()

    def allocate() -> str:
        done.set()
        return "memory"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            lambda: thread.call(allocate, doing="allocating", timeout_s=LONG_S, discard=thrown.append)
        )
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        # The loop stands still here, so the caller cannot have taken it.
        assert done.wait(20)
        while thread.backlog_s > 0:
            pass
        tasks.cancel_scope.cancel()
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert thrown == ["memory"]


async def test_a_result_after_the_deadline_is_thrown_away_too(thread: DriverThread) -> None:
    gate = Gate("memory")
    thrown: list[object] = []
    with pytest.raises(DeviceHangError):
        await thread.call(gate, doing="allocating", timeout_s=SHORT_S, discard=thrown.append)
    gate.is_open.set()
    await until_over(thread)
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert thrown == ["memory"]


async def test_a_cancelled_caller_whose_turn_has_not_come_leaves_nothing_behind(thread: DriverThread) -> None:
    gate = Gate()
    ran: list[str] = []
    async with anyio.create_task_group() as outer:
        outer.start_soon(lambda: thread.call(gate, doing="a test", timeout_s=LONG_S))
        await gate.wait_begun()
        async with anyio.create_task_group() as inner:
            inner.start_soon(
                lambda: thread.call(lambda: ran.append("skipped"), doing="a test", timeout_s=LONG_S)
            )
            inner.start_soon(
                lambda: thread.call(
                    lambda: ran.append("must"), doing="a test", timeout_s=LONG_S, is_never_skipped=True
                )
            )
            await anyio.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        gate.is_open.set()
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert ran == ["must"]
    assert thread.backlog_s == 0


async def test_what_must_happen_waits_for_the_end_of_a_hang(thread: DriverThread) -> None:
    gate = Gate()
    ran: list[str] = []
    with pytest.raises(DeviceHangError):
        await thread.call(gate, doing="a hang", timeout_s=SHORT_S)
    with pytest.raises(DeviceHangError, match="a hang"):
        await thread.call(lambda: ran.append("free"), doing="", timeout_s=LONG_S, is_never_skipped=True)
    thread.post(lambda: ran.append("posted"), doing="", timeout_s=LONG_S)
    assert ran == []
    gate.is_open.set()
    await until_over(thread)
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert ran == ["free", "posted"]


async def test_results_are_not_kept(thread: DriverThread) -> None:
    class Large:
        pass

    made = await thread.call(Large, doing="a test", timeout_s=LONG_S)
    reference = weakref.ref(made)
    del made
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert reference() is None


async def test_the_thread_ends_when_stopped_and_begins_again_with_the_next_call() -> None:
    thread = DriverThread("stopped:0")
    thread.stop()
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    (running,) = threads_of("stopped:0")
    thread.stop()
    thread.stop()
    await asyncio.to_thread(running.join, 20)
    assert threads_of("stopped:0") == []
    assert await thread.call(lambda: 1, doing="a test", timeout_s=LONG_S) == 1
    thread.stop()


async def test_stopping_and_calling_again_during_a_hang_never_makes_a_second_thread() -> None:
    thread, gate = DriverThread("hung:0"), Gate()
    with pytest.raises(DeviceHangError):
        await thread.call(gate, doing="a hang", timeout_s=SHORT_S)
    thread.stop()
    with pytest.raises(DeviceHangError):
        await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert len(threads_of("hung:0")) == 1
    gate.is_open.set()
    await until_over(thread)
    await thread.call(lambda: None, doing="a test", timeout_s=LONG_S)
    assert len(threads_of("hung:0")) == 1
    thread.stop()


async def test_work_of_two_devices_has_its_place_in_the_order_of_both(thread: DriverThread) -> None:
    other = DriverThread("cuda:1")
    order: list[str] = []
    gate, other_gate = Gate(), Gate()

    async def call(on: DriverThread, name: str) -> None:
        await on.call(lambda: order.append(name), doing=name, timeout_s=LONG_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: thread.call(gate, doing="a test", timeout_s=LONG_S))
        tasks.start_soon(lambda: other.call(other_gate, doing="a test", timeout_s=LONG_S))
        await gate.wait_begun()
        await other_gate.wait_begun()
        for one, two, name in ((thread, other, "there"), (other, thread, "back")):
            tasks.start_soon(
                lambda one=one, two=two, name=name: call_together(
                    one, two, lambda: order.append(name), doing=name, timeout_s=LONG_S
                )
            )
            await anyio.wait_all_tasks_blocked()
        tasks.start_soon(call, other, "after")
        await anyio.wait_all_tasks_blocked()
        other_gate.is_open.set()
        await anyio.wait_all_tasks_blocked()
        assert order == []
        gate.is_open.set()
    assert order == ["there", "back", "after"]
    await until_idle(thread)
    await until_idle(other)
    other.stop()


async def test_work_of_two_devices_is_refused_while_one_of_them_hangs(thread: DriverThread) -> None:
    other, gate = DriverThread("cuda:1"), Gate()
    with pytest.raises(DeviceHangError):
        await other.call(gate, doing="a hang", timeout_s=SHORT_S)
    for pair in ((thread, other), (other, thread)):
        with pytest.raises(DeviceHangError, match="cuda:1"):
            await call_together(*pair, lambda: None, doing="copying", timeout_s=LONG_S)
    assert await thread.call(lambda: 1, doing="a test", timeout_s=LONG_S) == 1
    gate.is_open.set()
    other.stop()


async def test_work_of_two_devices_does_not_drag_one_into_the_hang_of_the_other(thread: DriverThread) -> None:
    other, gate = DriverThread("cuda:1"), Gate()
    async with anyio.create_task_group() as tasks:

        async def hangs() -> None:
            with pytest.raises(DeviceHangError):
                await other.call(gate, doing="a hang", timeout_s=0.1)

        tasks.start_soon(hangs)
        await gate.wait_begun()
        with pytest.raises(DeviceHangError, match="cuda:1 did not become free"):
            await call_together(thread, other, lambda: None, doing="copying", timeout_s=0.1)
    assert await thread.call(lambda: 1, doing="a test", timeout_s=LONG_S) == 1
    gate.is_open.set()
    other.stop()


def test_a_call_that_never_returns_does_not_hold_up_the_end_of_the_process() -> None:
    code = """
import asyncio, threading
from exo.gpu.driver_thread import DriverThread
from exo.gpu.errors import DeviceHangError
async def main():
    try:
        await DriverThread("d").call(threading.Event().wait, doing="hanging", timeout_s=0.02)
    except DeviceHangError:
        print("given up")
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "given up\n"
