"""A device that heats up has its stages work less, pause and go on: the collector, the watch and a stage together."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from loguru import logger

from exo.gpu.backends.simulated.driver import SimulatedDriver
from exo.gpu.backends.simulated.machine import Battery, Heat, Power, SimulatedDevice, SimulatedMachine
from exo.gpu.health_watch import HealthWatch
from exo.gpu.inventory import UsedDevice
from exo.gpu.reading import DeviceReading
from exo.gpu.thermal.settings import ThermalSettings
from exo.shared.types.devices import DeviceGPUState, GPUDevice, ThermalStatus
from exo.shared.types.events import DeviceGPUStateUpdated
from exo.shared.types.ids import DeviceId, NodeId
from exo.worker.heat_watch import OVER_AFTER_S, HeatWatch, allotted, device_class
from exo.worker.telemetry import GPUTelemetryCollector, GPUTelemetryConfig
from support.heated_stage import HeatedStage
from support.inline_backend import InlineBackend
from support.states import GIB, gpu

LIMIT_C = 85.0
HEAT = Heat(capacity_joules_per_c=500, conductance_watts_per_c=5, ambient_c=28, throttle_c=LIMIT_C)
INTERVAL_S = 2.0


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what is logged at INFO and above."""
    lines: list[str] = []
    number = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    try:
        yield lines
    finally:
        logger.remove(number)


class Room:
    """One node's simulated device, everything that watches it, and a stage whose steps heat it. Virtual time."""

    def __init__(self, *, settings: ThermalSettings | None = None, **changes: Any) -> None:
        self.clock = Clock()
        self.randomness = random.Random(1)
        fields: dict[str, Any] = {
            "name": "Heater",
            "vendor": "nvidia",
            "memory_kind": "vram",
            "memory_total_bytes": GIB,
            "power": Power(idle_watts=30, limit_watts=450),
            "heat": HEAT,
            **changes,
        }
        machine = SimulatedMachine(name="test", sources=("made up",), devices=(SimulatedDevice(**fields),))
        self.driver = SimulatedDriver(machine, self.clock)
        self.backend = InlineBackend(self.driver, NodeId("n"))
        (self.device,) = self.backend.devices
        self.heat = HeatWatch(settings or ThermalSettings(), clock=self.clock)
        self.told: list[DeviceGPUState] = []
        self.collector = GPUTelemetryCollector(
            node_id=NodeId("n"),
            devices=lambda: (UsedDevice(self.backend, self.device),),
            health=HealthWatch(clock=self.clock),
            publish=lambda events: None,
            config=GPUTelemetryConfig(patience_s=20),
            clock=self.clock,
            now=lambda: f"at {self.clock.now_s:g} s",
            heat=self.heat,
        )
        self.stage = HeatedStage(self.clock, self._load)
        self.heat.begin("stage", [self.device.device_id], self.stage.set_work)
        self.hottest_c = 0.0
        self.fractions: list[float] = []

    def _load(self, is_working: bool) -> None:
        self.driver.set_load(0, 100.0 if is_working else 0.0)

    @property
    def thermal(self) -> ThermalStatus:
        """What was told last."""
        thermal = self.told[-1].thermal
        assert thermal is not None
        return thermal

    def state(self) -> DeviceReading:
        return self.driver.read(0)

    async def collect(self) -> None:
        events = await self.collector.collect()
        self.told += [one.state for one in events if isinstance(one, DeviceGPUStateUpdated)]

    async def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let the stage serve, and the collector collect, until a time is over or something holds."""
        end_s = self.clock.now_s + seconds
        while self.clock.now_s < end_s and not until():
            # At odd moments, as the clocks of a node and of a stage's steps have nothing to do with each other.
            next_s = self.clock.now_s + INTERVAL_S * self.randomness.uniform(0.8, 1.2)
            self.stage.serve_until(next_s)
            temperature_c = self.state().temperature_c
            self.hottest_c = max(self.hottest_c, temperature_c or 0.0)
            self.heat.note_work("stage", self.stage.busy_s)
            await self.collect()
            self.fractions.append(self.stage.fraction)


@pytest.fixture
def rooms() -> Iterator[Callable[..., Room]]:
    """Make rooms that are closed in the end."""
    made: list[Room] = []

    def make(**fields: Any) -> Room:
        made.append(Room(**fields))
        return made[-1]

    yield make
    for room in made:
        room.stage.close()


async def test_a_stage_works_less_and_less_as_its_device_heats_up_and_stays_below_the_margin(
    rooms: Callable[..., Room],
) -> None:
    room = rooms()
    with heard() as lines:
        await room.run(900)
    # A device that would end at 118 degrees is held five below its limit, and gets done what that allows.
    assert LIMIT_C - 8 < room.hottest_c <= LIMIT_C - 4
    began_s, busy_s = room.clock.now_s, room.stage.busy_s
    await room.run(300)
    share = (room.stage.busy_s - busy_s) / (room.clock.now_s - began_s)
    possible = ((LIMIT_C - 5 - HEAT.ambient_c) * HEAT.conductance_watts_per_c - 30) / 420
    assert 0.9 * possible < share < 1.05 * possible
    thermal = room.thermal
    assert thermal.state == "slowed" and thermal.is_calibrated and thermal.power_source == "measured"
    assert thermal.limit_c == LIMIT_C and not thermal.is_limit_assumed
    assert thermal.sustained_fraction == pytest.approx(possible, abs=0.06)
    assert thermal.predicted_temperature_c == pytest.approx(LIMIT_C - 5, abs=3)
    assert thermal.prediction_error_c is not None and thermal.prediction_error_c < 3
    assert [line for line in lines if "held back" in line] == [
        line for line in lines if line.startswith("Heater (simulated) (simulated:0) is held back. Slowed to ")
    ]
    assert sum("is held back" in line for line in lines) == 1
    # The device itself never had to.
    assert not any(one.is_thermal_throttling for one in room.told)
    assert room.stage.is_answering_heartbeats


async def test_a_device_that_is_hot_from_elsewhere_has_its_stage_pause_and_go_on_when_it_has_cooled(
    rooms: Callable[..., Room],
) -> None:
    room = rooms(
        heat=Heat(capacity_joules_per_c=500, conductance_watts_per_c=5, start_c=84, throttle_c=LIMIT_C)
    )
    with heard() as lines:
        await room.collect()
        assert room.stage.fraction == 0 and room.thermal.state == "paused"
        await room.run(20)
        assert room.stage.steps == 0 and room.stage.has_requests
        assert room.stage.is_answering_heartbeats
        await room.run(300, until=lambda: room.stage.fraction > 0)
        temperature_c = room.state().temperature_c
        assert temperature_c is not None and temperature_c <= LIMIT_C - 5 - 10 + 1
        tokens = room.stage.tokens_total
        await room.run(60)
        assert room.stage.tokens_total > tokens
        assert room.stage.broken is None
    told = [line for line in lines if "held back" in line]
    assert len(told) == 1 and "Paused at 84 C until it is at 70 C (limit 85 C)." in told[0]


async def test_when_it_is_over_that_is_said_once(rooms: Callable[..., Room]) -> None:
    room = rooms(
        heat=Heat(capacity_joules_per_c=500, conductance_watts_per_c=12, start_c=84, throttle_c=LIMIT_C)
    )
    with heard() as lines:
        await room.run(300 + OVER_AFTER_S)
    assert room.stage.fraction == 1.0 and room.thermal.state in ("cool", "warm")
    assert [("not held" in line) for line in lines if "held back" in line] == [False, True]


async def test_a_device_that_stops_answering_slows_its_stage_down_though_nothing_is_read(
    rooms: Callable[..., Room],
) -> None:
    room = rooms(heat=Heat(capacity_joules_per_c=500, conductance_watts_per_c=12, throttle_c=LIMIT_C))
    await room.run(200)
    assert room.stage.fraction == 1.0
    for _ in range(20):
        room.clock.now_s += INTERVAL_S
        room.heat.look()
        room.fractions.append(room.stage.fraction)
    last = room.fractions[-20:]
    assert last[2] == 1.0 and last == sorted(last, reverse=True) and last[-1] < 0.4
    room.clock.now_s += 60
    room.heat.look()
    assert room.stage.fraction == 0


async def test_turned_off_nothing_is_held_back_and_nothing_is_said(rooms: Callable[..., Room]) -> None:
    room = rooms(settings=ThermalSettings(is_enabled=False))
    await room.run(300)
    assert room.stage.fraction == 1.0 and room.hottest_c > LIMIT_C - 1
    assert room.told[-1].thermal is None


async def test_a_simulated_battery_that_runs_low_slows_its_stage_down(rooms: Callable[..., Room]) -> None:
    battery = Battery(capacity_watt_hours=4, start_percent=40)
    room = rooms(battery=battery, heat=None, power=Power(idle_watts=5, limit_watts=40))
    await room.run(20)
    assert room.stage.fraction == 1.0
    await room.run(600, until=lambda: room.stage.fraction < 1)
    assert room.stage.fraction == 0.5 and room.thermal.reason.startswith("Slowed to 50%: on battery with ")
    await room.run(1200, until=lambda: room.stage.fraction == 0)
    assert room.thermal.state == "paused" and room.thermal.reason.endswith("work pauses below 15 %.")


# The watch alone.


def device(alias: str = "cuda:0", **fields: Any) -> GPUDevice:
    return msgspec.structs.replace(gpu("a", GIB, alias), **fields)


def cool(**fields: Any) -> DeviceReading:
    return DeviceReading(**{"temperature_c": 40.0, "throttle_threshold_c": LIMIT_C, **fields})


def test_a_stage_on_several_devices_works_as_much_as_the_hottest_allows() -> None:
    watch, told = HeatWatch(ThermalSettings(), clock=Clock()), []
    one, other = device(), device("cuda:1")
    watch.begin("stage", [one.device_id, other.device_id], told.append)
    watch.observe_reading(one, cool())
    first = told[-1]
    assert 0 < first < 1
    watch.observe_reading(other, cool(temperature_c=84.0))
    assert told[-1] == 0
    late: list[float] = []
    watch.begin("late", [other.device_id], late.append)
    watch.begin("elsewhere", [DeviceId("a/cuda:7")], late.append)
    assert late == [0.0]
    watch.end("stage")
    watch.end("stage")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_stages_on_one_device_share_what_its_heat_allows(count: int) -> None:
    clock = Clock()
    watch = HeatWatch(ThermalSettings(), clock=clock)
    told = [1.0] * count
    busy_s = [0.0] * count
    for number in range(count):
        watch.begin(
            f"stage {number}",
            [device().device_id],
            lambda fraction, number=number: told.__setitem__(number, fraction),
        )
    temperature_c, hottest_c = 40.0, 0.0
    for _ in range(600):
        watts = 30 + 420 * min(1.0, sum(told))
        steady_c = 28 + watts / 5
        temperature_c = steady_c + (temperature_c - steady_c) * 0.98
        hottest_c = max(hottest_c, temperature_c)
        clock.now_s += 2
        for number in range(count):
            busy_s[number] += 2 * told[number]
            watch.note_work(f"stage {number}", busy_s[number])
        watch.observe_reading(device(), cool(temperature_c=float(round(temperature_c)), power_watts=watts))
    assert hottest_c < LIMIT_C - 3
    assert LIMIT_C - 8 < temperature_c < LIMIT_C - 4
    held = ((LIMIT_C - 5 - 28) * 5 - 30) / 420
    assert sum(told) == pytest.approx(held, rel=0.12)


def test_what_a_stage_does_not_use_is_the_others() -> None:
    assert allotted(0.6, []) == 0.6
    assert allotted(0.6, [0.3]) == allotted(0.6, [0.9]) == 0.3
    assert allotted(0.6, [0.1]) == pytest.approx(0.5)
    assert allotted(0.05, [0.05] * 9) == 0.01
    assert allotted(0.0, [0.0]) == 0.0


def test_the_hosts_battery_counts_for_its_gpus_and_not_for_simulated_ones() -> None:
    watch = HeatWatch(ThermalSettings(), clock=Clock())
    processor = device("cpu:0", backend="cpu")
    graphics, played = device(), device("simulated:0", backend="simulated", is_simulated=True)
    low = DeviceReading(battery_percent=20.0, is_plugged_in=False)
    for one, reading in ((processor, low), (graphics, DeviceReading()), (played, DeviceReading())):
        watch.observe_reading(one, reading)
    found = [watch.status(one.device_id) for one in (processor, graphics, played)]
    assert [one.work_fraction for one in found if one is not None] == [0.5, 0.5, 1.0]


def test_a_processor_that_does_not_tell_its_limit_is_left_alone() -> None:
    watch = HeatWatch(ThermalSettings(), clock=Clock())
    processor = device("cpu:0", backend="cpu")
    watch.observe_reading(processor, DeviceReading(temperature_c=94.0))
    status = watch.status(processor.device_id)
    assert status is not None and (status.state, status.work_fraction) == ("unknown", 1.0)
    watch.forget_all_but([])
    assert watch.status(processor.device_id) is None


@pytest.mark.parametrize(
    ("fields", "reading", "expected"),
    [
        ({}, DeviceReading(power_limit_watts=700.0), "datacenter"),
        ({}, DeviceReading(power_limit_watts=450.0), "desktop"),
        ({"memory_kind": "unified"}, DeviceReading(), "embedded"),
        ({"memory_kind": "unified", "backend": "metal"}, DeviceReading(), "desktop"),
        ({"backend": "metal"}, DeviceReading(battery_percent=80.0), "laptop"),
        ({"backend": "tflite"}, DeviceReading(battery_percent=80.0, power_limit_watts=8.0), "phone"),
    ],
)
def test_devices_are_put_into_classes(fields: dict[str, Any], reading: DeviceReading, expected: str) -> None:
    assert device_class(device(**fields), reading) == expected
