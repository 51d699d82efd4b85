"""GPUs of Windows: a stand-in for DXGI compiled here, and ONNX Runtime on the processor in place of DirectML."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from exo.gpu.backends.directml import DirectMLDriver
from exo.gpu.backends.directml.dxgi import Adapter, list_adapters
from exo.gpu.errors import BackendUnavailableError, DeviceNotFoundError
from exo.gpu.host_memory import HostMemory
from exo.gpu.reading import DeviceReading, MemoryInfo
from support import onnx_stand_in
from support.onnx_stand_in import on_the_processor

GIB = 2**30
MIB = 2**20
SOURCE = Path(onnx_stand_in.__file__).with_name("fake_dxgi.c")
RADEON = Adapter(
    ordinal=0, name="AMD Radeon RX 7600", vendor="amd", dedicated_bytes=8 * GIB, shared_bytes=16 * GIB
)
IRIS = Adapter(
    ordinal=1, name="Intel Iris Xe", vendor="intel", dedicated_bytes=128 * MIB, shared_bytes=16 * GIB
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler `cc` on this machine")
    made = tmp_path_factory.mktemp("dxgi") / "dxgi.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, SOURCE], check=True, timeout=60)
    return str(made)


class TestAdapters:
    def test_are_listed_and_given_back(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = [
            f"1002 {8 * GIB} {16 * GIB} 0 AMD Radeon RX 7600",
            f"1414 0 {16 * GIB} 2 Microsoft Basic Render Driver",
            "broken",
            f"8086 {128 * MIB} {16 * GIB} 0 Intel Iris Xe",
            "5143 0 1 0 ",
        ]
        monkeypatch.setenv("EXO_FAKE_DXGI", "\n".join(lines))
        first, second, third = list_adapters(library, library)
        assert first == replace(RADEON, pci_address="0000:01:00.0")
        assert (second.pci_address, third.pci_address) == ("0000:04:00.0", None)
        assert (second.ordinal, second.name, second.dedicated_bytes) == (3, "Intel Iris Xe", 128 * MIB)
        assert (third.name, third.vendor) == ("GPU", "unknown")
        assert ctypes.CDLL(library).stub_mistakes() == 0

    def test_without_the_kernels_calls(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EXO_FAKE_DXGI", f"1002 {8 * GIB} {16 * GIB} 0 AMD Radeon RX 7600")
        assert list_adapters(library, "/no/such/library") == [RADEON]

    def test_none(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EXO_FAKE_DXGI", "")
        assert list_adapters(library) == []

    def test_a_windows_that_refuses(self, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EXO_FAKE_DXGI_FAILS", "1")
        with pytest.raises(BackendUnavailableError, match="0x80004002"):
            list_adapters(library)

    def test_elsewhere(self) -> None:
        with pytest.raises(BackendUnavailableError, match="a part of Windows"):
            list_adapters("/no/such/library")


class TestDriver:
    @pytest.fixture(autouse=True)
    def with_onnx_runtime(self) -> None:
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    @pytest.fixture
    def driver(self) -> Iterator[DirectMLDriver]:
        made = DirectMLDriver(
            adapters=lambda: [RADEON, IRIS],
            arrays=on_the_processor(),
            host_memory=lambda: HostMemory(total_bytes=32 * GIB, available_bytes=10 * GIB),
        )
        made.open()
        yield made
        made.close()

    def test_devices(self, driver: DirectMLDriver) -> None:
        card, processor = driver.find_devices()
        assert (card.name, card.memory_kind, card.memory_total_bytes) == (
            "AMD Radeon RX 7600",
            "vram",
            8 * GIB,
        )
        assert (processor.memory_kind, processor.memory_total_bytes) == ("unified", 16 * GIB + 128 * MIB)
        # Nobody tells how much of a card's memory is in use.
        assert driver.read(0) == DeviceReading(memory_total_bytes=8 * GIB)
        assert driver.memory_info(1) == MemoryInfo(
            total_bytes=16 * GIB + 128 * MIB, used_bytes=6 * GIB + 128 * MIB
        )

    def test_an_adapter_that_is_not_there(self, driver: DirectMLDriver) -> None:
        driver.find_devices()
        with pytest.raises(DeviceNotFoundError):
            driver.read(2)

    def test_no_adapter(self) -> None:
        with pytest.raises(BackendUnavailableError, match="install its driver"):
            DirectMLDriver(adapters=list, arrays=on_the_processor()).open()
