"""GPUs of phones: the real LiteRT on the processor, and Qualcomm's files as a tree of the test's."""

import sys
from pathlib import Path
from typing import Any

import pytest

from exo.gpu.backends.tflite import TFLiteDriver
from exo.gpu.backends.tflite.products import LiteRtProducts
from exo.gpu.driver import MatrixShape
from exo.gpu.errors import BackendUnavailableError, NotComputingError
from exo.gpu.host_memory import HostMemory
from exo.gpu.reading import DeviceReading
from support.fake_sysfs import GIB, FakeSysfs

ONE = MatrixShape(rows=1, inner=1, columns=1)


def host() -> HostMemory:
    return HostMemory(total_bytes=12 * GIB, available_bytes=5 * GIB)


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path / "sys")


class TestWatching:
    def test_an_adreno(self, sysfs: FakeSysfs) -> None:
        files = {
            "gpu_model": "Adreno740v3",
            "gpu_busy_percentage": "37 %",
            "gpuclk": 401_000_000,
            "max_gpuclk": 719_000_000,
            "temp": 41_200,
        }
        sysfs.write({f"class/kgsl/kgsl-3d0/{name}": value for name, value in files.items()})
        driver = TFLiteDriver(sysfs=sysfs.folder, host_memory=host)
        (device,) = driver.find_devices()
        assert (device.name, device.vendor, device.clock_mhz) == ("Qualcomm Adreno740v3", "qualcomm", 719.0)
        assert (device.memory_kind, device.memory_total_bytes) == ("unified", 12 * GIB)
        assert driver.read(0) == DeviceReading(
            memory_total_bytes=12 * GIB,
            memory_used_bytes=7 * GIB,
            compute_utilization_percent=37.0,
            temperature_c=41.2,
            clock_mhz=401.0,
        )

    def test_a_system_that_tells_nothing(self, sysfs: FakeSysfs) -> None:
        driver = TFLiteDriver(sysfs=sysfs.folder, host_memory=host)
        assert driver.find_devices()[0].vendor == "unknown"
        assert driver.read(0) == DeviceReading(memory_total_bytes=12 * GIB, memory_used_bytes=7 * GIB)


class TestMissing:
    @pytest.mark.parametrize("module", ["ai_edge_litert.compiled_model", "flatbuffers"])
    def test_the_library(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BackendUnavailableError, match="LiteRT") as raised:
            TFLiteDriver().open()
        assert raised.value.install_command == "uv pip install ai-edge-litert"


class TestLiteRt:
    @pytest.fixture(autouse=True)
    def with_litert(self) -> None:
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")

    def test_the_gpu_is_refused_where_there_is_none(self) -> None:
        if (
            list(Path("/dev/dri").glob("renderD*"))
            or Path("/dev/nvidia0").exists()
            or sys.platform != "linux"
        ):
            pytest.skip("this machine may have a GPU")
        with pytest.raises(BackendUnavailableError, match="finds no GPU"):
            TFLiteDriver().open()

    def test_a_model_that_would_run_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        products = LiteRtProducts("CPU")
        products.open()
        from ai_edge_litert.compiled_model import CompiledModel

        monkeypatch.setattr(CompiledModel, "is_fully_accelerated", lambda self: False)
        with pytest.raises(NotComputingError, match="would not compute all"):
            products.multiply(*_bytes(), ONE, "float32")
        with pytest.raises(BackendUnavailableError, match="finds no CPU"):
            LiteRtProducts("CPU").open()

    def test_whole_numbers(self) -> None:
        products = LiteRtProducts("CPU")
        products.open()
        with pytest.raises(NotComputingError, match="int8"):
            products.multiply(*_bytes(), ONE, "int8")

    def test_closed(self) -> None:
        products = LiteRtProducts("CPU")
        products.close()
        with pytest.raises(NotComputingError):
            products.multiply(*_bytes(), ONE, "float32")


def _bytes() -> tuple[Any, Any]:
    import numpy

    return numpy.zeros(4, dtype=numpy.uint8), numpy.zeros(4, dtype=numpy.uint8)
