"""What is told of the devices: changes, heartbeats, failures; nothing twice."""

from collections.abc import Sequence

import anyio
import pytest
from msgspec.structs import replace

from exo.gpu.errors import DeviceLostError
from exo.gpu.reading import DeviceReading
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.events import DeviceGPUStateUpdated, NodeProfileUpdated, Telemetry
from exo.shared.types.ids import NodeId
from exo.worker.telemetry import GPUTelemetryCollector, GPUTelemetryConfig, node_profile
from support.gpu_drivers import ScriptedDriver, found
from support.states import GIB, cpu, gpu


class Scripted(ScriptedDriver):
    """Devices whose readings the test sets."""

    def __init__(self) -> None:
        super().__init__(found(0))
        self.used_bytes = 0

    def read(self, index: int) -> DeviceReading:
        if index in self.lost:
            raise DeviceLostError("GPU is lost")
        return DeviceReading(memory_used_bytes=self.used_bytes)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def collector(driver: Scripted, clock: Clock, **config: float) -> GPUTelemetryCollector:
    backend = ThreadedBackend(driver, NodeId("n"))
    await backend.initialize()
    return GPUTelemetryCollector(
        node_id=NodeId("n"),
        devices=[(backend, one) for one in await backend.list_devices()],
        publish=lambda _: None,
        config=GPUTelemetryConfig(**config),  # pyright: ignore
        clock=clock,
        now=lambda: "2026-01-01T00:00:00Z",
    )


def device_states(events: Sequence[Telemetry]) -> list[DeviceGPUState]:
    return [event.state for event in events if isinstance(event, DeviceGPUStateUpdated)]


async def test_only_changes_beyond_the_threshold_and_heartbeats_are_told() -> None:
    backend, clock = Scripted(), Clock()
    telemetry = await collector(backend, clock)
    assert len(device_states(await telemetry.collect())) == 1
    clock.now_s = 2
    assert device_states(await telemetry.collect()) == []
    backend.used_bytes = GIB
    assert [s.memory_used_bytes for s in device_states(await telemetry.collect())] == [GIB]
    backend.used_bytes += 1000
    assert device_states(await telemetry.collect()) == []
    clock.now_s = 13
    assert len(device_states(await telemetry.collect())) == 1


async def test_a_device_that_no_longer_answers_is_failed_with_the_reason() -> None:
    backend, clock = Scripted(), Clock()
    telemetry = await collector(backend, clock)
    await telemetry.collect()
    backend.lost.add(0)
    (state,) = device_states(await telemetry.collect())
    assert (state.health, state.health_reason) == ("failed", "GPU is lost")
    assert state.memory_used_bytes is None


def test_vram_and_ram_are_kept_apart_and_the_processor_is_no_gpu() -> None:
    devices = (cpu("n", 64 * GIB), gpu("n", 8 * GIB))
    states = [
        DeviceGPUState(
            device_id=one.device_id,
            node_id=NodeId("n"),
            memory_used_bytes=GIB,
            memory_total_bytes=one.memory_total_bytes,
            last_update="",
        )
        for one in devices
    ]
    profile = node_profile(devices, states)
    assert (profile.memory.gpu_vram_total, profile.memory.gpu_vram_used) == (8 * GIB, GIB)
    assert profile.memory.gpu_vram_available == 7 * GIB
    assert (profile.system.gpu_count, profile.system.gpu_names) == (1, ("Test GPU",))
    unified = replace(devices[1], memory_kind="unified")
    assert node_profile([unified], states[1:]).memory.gpu_vram_total == 0


async def test_monitoring_publishes_and_refuses_to_be_started_twice() -> None:
    backend = Scripted()
    heard = anyio.Event()
    told: list[Telemetry] = []

    def publish(events: Sequence[Telemetry]) -> None:
        told.extend(events)
        heard.set()

    wrapped = ThreadedBackend(backend, NodeId("n"))
    await wrapped.initialize()
    telemetry = GPUTelemetryCollector(
        node_id=NodeId("n"),
        devices=[(wrapped, one) for one in await wrapped.list_devices()],
        publish=publish,
        config=GPUTelemetryConfig(),
        clock=Clock(),
        now=lambda: "",
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(telemetry.start_monitoring)
        with anyio.fail_after(5):
            await heard.wait()
        with pytest.raises(RuntimeError, match="already"):
            await telemetry.start_monitoring()
        tasks.cancel_scope.cancel()
    assert {type(event) for event in told} == {DeviceGPUStateUpdated, NodeProfileUpdated}


async def test_telemetry_of_devices_can_be_turned_off_and_the_hosts_memory_is_still_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXO_GPU_TELEMETRY", "0")
    config = GPUTelemetryConfig.from_environment(2.0)
    assert not config.is_enabled
    (event,) = await (await collector(Scripted(), Clock(), is_enabled=False)).collect()
    assert isinstance(event, NodeProfileUpdated) and event.profile.memory.ram_total > 0
