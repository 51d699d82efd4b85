"""Apple's GPU: the real MLX on its CPU device, what ioreg prints, and a stand-in for macOS' C library."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from exo.gpu.backends.metal import MetalDriver
from exo.gpu.backends.metal.counters import GpuCounters, MacCounters, parsed
from exo.gpu.errors import BackendUnavailableError, DeviceLostError, OutOfDeviceMemoryError
from exo.gpu.host_memory import HostMemory
from exo.gpu.reading import DeviceReading, MemoryInfo
from support import metal_stand_in
from support.metal_stand_in import IOREG, OnTheProcessor, ioreg

GIB = 2**30
SOURCE = Path(metal_stand_in.__file__).with_name("fake_libsystem.c")

pytest.importorskip("mlx.core", reason="MLX is not installed")


def host() -> HostMemory:
    return HostMemory(total_bytes=64 * GIB, available_bytes=20 * GIB)


@pytest.fixture
def libsystem(tmp_path: Path) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler `cc` on this machine")
    library = tmp_path / "libsystem.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE], check=True, timeout=60)
    return str(library)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetalDriver]:
    made = OnTheProcessor(counters=MacCounters(run=ioreg), host_memory=host)
    made.open()
    facts = {
        "device_name": "Apple M3 Max",
        "architecture": "applegpu_g15s",
        "memory_size": 64 * GIB,
        "max_recommended_working_set_size": 48 * GIB,
    }
    import mlx.core

    monkeypatch.setattr(mlx.core, "device_info", lambda: facts)
    yield made
    made.close()


class TestWatching:
    def test_says_what_it_is(self, driver: MetalDriver) -> None:
        (device,) = driver.find_devices()
        assert (device.name, device.vendor) == ("Apple M3 Max", "apple")
        assert (device.memory_kind, device.memory_total_bytes) == ("unified", 48 * GIB)
        assert (device.compute_units, device.compute_capability) == (40, "applegpu_g15s")

    def test_reads_what_there_is(
        self, libsystem: str, monkeypatch: pytest.MonkeyPatch, driver: MetalDriver
    ) -> None:
        monkeypatch.setenv("EXO_FAKE_THERMAL", "2")
        monkeypatch.setenv("EXO_FAKE_MEMORY", "4")
        watching = OnTheProcessor(counters=MacCounters(run=ioreg, library=libsystem), host_memory=host)
        watching.open()
        assert watching.read(0) == DeviceReading(
            memory_total_bytes=48 * GIB,
            # It might have 47 GiB, but the host has only 20 left.
            memory_used_bytes=28 * GIB,
            compute_utilization_percent=23.0,
            is_thermal_throttling=True,
            throttle_reasons=("thermal",),
            is_memory_pressed=True,
        )

    @pytest.mark.parametrize(("level", "is_hot"), [("0", False), ("1", False), ("2", True), ("4", True)])
    def test_heat(self, libsystem: str, monkeypatch: pytest.MonkeyPatch, level: str, is_hot: bool) -> None:
        monkeypatch.setenv("EXO_FAKE_THERMAL", level)
        counters = MacCounters(library=libsystem)
        assert counters.is_held_back_by_heat() is is_hot
        assert counters.is_held_back_by_heat() is is_hot

    @pytest.mark.parametrize(("level", "is_short"), [("1", False), ("2", True), ("4", True)])
    def test_memory(
        self, libsystem: str, monkeypatch: pytest.MonkeyPatch, level: str, is_short: bool
    ) -> None:
        monkeypatch.setenv("EXO_FAKE_MEMORY", level)
        assert MacCounters(library=libsystem).is_memory_pressed() is is_short

    def test_a_system_that_tells_nothing(self, libsystem: str, driver: MetalDriver) -> None:
        def refuse(command: Sequence[str]) -> bytes:
            raise FileNotFoundError(command[0])

        for counters in (
            MacCounters(run=refuse, library=libsystem),
            MacCounters(run=refuse, library="/no/library"),
        ):
            watching = OnTheProcessor(counters=counters, host_memory=host)
            watching.open()
            assert watching.read(0) == DeviceReading(memory_total_bytes=48 * GIB, memory_used_bytes=28 * GIB)
            assert watching.find_devices()[0].compute_units is None

    def test_an_mlx_that_tells_less(self, driver: MetalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
        import mlx.core

        monkeypatch.setattr(mlx.core, "device_info", lambda: {"device_name": "Apple M9"})
        assert driver.find_devices()[0].memory_total_bytes == 48 * GIB
        assert driver.memory_info(0) == MemoryInfo(total_bytes=48 * GIB, used_bytes=28 * GIB)

    @pytest.mark.parametrize(
        "text",
        [b"", b"nonsense", b"<plist><array/></plist>", IOREG.replace(b"PerformanceStatistics", b"Other")],
    )
    def test_a_registry_without_statistics(self, text: bytes) -> None:
        assert parsed(text) == GpuCounters()

    def test_the_registry(self) -> None:
        assert parsed(IOREG) == GpuCounters(utilization_percent=23.0, used_bytes=GIB, core_count=40)
        assert (
            parsed(IOREG.replace(b"<integer>23</integer>", b"<string>x</string>")).utilization_percent is None
        )


class TestMissing:
    def test_no_metal(self) -> None:
        import mlx.core

        if mlx.core.metal.is_available():
            pytest.skip("this machine has Metal")
        with pytest.raises(BackendUnavailableError, match="no Apple GPU"):
            MetalDriver().open()

    def test_no_mlx(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlx.core", None)
        with pytest.raises(BackendUnavailableError) as raised:
            MetalDriver().open()
        assert raised.value.install_command == "uv pip install mlx"

    def test_closed(self, driver: MetalDriver) -> None:
        driver.close()
        driver.close()
        with pytest.raises(DeviceLostError, match="closed"):
            driver.synchronize(0)
        with pytest.raises(DeviceLostError, match="closed"):
            driver.find_devices()


class TestComputing:
    def test_more_than_one_piece_holds(self) -> None:
        plenty = OnTheProcessor(
            counters=MacCounters(run=ioreg),
            host_memory=lambda: HostMemory(total_bytes=2**40, available_bytes=2**40),
        )
        plenty.open()
        with pytest.raises(OutOfDeviceMemoryError, match="in one piece"):
            plenty.allocate(0, 2**31)

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("[metal::malloc] Unable to allocate 9 bytes.", OutOfDeviceMemoryError),
            ("[METAL] Command buffer execution failed: Caused GPU Hang Error", DeviceLostError),
            ("something else", RuntimeError),
        ],
    )
    def test_what_mlx_says_when_it_fails(
        self, driver: MetalDriver, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception]
    ) -> None:
        import mlx.core

        def fail(*arrays: Any) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(mlx.core, "eval", fail)
        with pytest.raises(error):
            driver.allocate(0, 16)
