"""What is told of the devices: changes, heartbeats, failures; nothing twice."""

from collections.abc import Sequence

import anyio
import pytest
from msgspec.structs import replace

from exo.gpu.backend import GPUBackend
from exo.gpu.errors import DeviceLostError
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.events import DeviceGPUStateUpdated, NodeProfileUpdated, Telemetry
from exo.shared.types.ids import NodeId
from exo.worker.telemetry import GPUTelemetryCollector, GPUTelemetryConfig, node_profile
from support.states import GIB, cpu, gpu


class Scripted(GPUBackend):
    """Devices whose readings the test sets."""

    name = "simulated"

    def __init__(self, *devices: GPUDevice) -> None:
        self.devices = devices
        self.used_bytes = 0
        self.is_lost = False

    def initialize(self) -> None: ...

    def shutdown(self) -> None: ...

    def list_devices(self) -> Sequence[GPUDevice]:
        return self.devices

    def read_state(self, device: GPUDevice, *, now: str) -> DeviceGPUState:
        if self.is_lost:
            raise DeviceLostError("GPU is lost")
        return DeviceGPUState(
            device_id=device.device_id,
            node_id=NodeId("n"),
            memory_used_bytes=self.used_bytes,
            memory_total_bytes=device.memory_total_bytes,
            last_update=now,
        )


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def collector(backend: GPUBackend, clock: Clock, **config: float) -> GPUTelemetryCollector:
    published: list[Telemetry] = []
    return GPUTelemetryCollector(
        node_id=NodeId("n"),
        backends=[backend],
        publish=published.extend,
        config=GPUTelemetryConfig(**config),  # pyright: ignore
        clock=clock,
        now=lambda: "2026-01-01T00:00:00Z",
    )


def device_states(events: Sequence[Telemetry]) -> list[DeviceGPUState]:
    return [event.state for event in events if isinstance(event, DeviceGPUStateUpdated)]


def test_only_changes_beyond_the_threshold_and_heartbeats_are_told() -> None:
    backend, clock = Scripted(cpu("n", 8 * GIB)), Clock()
    telemetry = collector(backend, clock)
    assert len(device_states(telemetry.collect())) == 1
    clock.now_s = 2
    assert device_states(telemetry.collect()) == []
    backend.used_bytes = GIB
    assert [s.memory_used_bytes for s in device_states(telemetry.collect())] == [GIB]
    backend.used_bytes += 1000
    assert device_states(telemetry.collect()) == []
    clock.now_s = 13
    assert len(device_states(telemetry.collect())) == 1


def test_a_device_that_no_longer_answers_is_failed_with_the_reason() -> None:
    backend, clock = Scripted(gpu("n", 8 * GIB)), Clock()
    telemetry = collector(backend, clock)
    telemetry.collect()
    backend.is_lost = True
    (state,) = device_states(telemetry.collect())
    assert (state.health, state.health_reason) == ("failed", "GPU is lost")
    assert state.memory_used_bytes is None


def test_vram_and_ram_are_kept_apart_and_the_processor_is_no_gpu() -> None:
    backend = Scripted(cpu("n", 64 * GIB), gpu("n", 8 * GIB))
    backend.used_bytes = GIB
    states = [backend.read_state(device, now="") for device in backend.devices]
    profile = node_profile(backend.devices, states)
    assert (profile.memory.gpu_vram_total, profile.memory.gpu_vram_used) == (8 * GIB, GIB)
    assert profile.memory.gpu_vram_available == 7 * GIB
    assert (profile.system.gpu_count, profile.system.gpu_names) == (1, ("Test GPU",))
    unified = replace(backend.devices[1], memory_kind="unified")
    assert node_profile([unified], states[1:]).memory.gpu_vram_total == 0


async def test_monitoring_publishes_and_refuses_to_be_started_twice() -> None:
    backend = Scripted(cpu("n", 8 * GIB))
    heard = anyio.Event()
    told: list[Telemetry] = []

    def publish(events: Sequence[Telemetry]) -> None:
        told.extend(events)
        heard.set()

    telemetry = GPUTelemetryCollector(
        node_id=NodeId("n"),
        backends=[backend],
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


def test_telemetry_of_devices_can_be_turned_off_and_the_hosts_memory_is_still_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXO_GPU_TELEMETRY", "0")
    config = GPUTelemetryConfig.from_environment(2.0)
    assert not config.is_enabled
    (event,) = collector(Scripted(cpu("n", GIB)), Clock(), is_enabled=False).collect()
    assert isinstance(event, NodeProfileUpdated) and event.profile.memory.ram_total > 0
