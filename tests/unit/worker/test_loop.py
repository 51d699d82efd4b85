"""A worker follows the state: stages start, link, fail, restart and stop. Its processes are scripted here."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from msgspec.structs import replace

from exo.cluster.errors import UnsendableError
from exo.dataplane.identity import DataIdentity, DataTrust
from exo.gpu.failures import Failure
from exo.gpu.reading import DeviceReading
from exo.gpu.thermal.settings import ThermalSettings
from exo.shared.types.devices import GPUDevice
from exo.shared.types.events import Decision, InstanceDeleted, InstanceMoved, InstanceRestarted, LogEntry
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.instances import StagePhase
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State
from exo.worker.heat_watch import HeatWatch
from exo.worker.loop import Worker
from exo.worker.models.store import ModelStore
from exo.worker.runner.messages import (
    FromChild,
    Heartbeat,
    LoadProgressed,
    ProcessEnding,
    RunnerFailed,
    RunnerLoaded,
    RunnerReady,
    RunnerSpec,
)
from exo.worker.stage_devices import StageDevices
from support.coordinator import MemoryCoordinator
from support.states import GIB, card, cluster, fold, gpu, identity
from support.stories import placed

ADDRESS = HostPort("127.0.0.1", 9)


class ScriptedRunner:
    """A stage process that says what the test tells it to say."""

    def __init__(self, spec: RunnerSpec) -> None:
        self.spec = spec
        self.linked: tuple[HostPort, ...] = ()
        self.trusts: list[DataTrust] = []
        self.work: list[float] = []
        self.stopped = anyio.Event()
        self.may_stop = anyio.Event()
        self.may_stop.set()
        self.say: Callable[[FromChild], None] = lambda _: None
        self.started = anyio.Event()

    async def run(self, on_message: Callable[[FromChild], None]) -> None:
        self.say = on_message
        self.started.set()
        await self.stopped.wait()

    def link(self, addresses: Sequence[HostPort]) -> None:
        self.linked = tuple(addresses)

    def set_trust(self, trust: DataTrust) -> None:
        self.trusts.append(trust)

    def set_work(self, fraction: float) -> None:
        self.work.append(fraction)

    async def stop(self) -> None:
        await self.may_stop.wait()
        self.stopped.set()


class Story:
    worker: Worker

    def __init__(self, coordinator: MemoryCoordinator) -> None:
        self.coordinator = coordinator
        self.runners: list[ScriptedRunner] = []

    def make(self, spec: RunnerSpec) -> ScriptedRunner:
        self.runners.append(ScriptedRunner(spec))
        return self.runners[-1]

    async def phase(self, wanted: StagePhase) -> None:
        def reached(state: object) -> bool | None:
            stages = self.coordinator.state.instances[InstanceId("i")].stages
            return True if stages[0].phase == wanted else None

        await self.coordinator.wait_for(reached, timeout_s=5)

    async def runner(self, number: int) -> ScriptedRunner:
        with anyio.fail_after(5):
            while len(self.runners) <= number:
                await anyio.lowlevel.checkpoint()
            await self.runners[number].started.wait()
        return self.runners[number]


@asynccontextmanager
async def worker(
    folder: Path,
    *,
    with_model: bool = True,
    devices: StageDevices | None = None,
    gpus: Sequence[GPUDevice] = (gpu("a", GIB),),
    heat: HeatWatch | None = None,
    note_busy: Callable[[str, bool], None] = lambda name, is_busy: None,
    ending_patience_s: float = 5.0,
    layer_split: tuple[int, ...] = (),
) -> AsyncIterator[Story]:
    directory = folder / "toy"
    directory.mkdir()
    store = ModelStore([folder])
    if with_model:
        store._directories = {card().model_id: directory}  # pyright: ignore[reportPrivateUsage]
    own = identity("a", models=[card()], devices=gpus if devices is not None else None)
    coordinator = MemoryCoordinator(NodeId("a"), placed(cluster(own), layer_split=layer_split))
    story = Story(coordinator)
    work = Worker(
        coordinator=coordinator,
        boot_id="boot-1",
        store=store,
        models=(card(),),
        make_runner=story.make,
        secret=b"secret",
        data_host="127.0.0.1",
        devices=devices,
        heat=heat,
        note_busy=note_busy,
        ending_patience_s=ending_patience_s,
    )
    story.worker = work
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work.run)
        yield story
        tasks.cancel_scope.cancel()


def moved_to(story: Story, device_id: DeviceId) -> State:
    """Return the state with the instance's only stage on another device."""
    state = story.coordinator.state
    instance = state.instances[InstanceId("i")]
    (stage,) = instance.plan.stages
    node_id = NodeId(device_id.partition("/")[0])
    elsewhere = replace(stage, node_id=node_id, device_ids=(device_id,))
    plan = replace(instance.plan, stages=(elsewhere,))
    return fold(
        state, InstanceMoved(instance_id=InstanceId("i"), generation=2, plan=plan, reason="cuda:0 has failed")
    )


async def test_a_placed_stage_starts_loads_links_and_is_ready(tmp_path: Path) -> None:
    async with worker(tmp_path) as story:
        runner = await story.runner(0)
        assert (runner.spec.start_layer, runner.spec.end_layer, runner.spec.device) == (0, 6, "cpu:0")
        assert runner.spec.model_dir == str(tmp_path / "toy")
        await story.phase("starting")
        runner.say(LoadProgressed(loaded_layers=0, total_layers=6))
        await story.phase("loading")
        runner.say(LoadProgressed(loaded_layers=3, total_layers=6))
        progress = story.coordinator.state.live[NodeId("a")].stages["i/1/0"]
        assert (progress.loaded_layers, progress.total_layers) == (3, 6)
        runner.say(RunnerLoaded(address=ADDRESS))
        await story.phase("loaded")
        with anyio.fail_after(5):
            while runner.linked != (ADDRESS,):
                await anyio.lowlevel.checkpoint()
        runner.say(RunnerReady())
        await story.phase("ready")
        assert len(story.runners) == 1


async def test_a_failure_is_reported_with_its_reason_and_a_new_generation_starts_anew(tmp_path: Path) -> None:
    async with worker(tmp_path) as story:
        runner = await story.runner(0)
        runner.say(RunnerFailed(reason="killed by signal 9"))
        runner.stopped.set()
        await story.phase("failed")
        assert story.coordinator.state.instances[InstanceId("i")].reason == "killed by signal 9"
        restart = InstanceRestarted(instance_id=InstanceId("i"), generation=2, reason="again")
        story.coordinator.set_state(fold(story.coordinator.state, restart))
        again = await story.runner(1)
        assert again.spec.generation == 2
        await story.phase("starting")


async def test_a_process_that_ends_without_a_word_is_a_failure(tmp_path: Path) -> None:
    async with worker(tmp_path) as story:
        (await story.runner(0)).stopped.set()
        await story.phase("failed")


async def test_a_deleted_instance_is_stopped_and_its_last_words_are_not_reported(tmp_path: Path) -> None:
    async with worker(tmp_path) as story:
        runner = await story.runner(0)
        await story.phase("starting")
        deleted = InstanceDeleted(instance_id=InstanceId("i"), reason="test")
        story.coordinator.set_state(fold(story.coordinator.state, deleted))
        with anyio.fail_after(5):
            await runner.stopped.wait()
        proposed = len(story.coordinator.proposed)
        runner.say(RunnerReady())
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert len(story.coordinator.proposed) == proposed


async def test_a_model_that_is_gone_fails_for_good(tmp_path: Path) -> None:
    async with worker(tmp_path, with_model=False) as story:
        await story.phase("failed")
        stage = story.coordinator.state.instances[InstanceId("i")].stages[0]
        assert stage.is_permanent and stage.reason is not None and "no longer on this node" in stage.reason


async def test_reports_wait_for_a_master_and_come_in_order(tmp_path: Path) -> None:
    async with worker(tmp_path) as story:
        runner = await story.runner(0)
        await story.phase("starting")
        story.coordinator.has_master = False
        runner.say(LoadProgressed(loaded_layers=0, total_layers=6))
        runner.say(RunnerLoaded(address=ADDRESS))
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        story.coordinator.has_master = True
        await story.phase("loaded")
        phases = [getattr(event, "phase", None) for event in story.coordinator.proposed]
        assert phases == ["starting", "loading", "loaded"]


async def test_a_new_generation_starts_only_when_the_old_process_is_gone(tmp_path: Path) -> None:
    async with worker(tmp_path) as story:
        old = await story.runner(0)
        old.may_stop = anyio.Event()
        restart = InstanceRestarted(instance_id=InstanceId("i"), generation=2, reason="test")
        story.coordinator.set_state(fold(story.coordinator.state, restart))
        with anyio.fail_after(5):
            while len(story.runners) < 2:
                await anyio.lowlevel.checkpoint()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert not story.runners[1].started.is_set()
        old.may_stop.set()
        assert (await story.runner(1)).spec.generation == 2


async def test_every_report_names_the_command_that_led_to_it(tmp_path: Path) -> None:
    async with worker(tmp_path) as story:
        await story.phase("starting")
        created_by = story.coordinator.state.instances[InstanceId("i")].created_by
        causes = [entry.cause_id for entry in story.coordinator.history if isinstance(entry, LogEntry)]
        assert causes == [created_by]


async def test_a_report_that_can_never_be_sent_does_not_hold_up_those_behind_it(tmp_path: Path) -> None:
    async with worker(tmp_path) as story:
        runner = await story.runner(0)
        await story.phase("starting")
        propose, refused = story.coordinator.propose, anyio.Event()

        async def too_large(events: Sequence[Decision], *, cause_id: str) -> int:
            story.coordinator.propose = propose
            refused.set()
            raise UnsendableError("it has 20 MiB")

        story.coordinator.propose = too_large
        runner.say(LoadProgressed(loaded_layers=0, total_layers=6))
        with anyio.fail_after(5):
            await refused.wait()
        runner.say(RunnerLoaded(address=ADDRESS))
        await story.phase("loaded")


async def test_stages_follow_what_the_node_shows_and_where_it_listens(tmp_path: Path) -> None:
    identity = DataIdentity(certificate_file="/c.pem", key_file="/c.key", authority_pem="CA")
    async with worker(tmp_path) as story:
        first = await story.runner(0)
        assert first.spec.trust == DataTrust()
        assert (first.spec.data_host, first.spec.advertised_host) == ("127.0.0.1", None)
        assert first.spec.stage_node_ids == (NodeId("a"),)
        story.worker.set_identity(identity)
        story.worker.set_revoked(node_ids=["gone"], serials=["abc"])
        story.worker.set_data_host("0.0.0.0", advertised_host="192.0.2.1")
        known = DataTrust(
            identity=identity,
            removed_node_ids=frozenset({NodeId("gone")}),
            revoked_serials=frozenset({"abc"}),
        )
        # The stage that runs stays where it is, and hears whom to trust.
        assert first.trusts == [DataTrust(identity=identity), known]
        restart = InstanceRestarted(instance_id=InstanceId("i"), generation=2, reason="again")
        story.coordinator.set_state(fold(story.coordinator.state, restart))
        second = await story.runner(1)
        assert second.spec.trust == known
        assert (second.spec.data_host, second.spec.advertised_host) == ("0.0.0.0", "192.0.2.1")


async def test_whether_a_stage_has_requests_is_told_until_it_ends(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    async with worker(tmp_path, note_busy=lambda name, is_busy: told.append((name, is_busy))) as story:
        runner = await story.runner(0)
        runner.say(Heartbeat(step_running_s=0.0, requests_active=0, tokens_total=0))
        runner.say(Heartbeat(step_running_s=0.1, requests_active=2, tokens_total=5))
        assert told == [("i/0", False), ("i/0", True)]
        runner.say(RunnerFailed(reason="killed by signal 9"))
        runner.stopped.set()
        with anyio.fail_after(5):
            while len(told) < 3:
                await anyio.lowlevel.checkpoint()
        assert told[2] == ("i/0", False), "what died has no requests"


async def test_a_stage_holds_its_gpu_and_its_crash_gives_it_back_and_is_told_of_it(tmp_path: Path) -> None:
    seen: list[tuple[DeviceId, Failure]] = []
    guard = StageDevices(
        devices=lambda: [gpu("a", GIB)],
        states=dict,
        observe_failure=lambda device_id, failure: seen.append((device_id, failure)),
    )
    async with worker(tmp_path, devices=guard) as story:
        runner = await story.runner(0)
        assert guard.manager.owners() == {"i/0": [0]}
        ending = ProcessEnding(exit_code=-11, is_hung=False, last_words="cuda: unspecified launch failure")
        runner.say(RunnerFailed(reason="killed by signal 11", ending=ending))
        runner.stopped.set()
        await story.phase("failed")
        assert [(device_id, failure.weight) for device_id, failure in seen] == [("a/cuda:0", "suspicious")]
        with anyio.fail_after(5):
            while guard.manager.owners():
                await anyio.lowlevel.checkpoint()


async def test_a_stage_whose_gpu_is_taken_is_not_started_and_says_by_whom(tmp_path: Path) -> None:
    guard = StageDevices(
        devices=lambda: [gpu("a", GIB)], states=dict, observe_failure=lambda device_id, failure: None
    )
    guard.manager.allocate(owner="a benchmark")
    async with worker(tmp_path, devices=guard) as story:
        await story.phase("failed")
        reason = story.coordinator.state.instances[InstanceId("i")].stages[0].reason
        assert reason is not None and "i/0 cannot use cuda:0: a benchmark has it for itself" in reason
        assert not story.runners[0].started.is_set()
        guard.manager.release(owner="a benchmark")
        restart = InstanceRestarted(instance_id=InstanceId("i"), generation=2, reason="again")
        await story.coordinator.propose([restart], cause_id="test")
        await (await story.runner(1)).started.wait()
        assert guard.manager.owners() == {"i/0 (generation 2)": [0]}


async def test_a_stage_that_moved_away_is_ended_and_gives_its_gpu_back(tmp_path: Path) -> None:
    guard = StageDevices(
        devices=lambda: [gpu("a", GIB)], states=dict, observe_failure=lambda device_id, failure: None
    )
    async with worker(tmp_path, devices=guard) as story:
        runner = await story.runner(0)
        assert guard.manager.owners() == {"i/0": [0]}
        story.coordinator.set_state(moved_to(story, DeviceId("b/cuda:0")))
        with anyio.fail_after(5):
            await runner.stopped.wait()
            while guard.manager.owners():
                await anyio.lowlevel.checkpoint()
        assert len(story.runners) == 1


async def test_a_process_that_no_signal_ends_does_not_keep_its_stage_from_another_gpu(tmp_path: Path) -> None:
    devices = [gpu("a", GIB), gpu("a", GIB, "cuda:1")]
    guard = StageDevices(
        devices=lambda: devices, states=dict, observe_failure=lambda device_id, failure: None
    )
    async with worker(tmp_path, devices=guard, gpus=devices, ending_patience_s=0.05) as story:
        stuck = await story.runner(0)
        assert guard.manager.owners() == {"i/0": [0]}
        stuck.may_stop = anyio.Event()
        story.coordinator.set_state(moved_to(story, DeviceId("a/cuda:1")))
        again = await story.runner(1)
        assert again.spec.device == "cuda:1"
        assert guard.manager.owners() == {"i/0": [0], "i/0 (generation 2)": [1]}
        stuck.may_stop.set()
        with anyio.fail_after(5):
            while len(guard.manager.owners()) > 1:
                await anyio.lowlevel.checkpoint()
        assert guard.manager.owners() == {"i/0 (generation 2)": [1]}


async def test_a_stage_is_told_how_much_its_devices_heat_allows_from_its_beginning_to_its_end(
    tmp_path: Path,
) -> None:
    now = [0.0]
    heat = HeatWatch(ThermalSettings(), clock=lambda: now[0])
    async with worker(tmp_path, heat=heat) as story:
        runner = await story.runner(0)
        (device_id,) = story.coordinator.state.instances[InstanceId("i")].plan.stages[0].device_ids
        device = next(
            one
            for one in story.coordinator.state.nodes[NodeId("a")].identity.devices
            if one.device_id == device_id
        )
        reading = DeviceReading(temperature_c=84.0, throttle_threshold_c=85.0)
        heat.observe_reading(device, reading)
        assert runner.work == [0.0]
        # How long it has been computing, by its heartbeats, is what its power is put down to.
        for busy_s in (1.0, 2.0, 3.0):
            now[0] += 2.0
            runner.say(Heartbeat(step_running_s=0.0, requests_active=1, tokens_total=0, busy_s=busy_s))
            heat.observe_reading(device, DeviceReading(temperature_c=60.0, throttle_threshold_c=85.0))
        record = heat._devices[device_id].record  # pyright: ignore[reportPrivateUsage]
        assert 0.2 < record.worked_share < 0.5
        assert runner.work[-1] > 0
        told = len(runner.work)
        runner.say(RunnerFailed(reason="gone"))
        runner.stopped.set()
        with anyio.fail_after(5):
            while heat._stages:  # pyright: ignore[reportPrivateUsage]
                await anyio.lowlevel.checkpoint()
        heat.observe_reading(device, reading)
        assert len(runner.work) == told


async def test_a_stage_that_starts_on_a_hot_device_starts_paused(tmp_path: Path) -> None:
    heat = HeatWatch(ThermalSettings(), clock=lambda: 0.0)
    hot = identity("a").devices[0]
    heat.observe_reading(hot, DeviceReading(temperature_c=84.0, throttle_threshold_c=85.0))
    async with worker(tmp_path, heat=heat) as story:
        runner = await story.runner(0)
        assert hot.device_id in story.coordinator.state.instances[InstanceId("i")].plan.stages[0].device_ids
        assert runner.work == [0.0]


async def test_two_stages_of_an_instance_on_one_node_have_a_process_and_a_gpu_each(tmp_path: Path) -> None:
    cards = [gpu("a", GIB), replace(gpu("a", GIB, "cuda:1"), name="Other GPU")]
    guard = StageDevices(devices=lambda: cards, states=dict, observe_failure=lambda device_id, failure: None)
    thermal = ThermalSettings.from_environment({}, 1.0)
    heat = HeatWatch(thermal, clock=lambda: 0.0)
    async with worker(tmp_path, devices=guard, gpus=cards, heat=heat, layer_split=(2, 4)) as story:
        first, second = await story.runner(0), await story.runner(1)
        assert [one.spec.rank for one in (first, second)] == [0, 1]
        assert [one.spec.device for one in (first, second)] == ["cuda:0", "cuda:1"]
        assert [(one.spec.start_layer, one.spec.end_layer) for one in (first, second)] == [(0, 2), (2, 6)]
        assert first.spec.stage_node_ids == (NodeId("a"), NodeId("a"))
        assert guard.manager.owners() == {"i/0": [0], "i/1": [1]}
        addresses = (HostPort("127.0.0.1", 9), HostPort("127.0.0.1", 10))
        first.say(RunnerLoaded(address=addresses[0]))
        await story.phase("loaded")
        assert first.linked == ()
        second.say(RunnerLoaded(address=addresses[1]))
        with anyio.fail_after(5):
            while not (first.linked and second.linked):
                await anyio.lowlevel.checkpoint()
        assert first.linked == second.linked == addresses
        # One of them dies: both are thrown away, and only its own GPU is given back at once.
        second.say(RunnerFailed(reason="killed by signal 9"))
        second.stopped.set()
        with anyio.fail_after(5):
            while "i/1" in guard.manager.owners():
                await anyio.lowlevel.checkpoint()
        assert guard.manager.owners() == {"i/0": [0]}
        restart = InstanceRestarted(instance_id=InstanceId("i"), generation=2, reason="test")
        story.coordinator.set_state(fold(story.coordinator.state, restart))
        again = [await story.runner(2), await story.runner(3)]
        assert [(one.spec.generation, one.spec.rank, one.spec.device) for one in again] == [
            (2, 0, "cuda:0"),
            (2, 1, "cuda:1"),
        ]
        assert first.stopped.is_set()
