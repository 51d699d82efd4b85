"""Takes in what stages report of their decoding steps, and tells the cluster how fast this node's devices work."""

from collections.abc import Callable, Sequence
from statistics import median

from loguru import logger
from msgspec.structs import replace

from exo.shared.device_figures import figures_for
from exo.shared.step_reads import step_reads
from exo.shared.types.devices import DeviceGPUState, GPUDevice
from exo.shared.types.events import DevicePaceMeasured, InstancePaceMeasured, Telemetry
from exo.shared.types.ids import DeviceId
from exo.shared.types.instances import Instance, StagePlan
from exo.shared.types.pace import DevicePace, InstancePace
from exo.worker.pace.fit import Prior
from exo.worker.pace.record import PaceRecord, hardware_of, noted, noted_hops, pace_of
from exo.worker.pace.store import PaceStore, PaceSubject, StoredPace
from exo.worker.runner.messages import Heartbeat

ASSUMED_SHARE = 0.7
"""Of a bandwidth that nobody measured, what reading weights is assumed to reach."""
TELL_INTERVAL_S = 5.0
"""Between two reports of one device: nothing of it is urgent."""
WRITE_INTERVAL_S = 60.0
IDLE_S = 5.0
"""After so long without requests of ours, what is used of a device is used by others."""
SUBJECTS_MAX = 64
"""Records that are kept; of more the oldest go."""
_ROUNDS_MAX = 8
_CHANGE_MIN = 0.01
"""Smaller relative changes are not told."""

Publish = Callable[[Sequence[Telemetry]], None]


class _Stage:
    def __init__(self, instance: Instance, plan: StagePlan, subject: PaceSubject) -> None:
        self.instance = instance
        self.plan = plan
        self.subject = subject
        self.rounds: list[tuple[float, int]] = []
        """(seconds, tokens) of the last windows, on the first stage."""
        self.told_rounds_s: float | None = None


class PaceWatch:
    """Used from one event loop: the worker brings its stages and their heartbeats.

    Args:
        devices: Gives the devices as they are now.
        reading: Gives a device's last reading; None where there is none.
        publish: Takes the events.
        store: Keeps the records over a restart; None: nobody does.
        exo_version: Another release's engines may be faster or slower.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        devices: Callable[[], Sequence[GPUDevice]],
        reading: Callable[[DeviceId], DeviceGPUState | None],
        publish: Publish,
        store: PaceStore | None,
        exo_version: str,
        clock: Callable[[], float],
    ) -> None:
        self._devices = devices
        self._reading = reading
        self._publish = publish
        self._store = store
        self._exo_version = exo_version
        self._clock = clock
        self._stages: dict[str, _Stage] = {}
        self._kept: dict[PaceSubject, StoredPace] = {} if store is None else store.read()
        self._told: dict[PaceSubject, tuple[DevicePace, float]] = {}
        self._fresh: set[PaceSubject] = set()
        """Those with windows that were not told yet."""
        self._busy_s: dict[DeviceId, float] = {}
        """When a stage of this node last had work on a device."""
        self._load_percent: dict[DeviceId, float] = {}
        """What others used of it when none had."""
        self._is_written = True
        self._written_s = clock()

    def tell_known(self) -> None:
        """Tell what the file kept of the devices that are still there, as they were."""
        events: list[Telemetry] = []
        for subject, kept in list(self._kept.items()):
            device = self._device(subject.device_id)
            if device is not None and self._is_of(kept, device):
                events += self._pace_events(subject, kept.record, device)
        if events:
            self._publish(events)

    def begin(self, name: str, instance: Instance, plan: StagePlan) -> None:
        """Take in that a stage starts.

        Args:
            name: The stage.
            instance: Whose it is.
            plan: Its part of the plan.
        """
        if len(plan.device_ids) != 1:
            return  # What a group of devices does together says nothing of one of them.
        subject = PaceSubject(plan.device_ids[0], instance.plan.engine, instance.model.dtype)
        self._stages[name] = _Stage(instance, plan, subject)
        self._note_load(subject.device_id, is_busy=False)

    def heard(self, name: str, heartbeat: Heartbeat, *, is_serving: bool = True) -> None:
        """Take in what a stage's process says of its last second.

        Args:
            name: The stage.
            heartbeat: What it says.
            is_serving: Whether it is done with loading, which is work as well.
        """
        stage = self._stages.get(name)
        if stage is None:
            return
        now_s = self._clock()
        device = self._device(stage.subject.device_id)
        if device is None:
            return
        self._note_load(device.device_id, is_busy=heartbeat.requests_active > 0 or not is_serving)
        if heartbeat.steps is not None and not self._is_throttling(stage.subject.device_id):
            position = round(heartbeat.steps.position)
            reads = step_reads(stage.instance.model, stage.plan.start_layer, stage.plan.end_layer, position)
            record = noted(self._record(stage.subject, device), reads, heartbeat.steps)
            if stage.plan.rank == 0:
                ring = tuple(one.device_ids[0] for one in stage.instance.plan.stages)
                record = noted_hops(record, ring, heartbeat.steps)
                if heartbeat.steps.round_s is not None:
                    rounds = (*stage.rounds, (heartbeat.steps.round_s, heartbeat.steps.round_count))
                    stage.rounds = list(rounds[-_ROUNDS_MAX:])
            record = replace(
                record,
                used_by_others_percent=self._load_percent.get(
                    device.device_id, record.used_by_others_percent
                ),
            )
            self._keep(stage.subject, device, record)
            self._fresh.add(stage.subject)
        self._tell_if_due(stage, device, now_s)
        if not self._is_written and now_s - self._written_s >= WRITE_INTERVAL_S:
            self._write(now_s)

    def end(self, name: str) -> None:
        """Take in that a stage is gone; one that never began is no error."""
        stage = self._stages.pop(name, None)
        if stage is None:
            return
        device = self._device(stage.subject.device_id)
        if device is not None and stage.subject in self._fresh:
            self._tell(stage, device, self._clock())
        if not self._is_written:
            self._write(self._clock())

    # Within.

    def _device(self, device_id: DeviceId) -> GPUDevice | None:
        """Return a device that really computes."""
        return next(
            (one for one in self._devices() if one.device_id == device_id and not one.is_simulated), None
        )

    def _is_of(self, kept: StoredPace, device: GPUDevice) -> bool:
        return kept.hardware == hardware_of(device) and kept.exo_version == self._exo_version

    def _record(self, subject: PaceSubject, device: GPUDevice) -> PaceRecord:
        kept = self._kept.get(subject)
        return kept.record if kept is not None and self._is_of(kept, device) else PaceRecord()

    def _keep(self, subject: PaceSubject, device: GPUDevice, record: PaceRecord) -> None:
        # The one that was used last stands last.
        self._kept.pop(subject, None)
        self._kept[subject] = StoredPace(
            subject=subject, hardware=hardware_of(device), exo_version=self._exo_version, record=record
        )
        for oldest in list(self._kept)[:-SUBJECTS_MAX]:
            del self._kept[oldest]
        self._is_written = False

    def _is_throttling(self, device_id: DeviceId) -> bool:
        reading = self._reading(device_id)
        return reading is not None and reading.is_thermal_throttling is True

    def _note_load(self, device_id: DeviceId, *, is_busy: bool) -> None:
        """Learn what others use of a device, while none of this node's stages has had work on it for a while."""
        now_s = self._clock()
        if is_busy:
            self._busy_s[device_id] = now_s
        elif now_s - self._busy_s.get(device_id, -IDLE_S) >= IDLE_S:
            reading = self._reading(device_id)
            if reading is not None and reading.compute_utilization_percent is not None:
                self._load_percent[device_id] = reading.compute_utilization_percent

    def _tell_if_due(self, stage: _Stage, device: GPUDevice, now_s: float) -> None:
        if stage.subject not in self._fresh:
            return
        told = self._told.get(stage.subject)
        if told is None or now_s - told[1] >= TELL_INTERVAL_S:
            self._tell(stage, device, now_s)

    def _tell(self, stage: _Stage, device: GPUDevice, now_s: float) -> None:
        self._fresh.discard(stage.subject)
        events = self._pace_events(stage.subject, self._record(stage.subject, device), device)
        if stage.plan.rank == 0 and stage.rounds:
            seconds = median(one for one, _ in stage.rounds)
            if stage.told_rounds_s is None or _differs(seconds, stage.told_rounds_s):
                stage.told_rounds_s = seconds
                pace = InstancePace(
                    instance_id=stage.instance.instance_id,
                    generation=stage.instance.generation,
                    ms_per_token=seconds * 1000,
                    measurement_count=sum(count for _, count in stage.rounds),
                )
                events.append(InstancePaceMeasured(pace=pace))
        if events:
            self._publish(events)

    def _pace_events(self, subject: PaceSubject, record: PaceRecord, device: GPUDevice) -> list[Telemetry]:
        pace = pace_of(
            record,
            prior_of(device),
            device_id=subject.device_id,
            engine=subject.engine,
            dtype=subject.dtype,
        )
        if pace is None:
            return []
        self._told[subject] = pace, self._clock()
        logger.debug(
            "{} with {} weights: {:.3g} GB/s, {:.3g} ms a step and {:.3g} ms a layer besides; off by {:.1f} %",
            device.local_alias,
            subject.dtype,
            pace.bandwidth_bytes_per_s / 1e9,
            pace.step_overhead_s * 1e3,
            pace.layer_overhead_s * 1e3,
            pace.error_percent,
        )
        return [DevicePaceMeasured(pace=pace)]

    def _write(self, now_s: float) -> None:
        self._is_written, self._written_s = True, now_s
        if self._store is not None:
            self._store.write(self._kept)


def prior_of(device: GPUDevice) -> Prior:
    """Return what is assumed of a device before anything is measured on it. Pure."""
    known = figures_for(device).memory_bandwidth_bytes_per_s
    share = 1.0 if known.basis == "measured" else ASSUMED_SHARE
    return Prior(bandwidth_bytes_per_s=max(1.0, known.value * share))


def _differs(one: float, other: float) -> bool:
    return abs(one - other) > _CHANGE_MIN * other
