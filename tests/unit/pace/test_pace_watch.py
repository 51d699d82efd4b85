"""What a node makes of its stages' heartbeats: what it tells, when, and what it keeps over a restart."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.events import DevicePaceMeasured, InstancePaceMeasured, Telemetry
from exo.shared.types.ids import CommandId, DeviceId, InstanceId, NodeId
from exo.shared.types.instances import Instance, PlacementRequest, Plan, StagePlan, StageState
from exo.shared.types.pace import DevicePace, InstancePace
from exo.worker.pace.store import PACES_FILE, PaceStore
from exo.worker.pace.watch import IDLE_S, TELL_INTERVAL_S, PaceWatch, prior_of
from exo.worker.runner.messages import Heartbeat
from exo.worker.runner.steps import StepWindow
from support.states import card, cpu

DEVICE = replace(cpu("a", 2**34), measured_memory_bandwidth_bytes_per_s=10e9)
OTHER = DeviceId("b/cpu:0")
MODEL = card(layers=12, layer_bytes=25_000_000)


def instance(*layers: int, name: str = "i") -> Instance:
    devices = [DEVICE.device_id, OTHER, DeviceId("c/cpu:0")]
    stages: list[StagePlan] = []
    start = 0
    for rank, count in enumerate(layers):
        stages.append(
            StagePlan(
                rank=rank,
                node_id=NodeId(devices[rank].split("/")[0]),
                device_ids=(devices[rank],),
                start_layer=start,
                end_layer=start + count,
                memory_bytes=0,
            )
        )
        start += count
    plan = Plan(
        stages=tuple(stages),
        sharding="pipeline",
        engine="mlx",
        context_length=128,
        concurrency=1,
        method="greedy",
        explanation="",
        state_index=1,
    )
    return Instance(
        instance_id=InstanceId(name),
        model=MODEL,
        plan=plan,
        request=PlacementRequest(model_id=MODEL.model_id),
        generation=3,
        stages=(StageState(),) * len(stages),
        created_by=CommandId("c"),
    )


class World:
    """A node with one device, whose time the test moves."""

    def __init__(self, home: Path, *, device: GPUDevice = DEVICE, exo_version: str = "1") -> None:
        self.now_s = 1000.0
        self.device = device
        self.told: list[Telemetry] = []
        self.used_percent: float | None = 4.0
        self.is_throttling: bool | None = False
        self.watch = PaceWatch(
            devices=lambda: [self.device],
            reading=self.reading,
            publish=self.publish,
            store=PaceStore(home / PACES_FILE),
            exo_version=exo_version,
            clock=lambda: self.now_s,
        )

    def reading(self, device_id: DeviceId) -> DeviceGPUState:
        return DeviceGPUState(
            device_id=device_id,
            node_id=NodeId("a"),
            compute_utilization_percent=self.used_percent,
            is_thermal_throttling=self.is_throttling,
            last_update="",
        )

    def publish(self, events: Sequence[Telemetry]) -> None:
        self.told.extend(events)

    def work(self, name: str, seconds: int, step_s: float, *, hop_s: float | None = None) -> None:
        """Let a stage have steps for so many heartbeats."""
        for _ in range(seconds):
            self.now_s += 1
            steps = StepWindow(
                step_count=10, step_s=step_s, position=20, round_count=10, round_s=0.2, hop_s=hop_s
            )
            self.watch.heard(
                name, Heartbeat(step_running_s=0, requests_active=1, tokens_total=0, steps=steps)
            )

    def rest(self, name: str, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1
            self.watch.heard(name, Heartbeat(step_running_s=0, requests_active=0, tokens_total=0))

    @property
    def paces(self) -> list[DevicePace]:
        return [one.pace for one in self.told if isinstance(one, DevicePaceMeasured)]

    @property
    def instance_paces(self) -> list[InstancePace]:
        return [one.pace for one in self.told if isinstance(one, InstancePaceMeasured)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_stage_that_works_makes_its_device_known(world: World) -> None:
    made = instance(8, 4)
    world.watch.begin("i/0", made, made.plan.stages[0])
    world.work("i/0", 10, 0.06, hop_s=0.002)
    world.rest("i/0", int(TELL_INTERVAL_S) + 1)
    pace = world.paces[-1]
    assert (pace.device_id, pace.engine, pace.dtype) == (DEVICE.device_id, "mlx", "bfloat16")
    read = 8 * 25_000_000 + 8 * 20 * 64
    assert pace.step_overhead_s + 8 * pace.layer_overhead_s + read / pace.bandwidth_bytes_per_s == (
        pytest.approx(0.06, rel=0.02)
    )
    assert (pace.reads_min_bytes, pace.measurement_count) == (read, 100)
    assert pace.hop_s == pytest.approx(0.002)
    assert (pace.hop_count, pace.hop_device_ids) == (100, (DEVICE.device_id, OTHER))
    told = world.instance_paces[-1]
    assert (told.instance_id, told.generation, told.ms_per_token) == ("i", 3, 200.0)


def test_a_following_stage_tells_of_its_device_alone(world: World) -> None:
    made = instance(8, 4)
    world.watch.begin("i/1", made, replace(made.plan.stages[1], device_ids=(DEVICE.device_id,)))
    world.work("i/1", 10, 0.06, hop_s=0.002)
    assert world.paces and world.paces[-1].hop_s is None and not world.instance_paces


def test_it_is_told_now_and_then_and_not_when_nothing_is_new(world: World) -> None:
    made = instance(12)
    world.watch.begin("i/0", made, made.plan.stages[0])
    world.work("i/0", 20, 0.06)
    assert len(world.paces) == 4
    world.rest("i/0", 100)
    assert len(world.paces) == 5
    assert len(world.instance_paces) == 1


def test_steps_of_a_device_that_its_driver_throttles_do_not_count(world: World) -> None:
    made = instance(12)
    world.watch.begin("i/0", made, made.plan.stages[0])
    world.is_throttling = True
    world.work("i/0", 20, 0.5)
    world.rest("i/0", 10)
    assert not world.told


def test_what_others_use_is_learnt_while_stages_rest(world: World) -> None:
    made = instance(12)
    world.watch.begin("i/0", made, made.plan.stages[0])
    # Loading is work of ours, and so is what came just before.
    world.used_percent = 97.0
    for _ in range(20):
        world.now_s += 1
        beat = Heartbeat(step_running_s=0, requests_active=0, tokens_total=0)
        world.watch.heard("i/0", beat, is_serving=False)
    world.rest("i/0", int(IDLE_S) - 1)
    world.used_percent = 30.0
    world.rest("i/0", 2)
    world.used_percent = 100.0
    world.work("i/0", 10, 0.06)
    assert world.paces[-1].used_by_others_percent == 30.0


def test_a_group_of_devices_says_nothing_of_one(world: World) -> None:
    made = instance(12)
    world.watch.begin("i/0", made, replace(made.plan.stages[0], device_ids=(DEVICE.device_id, OTHER)))
    world.work("i/0", 20, 0.06)
    assert not world.told


def test_a_simulated_device_has_no_pace(tmp_path: Path) -> None:
    world = World(tmp_path, device=replace(DEVICE, is_simulated=True))
    made = instance(12)
    world.watch.begin("i/0", made, made.plan.stages[0])
    world.work("i/0", 20, 0.06)
    assert not world.told


def test_what_was_learnt_outlives_the_node(tmp_path: Path) -> None:
    first = World(tmp_path)
    made = instance(12)
    first.watch.begin("i/0", made, made.plan.stages[0])
    first.work("i/0", 8, 0.06)
    first.watch.end("i/0")
    again = World(tmp_path)
    again.watch.tell_known()
    assert again.paces == first.paces[-1:]


@pytest.mark.parametrize(
    ("device", "exo_version"),
    [
        (replace(DEVICE, driver_version="2"), "1"),
        (replace(DEVICE, name="Another CPU"), "1"),
        (replace(DEVICE, memory_total_bytes=2**33), "1"),
        (replace(DEVICE, device_id=OTHER), "1"),
        (DEVICE, "2"),
    ],
)
def test_other_hardware_drivers_and_releases_begin_anew(
    tmp_path: Path, device: GPUDevice, exo_version: str
) -> None:
    first = World(tmp_path)
    made = instance(12)
    first.watch.begin("i/0", made, made.plan.stages[0])
    first.work("i/0", 8, 0.06)
    first.watch.end("i/0")
    again = World(tmp_path, device=device, exo_version=exo_version)
    again.watch.tell_known()
    assert not again.told


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99, "paces": []}', b"\xff"])
def test_a_damaged_file_is_no_reason_not_to_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PACES_FILE).write_bytes(content)
    world = World(tmp_path)
    world.watch.tell_known()
    assert not world.told


def test_a_full_disk_harms_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "missing")
    made = instance(12)
    for _ in range(2):
        world.watch.begin("i/0", made, made.plan.stages[0])
        world.work("i/0", 8, 0.06)
        world.watch.end("i/0")
    assert world.paces


def test_a_bandwidth_that_was_measured_is_the_prior_and_one_that_is_told_is_not_reached() -> None:
    assert prior_of(DEVICE).bandwidth_bytes_per_s == 10e9
    told = replace(DEVICE, measured_memory_bandwidth_bytes_per_s=None, memory_bandwidth_bytes_per_s=100e9)
    assert prior_of(told).bandwidth_bytes_per_s == pytest.approx(70e9)
