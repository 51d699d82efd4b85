"""Devices are checked by what they compute: on real arithmetic, over faults of simulated machines, in virtual time."""

import asyncio
import random
from array import array
from collections.abc import Callable, Sequence

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.gpu import device_check
from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.backends.simulated import machine as m
from exo.gpu.backends.simulated.driver import SimulatedDriver
from exo.gpu.condition import ConditionPolicy
from exo.gpu.device_check import SIDE, check_device, count_wrong_rows
from exo.gpu.errors import DriverError, OutOfDeviceMemoryError
from exo.gpu.failures import Failure
from exo.gpu.health import CheckFailed, CheckPassed, HealthPolicy
from exo.gpu.health_watch import REMEMBERED_MAX, HealthChange, HealthWatch
from exo.gpu.quarantine import QuarantinePolicy
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId, NodeId
from support import virtual_time
from support.inline_backend import InlineBackend
from support.scripted_driver import ScriptedDriver, found

NODE = NodeId("n")
POLICY = ConditionPolicy(
    health=HealthPolicy(bad_in_a_row_max=3, good_in_a_row_min=2),
    quarantine=QuarantinePolicy(first_s=30, growth=2, longest_s=600, forgiven_after_s=900),
    check_interval_s=60,
    recheck_interval_s=5,
)


# --- one check -------------------------------------------------------------------------------------------------------


async def test_the_processor_computes_rightly_and_keeps_nothing() -> None:
    backend = ThreadedBackend(CPUDriver(), NODE)
    await backend.initialize()
    (device,) = await backend.list_devices()
    assert await check_device(backend, device.device_id, source=random.Random(1)) == CheckPassed()
    await backend.shutdown()


async def test_a_wrong_product_is_noticed_and_everything_is_given_back() -> None:
    driver = ScriptedDriver(found())
    backend = InlineBackend(driver, NODE)
    result = await check_device(backend, backend.devices[0].device_id, source=random.Random(1))
    assert isinstance(result, CheckFailed)
    assert result.failure.kind == "wrong_result" and result.failure.weight == "bad"
    assert result.failure.message == f"it computed {SIDE} of {SIDE} rows of a product wrongly"
    assert not driver.buffers and len(backend.book) == 0


async def test_bytes_that_change_on_the_way_are_noticed() -> None:
    class Forgetful(ScriptedDriver):
        def fetch(self, buffer: bytearray, offset_bytes: int, size_bytes: int) -> bytes:
            return bytes(size_bytes)

    backend = InlineBackend(Forgetful(found()), NODE)
    result = await check_device(backend, backend.devices[0].device_id, source=random.Random(1))
    assert isinstance(result, CheckFailed) and "other bytes" in result.failure.message


async def test_what_goes_wrong_meanwhile_is_the_checks_result() -> None:
    class Failing(ScriptedDriver):
        def allocate(self, index: int, size_bytes: int) -> bytearray:
            if self.open_error is not None:
                raise self.open_error
            return super().allocate(index, size_bytes)

        def free(self, buffer: bytearray) -> None:
            super().free(buffer)
            raise DriverError("cannot free")

    driver = Failing(found())
    backend = InlineBackend(driver, NODE)
    device_id = backend.devices[0].device_id

    async def check() -> CheckPassed | CheckFailed | None:
        return await check_device(backend, device_id, source=random.Random(1))

    result = await check()
    assert isinstance(result, CheckFailed) and result.failure.kind == "wrong_result"
    driver.open_error = OutOfDeviceMemoryError("full")
    result = await check()
    assert isinstance(result, CheckFailed) and result.failure.weight == "none"
    result = await check_device(backend, DeviceId("n/other"), source=random.Random(1))
    assert isinstance(result, CheckFailed) and result.failure.kind == "device_lost"


async def test_what_only_watches_is_not_checked() -> None:
    driver = ScriptedDriver(found())
    driver.is_computing = False
    backend = ThreadedBackend(driver, NODE)
    await backend.initialize()
    (device,) = await backend.list_devices()
    assert await check_device(backend, device.device_id, source=random.Random(1)) is None
    await backend.shutdown()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, SIDE * SIDE - 1), st.integers(0, 31))
def test_one_bit_that_is_wrong_is_found_in_its_row(seed: int, position: int, bit: int) -> None:
    """Held against numpy: the right product passes, and with any one bit of it flipped it does not."""
    source = random.Random(seed)
    left = np.array(device_check._matrix(source), dtype=np.float32).reshape(SIDE, SIDE)  # pyright: ignore[reportPrivateUsage]
    right = np.array(device_check._matrix(source), dtype=np.float32).reshape(SIDE, SIDE)  # pyright: ignore[reportPrivateUsage]
    product = (left @ right).astype(np.float32).ravel()

    def wrong(values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> int:
        answer = array("f")
        answer.frombytes(values.tobytes())
        return count_wrong_rows(left.ravel().tolist(), right.ravel().tolist(), answer, source)

    assert wrong(product) == 0
    flipped = product.copy()
    flipped.view(np.uint32)[position] ^= np.uint32(1 << bit)
    is_same = flipped[position] == product[position]
    # Minus zero is zero; what is no number is not looked at any closer.
    assert wrong(flipped) in ({0} if is_same else {1, SIDE})


def test_an_answer_of_another_size_is_wrong() -> None:
    ones = [1.0] * (SIDE * SIDE)
    assert count_wrong_rows(ones, ones, ones[1:], random.Random(1)) == SIDE
    assert count_wrong_rows(ones, ones, [float("nan")] * (SIDE * SIDE), random.Random(1)) == SIDE
    assert count_wrong_rows(ones, ones, [float(SIDE)] * (SIDE * SIDE), random.Random(1)) == 0


# --- the loop, over hours --------------------------------------------------------------------------------------------


def simulated(*faults: m.Fault, count: int = 1) -> m.SimulatedMachine:
    return m.SimulatedMachine(
        name="test",
        sources=("made up",),
        devices=tuple(
            m.SimulatedDevice(
                name="Card",
                vendor="nvidia",
                memory_kind="vram",
                memory_total_bytes=2**30,
                pci_address=f"0000:0{index + 1}:00.0",
                has_ecc=True,
                faults=faults if index == 0 else (),
            )
            for index in range(count)
        ),
    )


class Story:
    """A watch over a simulated machine, with a collector that reads it every two seconds."""

    def __init__(
        self, machine: m.SimulatedMachine, *, is_busy: Callable[[DeviceId], bool] = lambda one: False
    ) -> None:
        clock = asyncio.get_running_loop().time
        self.backend = InlineBackend(SimulatedDriver(machine, clock), NODE)
        self.changes: list[tuple[float, str, str]] = []
        self.watch = HealthWatch(
            policy=POLICY, is_busy=is_busy, on_change=self._changed, clock=clock, source=random.Random(1)
        )
        self.watch.set_devices([(self.backend, device) for device in self.backend.devices])
        self._clock = clock

    def _changed(self, change: HealthChange) -> None:
        self.changes.append((self._clock(), change.device.local_alias, change.health))

    async def _read(self) -> None:
        while True:
            for device in self.backend.devices:
                try:
                    reading = await self.backend.read_device(device.device_id)
                except Exception as error:
                    self.watch.observe_error(device.device_id, error)
                else:
                    self.watch.observe_reading(device.device_id, reading)
            await anyio.sleep(2)

    def come_and_go(self, device: GPUDevice) -> None:
        """Have one device go, and be there again at once."""
        others = [one for one in self.backend.devices if one is not device]
        for there in (others, self.backend.devices):
            self.watch.set_devices([(self.backend, one) for one in there])

    async def play(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.watch.run)
                tasks.start_soon(self._read)


def play(machine: m.SimulatedMachine, seconds: float, **more: Callable[[DeviceId], bool]) -> Story:
    async def main() -> Story:
        story = Story(machine, **more)
        await story.play(seconds)
        return story

    return virtual_time.run(main())


def healths(changes: Sequence[tuple[float, str, str]]) -> list[str]:
    """Return the states that followed each other, each once."""
    found = [health for _, _, health in changes]
    return [one for index, one in enumerate(found) if index == 0 or found[index - 1] != one]


def test_a_healthy_machine_says_nothing_and_is_checked_once_a_minute() -> None:
    checks = 0

    class Counting(SimulatedDriver):
        def multiply(self, *arguments: object) -> object:  # type: ignore[override]
            nonlocal checks
            checks += 1
            return super().multiply(*arguments)  # type: ignore[arg-type]

    async def main() -> Story:
        story = Story(simulated())
        story.backend._driver.__class__ = Counting  # pyright: ignore[reportPrivateUsage]
        await story.play(3601)
        return story

    story = virtual_time.run(main())
    assert story.changes == []
    assert checks == 61


def test_wrong_answers_degrade_then_fail_and_right_ones_heal_after_the_quarantine() -> None:
    story = play(simulated(m.WrongAnswers(at_s=100, until_s=200)), 600)
    assert healths(story.changes) == ["degraded", "failed", "healthy"]
    times = {health: at_s for at_s, _, health in reversed(story.changes)}
    # Noticed at the first check behind the fault; twice more five seconds apart, and it has failed.
    assert times["degraded"] == 120 and times["failed"] == 130
    # On trial after 30 s, wrong again; then out for 60 s, and two right answers in a row.
    assert times["healthy"] == pytest.approx(130 + 30 + 60 + 5)


@settings(max_examples=100, deadline=None)
@given(st.floats(1, 200))
def test_failure_detection_whenever_a_device_begins_to_compute_wrongly(at_s: float) -> None:
    """It has failed at the third check behind that, which are one interval and two short ones at most."""
    story = play(simulated(m.WrongAnswers(at_s=at_s)), 300)
    assert healths(story.changes)[:2] == ["degraded", "failed"]
    failed_at_s = next(moment_s for moment_s, _, health in story.changes if health == "failed")
    shortest_s = 2 * POLICY.recheck_interval_s
    assert at_s + shortest_s <= failed_at_s <= at_s + shortest_s + POLICY.check_interval_s


def test_a_lost_device_fails_at_the_next_reading_and_comes_back_on_trial() -> None:
    story = play(simulated(m.Lost(at_s=51, until_s=70)), 200)
    assert healths(story.changes) == ["failed", "healthy"]
    assert story.changes[0][0] == 52
    assert story.watch.health(story.backend.devices[0].device_id) == ("healthy", None)


def test_xids_and_memory_errors_of_readings_count() -> None:
    story = play(simulated(m.Xid(at_s=10, code=79, message="fallen off the bus", is_fatal=True)), 3600)
    assert healths(story.changes) == ["failed"]
    health, reason = story.watch.health(story.backend.devices[0].device_id)
    assert health == "failed" and reason is not None and reason.startswith("Xid 79")
    assert story.watch.condition(story.backend.devices[0].device_id).quarantine.trips > 3
    story = play(simulated(m.Ecc(at_s=11, uncorrected_count=2)), 60)
    assert healths(story.changes) == ["degraded", "healthy"]


def test_one_bad_device_does_not_touch_the_others() -> None:
    story = play(simulated(m.WrongAnswers(at_s=1), count=3), 600)
    assert {alias for _, alias, _ in story.changes} == {"simulated:0"}


def test_no_device_is_checked_while_it_is_at_work_unless_it_is_suspected() -> None:
    story = play(simulated(m.WrongAnswers(at_s=0)), 600, is_busy=lambda device_id: True)
    assert story.changes == []

    async def main() -> Story:
        story = Story(simulated(m.WrongAnswers(at_s=0)), is_busy=lambda device_id: True)
        killed = Failure(kind="unknown", message="killed", weight="suspicious")
        story.watch.observe_failure(story.backend.devices[0].device_id, killed)
        await story.play(600)
        return story

    assert healths(virtual_time.run(main()).changes)[:2] == ["degraded", "failed"]


def test_a_failure_counts_against_the_device_that_the_driver_names() -> None:
    async def main() -> None:
        story = Story(simulated(count=2))
        first, second = (device.device_id for device in story.backend.devices)
        lost = Failure(kind="xid", message="Xid 79", weight="fatal", code=79, pci_address="0000:02:00")
        for device_id in (first, second, DeviceId("n/unknown")):
            story.watch.observe_failure(device_id, lost)
        assert story.watch.health(first)[0] == "healthy"
        assert story.watch.health(second)[0] == "failed"
        odd = Failure(kind="xid", message="Xid 79", weight="fatal", code=79, pci_address="nonsense")
        story.watch.observe_failure(first, odd)
        assert story.watch.health(first)[0] == "healthy"

    virtual_time.run(main())


def test_devices_come_and_go_while_it_runs() -> None:
    async def main() -> None:
        story = Story(simulated(m.WrongAnswers(at_s=100), count=2))
        first, second = story.backend.devices
        story.watch.set_devices([(story.backend, second)])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(story.watch.run)
            await anyio.sleep(200)
            assert story.changes == []
            story.watch.set_devices([(story.backend, first), (story.backend, second)])
            await anyio.sleep(20)
            assert healths(story.changes) == ["failed"], "it was gone before anybody checked it"
            story.watch.set_devices([(story.backend, second)])
            count = len(story.changes)
            await anyio.sleep(600)
            assert len(story.changes) == count
            with pytest.raises(RuntimeError, match="already"):
                await story.watch.run()
            tasks.cancel_scope.cancel()

    virtual_time.run(main())


FATAL = Failure(kind="device_lost", message="it fell off the bus", weight="fatal")


def test_a_device_that_failed_and_went_is_kept_out_for_the_one_failure_when_it_is_back() -> None:
    async def main() -> None:
        story = Story(simulated(count=2))
        first, second = story.backend.devices
        story.watch.observe_failure(first.device_id, FATAL)
        story.come_and_go(first)
        health, reason = story.watch.health(first.device_id)
        assert health == "failed" and reason == "it fell off the bus; kept out for 30 s, then tried again"
        assert story.watch.health(second.device_id) == ("healthy", None)
        await story.play(POLICY.quarantine.first_s + 10)
        assert story.watch.health(first.device_id) == ("healthy", None), "after its time it is tried again"
        assert story.changes[-1][1:] == ("simulated:0", "healthy")

    virtual_time.run(main())


def test_a_device_that_comes_and_goes_is_kept_out_longer_each_time_and_is_told_so() -> None:
    async def main() -> None:
        story = Story(simulated(count=2))
        first, second = story.backend.devices
        for times in range(1, 5):
            story.come_and_go(first)
            condition = story.watch.condition(first.device_id)
            assert condition.quarantine.trips == times and not condition.is_usable
            assert condition.quarantine.until_s == 30 * 2 ** (times - 1)
        health, reason = story.watch.health(first.device_id)
        assert health == "failed"
        assert reason == "it was gone for 0 s; kept out for 240 s, for the 4th time, then tried again"
        assert [change[1:] for change in story.changes] == [("simulated:0", "failed")] * 4
        await story.play(240)
        assert story.watch.health(first.device_id)[0] == "failed"
        await story.play(10)
        assert story.watch.health(first.device_id) == ("healthy", None)
        assert story.watch.health(second.device_id) == ("healthy", None)
        # It was trusted again, and goes once more: nothing is forgotten so soon.
        story.come_and_go(first)
        assert story.watch.condition(first.device_id).quarantine.trips == 5

    virtual_time.run(main())


def test_a_device_that_was_away_for_long_is_taken_as_it_was() -> None:
    async def main() -> None:
        story = Story(simulated(count=2))
        first, second = story.backend.devices
        story.watch.observe_failure(second.device_id, FATAL)
        story.watch.set_devices([])
        await anyio.sleep(POLICY.quarantine.forgiven_after_s + 1)
        story.watch.set_devices([(story.backend, first), (story.backend, second)])
        assert story.watch.health(first.device_id) == ("healthy", None)
        assert story.watch.health(second.device_id)[0] == "failed", "it is on trial"

    virtual_time.run(main())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 200), st.floats(0, 200), st.sampled_from(("goes", "fails and goes"))),
        min_size=1,
        max_size=12,
    )
)
def test_however_a_device_comes_and_goes_it_is_out_when_it_is_back(
    visits: list[tuple[float, float, str]],
) -> None:
    """Without anybody who tries it: the more often it went, the longer it is out, and never for less than before."""

    async def main() -> None:
        story = Story(simulated())
        (device,) = story.backend.devices
        clock = asyncio.get_running_loop().time
        trips, until_s = 0, 0.0
        for there_s, away_s, what in visits:
            await anyio.sleep(there_s)
            if what == "fails and goes":
                story.watch.observe_failure(device.device_id, FATAL)
            story.watch.set_devices([])
            await anyio.sleep(away_s)
            story.watch.set_devices([(story.backend, device)])
            quarantine = story.watch.condition(device.device_id).quarantine
            assert story.watch.health(device.device_id)[0] == "failed"
            assert quarantine.trips > trips, "every time counts"
            assert quarantine.until_s is not None and quarantine.until_s >= until_s
            assert quarantine.until_s <= clock() + POLICY.quarantine.longest_s
            trips, until_s = quarantine.trips, quarantine.until_s
        assert trips <= 2 * len(visits)

    virtual_time.run(main())


def test_no_more_devices_that_are_gone_are_remembered_than_a_machine_ever_had() -> None:
    async def main() -> None:
        story = Story(simulated(count=2))
        ids = [DeviceId(f"n/simulated:{number}") for number in range(REMEMBERED_MAX + 1)]
        for device_id in ids:
            device = replace(story.backend.devices[0], device_id=device_id)
            story.watch.set_devices([(story.backend, device)])
            story.watch.observe_failure(device_id, FATAL)
        story.watch.set_devices([])
        back = [replace(story.backend.devices[0], device_id=device_id) for device_id in ids]
        story.watch.set_devices([(story.backend, device) for device in back])
        healths = [story.watch.health(device_id)[0] for device_id in ids]
        assert healths == ["healthy", *["failed"] * REMEMBERED_MAX]

    virtual_time.run(main())


def test_where_nothing_can_be_computed_readings_have_to_do() -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        driver = ScriptedDriver(found())
        driver.is_computing = False
        backend = InlineBackend(driver, NODE)
        watch = HealthWatch(policy=POLICY, clock=clock)
        watch.set_devices([(backend, backend.devices[0])])
        device_id = backend.devices[0].device_id
        watch.observe_error(device_id, DriverError("GPU is lost"))
        assert watch.health(device_id)[0] == "failed"
        reading = await backend.read_device(device_id)
        for _ in range(20):
            await anyio.sleep(2)
            watch.observe_reading(device_id, reading)
        assert watch.health(device_id) == ("healthy", None)

    virtual_time.run(main())


async def test_a_device_that_hangs_for_real_fails_and_holds_up_nobody() -> None:
    """Over real threads: a driver's call that does not return, beside a device that is well."""
    from exo.gpu.limits import CallLimits

    driver = SimulatedDriver(simulated(m.Hang(at_s=0), count=2))
    backend = ThreadedBackend(driver, NODE, limits=CallLimits(memory_s=0.1))
    await backend.initialize()
    devices = await backend.list_devices()
    failed = anyio.Event()

    def changed(change: HealthChange) -> None:
        assert change.device.local_alias == "simulated:0"
        if change.health == "failed":
            failed.set()

    policy = ConditionPolicy(recheck_interval_s=0.01, quarantine=QuarantinePolicy(first_s=1000))
    watch = HealthWatch(policy=policy, on_change=changed, source=random.Random(1))
    watch.set_devices([(backend, device) for device in devices])
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch.run)
            await failed.wait()
            tasks.cancel_scope.cancel()
    health, reason = watch.health(devices[0].device_id)
    assert health == "failed" and reason is not None
    await backend.shutdown()
