"""AMD's GPUs: the kernel's files as a tree of the test's, and stand-ins for CuPy and AMD's management library."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exo.gpu.backends.rocm import ROCmDriver
from exo.gpu.backends.rocm.gpu_metrics import throttle_reasons
from exo.gpu.backends.rocm.kfd import architecture
from exo.gpu.backends.sysfs import product_name
from exo.gpu.errors import BackendUnavailableError, DeviceLostError, DeviceNotFoundError, NotComputingError
from exo.gpu.host_memory import HostMemory
from exo.gpu.reading import DeviceReading, MemoryInfo, ProcessMemory
from support.fake_cupy import FakeCuPy, FakeDevice
from support.fake_sysfs import GIB, FakeSysfs, gpu_metrics, kfd_node, radeon

FIRST, SECOND = "0000:03:00.0", "0000:83:00.0"
PCI_IDS = """# A list.
1001  Other
\t744c  Wrong
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t744c  Navi 31 [Radeon RX 7900 XT/7900 XTX]
\t\t1002 0e3b  A board
\t15bf  Phoenix1
8086  Intel Corporation
\t56a0  DG2 [Arc A770]
"""


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    tree = FakeSysfs(tmp_path / "sys")
    tree.card(1, FIRST, "amdgpu", "1002:744C", radeon())
    tree.write(kfd_node(1, 4711, FIRST))
    return tree


Make = Callable[..., ROCmDriver]


@pytest.fixture
def make(sysfs: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    for library in ("cupy", "amdsmi"):
        monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "pci.ids").write_text(PCI_IDS)
    opened: list[ROCmDriver] = []

    def open_one(**environment: str) -> ROCmDriver:
        driver = ROCmDriver(
            sysfs=sysfs.folder,
            pci_ids=(tmp_path / "pci.ids",),
            environment=environment,
            host_memory=lambda: HostMemory(total_bytes=32 * GIB, available_bytes=8 * GIB),
        )
        opened.append(driver)
        driver.open()
        driver.find_devices()
        return driver

    yield open_one
    for driver in opened:
        driver.close()


class TestFinding:
    def test_says_what_a_card_is(self, make: Make) -> None:
        (device,) = make().find_devices()
        assert device.name == "AMD Radeon RX 7900 XT/7900 XTX"
        assert (device.vendor, device.memory_kind, device.memory_total_bytes) == ("amd", "vram", 24 * GIB)
        assert device.uuid == "GPU-5a1c9d00f1e2d3c4"
        assert device.pci_address == FIRST
        assert (device.compute_units, device.compute_capability) == (96, "gfx1100")
        assert device.clock_mhz == 2482

    def test_the_drivers_own_name_counts_most(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.change(FIRST, {"product_name": "AMD Instinct MI210", "unique_id": "0000000000000000"})
        (device,) = make().find_devices()
        assert (device.name, device.uuid) == ("AMD Instinct MI210", None)

    def test_others_cards_are_not_touched(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.card(0, "0000:00:02.0", "i915", "8086:56A0", {})
        sysfs.card(2, "0000:01:00.0", "nvidia", "10DE:2684", {})
        assert [device.pci_address for device in make().find_devices()] == [FIRST]

    def test_a_card_keeps_its_index(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.card(2, SECOND, "amdgpu", "1002:744C", radeon(unique_id="0badc0ffee"))
        driver = make()
        sysfs.remove(1, FIRST)
        assert [(device.index, device.pci_address) for device in driver.find_devices()] == [(1, SECOND)]
        with pytest.raises(DeviceLostError, match="not there any more"):
            driver.read(0)
        assert driver.read(1).temperature_c == 71

    def test_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(BackendUnavailableError, match="no AMD GPU"):
            ROCmDriver(sysfs=tmp_path / "nothing").open()

    def test_what_the_user_hides(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.card(2, SECOND, "amdgpu", "1002:744C", radeon(unique_id="0badc0ffee"))
        assert [one.pci_address for one in make(HIP_VISIBLE_DEVICES="1").find_devices()] == [SECOND]
        assert [one.pci_address for one in make(CUDA_VISIBLE_DEVICES="1,0").find_devices()] == [SECOND, FIRST]
        assert make(ROCR_VISIBLE_DEVICES="1", HIP_VISIBLE_DEVICES="1").find_devices() == []
        both = make(ROCR_VISIBLE_DEVICES="GPU-0badc0ffee,0", HIP_VISIBLE_DEVICES="0")
        assert [one.pci_address for one in both.find_devices()] == [SECOND]

    def test_no_such_device(self, make: Make) -> None:
        with pytest.raises(DeviceNotFoundError):
            make().read(5)


class TestReading:
    def test_reads_everything(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.change(FIRST, {"ras/umc_err_count": "ue: 1\nce: 12", "gpu_metrics": gpu_metrics(1 << 36 | 1)})
        sysfs.write({"class/kfd/kfd/proc/815/vram_4711": GIB, "class/kfd/kfd/proc/816/vram_99": GIB})
        assert make().read(0) == DeviceReading(
            memory_total_bytes=24 * GIB,
            memory_used_bytes=3 * GIB,
            compute_utilization_percent=42.0,
            temperature_c=71.0,
            throttle_threshold_c=110.0,
            is_thermal_throttling=True,
            throttle_reasons=("power", "thermal"),
            power_watts=213.0,
            power_limit_watts=339.0,
            clock_mhz=1903.0,
            clock_max_mhz=2482.0,
            ecc_corrected_count=12,
            ecc_uncorrected_count=1,
            processes=(ProcessMemory(pid=815, used_bytes=GIB),),
        )

    def test_a_card_that_tells_little(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.remove(1, FIRST)
        sysfs.card(
            1, SECOND, "amdgpu", "1002:1234", {"mem_info_vram_total": GIB, "hwmon/hwmon0/temp1_input": 40_000}
        )
        driver = make()
        assert driver.read(0) == DeviceReading(memory_total_bytes=GIB, temperature_c=40.0)
        assert driver.find_devices()[0].name == "AMD GPU 1234"

    def test_clocks_from_the_list_of_states(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.change(FIRST, {"hwmon/hwmon4/freq1_input": None})
        assert make().read(0).clock_mhz == 1850

    def test_one_that_sleeps_is_left_asleep(self, sysfs: FakeSysfs, make: Make) -> None:
        driver = make()
        sysfs.change(FIRST, {"power/runtime_status": "suspended"})
        assert driver.read(0) == DeviceReading()

    def test_one_that_answers_nothing(self, sysfs: FakeSysfs, make: Make) -> None:
        driver = make()
        files = (
            "mem_info_vram_total",
            "gpu_busy_percent",
            "hwmon/hwmon4/temp1_input",
            "hwmon/hwmon4/temp2_input",
        )
        sysfs.change(FIRST, dict.fromkeys(files))
        with pytest.raises(DeviceLostError, match="answers nothing"):
            driver.read(0)
        with pytest.raises(DeviceLostError):
            driver.memory_info(0)

    def test_nonsense_in_a_file_is_unknown(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.change(FIRST, {"gpu_busy_percent": "busy", "ras/umc_err_count": "?", "pp_dpm_sclk": "x\n\n1:"})
        reading = make().read(0)
        assert reading.compute_utilization_percent is None
        assert reading.ecc_corrected_count is None
        assert reading.clock_max_mhz is None

    def test_one_with_the_processor_has_the_hosts_memory(self, sysfs: FakeSysfs, make: Make) -> None:
        sysfs.write(kfd_node(1, 4711, FIRST, cpu_cores_count=16))
        driver = make()
        (device,) = driver.find_devices()
        assert (device.memory_kind, device.memory_total_bytes) == ("unified", 40 * GIB)
        # 21 GiB of its own are free, and 8 of the 15 GiB that it might take of the host's.
        assert driver.memory_info(0) == MemoryInfo(total_bytes=40 * GIB, used_bytes=11 * GIB)


class TestPureParts:
    @pytest.mark.parametrize(
        ("table", "reasons"),
        [
            (gpu_metrics(0), ()),
            (gpu_metrics(1 << 17), ("power",)),
            (gpu_metrics(1 << 47 | 1 << 57), ("thermal", "other")),
            (gpu_metrics(2**64 - 1), None),
            (gpu_metrics(1, version=(1, 4)), None),
            (gpu_metrics(1)[:50], None),
            (None, None),
        ],
    )
    def test_what_holds_the_clocks_back(self, table: bytes | None, reasons: tuple[str, ...] | None) -> None:
        assert throttle_reasons(table) == reasons

    @pytest.mark.parametrize(
        ("version", "name"),
        [(110_000, "gfx1100"), (90_402, "gfx942"), (90_010, "gfx90a"), (110_501, "gfx1151"), (0, None)],
    )
    def test_architectures(self, version: int, name: str | None) -> None:
        assert architecture(version) == name

    def test_names_of_pci_devices(self, tmp_path: Path) -> None:
        file = tmp_path / "pci.ids"
        file.write_text(PCI_IDS)
        files = (tmp_path / "missing", file)
        assert product_name("1002", "15bf", files) == "Phoenix1"
        assert product_name("8086", "56A0", files) == "Arc A770"
        assert product_name("1002", "56a0", files) is None


class TestManagementLibrary:
    def smi(self, monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
        module = ModuleType("amdsmi")
        for name, function in {
            "amdsmi_init": lambda: None,
            "amdsmi_shut_down": lambda: None,
            "amdsmi_get_processor_handles": lambda: ["h"],
            "amdsmi_get_gpu_device_bdf": lambda handle: FIRST.upper(),
            **functions,
        }.items():
            setattr(module, name, function)
        monkeypatch.setitem(sys.modules, "amdsmi", module)

    def test_it_fills_the_gaps(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        self.smi(
            monkeypatch,
            amdsmi_get_gpu_asic_info=lambda handle: {"market_name": "Radeon RX 7900 XTX"},
            amdsmi_get_gpu_total_ecc_count=lambda handle: {
                "correctable_count": 3,
                "uncorrectable_count": "N/A",
            },
        )
        driver = make()
        assert driver.find_devices()[0].name == "AMD Radeon RX 7900 XTX"
        reading = driver.read(0)
        assert (reading.ecc_corrected_count, reading.ecc_uncorrected_count) == (3, None)

    def test_what_it_does_not_know_or_refuses(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(handle: str) -> None:
            raise RuntimeError("AMDSMI_STATUS_NOT_SUPPORTED")

        self.smi(
            monkeypatch,
            amdsmi_get_gpu_asic_info=lambda handle: {"market_name": "0x744c"},
            amdsmi_get_gpu_total_ecc_count=refuse,
        )
        driver = make()
        assert driver.find_devices()[0].name == "AMD Radeon RX 7900 XT/7900 XTX"
        assert driver.read(0).ecc_corrected_count is None

    def test_its_package_breaks_without_the_systems_library(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "amdsmi.py").write_text("raise KeyError('libamd_smi.so')")
        monkeypatch.delitem(sys.modules, "amdsmi")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert make().read(0).temperature_c == 71


class TestComputing:
    def test_without_cupy_it_watches(self, make: Make) -> None:
        driver = make()
        assert not driver.computes
        assert driver.why_not_computing is not None
        assert driver.why_not_computing.install_command == "uv pip install cupy-rocm-7-0"
        with pytest.raises(NotComputingError, match="CuPy"):
            driver.allocate(0, 1)

    def test_hip_counts_the_devices(
        self, sysfs: FakeSysfs, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sysfs.card(2, SECOND, "amdgpu", "1002:744C", radeon(unique_id="0badc0ffee", gpu_busy_percent=7))
        FakeCuPy(
            [FakeDevice(pci=SECOND, architecture="gfx1100:sramecc+"), FakeDevice(pci=FIRST)], is_hip=True
        ).install(monkeypatch)
        driver = make()
        first, second = driver.find_devices()
        assert (first.pci_address, first.index) == (SECOND, 0)
        assert first.compute_capability == "gfx1100"
        assert (second.pci_address, second.index) == (FIRST, 1)
        assert driver.read(0).compute_utilization_percent == 7
        buffer = driver.allocate(1, 4)
        driver.write(buffer, memoryview(b"1234"), 0)
        assert driver.fetch(buffer, 0, 4) == b"1234"
        driver.free(buffer)

    def test_cupy_for_nvidia_is_not_the_one(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        FakeCuPy([FakeDevice(pci=FIRST)]).install(monkeypatch)
        driver = make()
        assert driver.why_not_computing is not None
        assert "is for NVIDIA GPUs" in driver.why_not_computing.message

    def test_hip_without_the_kernels_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As under WSL."""
        FakeCuPy([FakeDevice(pci=FIRST, name="AMD Radeon RX 7900 XTX")], is_hip=True).install(monkeypatch)
        driver = ROCmDriver(sysfs=tmp_path / "nothing")
        driver.open()
        (device,) = driver.find_devices()
        assert (device.name, device.vendor, device.memory_total_bytes) == (
            "AMD Radeon RX 7900 XTX",
            "amd",
            2**30,
        )
        assert driver.read(0) == DeviceReading(memory_total_bytes=2**30, memory_used_bytes=0)
        driver.close()
