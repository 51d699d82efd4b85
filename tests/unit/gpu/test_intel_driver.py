"""Intel's GPUs: the kernel's files as a tree of the test's, and ONNX Runtime on the processor in place of OpenVINO."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exo.gpu.backends.intel import IntelDriver
from exo.gpu.backends.intel.growth import Growth
from exo.gpu.errors import BackendUnavailableError, DeviceLostError, DeviceNotFoundError, NotComputingError
from exo.gpu.host_memory import HostMemory
from exo.gpu.reading import DeviceReading, MemoryInfo
from support.fake_sysfs import GIB, FakeSysfs
from support.onnx_stand_in import ARC, PROCESSOR, arc, on_the_processor


class Clock:
    """Monotonic seconds that a test turns."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path / "sys")


Make = Callable[[], IntelDriver]


@pytest.fixture
def make(sysfs: FakeSysfs, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "pci.ids").write_text("8086  Intel Corporation\n\te20b  Battlemage G21 [Arc B580]\n")
    opened: list[IntelDriver] = []

    def open_one() -> IntelDriver:
        driver = IntelDriver(
            sysfs=sysfs.folder,
            pci_ids=(tmp_path / "pci.ids",),
            clock=clock,
            host_memory=lambda: HostMemory(total_bytes=32 * GIB, available_bytes=20 * GIB),
        )
        opened.append(driver)
        driver.open()
        driver.find_devices()
        return driver

    yield open_one
    for driver in opened:
        driver.close()


class TestXe:
    @pytest.fixture(autouse=True)
    def card(self, sysfs: FakeSysfs) -> None:
        sysfs.card(1, ARC, "xe", "8086:E20B", arc())

    def test_says_what_a_card_is(self, make: Make) -> None:
        (device,) = make().find_devices()
        assert (device.name, device.vendor) == ("Intel Arc B580", "intel")
        assert (device.memory_kind, device.memory_total_bytes) == ("vram", 12 * GIB)
        assert (device.pci_address, device.clock_mhz) == (ARC, 2850)

    def test_reads_everything(self, sysfs: FakeSysfs, make: Make, clock: Clock) -> None:
        driver = make()
        first = driver.read(0)
        assert (first.power_watts, first.compute_utilization_percent) == (None, None)  # Of no time yet.
        clock.now_s += 2
        sysfs.change(
            ARC,
            {
                "hwmon/hwmon5/energy1_input": 5_000_000 + 2 * 140_000_000,
                "tile0/gt0/gtidle/idle_residency_ms": 10_500,
                "tile0/gt0/freq0/throttle/status": 1,
                "tile0/gt0/freq0/throttle/reason_pl1": 1,
                "tile0/gt0/freq0/throttle/reason_thermal": 1,
                "tile0/gt0/freq0/throttle/reason_fastvmode": 1,
            },
        )
        assert driver.read(0) == DeviceReading(
            memory_total_bytes=12 * GIB,
            compute_utilization_percent=75.0,
            temperature_c=52.0,
            throttle_threshold_c=100.0,
            is_thermal_throttling=True,
            throttle_reasons=("other", "power", "thermal"),
            power_watts=140.0,
            power_limit_watts=190.0,
            clock_mhz=1200.0,
            clock_max_mhz=2850.0,
            energy_joules=285.0,
        )

    def test_nothing_holds_it_back(self, make: Make) -> None:
        reading = make().read(0)
        assert (reading.throttle_reasons, reading.is_thermal_throttling) == ((), False)

    def test_two_tiles(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.change(ARC, {"tile1/physical_vram_size_bytes": 12 * GIB})
        assert make().memory_info(0) == MemoryInfo(total_bytes=24 * GIB)

    def test_one_that_sleeps_is_left_asleep(self, sysfs: FakeSysfs, make: Make) -> None:
        driver = make()
        sysfs.change(ARC, {"power/runtime_status": "suspended"})
        assert driver.read(0) == DeviceReading()

    def test_one_that_is_gone(self, sysfs: FakeSysfs, make: Make) -> None:
        driver = make()
        sysfs.remove(1, ARC)
        with pytest.raises(DeviceLostError, match="not there any more"):
            driver.read(0)

    def test_one_that_does_not_tell_its_memory_is_left_out(self, sysfs: FakeSysfs, make: Make) -> None:
        driver = make()
        sysfs.change(ARC, {"tile0/physical_vram_size_bytes": None})
        assert driver.find_devices() == []
        with pytest.raises(DeviceLostError, match="does not tell its memory"):
            driver.memory_info(0)

    def test_no_such_device(self, make: Make) -> None:
        with pytest.raises(DeviceNotFoundError):
            make().read(3)


class TestI915:
    @pytest.fixture(autouse=True)
    def card(self, sysfs: FakeSysfs) -> None:
        sysfs.card(1, ARC, "xe", "8086:E20B", arc())
        sysfs.card(0, PROCESSOR, "i915", "8086:A7A0", {})
        files = {
            "rps_act_freq_mhz": 350,
            "rps_RP0_freq_mhz": 1500,
            "rc6_residency_ms": 0,
            "throttle_reason_status": 1,
            "throttle_reason_pl1": 0,
            "throttle_reason_thermal": 1,
        }
        sysfs.write({f"class/drm/card0/gt/gt0/{name}": value for name, value in files.items()})

    def test_the_processors_own_comes_first(self, make: Make) -> None:
        own, card = make().find_devices()
        assert (own.name, own.memory_kind, own.memory_total_bytes) == ("Intel GPU a7a0", "unified", 32 * GIB)
        assert (own.index, card.index) == (0, 1)

    def test_reads(self, sysfs: FakeSysfs, make: Make, clock: Clock) -> None:
        driver = make()
        driver.read(0)
        clock.now_s += 1
        sysfs.write({"class/drm/card0/gt/gt0/rc6_residency_ms": 1010})
        assert driver.read(0) == DeviceReading(
            memory_total_bytes=32 * GIB,
            memory_used_bytes=12 * GIB,
            compute_utilization_percent=0.0,
            is_thermal_throttling=True,
            throttle_reasons=("thermal",),
            clock_mhz=350.0,
            clock_max_mhz=1500.0,
        )

    def test_a_card_with_memory_under_intels_own_driver(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.card(2, "0000:04:00.0", "i915", "8086:56A0", {})
        sysfs.write(
            {"class/drm/card2/lmem_total_bytes": 16 * GIB, "class/drm/card2/lmem_avail_bytes": 15 * GIB}
        )
        driver = make()
        assert driver.memory_info(2) == MemoryInfo(total_bytes=16 * GIB, used_bytes=GIB)


class TestComputing:
    def test_without_onnx_runtime_it_watches(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.card(1, ARC, "xe", "8086:E20B", arc())
        driver = make()
        assert not driver.computes
        assert driver.why_not_computing is not None
        assert driver.why_not_computing.install_command == "uv pip install onnxruntime-openvino"
        with pytest.raises(NotComputingError, match="ONNX Runtime"):
            driver.allocate(0, 1)

    def test_closed(self, sysfs: FakeSysfs) -> None:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        sysfs.card(1, ARC, "xe", "8086:E20B", arc())
        driver = IntelDriver(sysfs=sysfs.folder, pci_ids=(), arrays=on_the_processor())
        driver.open()
        assert driver.computes
        driver.close()
        driver.close()
        with pytest.raises(NotComputingError, match="closed"):
            driver.synchronize(0)

    def test_no_card(self, sysfs: FakeSysfs) -> None:
        with pytest.raises(BackendUnavailableError, match="no Intel GPU"):
            IntelDriver(sysfs=sysfs.folder).open()


def test_a_counter_that_begins_anew(clock: Clock) -> None:
    growth = Growth(clock)
    assert growth.per_s(100) is None
    clock.now_s += 4
    assert growth.per_s(300) == 50
    assert growth.per_s(400) is None  # No time has passed.
    clock.now_s += 1
    assert growth.per_s(10) is None
    clock.now_s += 1
    assert growth.per_s(None) is None
    clock.now_s += 1
    assert growth.per_s(20) is None
