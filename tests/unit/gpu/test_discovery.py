"""Finding devices: all backends at once, in time, checked, and again when they come and go."""

import random
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from loguru import logger
from msgspec.structs import replace

from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.discovery import REFUSED_AGAIN_S, GPUDiscoveryService
from exo.gpu.driver import Driver, MatrixShape, Precision
from exo.gpu.errors import BackendUnavailableError, DeviceHangError, OutOfDeviceMemoryError
from exo.gpu.factory import DriverMaker, GPUBackendFactory
from exo.gpu.inventory import Inventory
from exo.gpu.limits import CallLimits
from exo.gpu.registry import DeviceRegistry
from exo.shared.types.ids import DeviceId, NodeId
from support.scripted_driver import BrokenDriver, ScriptedDriver, found

NODE = NodeId("n")
FIRST = DeviceId("n/simulated:0")


class Calculating(ScriptedDriver):
    """Multiplies, rightly or wrongly."""

    def __init__(self, *devices: object) -> None:
        super().__init__(*devices)  # pyright: ignore
        self.product_count = 0
        self.is_wrong = False
        self.is_full = False
        self.is_hanging = False

    def allocate(self, index: int, size_bytes: int) -> bytearray:
        if self.is_full:
            raise OutOfDeviceMemoryError("full")
        if self.is_hanging:
            raise DeviceHangError("it has not answered for 30.0 s")
        return super().allocate(index, size_bytes)

    def multiply(
        self, left: bytearray, right: bytearray, shape: MatrixShape, precision: Precision
    ) -> bytearray:
        self.product_count += 1
        a, b = (struct.unpack(f"{len(one) // 4}f", one) for one in (left, right))
        columns = [b[column :: shape.columns] for column in range(shape.columns)]
        values = [
            sum(x * y for x, y in zip(a[row * shape.inner : (row + 1) * shape.inner], column, strict=True))
            for row in range(shape.rows)
            for column in columns
        ]
        if self.is_wrong:
            values[len(values) // 2] += 1
        made = bytearray(struct.pack(f"{len(values)}f", *values))
        self.buffers.append(made)
        return made


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def service(
    *drivers: Driver,
    registry: DeviceRegistry | None = None,
    limits: CallLimits | None = None,
    first_look_s: float = 20.0,
    checks_s: float = 20.0,
    clock: Clock | None = None,
) -> GPUDiscoveryService:
    makers = [DriverMaker(name=driver.name, make=lambda driver=driver: driver) for driver in drivers]
    return GPUDiscoveryService(
        GPUBackendFactory(makers, NODE, limits=limits),
        registry=registry,
        first_look_s=first_look_s,
        checks_s=checks_s,
        clock=clock or Clock(),
        source=random.Random(7),
    )


def ids(inventory: Inventory) -> list[str]:
    return [one.device_id for one in inventory.devices]


async def until(look: Callable[[], Awaitable[Inventory]], wanted: list[str]) -> Inventory:
    with anyio.fail_after(20):
        while True:
            seen = await look()
            if ids(seen) == wanted:
                return seen
            await anyio.sleep(0.001)


async def test_all_devices_of_all_backends_that_work_are_found() -> None:
    driver = Calculating(found(0, uuid="GPU-a"), found(1))
    async with service(BrokenDriver(), driver, CPUDriver()) as devices:
        assert ids(devices.inventory) == ["n/cpu:0", "n/simulated:1", "n/simulated:GPU-a"]
        (missing,) = devices.inventory.missing
        assert (missing.reason, missing.install_command) == ("the driver is missing", "apt install it")
        assert not missing.is_late
        assert driver.product_count == 2 and driver.buffers == []
        assert {one.backend.name for one in devices.inventory.used} == {"cpu", "simulated"}
    assert not driver.is_open
    assert devices.inventory.devices == ()


async def test_a_driver_that_fails_in_its_own_way_is_missing_with_what_it_said() -> None:
    driver = ScriptedDriver()
    driver.open_error = KeyError("libamd_smi.so")

    def fail() -> Driver:
        raise ImportError("no module named x")

    makers = [
        DriverMaker(name="rocm", make=lambda: driver),
        DriverMaker(name="metal", make=fail),
        DriverMaker(name="cpu", make=CPUDriver),
    ]
    async with GPUDiscoveryService(GPUBackendFactory(makers, NODE)) as devices:
        assert ids(devices.inventory) == ["n/cpu:0"]
        assert [one.reason for one in devices.inventory.missing] == [
            "simulated cannot be used: 'libamd_smi.so'",
            "metal cannot be used: no module named x",
        ]


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    heard: list[str] = []
    sink = logger.add(lambda message: heard.append(message.record["message"]), level="WARNING")
    yield heard
    logger.remove(sink)


async def test_why_a_backend_is_not_used_is_said_once(warnings: list[str]) -> None:
    async with service(BrokenDriver(), CPUDriver()) as devices:
        await devices.look_again()
    assert warnings == ["simulated is not used: the driver is missing; install it with: apt install it"]


@pytest.mark.parametrize("is_chosen", [True, False])
async def test_that_there_is_no_such_device_is_news_only_for_who_asked_for_it(
    warnings: list[str], is_chosen: bool
) -> None:
    driver = ScriptedDriver()
    driver.open_error = BackendUnavailableError("there is no such GPU", is_absent=True)
    maker = DriverMaker(name="cuda", make=lambda: driver, is_chosen=is_chosen)
    async with GPUDiscoveryService(GPUBackendFactory([maker], NODE)) as devices:
        assert devices.inventory.missing[0].is_absent
        await devices.look_again()
    assert warnings == (["cuda is not used: there is no such GPU"] if is_chosen else [])


async def test_a_driver_that_is_late_is_told_of_once_and_once_more_when_it_fails(
    warnings: list[str],
) -> None:
    driver = ScriptedDriver()
    driver.open_gate = threading.Event()
    driver.open_error = RuntimeError("too old")
    async with service(driver, limits=CallLimits(open_s=0.02), first_look_s=0.01) as devices:
        for _ in range(3):
            assert (await devices.look_again()).missing[0].is_late
        assert len(warnings) == 1 and "did not answer" in warnings[0]
        driver.open_gate.set()
        with anyio.fail_after(20):
            while True:
                if not (await devices.look_again()).missing[0].is_late:
                    break
                await anyio.sleep(0.001)
        await devices.look_again()
    assert len(warnings) == 2 and "too old" in warnings[1]


async def test_no_devices_at_all_are_no_failure() -> None:
    async with service(ScriptedDriver()) as devices:
        assert devices.inventory == Inventory()


async def test_a_driver_that_hangs_delays_the_start_by_no_more_than_the_limit_and_is_used_when_it_comes() -> (
    None
):
    driver = Calculating(found(0))
    driver.open_gate = threading.Event()
    # The processor has to answer in time on a busy machine as well.
    async with service(driver, CPUDriver(), first_look_s=0.5) as devices:
        assert ids(devices.inventory) == ["n/cpu:0"]
        (missing,) = devices.inventory.missing
        assert missing.is_late and "did not answer within 0.5 s" in missing.reason
        driver.open_gate.set()
        inventory = await until(devices.look_again, ["n/cpu:0", FIRST])
        assert inventory.missing == ()
        assert driver.calls.count("open") == 1, "what was begun is not begun again"


async def test_a_driver_that_hangs_beyond_its_own_limit_is_tried_again_too() -> None:
    driver = Calculating(found(0))
    driver.open_gate = threading.Event()
    async with service(driver, CPUDriver(), limits=CallLimits(open_s=0.02)) as devices:
        (missing,) = devices.inventory.missing
        assert missing.is_late and "has not answered for" in missing.reason
        assert (await devices.look_again()).missing[0].is_late
        driver.open_gate.set()
        await until(devices.look_again, ["n/cpu:0", FIRST])


async def test_a_start_with_a_hanging_driver_takes_less_than_three_seconds() -> None:
    driver = ScriptedDriver(found(0))
    driver.open_gate = threading.Event()
    makers = [DriverMaker(name="cuda", make=lambda: driver), DriverMaker(name="cpu", make=CPUDriver)]
    devices = GPUDiscoveryService(GPUBackendFactory(makers, NODE))
    started_s = anyio.current_time()
    inventory = await devices.discover()
    assert anyio.current_time() - started_s < 3
    assert ids(inventory) == ["n/cpu:0"] and inventory.missing[0].name == "cuda"
    driver.open_gate.set()
    await devices.shutdown()


async def test_of_a_device_that_hangs_in_its_check_only_that_is_said() -> None:
    driver, clock = Calculating(found(0)), Clock()
    driver.is_hanging = True
    async with service(driver, CPUDriver(), clock=clock) as devices:
        (refused,) = devices.inventory.refused
        assert (refused.kind, refused.reason) == (
            "hanging",
            "its check failed: it has not answered for 30.0 s",
        )
        driver.is_hanging = False
        clock.now_s += REFUSED_AGAIN_S
        assert ids(await devices.look_again()) == ["n/cpu:0", FIRST]


async def test_a_device_that_computes_wrongly_is_not_used_and_tried_again_later() -> None:
    driver, clock = Calculating(found(0)), Clock()
    driver.is_wrong = True
    async with service(driver, CPUDriver(), clock=clock) as devices:
        assert ids(devices.inventory) == ["n/cpu:0"]
        reason = devices.inventory.why_not(FIRST)
        assert reason is not None and "its check failed" in reason and "wrongly" in reason
        driver.is_wrong = False
        assert ids(await devices.look_again()) == ["n/cpu:0"]
        clock.now_s += REFUSED_AGAIN_S
        assert ids(await devices.look_again()) == ["n/cpu:0", FIRST]
        assert devices.inventory.why_not(FIRST) is None


async def test_a_gpu_keeps_its_number_while_others_come_and_go() -> None:
    driver = Calculating(found(0, uuid="GPU-a"), found(1, uuid="GPU-b"), found(2, uuid="GPU-c"))
    async with service(driver, CPUDriver()) as devices:

        def numbers(inventory: Inventory) -> dict[str | None, int | None]:
            return {one.uuid: one.number for one in inventory.devices}

        assert numbers(devices.inventory) == {"GPU-a": 0, "GPU-b": 1, "GPU-c": 2, None: None}
        driver.devices = [found(0, uuid="GPU-a"), found(2, uuid="GPU-c")]
        assert numbers(await devices.look_again()) == {"GPU-a": 0, "GPU-c": 2, None: None}
        # The driver counts anew, as some do when a card is gone.
        driver.devices = [found(0, uuid="GPU-c"), found(1, uuid="GPU-b"), found(2, uuid="GPU-d")]
        later = numbers(await devices.look_again())
        assert (later["GPU-b"], later["GPU-c"]) == (1, 2)
        assert later["GPU-d"] not in (None, 0, 1, 2), "that of the one that is away is kept for it"


async def test_a_device_whose_memory_is_full_is_used_and_not_remembered(tmp_path: Path) -> None:
    driver = Calculating(found(0))
    driver.is_full = True
    file = tmp_path / "gpu_registry.json"
    async with service(driver, registry=DeviceRegistry(file, "1")) as devices:
        assert ids(devices.inventory) == [FIRST]
    again = Calculating(found(0))
    async with service(again, registry=DeviceRegistry(file, "1")):
        assert again.product_count == 1


async def test_a_device_whose_check_hangs_is_used_when_it_has_passed() -> None:
    driver = Calculating(found(0))
    gate = driver.hanging[0] = threading.Event()
    async with service(driver, CPUDriver(), checks_s=0.05) as devices:
        assert "n/simulated:0" not in ids(devices.inventory)
        assert "not ended yet" in str(devices.inventory.why_not(FIRST))
        gate.set()
        await until(devices.look_again, ["n/cpu:0", FIRST])
        assert driver.product_count == 1


async def test_the_processor_is_used_while_its_check_goes_on() -> None:
    gate = threading.Event()

    class Slow(CPUDriver):
        def synchronize(self, index: int) -> None:
            return

        def allocate(self, index: int, size_bytes: int) -> object:  # pyright: ignore
            gate.wait(20)
            return super().allocate(index, size_bytes)

    async with service(Slow(), checks_s=0.02) as devices:
        assert ids(devices.inventory) == ["n/cpu:0"]
        gate.set()


async def test_what_was_seen_to_compute_is_not_checked_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "gpu_registry.json"
    for expected in (1, 0):
        driver = Calculating(found(0, uuid="GPU-a"))
        async with service(driver, registry=DeviceRegistry(file, "1")) as devices:
            assert ids(devices.inventory) == ["n/simulated:GPU-a"]
            assert driver.product_count == expected
    file.write_bytes(b"nonsense")
    driver = Calculating(found(0, uuid="GPU-a"))
    async with service(driver, registry=DeviceRegistry(file, "1")):
        assert driver.product_count == 1
    assert (
        DeviceRegistry(file, "1").knows(devices.inventory.devices[0]) if devices.inventory.devices else True
    )


async def test_devices_that_go_and_come_back_have_to_show_again_that_they_compute(tmp_path: Path) -> None:
    driver = Calculating(found(0, uuid="GPU-a"), found(1, uuid="GPU-b"))
    registry = DeviceRegistry(tmp_path / "gpu_registry.json", "1")
    async with service(driver, registry=registry) as devices:
        both = ids(devices.inventory)
        driver.devices = driver.devices[1:]
        assert ids(await devices.look_again()) == both[1:]
        driver.devices = [found(0, uuid="GPU-a"), found(1, uuid="GPU-b"), found(2, uuid="GPU-c")]
        assert ids(await devices.look_again()) == [*both, "n/simulated:GPU-c"]
        assert driver.product_count == 4


async def test_a_device_of_two_backends_is_used_through_the_first() -> None:
    one = Calculating(found(0, uuid="GPU-a"))
    two = Calculating(found(0, uuid="GPU-a"), found(1, uuid="GPU-b"))
    two.name = "cuda"
    async with service(one, two) as devices:
        assert ids(devices.inventory) == ["n/cuda:GPU-b", "n/simulated:GPU-a"]
        assert (
            devices.inventory.why_not(DeviceId("n/cuda:GPU-a")) == "simulated has it already, as simulated:0"
        )
        assert two.product_count == 1


async def test_devices_that_cannot_be_looked_at_again_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Calculating(found(0))
    async with service(driver) as devices:

        def fail() -> None:
            raise BackendUnavailableError("driver not loaded")

        monkeypatch.setattr(driver, "find_devices", fail)
        assert ids(await devices.look_again()) == [FIRST]


async def test_devices_that_can_only_be_watched_are_used_for_that() -> None:
    driver = ScriptedDriver(found(0))
    driver.is_computing = False
    async with service(driver) as devices:
        (device,) = devices.inventory.devices
        assert device.support_level == "monitoring"


async def test_hundreds_of_devices_are_found() -> None:
    driver = ScriptedDriver(*[found(index, uuid=f"GPU-{index:03}") for index in range(300)])
    driver.is_computing = False
    async with service(driver) as devices:
        assert len(devices.inventory.devices) == 300


async def test_a_clock_that_wobbles_makes_no_other_device() -> None:
    driver = Calculating(found(0))
    async with service(driver) as devices:
        driver.devices = [replace(found(0), clock_mhz=1234.5)]
        await devices.look_again()
        assert driver.product_count == 1
        driver.devices = [replace(found(0), driver_version="581")]
        await devices.look_again()
        assert driver.product_count == 2


async def test_the_end_does_not_wait_for_a_check_that_hangs() -> None:
    driver = Calculating(found(0))
    gate = driver.hanging[0] = threading.Event()
    devices = service(driver, checks_s=0.02, limits=CallLimits(close_s=0.1))
    await devices.discover()
    with anyio.fail_after(10):
        await devices.shutdown()
        await devices.shutdown()
    gate.set()
