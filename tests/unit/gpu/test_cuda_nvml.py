"""NVIDIA's GPUs through the real `pynvml`, over a stub of the driver's library that plays what a test says."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from exo.gpu.backends.cuda.nvml import NvidiaMonitor
from exo.gpu.backends.cuda.nvml_library import RETRY_UNSUPPORTED_S
from exo.gpu.driver_thread import DriverThread
from exo.gpu.errors import (
    BackendUnavailableError,
    DeviceHangError,
    DeviceLostError,
    DeviceNotFoundError,
)
from exo.gpu.host_memory import HostMemory
from exo.gpu.reading import DeviceReading, MemoryInfo, ProcessMemory
from support import nvml_stub
from support.nvml_stub import GB10, GIB, H100, RTX_4090, NvmlStub

NOT_SUPPORTED = 3
UNKNOWN = 999
GPU_IS_LOST = 15
RESET_REQUIRED = 16
VERSION_MISMATCH = 18
FUNCTION_NOT_FOUND = 13

pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")


class Clock:
    """Monotonic seconds that a test turns."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def stub(tmp_path: Path) -> NvmlStub:
    try:
        return nvml_stub.start(tmp_path)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(stub: NvmlStub, clock: Clock) -> Iterator[NvidiaMonitor]:
    watching = NvidiaMonitor(
        clock=clock, host_memory=lambda: HostMemory(total_bytes=120 * GIB, available_bytes=90 * GIB)
    )
    yield watching
    stub.set({"hang.nvmlShutdown": None})
    watching.close()


async def until_over(thread: DriverThread) -> None:
    """Wait until a hang is over."""
    with anyio.fail_after(20):
        while True:
            try:
                return thread.check()
            except DeviceHangError:
                await anyio.sleep(0.001)


def opened(monitor: NvidiaMonitor) -> NvidiaMonitor:
    monitor.open()
    monitor.find_devices()
    return monitor


class TestWhichThereAre:
    def test_says_what_a_device_is(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        uuid = stub.add(0, H100)
        monitor.open()
        (device,) = monitor.find_devices()
        assert device.index == 0
        assert device.name == "NVIDIA H100 80GB HBM3"
        assert device.vendor == "nvidia"
        assert device.uuid == uuid
        assert device.pci_address == "0000:01:00.0"
        assert (device.memory_kind, device.memory_total_bytes) == ("vram", 81_559 * 2**20)
        assert device.compute_capability == "9.0"
        assert device.compute_units == 132
        assert device.clock_mhz == 3120
        assert device.memory_bandwidth_bytes_per_s == pytest.approx(3.352e12, rel=1e-3)
        assert device.driver_version == "580.95.05"

    def test_finds_many(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        uuids = [stub.add(slot, RTX_4090) for slot in range(40)]
        monitor.open()
        found = monitor.find_devices()
        assert [device.uuid for device in found] == uuids
        assert [device.index for device in found] == list(range(40))

    def test_finds_none(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        monitor.open()
        assert monitor.find_devices() == []

    def test_a_device_keeps_its_index_when_others_come_and_go(
        self, stub: NvmlStub, monitor: NvidiaMonitor
    ) -> None:
        first, second = stub.add(0, RTX_4090), stub.add(1, H100)
        opened(monitor)
        stub.remove(0)
        assert [(device.uuid, device.index) for device in monitor.find_devices()] == [(second, 1)]
        assert monitor.read(1).temperature_c == 61
        third = stub.add(2, RTX_4090)
        stub.add(0, RTX_4090)
        found = {device.uuid: device.index for device in monitor.find_devices()}
        assert found == {first: 0, second: 1, third: 2}

    def test_leaves_a_broken_one_out(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        good = stub.add(1, RTX_4090)
        stub.add(2, RTX_4090)
        stub.change(0, **{"error.nvmlDeviceGetHandleByIndex_v2": GPU_IS_LOST})
        stub.change(2, **{"error.nvmlDeviceGetMemoryInfo": UNKNOWN})
        monitor.open()
        assert [device.uuid for device in monitor.find_devices()] == [good]

    def test_an_index_that_was_never_given(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        opened(monitor)
        with pytest.raises(DeviceNotFoundError, match="look for devices again"):
            monitor.read(3)


class TestHowTheyAre:
    def test_reads_everything(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, H100, throttle="0x24", ecc_corrected=7, ecc_uncorrected=1)
        stub.change(0, processes=f"4711:{3 * GIB} 4712:-1")
        assert opened(monitor).read(0) == DeviceReading(
            memory_total_bytes=81_559 * 2**20,
            memory_used_bytes=2 * GIB + 512 * 2**20,
            compute_utilization_percent=37.0,
            temperature_c=61.0,
            throttle_threshold_c=90.0,
            is_thermal_throttling=True,
            throttle_reasons=("power", "thermal"),
            power_watts=211.5,
            power_limit_watts=700.0,
            energy_joules=7_200_500.0,
            clock_mhz=2520.0,
            clock_max_mhz=3120.0,
            ecc_corrected_count=7,
            ecc_uncorrected_count=1,
            processes=(ProcessMemory(pid=4711, used_bytes=3 * GIB), ProcessMemory(pid=4712)),
        )

    def test_sees_changes(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        opened(monitor)
        assert monitor.read(0).is_thermal_throttling is False
        stub.change(0, temperature=88, memory_used=20 * GIB, throttle="0x40", power_mw=449_000)
        after = monitor.read(0)
        assert (after.temperature_c, after.power_watts, after.is_thermal_throttling) == (88, 449, True)
        assert monitor.memory_info(0) == MemoryInfo(
            total_bytes=24564 * 2**20, used_bytes=20 * GIB + 512 * 2**20
        )

    def test_what_a_card_does_not_support_is_unknown(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, {"name": "NVIDIA", "memory_total": GIB, "memory_used": 0})
        assert opened(monitor).read(0) == DeviceReading(memory_total_bytes=GIB, memory_used_bytes=0)

    def test_is_not_asked_in_vain_again_and_again(
        self, stub: NvmlStub, monitor: NvidiaMonitor, clock: Clock
    ) -> None:
        stub.add(0, RTX_4090, power_mw=None)
        opened(monitor)
        for _ in range(5):
            clock.now_s += 2
            assert monitor.read(0).power_watts is None
        assert stub.calls("nvmlDeviceGetPowerUsage") == 1
        stub.change(0, power_mw=100_000)
        clock.now_s += RETRY_UNSUPPORTED_S
        assert monitor.read(0).power_watts == 100
        assert monitor.read(0).power_watts == 100

    def test_a_passing_failure_is_asked_again_at_once(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        stub.change(0, **{"error.nvmlDeviceGetPowerUsage": UNKNOWN})
        opened(monitor)
        assert monitor.read(0).power_watts is None
        stub.change(0, **{"error.nvmlDeviceGetPowerUsage": None})
        assert monitor.read(0).power_watts == 211.5

    def test_a_driver_from_before_the_new_names(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090, throttle="0x80")
        stub.set(
            {
                "driver": "525.60.13",
                "error.nvmlDeviceGetCurrentClocksEventReasons": FUNCTION_NOT_FOUND,
            }
        )
        assert opened(monitor).read(0).throttle_reasons == ("power_brake",)

    def test_a_card_that_tells_the_margin_only(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, H100, threshold_slowdown=None, threshold_gpu_max=None, temperature_margin=26)
        assert opened(monitor).read(0).throttle_threshold_c == 87

    def test_nonsense_is_passed_on_as_it_is(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090, temperature=255, utilization=4_000_000_000, memory_used=99 * 2**40)
        reading = opened(monitor).read(0)
        assert reading.temperature_c == 255
        assert reading.compute_utilization_percent == 4_000_000_000
        assert reading.memory_used_bytes is not None and reading.memory_used_bytes > 2**40

    def test_a_reading_costs_few_questions(
        self, stub: NvmlStub, monitor: NvidiaMonitor, clock: Clock
    ) -> None:
        stub.add(0, H100, processes=f"1:{GIB}")
        opened(monitor).read(0)
        functions = [
            line.split("(")[0].split()[-1]
            for line in nvml_stub.SOURCE.read_text().splitlines()
            if line.startswith("int nvml")
        ]

        def total() -> int:
            return sum(stub.calls(function) for function in functions)

        most = 0
        for _ in range(300):
            clock.now_s += 2
            before = total()
            monitor.read(0)
            most = max(most, total() - before)
        # Of 8 ms each at most, this stays under 100 ms.
        assert most <= 11


class TestUnified:
    def test_its_memory_is_the_hosts(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, GB10)
        monitor.open()
        (device,) = monitor.find_devices()
        assert (device.memory_kind, device.memory_total_bytes) == ("unified", 120 * GIB)
        assert monitor.memory_info(0) == MemoryInfo(total_bytes=120 * GIB, used_bytes=30 * GIB)
        reading = monitor.read(0)
        assert (reading.memory_total_bytes, reading.memory_used_bytes) == (120 * GIB, 30 * GIB)
        assert reading.power_watts == 14
        assert reading.power_limit_watts is None
        assert reading.throttle_reasons == ()


class TestParts:
    """Multi-Instance GPU: one chip as several devices."""

    @pytest.fixture(autouse=True)
    def divided(self, stub: NvmlStub) -> None:
        stub.add(0, H100, mig_mode=1, multiprocessors=None)
        for part, name in (
            (0, "NVIDIA H100 80GB HBM3 MIG 3g.40gb"),
            (2, "NVIDIA H100 80GB HBM3 MIG 1g.10gb"),
        ):
            values = {
                "uuid": f"MIG-{part}",
                "name": name,
                "gpu_instance": part + 1,
                "memory_total": (40 if part == 0 else 10) * GIB,
                "memory_used": GIB,
                "multiprocessors": 60 if part == 0 else 16,
                "processes": "",
            }
            stub.change(0, **{f"mig.{part}.{key}": value for key, value in values.items()})
        stub.add(1, H100)

    def test_each_is_a_device(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        monitor.open()
        first, second, whole = monitor.find_devices()
        assert (first.uuid, first.memory_total_bytes, first.compute_units) == ("MIG-0", 40 * GIB, 60)
        assert (second.uuid, second.name) == ("MIG-2", "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
        assert first.pci_address == second.pci_address == "0000:01:00.0"
        assert first.memory_bandwidth_bytes_per_s is None
        assert whole.name == "NVIDIA H100 80GB HBM3"
        assert [first.index, second.index, whole.index] == [0, 1, 2]

    def test_the_chip_is_read_but_its_power_not_counted_twice(
        self, stub: NvmlStub, monitor: NvidiaMonitor
    ) -> None:
        reading = opened(monitor).read(1)
        assert (reading.memory_total_bytes, reading.memory_used_bytes) == (10 * GIB, GIB)
        assert reading.temperature_c == 61
        assert reading.power_watts is None
        assert reading.power_limit_watts is None
        assert reading.energy_joules is None
        assert reading.compute_utilization_percent is None

    def test_an_error_is_told_of_the_part_it_is_of(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        opened(monitor)
        monitor.read(0), monitor.read(1)
        stub.change(0, xids="1:31:3 2:79")
        assert [fault.code for fault in monitor.read(0).faults] == [79]
        assert [fault.code for fault in monitor.read(1).faults] == [31, 79]

    def test_a_part_that_is_taken_away(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        opened(monitor)
        stub.change(0, **{"mig.2.uuid": None})
        with pytest.raises(DeviceLostError, match="MIG-2"):
            monitor.read(1)
        assert monitor.read(0).memory_total_bytes == 40 * GIB

    def test_divided_into_nothing(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.change(0, **{"mig.0.uuid": None, "mig.2.uuid": None})
        monitor.open()
        assert [device.name for device in monitor.find_devices()] == ["NVIDIA H100 80GB HBM3"]


class TestFaults:
    def test_errors_are_told_once(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090, xids="1:79")
        opened(monitor)
        assert monitor.read(0).faults == ()  # It happened before.
        stub.change(0, xids="1:79 2:31 3:79")
        program, gone = monitor.read(0).faults
        assert (program.kind, program.code, program.is_fatal) == ("xid", 31, False)
        assert (gone.code, gone.is_fatal) == (79, True)
        assert "fallen off the bus" in gone.message
        assert monitor.read(0).faults == ()

    def test_an_error_is_not_lost_with_the_reading(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        opened(monitor).read(0)
        stub.change(0, xids="1:48", **{"error.nvmlDeviceGetMemoryInfo": GPU_IS_LOST})
        with pytest.raises(DeviceLostError):
            monitor.read(0)
        stub.change(0, **{"error.nvmlDeviceGetMemoryInfo": None})
        assert [fault.code for fault in monitor.read(0).faults] == [48]

    def test_a_card_without_events(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090, event_types=None, xids="1:79")
        opened(monitor)
        for _ in range(3):
            assert monitor.read(0).faults == ()
        assert stub.calls("nvmlEventSetCreate") == stub.calls("nvmlEventSetFree") == 1

    @pytest.mark.parametrize("function", ["nvmlDeviceRegisterEvents", "nvmlEventSetCreate"])
    def test_events_that_the_driver_refuses(
        self, stub: NvmlStub, monitor: NvidiaMonitor, clock: Clock, function: str
    ) -> None:
        stub.add(0, RTX_4090)
        stub.set({f"error.{function}": 4})
        opened(monitor)
        for _ in range(3):
            assert monitor.read(0).temperature_c == 61
        assert stub.calls(function) == 1
        stub.set({f"error.{function}": None})
        clock.now_s += RETRY_UNSUPPORTED_S
        monitor.read(0)
        stub.change(0, xids="1:79")
        assert [fault.code for fault in monitor.read(0).faults] == [79]

    def test_events_that_fail_are_given_back(
        self, stub: NvmlStub, monitor: NvidiaMonitor, clock: Clock
    ) -> None:
        stub.add(0, RTX_4090)
        opened(monitor).read(0)
        stub.set({"error.nvmlEventSetWait_v2": UNKNOWN})
        for _ in range(3):
            assert monitor.read(0).faults == ()
        assert stub.calls("nvmlEventSetCreate") == stub.calls("nvmlEventSetFree") == 1
        stub.set({"error.nvmlEventSetWait_v2": GPU_IS_LOST})
        clock.now_s += RETRY_UNSUPPORTED_S
        with pytest.raises(DeviceLostError):
            monitor.read(0)

    def test_a_device_that_has_to_be_reset(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090, error=RESET_REQUIRED)
        stub.set({"0.error": None})
        opened(monitor)
        stub.set({"0.error": RESET_REQUIRED})
        (fault,) = monitor.read(0).faults
        assert (fault.kind, fault.is_fatal) == ("reset_required", True)
        stub.set({"0.error": None})
        assert monitor.read(0).faults == ()

    @pytest.mark.parametrize(
        ("rows", "kind", "is_fatal"), [("3 1 1 0", "reset_required", False), ("3 1 0 1", "ecc", True)]
    )
    def test_rows_of_memory(
        self, stub: NvmlStub, monitor: NvidiaMonitor, rows: str, kind: str, is_fatal: bool
    ) -> None:
        stub.add(0, H100, remapped_rows=rows)
        (fault,) = opened(monitor).read(0).faults
        assert (fault.kind, fault.is_fatal) == (kind, is_fatal)


class TestLosses:
    def test_lost_and_back(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        uuid = stub.add(0, RTX_4090)
        opened(monitor)
        stub.set({"0.error": GPU_IS_LOST})
        with pytest.raises(DeviceLostError, match=rf"{uuid}: .*: restart the machine if it stays so"):
            monitor.read(0)
        with pytest.raises(DeviceLostError):
            monitor.memory_info(0)
        stub.set({"0.error": None})
        assert monitor.read(0).temperature_c == 61

    def test_vanishes_between_two_calls(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        stub.add(1, RTX_4090)
        opened(monitor).read(0)
        stub.remove(0)
        with pytest.raises(DeviceLostError, match="restart the machine"):
            monitor.read(0)
        assert monitor.read(1).temperature_c == 61

    def test_answers_nothing(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        opened(monitor)
        stub.set({"0.error": UNKNOWN})
        with pytest.raises(DeviceLostError, match="answers nothing"):
            monitor.read(0)

    def test_the_driver_begins_anew(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        stub.add(1, RTX_4090)
        opened(monitor)
        monitor.read(0), monitor.read(1)
        stub.set(generation=2)
        stub.change(1, temperature=70)
        found: dict[int, float | None] = {}
        threads = [
            threading.Thread(
                target=lambda index=index: found.update({index: monitor.read(index).temperature_c})
            )
            for index in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)
        assert found == {0: 61, 1: 70}
        assert stub.calls("nvmlInitWithFlags") == 2
        stub.change(0, xids="1:79")
        assert [fault.code for fault in monitor.read(0).faults] == [79]

    def test_the_driver_ends(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        opened(monitor)
        stub.set({"generation": 2, "error.nvmlInitWithFlags": 9})
        with pytest.raises(DeviceLostError, match="modprobe nvidia"):
            monitor.read(0)
        stub.set({"error.nvmlInitWithFlags": None})
        assert monitor.read(0).temperature_c == 61

    def test_the_driver_is_updated_in_mid_life(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        opened(monitor)
        stub.set({"0.error": VERSION_MISMATCH})
        with pytest.raises(DeviceLostError, match="restart the machine"):
            monitor.read(0)

    async def test_a_call_that_hangs(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        stub.add(1, RTX_4090)
        opened(monitor)
        stub.set({"0.hang.nvmlDeviceGetTemperature": "forever"})
        first, second = DriverThread("cuda:0"), DriverThread("cuda:1")
        try:
            with pytest.raises(DeviceHangError):
                await first.call(lambda: monitor.read(0), doing="reading", timeout_s=0.2)
            other = await second.call(lambda: monitor.read(1), doing="reading", timeout_s=10)
            assert other.temperature_c == 61
            with pytest.raises(DeviceHangError):
                await first.call(lambda: monitor.read(0), doing="reading", timeout_s=10)
        finally:
            stub.set({"0.hang.nvmlDeviceGetTemperature": None})
        await until_over(first)
        again = await first.call(lambda: monitor.read(0), doing="reading", timeout_s=10)
        assert again.temperature_c == 61
        first.stop(), second.stop()

    def test_lost_while_it_is_looked_for(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        first, second = stub.add(0, RTX_4090), stub.add(1, RTX_4090)
        stub.change(0, **{"error.nvmlDeviceGetMigMode": GPU_IS_LOST})
        monitor.open()
        assert [device.uuid for device in monitor.find_devices()] == [second]
        stub.change(0, **{"error.nvmlDeviceGetMigMode": None})
        assert [device.uuid for device in monitor.find_devices()] == [first, second]

    def test_it_does_not_come_up_again(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        opened(monitor)
        stub.set({"0.error": 1})
        with pytest.raises(DeviceLostError, match="does not answer"):
            monitor.read(0)

    def test_closed_it_says_so(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.add(0, RTX_4090)
        opened(monitor)
        monitor.close()
        monitor.close()
        assert stub.users() == 0
        with pytest.raises(DeviceNotFoundError):
            monitor.read(0)
        with pytest.raises(DeviceLostError, match="closed"):
            monitor.find_devices()


class TestMissing:
    @pytest.mark.parametrize("version", ["470.82.01", "390.157", "524.99"])
    def test_a_driver_that_is_too_old(self, stub: NvmlStub, monitor: NvidiaMonitor, version: str) -> None:
        stub.set(driver=version)
        with pytest.raises(BackendUnavailableError, match=rf"{version}.*525 or later.*install") as raised:
            monitor.open()
        assert not raised.value.is_absent
        assert stub.users() == 0
        assert not monitor.is_open

    def test_a_cuda_that_is_too_old(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.set(cuda=11080)
        with pytest.raises(BackendUnavailableError, match=r"CUDA 11\.8.*12 or later"):
            monitor.open()

    def test_versions_that_nobody_tells(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.set(driver=None, cuda=None)
        stub.add(0, RTX_4090)
        assert opened(monitor).read(0).temperature_c == 61

    def test_a_driver_that_is_not_loaded(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.set({"error.nvmlInitWithFlags": 9})
        with pytest.raises(BackendUnavailableError, match="modprobe") as raised:
            monitor.open()
        assert not raised.value.is_absent

    def test_a_driver_that_was_just_updated(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.set({"error.nvmlInitWithFlags": VERSION_MISMATCH})
        with pytest.raises(BackendUnavailableError, match="restart the machine"):
            monitor.open()

    def test_a_driver_that_fails_for_another_reason(self, stub: NvmlStub, monitor: NvidiaMonitor) -> None:
        stub.set({"error.nvmlInitWithFlags": UNKNOWN})
        with pytest.raises(BackendUnavailableError, match="nvidia-smi"):
            monitor.open()

    def test_a_package_from_before_a_question(
        self, stub: NvmlStub, monitor: NvidiaMonitor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pynvml

        for name in ("nvmlDeviceGetMarginTemperature", "nvmlDeviceGetCurrentClocksEventReasons"):
            monkeypatch.delattr(pynvml, name)
        stub.add(0, RTX_4090, threshold_slowdown=None, threshold_gpu_max=None, throttle="0x8000")
        reading = opened(monitor).read(0)
        assert (reading.throttle_threshold_c, reading.throttle_reasons) == (None, ("other",))

    def test_no_python_package(self, monitor: NvidiaMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        with pytest.raises(BackendUnavailableError, match="nvidia-ml-py") as raised:
            monitor.open()
        assert raised.value.install_command == "uv pip install nvidia-ml-py"

    def test_no_driver(self) -> None:
        program = (
            "from exo.gpu.backends.cuda.nvml import NvidiaMonitor\n"
            "from exo.gpu.errors import BackendUnavailableError\n"
            "try:\n"
            "    NvidiaMonitor().open()\n"
            "except BackendUnavailableError as error:\n"
            "    print(error.message, error.is_absent)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
        )
        if not done.stdout:
            pytest.skip("this machine has an NVIDIA driver")
        assert "libnvidia-ml" in done.stdout and "install the driver" in done.stdout
        assert done.stdout.endswith("True\n"), "as on most machines"
