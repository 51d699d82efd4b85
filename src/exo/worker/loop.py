"""The thin loop of a worker: carries the plan's instructions out, and reports what happens as events."""

from collections.abc import Callable, Collection, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.cluster.errors import UnsendableError
from exo.dataplane.identity import DataIdentity, DataTrust
from exo.gpu.errors import GPUTakenError
from exo.shared.errors import NoMasterError
from exo.shared.types.events import Decision, NodeModelsChanged, StageChanged, StageProgressed
from exo.shared.types.ids import DeviceId, ModelId, NodeId
from exo.shared.types.instances import Instance, StagePhase, StagePlan, StageProgress
from exo.shared.types.models import ModelCard
from exo.shared.types.nodes import HostPort
from exo.worker.heat_watch import HeatWatch
from exo.worker.models.store import ModelStore
from exo.worker.pace.watch import PaceWatch
from exo.worker.plan import (
    Instruction,
    LinkRunner,
    LocalView,
    ReportLost,
    RunnerKey,
    RunnerPhase,
    StartRunner,
    StopRunner,
    plan,
)
from exo.worker.runner.messages import (
    FromChild,
    Heartbeat,
    LoadProgressed,
    RunnerFailed,
    RunnerLoaded,
    RunnerReady,
    RunnerSpec,
)
from exo.worker.stage_devices import StageDevices

MODELS_SCAN_INTERVAL_S = 5.0
ENDING_PATIENCE_S = 15.0
"""A process that is stuck in a dying GPU's driver obeys no signal: stages on other devices do not wait for ever."""


class Runner(Protocol):
    """What the worker needs of a supervised stage process (`worker.runner.supervisor.StageRunner`)."""

    async def run(self, on_message: Callable[[FromChild], None]) -> None:
        """Run the process until it ends; its last message says why where that was not asked for."""
        ...

    def link(self, addresses: Sequence[HostPort]) -> None:
        """Tell it where its neighbours listen."""
        ...

    def set_trust(self, trust: DataTrust) -> None:
        """Tell it what to show to other hosts from now on, and who is not let in."""
        ...

    def set_work(self, fraction: float) -> None:
        """Tell it how much of the time to work from now on, 0 to 1."""
        ...

    async def stop(self) -> None:
        """End it; returns when it is gone."""
        ...


class _Running:
    def __init__(self, runner: Runner, instance: Instance, stage: StagePlan) -> None:
        self.runner = runner
        self.instance = instance
        self.stage = stage
        self.phase: RunnerPhase = "started"


class Worker:
    """Runs the stages that the state places on this node.

    Args:
        coordinator: The cluster.
        boot_id: This start of the node.
        store: Where models lie.
        models: What was found there.
        make_runner: Makes stage processes.
        secret: What all processes of this user on this host know.
        data_host: Where stages listen; see `set_data_host`.
        advertised_host: Where other hosts reach this one.
        data_ports: First and last port for stages; None: any free ones.
        verbosity: Of their logs.
        devices: Guards this node's GPUs; None: nobody does.
        heat: Says how much stages may work; None: as much as they can.
        paces: Learns how fast stages work; None: nobody does.
        note_busy: Told of each stage whether it has requests, by name; again and again as long as it runs.
        ending_patience_s: How long a new stage waits for processes that are being ended.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        boot_id: str,
        store: ModelStore,
        models: tuple[ModelCard, ...],
        make_runner: Callable[[RunnerSpec], Runner],
        secret: bytes,
        data_host: str,
        advertised_host: str | None = None,
        data_ports: tuple[int, int] | None = None,
        verbosity: int = 0,
        devices: StageDevices | None = None,
        heat: HeatWatch | None = None,
        paces: PaceWatch | None = None,
        note_busy: Callable[[str, bool], None] = lambda name, is_busy: None,
        ending_patience_s: float = ENDING_PATIENCE_S,
    ) -> None:
        self._coordinator = coordinator
        self._boot_id = boot_id
        self._store = store
        self._models = models
        self._make_runner = make_runner
        self._secret = secret
        self._data_host = data_host
        self._advertised_host = advertised_host
        self._data_ports = data_ports
        self._trust = DataTrust()
        self._verbosity = verbosity
        self._devices = devices
        self._heat = heat
        self._paces = paces
        self._note_busy = note_busy
        self._ending_patience_s = ending_patience_s
        self._runners: dict[RunnerKey, _Running] = {}
        self._changed = anyio.Event()
        self._stopping: set[anyio.Event] = set()
        """One for each process that is being ended; set when it is gone."""
        self._reports: list[tuple[str, Decision]] = []
        """(cause, event), in the order in which they happened."""
        self._has_reports = anyio.Event()

    def set_identity(self, identity: DataIdentity | None) -> None:
        """Have stages show this certificate; call it again when the files hold a newer one.

        Stages that run go on, and show it on connections to come.
        """
        self._set_trust(msgspec.structs.replace(self._trust, identity=identity))

    def set_revoked(self, *, node_ids: Collection[NodeId], serials: Collection[str]) -> None:
        """Have no stage talk any more to these nodes, nor to who shows a certificate with one of these numbers."""
        self._set_trust(
            msgspec.structs.replace(
                self._trust, removed_node_ids=frozenset(node_ids), revoked_serials=frozenset(serials)
            )
        )

    def _set_trust(self, trust: DataTrust) -> None:
        self._trust = trust
        for running in self._runners.values():
            running.runner.set_trust(trust)

    def set_data_host(self, host: str, *, advertised_host: str | None = None) -> None:
        """Have the stages that are started from now on listen here; those that run stay where they are.

        Args:
            host: Such as `0.0.0.0`. Without a certificate only loopback makes sense.
            advertised_host: Where other hosts reach this one, and what stages report as their address.
        """
        self._data_host, self._advertised_host = host, advertised_host

    async def run(self) -> None:
        """Follow the state until cancelled; then end every stage process."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report)
            tasks.start_soon(self._watch_models)
            tasks.start_soon(self._watch_state)
            while True:
                self._changed = anyio.Event()
                for instruction in plan(self._coordinator.state, self._view()):
                    self._carry_out(instruction, tasks)
                await self._changed.wait()

    async def _watch_state(self) -> None:
        seen_index = -1
        async for state in self._coordinator.changes():
            # Telemetry changes the state many times a second, but only decisions can change the plan. (An index
            # may also fall: when this node leaves its own small cluster for a larger one.)
            if state.index != seen_index:
                seen_index = state.index
                self._changed.set()

    def _view(self) -> LocalView:
        return LocalView(
            node_id=self._coordinator.node_id,
            boot_id=self._boot_id,
            runners={key: running.phase for key, running in self._runners.items()},
        )

    def _carry_out(self, instruction: Instruction, tasks: TaskGroup) -> None:
        key = instruction.key
        match instruction:
            case StartRunner():
                directory = self._store.directory(ModelId(instruction.instance.model.model_id))
                if directory is None:
                    reason = f"the model {instruction.instance.model.model_id} is no longer on this node"
                    self._propose_stage(key, "failed", reason=reason, is_permanent=True)
                    return
                runner = self._make_runner(self._spec(instruction, directory))
                running = _Running(runner, instruction.instance, instruction.stage)
                self._runners[key] = running
                tasks.start_soon(self._run_one, key, running)
            case LinkRunner():
                running = self._runners[key]
                running.phase = "linked"
                running.runner.link(instruction.addresses)
            case StopRunner():
                running = self._runners.pop(key)
                if running.phase != "ended":
                    logger.info("stopping stage {} of {}", key.rank, key.instance_id)
                    gone = anyio.Event()
                    self._stopping.add(gone)
                    tasks.start_soon(self._stop, running, gone)
            case ReportLost():
                self._propose_stage(key, "failed", reason="the stage's process is gone")

    async def _stop(self, running: _Running, gone: anyio.Event) -> None:
        try:
            await running.runner.stop()
        finally:
            self._stopping.discard(gone)
            gone.set()

    def _alias_of(self, device_id: DeviceId) -> str:
        """What engines call a device of this node, such as `cuda:0`; its id may end in what its vendor calls it."""
        node = self._coordinator.state.nodes.get(self._coordinator.node_id)
        for device in node.identity.devices if node is not None else ():
            if device.device_id == device_id:
                return device.local_alias
        return device_id.rpartition("/")[2]  # It has just vanished: the engine will say so.

    def _spec(self, start: StartRunner, directory: Path) -> RunnerSpec:
        stage, instance = start.stage, start.instance
        return RunnerSpec(
            node_id=self._coordinator.node_id,
            instance_id=instance.instance_id,
            generation=instance.generation,
            rank=stage.rank,
            stage_count=len(instance.plan.stages),
            engine=instance.plan.engine,
            model_id=instance.model.model_id,
            model_dir=str(directory),
            start_layer=stage.start_layer,
            end_layer=stage.end_layer,
            device=self._alias_of(stage.device_ids[0]),
            context_length=instance.plan.context_length,
            concurrency=instance.plan.concurrency,
            data_host=self._data_host,
            advertised_host=self._advertised_host,
            data_ports=self._data_ports,
            secret=self._secret,
            trust=self._trust,
            stage_node_ids=tuple(one.node_id for one in instance.plan.stages),
            verbosity=self._verbosity,
        )

    async def _run_one(self, key: RunnerKey, running: _Running) -> None:
        with anyio.move_on_after(self._ending_patience_s) as waiting:
            for gone in list(self._stopping):
                # The memory of what ends is what this one was promised.
                await gone.wait()
        if waiting.cancelled_caught:
            logger.warning("a stage's process does not end; {} is started beside it", key.instance_id)
        if self._runners.get(key) is not running:
            return
        if not self._take_devices(key, running):
            return
        logger.info("starting stage {} of {} (generation {})", key.rank, key.instance_id, key.generation)
        self._propose_stage(key, "starting")

        def on_message(message: FromChild) -> None:
            # A stage that was told to stop, or has failed, has had its last word.
            if running.phase != "ended" and self._runners.get(key) is running:
                self._heard(key, running, message)

        if self._heat is not None:
            self._heat.begin(_name(key), running.stage.device_ids, running.runner.set_work)
        if self._paces is not None:
            self._paces.begin(_name(key), running.instance, running.stage)
        try:
            await running.runner.run(on_message)
        finally:
            self._note_busy(_name(key), False)
            if self._heat is not None:
                self._heat.end(_name(key))
            if self._paces is not None:
                self._paces.end(_name(key))
            if self._devices is not None:
                self._devices.release(_holder(key))
        on_message(RunnerFailed(reason="the stage's process ended without a word"))

    def _take_devices(self, key: RunnerKey, running: _Running) -> bool:
        """Have a stage hold its devices until its process is gone; return whether it may use them."""
        if self._devices is None:
            return True
        try:
            self._devices.take(_holder(key), running.stage)
        except GPUTakenError as error:
            running.phase = "ended"
            logger.warning("stage {} of {} is not started: {}", key.rank, key.instance_id, error.message)
            self._propose_stage(key, "failed", reason=error.message)
            return False
        return True

    def _heard(self, key: RunnerKey, running: _Running, message: FromChild) -> None:
        match message:
            case LoadProgressed():
                progress = StageProgress(
                    loaded_layers=message.loaded_layers,
                    total_layers=message.total_layers,
                    detail=message.detail,
                )
                self._coordinator.publish(
                    [
                        StageProgressed(
                            instance_id=key.instance_id,
                            generation=key.generation,
                            rank=key.rank,
                            progress=progress,
                        )
                    ]
                )
                if message.loaded_layers == 0:
                    self._propose_stage(key, "loading")
            case RunnerLoaded():
                running.phase = "loaded"
                if message.device_description:
                    logger.info("Using {} for {}", message.device_description, key.instance_id)
                self._propose_stage(key, "loaded", address=message.address)
            case RunnerReady():
                self._propose_stage(key, "ready")
            case RunnerFailed():
                running.phase = "ended"
                logger.warning("stage {} of {} failed: {}", key.rank, key.instance_id, message.reason)
                if self._devices is not None:
                    self._devices.stage_failed(running.stage, message)
                self._propose_stage(key, "failed", reason=message.reason, is_permanent=message.is_permanent)
            case Heartbeat():
                self._note_busy(_name(key), message.requests_active > 0)
                if self._heat is not None:
                    self._heat.note_work(_name(key), message.busy_s)
                if self._paces is not None:
                    self._paces.heard(_name(key), message, is_serving=running.phase == "linked")
                return
        self._changed.set()

    def _propose_stage(
        self,
        key: RunnerKey,
        phase: StagePhase,
        *,
        address: HostPort | None = None,
        reason: str | None = None,
        is_permanent: bool = False,
    ) -> None:
        event = StageChanged(
            instance_id=key.instance_id,
            generation=key.generation,
            rank=key.rank,
            phase=phase,
            address=address,
            reason=reason,
            is_permanent=is_permanent,
        )
        instance = self._coordinator.state.instances.get(key.instance_id)
        self._tell(event, cause=instance.created_by if instance is not None else key.instance_id)

    def _tell(self, event: Decision, *, cause: str) -> None:
        self._reports.append((cause, event))
        self._has_reports.set()

    async def _report(self) -> None:
        """Propose what happened, in order. Without a master it waits, and nothing is lost."""
        while True:
            await self._has_reports.wait()
            self._has_reports = anyio.Event()
            while self._reports:
                cause = self._reports[0][0]
                batch = [
                    event for _, event in takewhile(lambda one, cause=cause: one[0] == cause, self._reports)
                ]
                try:
                    await self._coordinator.propose(batch, cause_id=cause)
                except UnsendableError as error:
                    logger.error("a report is too large to be told, and is dropped: {}", error.message)
                    del self._reports[: len(batch)]
                except NoMasterError:
                    # Given up for now. Should it be committed after all, saying it again changes nothing.
                    await anyio.sleep(1)
                else:
                    del self._reports[: len(batch)]

    async def _watch_models(self) -> None:
        """Tell the cluster when model directories come, go or change."""
        while True:
            await anyio.sleep(MODELS_SCAN_INTERVAL_S)
            models = await anyio.to_thread.run_sync(self._store.scan)
            if models != self._models:
                self._models = models
                event = NodeModelsChanged(node_id=self._coordinator.node_id, models=models)
                self._tell(event, cause=self._boot_id)


def _name(key: RunnerKey) -> str:
    """Return what a stage is called where it stands beside others of this node."""
    return f"{key.instance_id}/{key.rank}"


def _holder(key: RunnerKey) -> str:
    """Return who holds a stage's devices: one that does not end must not be taken for the one that follows it."""
    return _name(key) if key.generation == 1 else f"{_name(key)} (generation {key.generation})"
