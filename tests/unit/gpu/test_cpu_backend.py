"""The processor as a device, read for real on this machine."""

from pathlib import Path

import psutil
import pytest

from exo.gpu.backend import GPUBackend
from exo.gpu.backends.cpu import CPUBackend
from exo.gpu.errors import BackendUnavailableError
from exo.gpu.factory import GPUBackendFactory, devices_of
from exo.gpu.host_memory import read_host_memory
from exo.shared.types.ids import NodeId

NODE = NodeId("n")


def test_the_processor_is_a_device_with_ram_and_no_vram() -> None:
    backend = CPUBackend(NODE)
    backend.initialize()
    (device,) = backend.list_devices()
    assert device.device_id == "n/cpu:0" and device.local_alias == "cpu:0"
    assert device.memory_kind == "ram"
    assert 0 < device.memory_total_bytes <= psutil.virtual_memory().total
    state = backend.read_state(device, now="2026-01-01T00:00:00Z")
    assert state.memory_total_bytes == device.memory_total_bytes
    assert state.memory_used_bytes is not None and 0 <= state.memory_used_bytes <= device.memory_total_bytes
    assert state.compute_utilization_percent is not None and 0 <= state.compute_utilization_percent <= 100
    backend.shutdown()
    assert backend.list_devices() == ()


def test_what_the_machine_does_not_tell_is_none_and_never_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sensors_temperatures", "sensors_battery"):
        monkeypatch.setattr(
            psutil, name, dict if name.endswith("temperatures") else lambda: None, raising=False
        )
    backend = CPUBackend(NODE)
    backend.initialize()
    state = backend.read_state(backend.list_devices()[0], now="now")
    assert state.thermal_temperature_c is None and state.is_thermal_throttling is None
    assert state.battery_percent is None and state.power_watts is None


def control_group(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text + "\n")
    return folder


def test_a_container_has_what_its_limit_leaves_and_not_what_the_host_has(tmp_path: Path) -> None:
    stat = f"anon 5\ninactive_file {2**28}\nactive_file 7"
    group = control_group(
        tmp_path, memory_max=str(2**30), memory_current=str(2**29 + 2**28), memory_stat=stat
    )
    memory = read_host_memory(group)
    assert (memory.total_bytes, memory.available_bytes) == (2**30, 2**29)


@pytest.mark.parametrize("limit", ["max", str(2**60), "nonsense"])
def test_without_a_limit_the_hosts_memory_counts(tmp_path: Path, limit: str) -> None:
    memory = read_host_memory(control_group(tmp_path, memory_max=limit, memory_current="1"))
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.available_bytes <= memory.total_bytes


def test_a_backend_that_is_missing_something_never_stops_the_others() -> None:
    class Broken(CPUBackend):
        def initialize(self) -> None:
            raise BackendUnavailableError("the driver is missing; install it")

    def broken() -> GPUBackend:
        return Broken(NODE)

    factory = GPUBackendFactory([broken, lambda: CPUBackend(NODE)])
    working = factory.create_all()
    assert [device.device_id for _, device in devices_of(working)] == ["n/cpu:0"]
    assert [one.reason for one in factory.missing] == ["the driver is missing; install it"]
