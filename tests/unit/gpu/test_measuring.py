"""When devices are measured: once, while it is quiet, and only where nobody tells."""

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from exo.gpu.discovery import GPUDiscoveryService
from exo.gpu.driver import FoundDevice, MatrixShape, Precision
from exo.gpu.errors import NotComputingError
from exo.gpu.factory import DriverMaker, GPUBackendFactory
from exo.gpu.inventory import Inventory, UsedDevice
from exo.gpu.measuring import ATTEMPTS_MAX, DeviceMeasurer, what_to_measure
from exo.gpu.reading import DeviceReading
from exo.gpu.registry import DeviceRegistry, Measurement
from exo.shared.device_figures import figures_for
from exo.shared.types.devices import GPUDevice
from exo.shared.types.events import DeviceAppeared
from exo.shared.types.ids import DeviceId, NodeId
from exo.worker.device_watch import device_changes
from support.inline_backend import InlineBackend
from support.scripted_driver import GIB, ScriptedDriver, found

NODE = NodeId("n")


class Steady(ScriptedDriver):
    """One whose work takes a time that the test's clock shows."""

    def __init__(self, name: str = "Some GPU") -> None:
        super().__init__(found(name=name))
        self.name = "cuda"
        self.now_s = 0.0
        self.has_float16 = True
        self.read_count = 0
        self.readings[0] = DeviceReading(compute_utilization_percent=3.0)

    def clock(self) -> float:
        return self.now_s

    def read(self, index: int) -> DeviceReading:
        self.read_count += 1
        return super().read(index)

    def copy(self, source: bytearray, destination: bytearray, size_bytes: int) -> None:
        self.now_s += size_bytes / 1e9

    def multiply(
        self, left: bytearray, right: bytearray, shape: MatrixShape, precision: Precision
    ) -> bytearray:
        if not self.has_float16:
            raise NotComputingError("no such arithmetic")
        self.now_s += shape.rows * shape.inner * shape.columns / 1e9
        made = bytearray(4)
        self.buffers.append(made)
        return made


class Source:
    """Devices, and what was measured on them."""

    def __init__(self, driver: Steady) -> None:
        self.backend = InlineBackend(driver, NODE)
        self.measured: dict[DeviceId, Measurement] = {}
        self.noted = anyio.Event()
        self.look_count = 0

    @property
    def inventory(self) -> Inventory:
        self.look_count += 1
        return Inventory(used=(UsedDevice(self.backend, self.device),))

    @property
    def device(self) -> GPUDevice:
        (device,) = self.backend.devices
        known = self.measured.get(device.device_id, Measurement())
        return replace(
            device,
            measured_memory_bandwidth_bytes_per_s=known.memory_bandwidth_bytes_per_s,
            measured_flops_per_s=known.flops_per_s,
        )

    async def note_measured(self, device_id: DeviceId, measurement: Measurement) -> None:
        self.measured[device_id] = measurement
        self.noted.set()


def measurer(source: Source, driver: Steady, is_busy: Callable[[], bool] = lambda: False) -> DeviceMeasurer:
    return DeviceMeasurer(
        source=source, is_busy=is_busy, clock=driver.clock, first_after_s=0, again_after_s=0
    )


async def measured(source: Source, running: DeviceMeasurer) -> Measurement:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        await source.noted.wait()
        tasks.cancel_scope.cancel()
    (found_one,) = source.measured.values()
    return found_one


async def turns(running: DeviceMeasurer, is_enough: Callable[[], bool]) -> None:
    """Let it look again and again, until a condition holds."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running.run)
        while not is_enough():
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def test_an_unknown_device_is_measured_and_no_estimate_any_more() -> None:
    driver = Steady()
    source = Source(driver)
    assert figures_for(source.device).is_estimated
    found_one = await measured(source, measurer(source, driver))
    assert found_one.memory_bandwidth_bytes_per_s == pytest.approx(2e9)
    assert found_one.flops_per_s == pytest.approx(2e9)
    figures = figures_for(source.device)
    assert figures.memory_bandwidth_bytes_per_s.basis == figures.flops_per_s["float16"].basis == "measured"
    assert what_to_measure(source.device) is None
    assert driver.buffers == []


async def test_what_is_specified_is_left_alone() -> None:
    driver = Steady("NVIDIA GeForce RTX 4090")
    driver.devices = [replace(driver.devices[0], memory_total_bytes=24 * GIB)]
    source = Source(driver)
    assert what_to_measure(source.device) is None


@pytest.mark.parametrize("backend", ["metal", "simulated", "intel", "directml", "tflite"])
def test_those_that_copy_through_the_host_are_left_alone(backend: str) -> None:
    driver = Steady()
    device = replace(Source(driver).device, backend=backend)
    assert what_to_measure(device) is None


async def test_without_half_precision_only_the_bandwidth_is_told() -> None:
    driver = Steady()
    driver.has_float16 = False
    source = Source(driver)
    found_one = await measured(source, measurer(source, driver))
    assert found_one.memory_bandwidth_bytes_per_s is not None and found_one.flops_per_s is None


async def test_nothing_is_measured_while_there_is_work() -> None:
    driver = Steady()
    source = Source(driver)
    asked: list[bool] = []

    def is_busy() -> bool:
        asked.append(True)
        return True

    await turns(measurer(source, driver, is_busy), lambda: len(asked) >= 5)
    assert driver.now_s == 0 and driver.read_count == 0 and source.measured == {}


async def test_a_device_that_others_use_is_left_until_it_is_quiet() -> None:
    driver = Steady()
    driver.readings[0] = DeviceReading(compute_utilization_percent=80.0)
    source = Source(driver)
    running = measurer(source, driver)
    await turns(running, lambda: driver.read_count >= 3)
    assert driver.now_s == 0 and source.measured == {}
    driver.readings[0] = DeviceReading(compute_utilization_percent=1.0)
    assert (await measured(source, running)).memory_bandwidth_bytes_per_s is not None


async def test_work_that_begins_meanwhile_makes_it_worthless() -> None:
    driver = Steady()
    source = Source(driver)
    await turns(measurer(source, driver, lambda: driver.now_s > 0), lambda: driver.now_s > 0)
    assert source.measured == {}


async def test_it_gives_up_on_a_device_that_cannot_be_measured() -> None:
    driver = Steady()
    source = Source(driver)
    driver.lost.add(0)
    await turns(measurer(source, driver), lambda: source.look_count >= 2 * ATTEMPTS_MAX)
    assert driver.read_count == ATTEMPTS_MAX
    assert source.measured == {}


class TestKept:
    MEASURED = Measurement(memory_bandwidth_bytes_per_s=2e10, flops_per_s=3e11)

    def service(self, file: Path, device: FoundDevice) -> GPUDiscoveryService:
        driver = ScriptedDriver(device)
        driver.is_computing = False
        makers = [DriverMaker(name=driver.name, make=lambda: driver)]
        return GPUDiscoveryService(GPUBackendFactory(makers, NODE), registry=DeviceRegistry(file, "1.0"))

    async def test_it_is_told_with_the_device_from_the_next_look_on_and_at_the_next_start(
        self, tmp_path: Path
    ) -> None:
        file = tmp_path / "gpu_registry.json"
        async with self.service(file, found()) as devices:
            (device,) = devices.inventory.devices
            assert device.measured_flops_per_s is None
            await devices.note_measured(device.device_id, self.MEASURED)
            (device,) = (await devices.look_again()).devices
            assert device.measured_memory_bandwidth_bytes_per_s == 2e10
            assert device.measured_flops_per_s == 3e11
        async with self.service(file, found()) as devices:
            assert devices.inventory.devices == (device,)

    async def test_another_device_in_its_place_is_measured_anew(self, tmp_path: Path) -> None:
        file = tmp_path / "gpu_registry.json"
        async with self.service(file, found()) as devices:
            await devices.note_measured(devices.inventory.devices[0].device_id, self.MEASURED)
        async with self.service(file, found(name="Another GPU")) as devices:
            assert devices.inventory.devices[0].measured_flops_per_s is None

    async def test_what_was_measured_stays_when_verdicts_are_written(self, tmp_path: Path) -> None:
        file = tmp_path / "gpu_registry.json"
        async with self.service(file, found()) as devices:
            (device,) = devices.inventory.devices
        DeviceRegistry(file, "1.0").note_measured(device, self.MEASURED)
        DeviceRegistry(file, "1.0").remember([device])
        assert DeviceRegistry(file, "1.0").measured(device) == self.MEASURED
        assert DeviceRegistry(file, "1.0").knows(device)
        assert DeviceRegistry(file, "1.1").measured(device) is None

    async def test_of_a_device_that_is_gone_nothing_is_kept(self, tmp_path: Path) -> None:
        file = tmp_path / "gpu_registry.json"
        async with self.service(file, found()) as devices:
            await devices.note_measured(DeviceId("n/simulated:7"), self.MEASURED)
            assert devices.inventory.devices == (await devices.look_again()).devices

    async def test_the_cluster_is_told_once(self, tmp_path: Path) -> None:
        async with self.service(tmp_path / "gpu_registry.json", found()) as devices:
            (before,) = devices.inventory.devices
            await devices.note_measured(before.device_id, self.MEASURED)
            inventory = await devices.look_again()
            (event,) = device_changes([before], inventory, NODE)
            assert isinstance(event, DeviceAppeared)
            assert event.device.measured_memory_bandwidth_bytes_per_s == 2e10
            assert device_changes([event.device], await devices.look_again(), NODE) == []
