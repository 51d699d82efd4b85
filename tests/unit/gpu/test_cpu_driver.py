"""The processor as a device, read for real on this machine."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from exo.gpu.backends import cpu as cpu_module
from exo.gpu.backends.cpu import CPUDriver, processor_name
from exo.gpu.backends.host_sensors import PackagePower, ProcessorLoad, is_memory_pressed, memory_errors
from exo.gpu.host_memory import read_host_memory
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.ids import NodeId


async def test_the_processor_is_a_device_with_ram_and_no_vram() -> None:
    backend = ThreadedBackend(CPUDriver(), NodeId("n"))
    await backend.initialize()
    (device,) = await backend.list_devices()
    assert device.device_id == "n/cpu:0" and device.local_alias == "cpu:0"
    assert device.memory_kind == "ram"
    assert 0 < device.memory_total_bytes <= psutil.virtual_memory().total
    reading = await backend.read_device(device.device_id)
    assert reading.memory_total_bytes == device.memory_total_bytes
    assert reading.memory_used_bytes is not None
    assert 0 <= reading.memory_used_bytes <= device.memory_total_bytes
    deadline_s = time.monotonic() + 20
    while (await backend.get_device_utilization(device.device_id)) is None:
        assert time.monotonic() < deadline_s
    percent = await backend.get_device_utilization(device.device_id)
    assert percent is not None and 0 <= percent <= 100
    await backend.shutdown()


def test_what_the_machine_does_not_tell_is_none_and_never_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent() -> Any:
        raise NotImplementedError

    for name in ("sensors_temperatures", "sensors_battery", "cpu_freq"):
        monkeypatch.setattr(psutil, name, silent, raising=False)
    monkeypatch.setattr(cpu_module, "is_memory_pressed", lambda: None)
    monkeypatch.setattr(cpu_module, "memory_errors", lambda: (None, None))
    driver = CPUDriver()
    reading = driver.read(0)
    assert reading.temperature_c is None and reading.is_thermal_throttling is None
    assert reading.battery_percent is None and reading.is_plugged_in is None
    assert reading.clock_mhz is None and reading.power_watts is None
    assert reading.ecc_corrected_count is None and reading.processes is None
    assert driver.find_devices()[0].clock_mhz is None


class Sensor:
    def __init__(self, current: float, *, high: float | None = None, critical: float | None = None) -> None:
        self.current, self.high, self.critical = current, high, critical


def test_the_hottest_sensor_of_the_processor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = {
        "nvme": [Sensor(99.0)],
        "coretemp": [Sensor(61.0, high=90.0, critical=100.0), Sensor(100.5, high=90.0, critical=100.0)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    reading = CPUDriver().read(0)
    assert (reading.temperature_c, reading.throttle_threshold_c) == (100.5, 100.0)
    assert reading.is_thermal_throttling is True
    sensors["coretemp"] = [Sensor(0.0), Sensor(200.0)]
    assert CPUDriver().read(0).temperature_c is None


def test_boards_without_a_processor_name_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/cpuinfo": "processor : 0\n", "/proc/device-tree/model": "Raspberry Pi 5 Model B\0"}
    monkeypatch.setattr(Path, "read_text", lambda self, **_: texts[str(self)])
    assert processor_name() == "Raspberry Pi 5 Model B"


class Times(NamedTuple):
    user: float
    idle: float
    iowait: float = 0.0
    guest: float = 0.0


def test_the_load_is_that_of_a_while_and_not_of_the_moment_between_two_questions() -> None:
    now_s, times = 0.0, Times(user=100.0, idle=50.0)
    load = ProcessorLoad(lambda: now_s, lambda: times)
    assert load.percent() is None, "there is nothing to compare with yet"
    now_s, times = 0.01, Times(user=100.02, idle=50.0)
    assert load.percent() is None
    now_s, times = 2.0, Times(user=101.0, idle=52.0, iowait=1.0, guest=1.0)
    assert load.percent() == 25.0, "a guest's time counts once, and waiting for a disk is idle"
    now_s, times = 4.0, Times(user=104.0, idle=53.0, iowait=1.0, guest=1.0)
    assert load.percent() == 75.0
    # Somebody else asks right afterwards: it is as busy as before.
    now_s, times = 4.01, Times(user=104.0, idle=53.02, iowait=1.0, guest=1.0)
    assert load.percent() == 75.0
    now_s = 6.0
    assert load.percent() == 0.0
    now_s, times = 8.0, Times(user=1.0, idle=1.0)
    assert load.percent() == 0.0, "counters that began anew say nothing"


def test_power_comes_from_the_energy_of_all_packages(tmp_path: Path) -> None:
    now_s = 10.0

    def energy(name: str, energy_uj: int) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "energy_uj").write_text(f"{energy_uj}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000000000\n")

    energy("intel-rapl:0", 990_000_000)
    energy("intel-rapl:0:0", 5)  # A part of the package, which has it already.
    energy("intel-rapl:1", 0)
    power = PackagePower(lambda: now_s, tmp_path)
    assert power.watts() is None
    assert power.watts() is None  # No time has passed.
    now_s = 12.0
    energy("intel-rapl:0", 50_000_000)  # It began anew: 60 J.
    energy("intel-rapl:1", 30_000_000)
    assert power.watts() == pytest.approx(45.0)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    now_s = 14.0
    assert power.watts() is None
    assert PackagePower(lambda: now_s, tmp_path / "nothing").watts() is None


def test_memory_errors_are_those_of_all_controllers(tmp_path: Path) -> None:
    assert memory_errors(tmp_path) == (None, None)
    for index, (corrected, uncorrected) in enumerate([(3, 0), (4, 1)]):
        (tmp_path / f"mc{index}").mkdir()
        (tmp_path / f"mc{index}" / "ce_count").write_text(f"{corrected}\n")
        (tmp_path / f"mc{index}" / "ue_count").write_text(f"{uncorrected}\n")
    assert memory_errors(tmp_path) == (7, 1)


@pytest.mark.parametrize(
    ("text", "pressed"),
    [
        ("some avg10=0.31 avg60=0.10 avg300=0.00 total=1\nfull avg10=0.00 avg60=0 avg300=0 total=0\n", False),
        ("some avg10=12.50 avg60=0.10 avg300=0.00 total=1\n", True),
        ("nonsense", None),
        ("some avg10=much", None),
    ],
)
def test_processes_that_wait_for_memory_are_seen(tmp_path: Path, text: str, pressed: bool | None) -> None:
    file = tmp_path / "memory"
    file.write_text(text)
    assert is_memory_pressed(file) is pressed
    assert is_memory_pressed(tmp_path / "missing") is None


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


def test_numpy_is_imported_when_something_is_computed_and_not_before() -> None:
    code = """
import sys
from exo.gpu.backends.cpu import CPUDriver
driver = CPUDriver()
driver.open()
driver.find_devices()
driver.read(0)
assert "numpy" not in sys.modules
driver.allocate(0, 8)
assert "numpy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
