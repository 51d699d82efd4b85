"""NVIDIA's GPUs as a driver: the real `pynvml` over a stub of the driver's library, and a stand-in for CuPy."""

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy
import pytest

from exo.gpu.backends.cuda import CUDADriver
from exo.gpu.driver import MatrixShape, Precision
from exo.gpu.errors import (
    BackendUnavailableError,
    DeviceLostError,
    DeviceNotFoundError,
    NotComputingError,
    OutOfDeviceMemoryError,
)
from exo.gpu.host_memory import HostMemory
from exo.gpu.reading import DeviceReading, MemoryInfo
from support import nvml_stub
from support.fake_cupy import CUBLASError, CUDARuntimeError, FakeCuPy, FakeDevice
from support.nvml_stub import GIB, H100, RTX_4090, NvmlStub

MIB = 2**20


@pytest.fixture
def stub(tmp_path: Path) -> NvmlStub:
    try:
        return nvml_stub.start(tmp_path)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def cupy(stub: NvmlStub, monkeypatch: pytest.MonkeyPatch) -> FakeCuPy:
    """Two GPUs that reach each other, and a third; CUDA counts the third first."""
    stub.add(0, RTX_4090)
    stub.add(1, RTX_4090)
    stub.add(2, H100)
    return FakeCuPy(
        [
            FakeDevice(pci="0000:03:00.0", name="NVIDIA H100", capability=(9, 0)),
            FakeDevice(pci="0000:01:00.0", peers=[2], memory_total_bytes=64 * MIB),
            FakeDevice(pci="0000:02:00.0", peers=[1]),
        ]
    ).install(monkeypatch)


Open = Callable[..., CUDADriver]


@pytest.fixture
def open_driver() -> Iterator[Open]:
    opened: list[CUDADriver] = []

    def open_one(**environment: str) -> CUDADriver:
        driver = CUDADriver(
            environment=environment,
            host_memory=lambda: HostMemory(total_bytes=64 * GIB, available_bytes=48 * GIB),
        )
        opened.append(driver)
        driver.open()
        driver.find_devices()
        return driver

    yield open_one
    for driver in opened:
        driver.close()


def names(driver: CUDADriver) -> list[str]:
    return [device.name for device in driver.find_devices()]


class TestFinding:
    def test_the_index_is_cudas(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        first, second, third = driver.find_devices()
        assert [first.index, second.index, third.index] == [0, 1, 2]
        assert first.name == "NVIDIA H100 80GB HBM3"
        assert first.pci_address == "0000:03:00.0"
        assert second.compute_units == 128  # NVML does not tell it of this card.
        assert third.uuid == "GPU-00000001-0000-4000-8000-000000000000"
        assert driver.read(0).power_limit_watts == 700
        assert driver.read(1).power_limit_watts == 450

    def test_numbers_of_the_user_are_cudas(self, cupy: FakeCuPy, open_driver: Open) -> None:
        del cupy.devices[1:]
        (only,) = open_driver(CUDA_VISIBLE_DEVICES="0").find_devices()
        assert (only.index, only.name) == (0, "NVIDIA H100 80GB HBM3")

    def test_names_of_the_user_count_also_where_cuda_shows_less(
        self, stub: NvmlStub, cupy: FakeCuPy, open_driver: Open
    ) -> None:
        del cupy.devices[1:]
        stub.change(2, mig_mode=1)
        for part in (0, 1):
            values = {"uuid": f"MIG-{part}", "memory_total": GIB, "memory_used": 0, "gpu_instance": part}
            stub.change(2, **{f"mig.{part}.{key}": value for key, value in values.items()})
        driver = open_driver(CUDA_VISIBLE_DEVICES="MIG-1,MIG-0")
        assert [device.uuid for device in driver.find_devices()] == ["MIG-1", "MIG-0"]
        driver.free(driver.allocate(0, 10))
        with pytest.raises(NotComputingError, match="of a divided GPU it shows one part"):
            driver.allocate(1, 10)
        assert driver.read(1).memory_total_bytes == GIB

    def test_a_device_that_goes_and_comes_keeps_its_index(
        self, stub: NvmlStub, cupy: FakeCuPy, open_driver: Open
    ) -> None:
        driver = open_driver()
        gone = cupy.devices.pop()
        stub.remove(1)
        assert [device.index for device in driver.find_devices()] == [0, 1]
        with pytest.raises(DeviceLostError):
            driver.read(2)
        cupy.devices.append(gone)
        stub.add(1, RTX_4090)
        assert [device.index for device in driver.find_devices()] == [0, 1, 2]
        assert driver.read(2).temperature_c == 61

    def test_there_is_no_such_device(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        for call in (driver.read, driver.memory_info, driver.synchronize):
            with pytest.raises(DeviceNotFoundError):
                call(9)


class TestWithoutCuPy:
    @pytest.fixture(autouse=True)
    def without(self, stub: NvmlStub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        stub.add(0, RTX_4090)
        stub.add(1, H100)

    @pytest.mark.parametrize(("cuda", "package"), [(12080, "cupy-cuda12x"), (13000, "cupy-cuda13x")])
    def test_it_watches_and_says_what_to_install(
        self, stub: NvmlStub, open_driver: Open, cuda: int, package: str
    ) -> None:
        stub.set(cuda=cuda)
        driver = open_driver()
        assert not driver.computes
        assert driver.why_not_computing is not None
        assert driver.why_not_computing.install_command == f"uv pip install '{package}[ctk]'"
        assert driver.read(0).temperature_c == 61
        for call in (
            lambda: driver.allocate(0, 1),
            lambda: driver.synchronize(0),
            lambda: driver.multiply(None, None, MatrixShape(rows=1, inner=1, columns=1), "int8"),  # type: ignore[arg-type]
        ):
            with pytest.raises(NotComputingError, match=f"CuPy.*uv pip install '{package}"):
                call()

    def test_the_users_choice_counts(self, open_driver: Open) -> None:
        assert names(open_driver(CUDA_VISIBLE_DEVICES="1")) == ["NVIDIA H100 80GB HBM3"]
        assert names(open_driver(CUDA_VISIBLE_DEVICES="")) == []

    def test_nothing_at_all(self, stub: NvmlStub) -> None:
        stub.set({"error.nvmlInitWithFlags": 9})
        with pytest.raises(BackendUnavailableError, match="modprobe"):
            CUDADriver().open()


class TestOtherCuPys:
    """CuPy that is there but does not fit: the GPUs are watched all the same."""

    def reason(self, open_driver: Open) -> str:
        driver = open_driver()
        assert not driver.computes
        assert driver.read(0).temperature_c == 61
        assert driver.why_not_computing is not None
        return driver.why_not_computing.message

    def test_for_a_newer_driver(self, cupy: FakeCuPy, open_driver: Open) -> None:
        """As the wheels for CUDA behave: the import succeeds, the first use does not."""
        cupy.failures["getDeviceCount"] = CUDARuntimeError(35)
        assert "too old for the installed CuPy" in self.reason(open_driver)

    def test_without_devices(self, cupy: FakeCuPy, open_driver: Open) -> None:
        cupy.devices.clear()
        assert "CuPy reaches no GPU" in self.reason(open_driver)

    def test_for_amd(self, cupy: FakeCuPy, monkeypatch: pytest.MonkeyPatch, open_driver: Open) -> None:
        cupy.is_hip = True
        cupy.install(monkeypatch)
        assert "is for AMD GPUs" in self.reason(open_driver)

    def test_without_its_matrix_library(self, cupy: FakeCuPy, open_driver: Open) -> None:
        cupy.lacks_cublas = True
        assert "libcublas.so.13" in self.reason(open_driver)

    def test_without_a_module_of_its_own(self, cupy: FakeCuPy, open_driver: Open, tmp_path: Path) -> None:
        assert "lacks fastrlock_that_is_missing" in self.broken(
            "import fastrlock_that_is_missing", tmp_path, open_driver
        )

    @pytest.mark.parametrize(
        "program", ["raise ImportError('libhipblas.so.2: cannot open')", "raise KeyError('libamd_smi.so')"]
    )
    def test_that_breaks_at_the_import(
        self, cupy: FakeCuPy, open_driver: Open, tmp_path: Path, program: str
    ) -> None:
        """As the wheel for ROCm does without ROCm."""
        assert "does not start" in self.broken(program, tmp_path, open_driver)

    def broken(self, program: str, folder: Path, open_driver: Open) -> str:
        (folder / "cupy.py").write_text(program)
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(sys.modules, "cupy")
            patch.syspath_prepend(str(folder))
            return self.reason(open_driver)

    def test_a_module_of_another_kind(
        self, cupy: FakeCuPy, monkeypatch: pytest.MonkeyPatch, open_driver: Open
    ) -> None:
        monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
        assert "does not start" in self.reason(open_driver)


class TestWithoutNvml:
    """An older Jetson has CUDA, but no management library."""

    @pytest.fixture(autouse=True)
    def without(self, cupy: FakeCuPy, stub: NvmlStub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)

    def test_memory_is_told_by_cuda(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        assert driver.why_not_watching is not None
        assert "nvidia-ml-py" in driver.why_not_watching.message
        first, second, _ = driver.find_devices()
        assert (first.name, first.memory_kind, first.pci_address) == ("NVIDIA H100", "vram", "0000:03:00.0")
        assert (second.memory_total_bytes, second.compute_capability) == (64 * MIB, "8.9")
        buffer = driver.allocate(1, 4 * MIB)
        assert driver.read(1) == DeviceReading(memory_total_bytes=64 * MIB, memory_used_bytes=4 * MIB)
        driver.free(buffer)
        assert driver.memory_info(1) == MemoryInfo(total_bytes=64 * MIB, used_bytes=0)

    def test_memory_that_is_the_hosts(self, cupy: FakeCuPy, open_driver: Open) -> None:
        cupy.devices[:] = [FakeDevice(pci="0000:00:00.0", name="Orin", is_integrated=True)]
        driver = open_driver()
        (device,) = driver.find_devices()
        assert (device.memory_kind, device.memory_total_bytes) == ("unified", 64 * GIB)
        assert driver.memory_info(0) == MemoryInfo(total_bytes=64 * GIB, used_bytes=16 * GIB)

    def test_an_old_driver_is_refused_even_so(
        self, cupy: FakeCuPy, stub: NvmlStub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, "pynvml")
        stub.set(driver="470.82.01")
        with pytest.raises(BackendUnavailableError, match="525 or later"):
            CUDADriver().open()


class TestMemory:
    def test_what_is_written_is_fetched(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        buffer = driver.allocate(1, 100)
        driver.write(buffer, memoryview(bytes(range(100))), 0)
        driver.write(buffer, memoryview(b"ab"), 98)
        driver.write(buffer, memoryview(b""), 100)
        driver.synchronize(1)
        assert driver.fetch(buffer, 0, 100) == bytes(range(98)) + b"ab"
        assert driver.fetch(buffer, 97, 2) == b"aa"
        assert driver.fetch(buffer, 100, 0) == b""
        driver.free(buffer)
        assert cupy.buffers == 0

    def test_full(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        with pytest.raises(OutOfDeviceMemoryError, match="67108865 bytes"):
            driver.allocate(1, 64 * MIB + 1)
        driver.free(driver.allocate(1, 64 * MIB))
        driver.free(driver.allocate(1, 64 * MIB))

    def test_copies_go_directly_where_they_can(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        data = bytes(range(50))
        buffers = [driver.allocate(index, 50) for index in (0, 1, 2, 2)]
        driver.write(buffers[0], memoryview(data), 0)
        for source, target in pairwise(buffers):
            driver.copy(source, target, 50)
        driver.copy(buffers[1], buffers[2], 50)
        driver.copy(buffers[1], buffers[2], 0)
        assert driver.fetch(buffers[3], 0, 50) == data
        assert cupy.calls == [
            ("memcpyPeer", 0, 1),
            ("deviceEnablePeerAccess", 1, 2),
            ("deviceEnablePeerAccess", 2, 1),
            ("memcpyPeer", 1, 2),
            ("memcpyPeer", 1, 2),
        ]

    def test_which_reach_each_other_without_the_host(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        assert driver.can_reach(1, 2) is driver.can_reach(2, 1) is True
        assert driver.can_reach(0, 1) is False

    def test_a_way_that_somebody_else_opened(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        cupy.setDevice(1)
        cupy.deviceEnablePeerAccess(2)
        source, target = driver.allocate(1, 8), driver.allocate(2, 8)
        driver.copy(source, target, 8)

    @pytest.mark.parametrize(
        ("status", "words"), [(214, "passes a check"), (700, "restart exo"), (999, "passes a check")]
    )
    def test_a_device_that_is_lost(self, cupy: FakeCuPy, open_driver: Open, status: int, words: str) -> None:
        driver = open_driver()
        buffer = driver.allocate(1, 8)
        cupy.devices[1].error = status
        for call in (
            lambda: driver.allocate(1, 8),
            lambda: driver.free(buffer),
            lambda: driver.write(buffer, memoryview(b"1"), 0),
            lambda: driver.fetch(buffer, 0, 1),
            lambda: driver.copy(buffer, buffer, 8),
            lambda: driver.synchronize(1),
            lambda: driver.multiply(buffer, buffer, MatrixShape(rows=1, inner=1, columns=1), "float32"),
        ):
            with pytest.raises(DeviceLostError, match=words):
                call()

    def test_mistakes_of_the_program_stay_what_they_are(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        cupy.failures["malloc"] = CUDARuntimeError(1)
        with pytest.raises(CUDARuntimeError):
            driver.allocate(0, 8)

    def test_closed(self, cupy: FakeCuPy, open_driver: Open) -> None:
        driver = open_driver()
        driver.close()
        driver.close()
        assert not driver.computes
        with pytest.raises(NotComputingError):
            driver.allocate(0, 8)
        driver.open()
        driver.find_devices()
        driver.free(driver.allocate(0, 8))


def encoded(values: numpy.ndarray, precision: Precision) -> tuple[bytes, numpy.ndarray]:
    """Return the values as a precision stores them, and what is left of them."""
    if precision == "bfloat16":
        bits = (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16)
        return bits.tobytes(), (bits.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)
    stored = values.astype(precision)
    return stored.tobytes(), stored.astype(numpy.float64)


class TestProducts:
    @pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8"])
    @pytest.mark.parametrize("shape", [(4, 8, 12), (3, 5, 7), (1, 1, 1), (2, 17, 1)])
    def test_equal_those_in_float64(
        self, cupy: FakeCuPy, open_driver: Open, precision: Precision, shape: tuple[int, int, int]
    ) -> None:
        driver = open_driver()
        rows, inner, columns = shape
        random = numpy.random.default_rng(7)
        spread = 127 if precision == "int8" else 1
        left_bytes, left = encoded(random.uniform(-spread, spread, (rows, inner)), precision)
        right_bytes, right = encoded(random.uniform(-spread, spread, (inner, columns)), precision)
        buffers = []
        for data in (left_bytes, right_bytes):
            buffers.append(driver.allocate(0, len(data)))
            driver.write(buffers[-1], memoryview(data), 0)
        size = MatrixShape(rows=rows, inner=inner, columns=columns)
        product = driver.multiply(*buffers, size, precision)
        kind = numpy.int32 if precision == "int8" else numpy.float32
        result = numpy.frombuffer(driver.fetch(product, 0, rows * columns * 4), dtype=kind)
        expected = left.reshape(rows, inner) @ right.reshape(inner, columns)
        numpy.testing.assert_allclose(result.reshape(rows, columns), expected, rtol=1e-5, atol=1e-5)
        for buffer in (*buffers, product):
            driver.free(buffer)
        assert cupy.buffers == 0

    def test_a_card_without_bfloat16(self, cupy: FakeCuPy, open_driver: Open) -> None:
        cupy.devices[0].capability = (7, 5)
        driver = open_driver()
        buffer = driver.allocate(0, 8)
        size = MatrixShape(rows=2, inner=2, columns=2)
        with pytest.raises(NotComputingError, match="bfloat16"):
            driver.multiply(buffer, buffer, size, "bfloat16")
        driver.free(buffer)
        assert cupy.buffers == 0

    @pytest.mark.parametrize(("status", "error"), [(3, OutOfDeviceMemoryError), (13, DeviceLostError)])
    def test_what_goes_wrong_leaves_nothing_behind(
        self, cupy: FakeCuPy, open_driver: Open, status: int, error: type[Exception]
    ) -> None:
        driver = open_driver()
        buffer = driver.allocate(0, 9)
        cupy.failures["gemmEx"] = CUBLASError(status)
        with pytest.raises(error, match="multiplying in int8"):
            driver.multiply(buffer, buffer, MatrixShape(rows=3, inner=3, columns=3), "int8")
        assert cupy.buffers == 1
        driver.free(buffer)
