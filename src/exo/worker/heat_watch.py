"""Keeps a thermal record of each device of this node, and has stages work as much as their devices' heat allows."""

from collections.abc import Callable, Collection, Sequence
from math import floor

import msgspec
from loguru import logger

from exo.gpu.reading import DeviceReading
from exo.gpu.thermal.advice import ThermalAdvice
from exo.gpu.thermal.advising import advise, status_of
from exo.gpu.thermal.device_class import PRIORS, DeviceClass, class_of
from exo.gpu.thermal.observing import observe
from exo.gpu.thermal.record import ThermalRecord, new_record
from exo.gpu.thermal.settings import ThermalSettings
from exo.shared.types.devices import GPUDevice, ThermalStatus
from exo.shared.types.ids import DeviceId

LOOK_AGAIN_S = 1.0
"""A device that was read this lately needs no other look."""
SAME_MOMENT_S = 0.1
"""After a look: what it gave is what is told."""
OVER_AFTER_S = 60.0
"""Of full work: from here on being slowed down counts as over. A device at its limit comes and goes."""

IDLE_SHARE = 0.02
"""Of the time: a stage that works less leaves a device to the others."""
WORK_STEP = 0.01

SetWork = Callable[[float], None]


class _Device:
    """What is kept of one device."""

    def __init__(self, device: GPUDevice, record: ThermalRecord) -> None:
        self.device = device
        self.record = record
        self.work_fraction = 1.0
        self.looked_s = float("-inf")
        self.advice: ThermalAdvice | None = None
        """Of that look."""
        self.held_back_s: float | None = None
        """When it was last held back; None: that is over."""
        self.is_pause_told = False


class _Stage:
    """A stage that runs, and what its process says of its work."""

    def __init__(self, device_ids: Sequence[DeviceId], set_work: SetWork) -> None:
        self.device_ids = tuple(device_ids)
        self.set_work = set_work
        self.told = 1.0
        self.first: tuple[float, float] | None = None
        """(when, seconds of work until then): the report that the device's last reading counted from."""
        self.last: tuple[float, float] | None = None
        self.share = 0.0


class HeatWatch:
    """Used from one event loop: the collector brings readings, the worker its stages, the API's state takes words.

    Args:
        settings: Whether, and how close to the limits.
        clock: Monotonic seconds.
    """

    def __init__(self, settings: ThermalSettings, *, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._devices: dict[DeviceId, _Device] = {}
        self._stages: dict[str, _Stage] = {}
        self._battery: tuple[float | None, bool | None] = (None, None)
        """(charge in percent, plugged in), as the host's processor tells it for all of its devices."""

    # For the collector.

    def observe_reading(self, device: GPUDevice, reading: DeviceReading) -> None:
        """Take in what a device said, and have its stages follow."""
        if not self._settings.is_enabled:
            return
        reading = self._completed(device, reading)
        kept = self._devices.get(device.device_id)
        if kept is None:
            prior = PRIORS[device_class(device, reading)]
            record = new_record(prior, self._settings.policy, self._settings.battery)
            kept = self._devices[device.device_id] = _Device(device, record)
        now_s = self._clock()
        kept.record = observe(kept.record, now_s, reading, self._worked_share(device.device_id))
        self._look(kept, now_s)

    def look(self) -> None:
        """Have devices that were not read lately work less: nobody knows how hot they are."""
        now_s = self._clock()
        for kept in self._devices.values():
            if now_s - kept.looked_s >= LOOK_AGAIN_S:
                self._look(kept, now_s)

    def status(self, device_id: DeviceId) -> ThermalStatus | None:
        """Return how a device's heat is governed; None where it is not."""
        kept = self._devices.get(device_id)
        if kept is None:
            return None
        now_s = self._clock()
        return status_of(kept.record, now_s, kept.advice if now_s - kept.looked_s < SAME_MOMENT_S else None)

    def forget_all_but(self, there: Collection[DeviceId]) -> None:
        """Forget devices that are gone; their stages end for other reasons."""
        for device_id in [one for one in self._devices if one not in there]:
            del self._devices[device_id]

    # For the worker.

    def begin(self, name: str, device_ids: Sequence[DeviceId], set_work: SetWork) -> None:
        """Take in that a stage starts.

        Args:
            name: The stage.
            device_ids: What it computes on.
            set_work: Takes how much of the time it is to work, 0 to 1, whenever that changes; 1 until then.
        """
        stage = self._stages[name] = _Stage(device_ids, set_work)
        self._tell(stage)

    def note_work(self, name: str, busy_s: float) -> None:
        """Take in how long a stage has been computing since it began."""
        stage = self._stages.get(name)
        if stage is not None:
            stage.last = self._clock(), busy_s
            stage.first = stage.first or stage.last

    def end(self, name: str) -> None:
        """Take in that a stage is gone; one that never began is no error."""
        self._stages.pop(name, None)

    # Within.

    def _completed(self, device: GPUDevice, reading: DeviceReading) -> DeviceReading:
        if device.backend == "cpu":
            self._battery = reading.battery_percent, reading.is_plugged_in
            if reading.throttle_threshold_c is None:
                # Processors of today are made to run at their limit: one that is not known is not guessed.
                reading = msgspec.structs.replace(reading, temperature_c=None)
        elif reading.battery_percent is None and reading.is_plugged_in is None and not device.is_simulated:
            percent, is_plugged_in = self._battery
            reading = msgspec.structs.replace(reading, battery_percent=percent, is_plugged_in=is_plugged_in)
        return reading

    def _on(self, device_id: DeviceId) -> list[_Stage]:
        return [one for one in self._stages.values() if device_id in one.device_ids]

    def _worked_share(self, device_id: DeviceId) -> float | None:
        """Return the share of the time since the last reading that stages worked; None where none runs there."""
        stages = self._on(device_id)
        for stage in stages:
            if stage.first is not None and stage.last is not None and stage.last[0] > stage.first[0]:
                elapsed_s = stage.last[0] - stage.first[0]
                stage.share = min(1.0, max(0.0, (stage.last[1] - stage.first[1]) / elapsed_s))
                stage.first = stage.last
        return min(1.0, sum(stage.share for stage in stages)) if stages else None

    def _look(self, kept: _Device, now_s: float) -> None:
        kept.looked_s = now_s
        kept.record, advice = advise(kept.record, now_s)
        kept.advice = advice
        _announce(kept, advice, now_s)
        kept.work_fraction = advice.work_fraction
        for stage in self._on(kept.device.device_id):
            self._tell(stage)

    def _tell(self, stage: _Stage) -> None:
        fractions = [self._allotted(stage, device_id) for device_id in stage.device_ids]
        fraction = min(fractions, default=1.0)
        if fraction != stage.told:
            stage.told = fraction
            stage.set_work(fraction)

    def _allotted(self, stage: _Stage, device_id: DeviceId) -> float:
        """Return how much a stage may work on a device that others may use as well."""
        kept = self._devices.get(device_id)
        if kept is None or kept.work_fraction >= 1:
            return 1.0
        others = [one.share for one in self._on(device_id) if one is not stage and one.share > IDLE_SHARE]
        return allotted(kept.work_fraction, others)


def allotted(fraction: float, others: Sequence[float]) -> float:
    """Return one stage's part of a device's work: what others leave of it, at least as much as each. Pure.

    Args:
        fraction: How much the device may work.
        others: How much each of the other stages on it has worked lately.
    """
    if fraction <= 0:
        return 0.0
    part = max(fraction / (1 + len(others)), fraction - sum(others))
    return max(WORK_STEP, floor(part / WORK_STEP + 1e-9) * WORK_STEP)


def device_class(device: GPUDevice, reading: DeviceReading) -> DeviceClass:
    """Guess what kind of device it is; only where to begin follows from it. Pure."""
    return class_of(
        full_watts=reading.power_limit_watts,
        has_battery=reading.battery_percent is not None,
        # NVIDIA's parts without memory of their own are modules of a board, such as Jetson.
        is_embedded=device.backend == "tflite"
        or (device.backend == "cuda" and device.memory_kind == "unified"),
    )


def _announce(kept: _Device, advice: ThermalAdvice, now_s: float) -> None:
    """Say once that work is held back, once that it is paused, and once that all of it is over."""
    name = f"{kept.device.name} ({kept.device.local_alias})"
    if advice.state in ("slowed", "paused"):
        if kept.held_back_s is None:
            logger.warning("{} is held back. {}", name, advice.reason)
            kept.is_pause_told = advice.is_paused
        elif advice.is_paused and not kept.is_pause_told:
            logger.warning("{}: {}", name, advice.reason)
            kept.is_pause_told = True
        kept.held_back_s = now_s
    elif kept.held_back_s is not None and now_s - kept.held_back_s >= OVER_AFTER_S:
        logger.info("{} is not held back any more. {}", name, advice.reason)
        kept.held_back_s = None
        kept.is_pause_told = False
