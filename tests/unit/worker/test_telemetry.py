"""What is told of the devices: changes, heartbeats, failures; nothing twice, and nobody waits for a slow device."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import anyio
import pytest

from exo.gpu.condition import ConditionPolicy
from exo.gpu.errors import DeviceLostError
from exo.gpu.health import HealthPolicy
from exo.gpu.health_watch import HealthWatch
from exo.gpu.inventory import UsedDevice
from exo.gpu.limits import CallLimits
from exo.gpu.reading import DeviceFault, DeviceReading
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.devices import DeviceGPUState, DeviceRefusal
from exo.shared.types.events import DeviceGPUStateUpdated, NodeProfileUpdated, Telemetry
from exo.shared.types.ids import DeviceId, NodeId
from exo.worker.device_states import HostReading
from exo.worker.telemetry import GPUTelemetryCollector, GPUTelemetryConfig
from support.scripted_driver import GIB, ScriptedDriver, found

FIRST, SECOND = DeviceId("n/simulated:0"), DeviceId("n/simulated:1")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A collector over a scripted driver."""

    def __init__(self, driver: ScriptedDriver, limits: CallLimits | None = None) -> None:
        self.driver = driver
        self.clock = Clock()
        self.backend = ThreadedBackend(driver, NodeId("n"), limits=limits)
        self.health = HealthWatch(
            policy=ConditionPolicy(health=HealthPolicy(bad_in_a_row_max=2)), clock=self.clock
        )
        self.used: tuple[UsedDevice, ...] = ()
        self.refused: tuple[DeviceRefusal, ...] = ()
        self.lost_count = 0
        self.told: list[Telemetry] = []
        self.heard = anyio.Event()

    async def start(self) -> None:
        await self.backend.initialize()
        await self.look()

    async def look(self) -> None:
        """Take over the devices that are there now."""
        found_now = await self.backend.refresh_devices()
        self.used = tuple(UsedDevice(self.backend, one) for one in found_now)
        self.health.set_devices([(self.backend, one) for one in found_now])

    def collector(self, config: GPUTelemetryConfig | None = None) -> GPUTelemetryCollector:
        return GPUTelemetryCollector(
            node_id=NodeId("n"),
            devices=lambda: self.used,
            health=self.health,
            publish=self._publish,
            # However slow this machine is, all answers are waited for where a test does not say otherwise.
            config=config or GPUTelemetryConfig(patience_s=20),
            clock=self.clock,
            now=lambda: f"at {self.clock.now_s:g} s",
            on_lost=self._lost,
            refused=lambda: self.refused,
        )

    def _publish(self, events: Sequence[Telemetry]) -> None:
        self.told.extend(events)
        self.heard.set()

    def _lost(self) -> None:
        self.lost_count += 1


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(ScriptedDriver(found(0), found(1)))
    await made.start()
    yield made
    for gate in made.driver.hanging.values():
        gate.set()
    await made.backend.shutdown()


def states(events: Sequence[Telemetry]) -> dict[DeviceId, DeviceGPUState]:
    return {
        event.state.device_id: event.state for event in events if isinstance(event, DeviceGPUStateUpdated)
    }


def use(driver: ScriptedDriver, index: int, used_bytes: int) -> None:
    driver.readings[index] = DeviceReading(memory_total_bytes=GIB, memory_used_bytes=used_bytes)


async def test_only_changes_beyond_the_threshold_and_heartbeats_are_told(bench: Bench) -> None:
    telemetry = bench.collector()
    assert states(await telemetry.collect()).keys() == {FIRST, SECOND}
    bench.clock.now_s = 2
    assert states(await telemetry.collect()) == {}
    use(bench.driver, 1, GIB // 2)
    changed = states(await telemetry.collect())
    assert {key: value.memory_used_bytes for key, value in changed.items()} == {SECOND: GIB // 2}
    use(bench.driver, 1, GIB // 2 + 1000)
    assert states(await telemetry.collect()) == {}
    bench.clock.now_s = 10
    assert states(await telemetry.collect()).keys() == {FIRST}
    bench.clock.now_s = 13
    assert states(await telemetry.collect()).keys() == {SECOND}


async def test_a_lost_device_is_failed_with_the_reason_and_has_no_values(bench: Bench) -> None:
    telemetry = bench.collector()
    await telemetry.collect()
    bench.driver.lost.add(0)
    told = states(await telemetry.collect())
    assert told.keys() == {FIRST}
    assert told[FIRST].health == "failed" and "GPU is lost" in str(told[FIRST].health_reason)
    assert told[FIRST].memory_used_bytes is None and told[FIRST].memory_total_bytes == GIB
    assert bench.lost_count == 1
    await telemetry.collect()
    assert bench.lost_count == 2, "as long as it is lost, somebody should look"


async def test_a_fault_that_the_driver_reports_is_told_and_judged(bench: Bench) -> None:
    telemetry = bench.collector()
    await telemetry.collect()
    fault = DeviceFault(kind="xid", code=79, message="GPU has fallen off the bus", is_fatal=True)
    bench.driver.readings[0] = DeviceReading(memory_total_bytes=GIB, memory_used_bytes=0, faults=(fault,))
    told = states(await telemetry.collect())
    assert told[FIRST].faults == (fault,) and told[FIRST].health == "failed"


async def test_a_slow_device_holds_up_no_collection_and_is_told_with_a_later_one(bench: Bench) -> None:
    telemetry = bench.collector(GPUTelemetryConfig(patience_s=0.05))
    gate = bench.driver.hanging[0] = threading.Event()
    started_s = anyio.current_time()
    assert FIRST not in states(await telemetry.collect())
    assert anyio.current_time() - started_s < 5
    assert await asyncio.to_thread(bench.driver.blocked.acquire, timeout=20)
    gate.set()
    with anyio.fail_after(20):
        while FIRST not in states(await telemetry.collect()):
            pass
    assert bench.health.health(FIRST) == ("healthy", None)


async def test_a_device_that_was_late_is_not_waited_for_again(bench: Bench) -> None:
    telemetry = bench.collector(GPUTelemetryConfig(patience_s=60))
    gate = bench.driver.hanging[0] = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(telemetry.collect)
        assert await asyncio.to_thread(bench.driver.blocked.acquire, timeout=20)
        tasks.cancel_scope.cancel()
    with anyio.fail_after(20):
        assert states(await telemetry.collect()).keys() == {SECOND}
    gate.set()
    with anyio.fail_after(20):
        while FIRST not in states(await telemetry.collect()):
            pass


async def test_a_device_that_hangs_is_asked_once_at_a_time_and_fails_while_the_others_go_on() -> None:
    bench = Bench(ScriptedDriver(found(0), found(1)), CallLimits(read_s=0.05, close_s=0.2))
    await bench.start()
    telemetry = bench.collector(GPUTelemetryConfig(patience_s=0.02))
    gate = bench.driver.hanging[0] = threading.Event()
    failed: DeviceGPUState | None = None
    with anyio.fail_after(20):
        while failed is None or failed.health != "failed":
            bench.clock.now_s += 10
            told = states(await telemetry.collect())
            failed = told.get(FIRST, failed)
    assert "has not answered for" in str(failed.health_reason) and failed.memory_used_bytes is None
    # In the driver there is a single call, however often it was to be read.
    assert bench.driver.blocked.acquire(timeout=20)
    assert not bench.driver.blocked.acquire(blocking=False)
    assert bench.lost_count == 0, "it is there, and hangs"
    gate.set()
    await bench.backend.shutdown()


async def test_devices_that_go_are_forgotten_and_those_that_come_are_told(bench: Bench) -> None:
    telemetry = bench.collector()
    await telemetry.collect()
    bench.driver.devices = [found(0), found(2)]
    await bench.look()
    assert states(await telemetry.collect()).keys() == {"n/simulated:2"}
    bench.driver.devices = [found(0), found(1)]
    await bench.look()
    assert states(await telemetry.collect()).keys() == {SECOND}, "what comes back is told anew"


async def test_hundreds_of_devices_are_read_in_one_collection() -> None:
    bench = Bench(ScriptedDriver(*[found(index, uuid=f"GPU-{index}") for index in range(300)]))
    await bench.start()
    assert len(states(await bench.collector().collect())) == 300
    await bench.backend.shutdown()


async def test_no_devices_at_all_leave_the_host() -> None:
    bench = Bench(ScriptedDriver())
    await bench.start()
    (event,) = await bench.collector().collect()
    assert isinstance(event, NodeProfileUpdated) and event.profile.system.gpu_count == 0
    await bench.backend.shutdown()


async def test_monitoring_publishes_and_refuses_to_be_started_twice(bench: Bench) -> None:
    telemetry = bench.collector()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(telemetry.start_monitoring)
        with anyio.fail_after(20):
            await bench.heard.wait()
        with pytest.raises(RuntimeError, match="already"):
            await telemetry.start_monitoring()
        tasks.cancel_scope.cancel()
    assert {type(event) for event in bench.told} == {DeviceGPUStateUpdated, NodeProfileUpdated}
    bench.heard = anyio.Event()
    bench.clock.now_s += 100
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(telemetry.start_monitoring)
        with anyio.fail_after(20):
            await bench.heard.wait()
        tasks.cancel_scope.cancel()


async def test_the_end_of_the_monitoring_leaves_no_read_behind(bench: Bench) -> None:
    telemetry = bench.collector(GPUTelemetryConfig(patience_s=0.01))
    gate = bench.driver.hanging[0] = threading.Event()
    before = asyncio.all_tasks()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(telemetry.start_monitoring)
        assert await asyncio.to_thread(bench.driver.blocked.acquire, timeout=20)
        tasks.cancel_scope.cancel()
    await anyio.wait_all_tasks_blocked()
    assert asyncio.all_tasks() == before
    gate.set()


@pytest.mark.parametrize("off", ["0", "off", "FALSE"])
async def test_telemetry_of_devices_can_be_turned_off_and_the_hosts_memory_is_still_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    monkeypatch.setenv("EXO_GPU_TELEMETRY", off)
    config = GPUTelemetryConfig.from_environment(1.5)
    assert not config.is_enabled and config.interval_s == 1.5
    (event,) = await bench.collector(config).collect()
    assert isinstance(event, NodeProfileUpdated) and event.profile.memory.ram_total > 0
    # What there is does not depend on whether it is read.
    gpus = [one.device for one in bench.used]
    assert event.profile.system.gpu_count == len(gpus) > 0
    assert event.profile.system.gpu_names == tuple(one.name for one in gpus)
    assert event.profile.memory.gpu_vram_total == sum(one.memory_total_bytes for one in gpus) > 0
    assert event.profile.memory.gpu_vram_available is None and event.profile.memory.gpu_vram_used is None
    assert event.profile.system.gpu_usage is None and event.profile.system.gpu_power_watts is None


async def test_a_device_that_is_refused_is_told_at_once_and_no_more_when_it_works(bench: Bench) -> None:
    telemetry = bench.collector()
    await telemetry.collect()
    bench.clock.now_s = 1

    async def told() -> list[tuple[DeviceRefusal, ...]]:
        events = await telemetry.collect()
        return [one.profile.refused_devices for one in events if isinstance(one, NodeProfileUpdated)]

    assert await told() == []
    wrong = DeviceRefusal(
        backend="cuda", kind="wrong", name="Test GPU", local_alias="cuda:1", reason="it computed wrongly"
    )
    bench.refused = (wrong,)
    assert await told() == [(wrong,)]
    assert await told() == []
    bench.refused = ()
    assert await told() == [()]


async def test_a_host_that_cannot_be_read_is_no_end_of_the_devices_telemetry(bench: Bench) -> None:
    def fails() -> HostReading:
        raise OSError("no such file")

    telemetry = GPUTelemetryCollector(
        node_id=NodeId("n"),
        devices=lambda: bench.used,
        health=bench.health,
        publish=bench._publish,
        config=GPUTelemetryConfig(patience_s=20),
        clock=bench.clock,
        now=lambda: "now",
        read_host=fails,
    )
    for _ in range(2):
        events = await telemetry.collect()
        assert {type(one) for one in events} <= {DeviceGPUStateUpdated}
        bench.clock.now_s += 20
        assert states(events).keys() == {FIRST, SECOND}


async def test_a_failure_between_two_collections_is_told_at_once_and_not_at_the_next_interval(
    bench: Bench,
) -> None:
    telemetry = bench.collector(GPUTelemetryConfig(patience_s=20, interval_s=3600))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(telemetry.start_monitoring)
        with anyio.fail_after(20):
            await bench.heard.wait()
            bench.heard, bench.told = anyio.Event(), []
            bench.health.observe_error(FIRST, DeviceLostError("it fell off the bus"))
            telemetry.collect_soon()
            while FIRST not in (told := states(bench.told)):
                await bench.heard.wait()
                bench.heard = anyio.Event()
        assert told[FIRST].health != "healthy" and "fell off the bus" in str(told[FIRST].health_reason)
        tasks.cancel_scope.cancel()
