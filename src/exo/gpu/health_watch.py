"""The thin loop of device health: takes in what others observe, has devices checked when that is due, tells changes.

A device of which nobody hears anything costs one small product a minute; none of it while the device is at work.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup
from loguru import logger

from exo.gpu.backend import GPUBackend
from exo.gpu.condition import (
    Absence,
    ConditionPolicy,
    DeviceCondition,
    came_back,
    check_due_s,
    left,
    observe,
)
from exo.gpu.device_check import check_device
from exo.gpu.failures import Failure, of_exception
from exo.gpu.health import Evidence, FailureSeen, ReadingTaken
from exo.gpu.reading import DeviceReading
from exo.shared.types.devices import GPUDevice, Health
from exo.shared.types.ids import DeviceId

REMEMBERED_MAX = 1024
"""Of devices that are gone, the last so many are known when they come back."""


class HealthChange(NamedTuple):
    """A device is otherwise than before."""

    device: GPUDevice
    health: Health
    reason: str | None


class _Watched:
    def __init__(self, backend: GPUBackend, device: GPUDevice, condition: DeviceCondition) -> None:
        self.backend = backend
        self.device = device
        self.arrived = condition
        self.condition = condition
        self.told: tuple[Health, str | None] = ("healthy", None)
        self.stirred = anyio.Event()
        self.scope = anyio.CancelScope()


class HealthWatch:
    """Keeps the condition of a node's devices. Used from one event loop.

    Args:
        policy: How strict to be.
        is_busy: Says of a device whether it is at work: then it is not checked just because it is time.
        on_change: Called when a device's health or its reason is another than before.
        clock: Monotonic seconds, as the event loop sleeps.
        source: Of what the devices have to compute.
    """

    def __init__(
        self,
        *,
        policy: ConditionPolicy | None = None,
        is_busy: Callable[[DeviceId], bool] = lambda device_id: False,
        on_change: Callable[[HealthChange], None] = lambda change: None,
        clock: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
    ) -> None:
        self._policy = policy or ConditionPolicy()
        self._is_busy = is_busy
        self._on_change = on_change
        self._clock = clock
        self._source = source or random.Random()
        self._watched: dict[DeviceId, _Watched] = {}
        self._gone: dict[DeviceId, Absence] = {}
        """Devices that are gone, the latest last: going away is no way to be trusted again."""
        self._tasks: TaskGroup | None = None

    # --- what others observe --------------------------------------------------------------------------------------

    def observe_reading(self, device_id: DeviceId, reading: DeviceReading) -> None:
        """Take in that a device was read."""
        watched = self._watched.get(device_id)
        if watched is not None:
            self._take(watched, ReadingTaken(reading, is_a_check=not watched.backend.computes))

    def observe_error(self, device_id: DeviceId, error: BaseException) -> Failure:
        """Take in that a call to a device failed, and return what that was taken for."""
        failure = of_exception(error)
        self.observe_failure(device_id, failure)
        return failure

    def observe_failure(self, device_id: DeviceId, failure: Failure) -> None:
        """Take in a failure, as of an engine's process that used the device; see `failures.of_exit`."""
        watched = self._watched.get(device_id)
        if watched is None:
            return
        address = (watched.device.pci_address or "").lower()
        if failure.pci_address is not None and address and not _is_same(address, failure.pci_address):
            return  # The driver says which device it was, and it was another.
        self._take(watched, FailureSeen(failure))

    def condition(self, device_id: DeviceId) -> DeviceCondition:
        """Return what is kept of a device; of one that is not known, what is kept of a new one."""
        watched = self._watched.get(device_id)
        return watched.condition if watched is not None else DeviceCondition()

    def health(self, device_id: DeviceId) -> tuple[Health, str | None]:
        """Return a device's health with the reason why it is not better."""
        condition = self.condition(device_id)
        return condition.health, condition.reason(self._policy)

    # --- the loop -------------------------------------------------------------------------------------------------

    def set_devices(self, devices: Sequence[tuple[GPUBackend, GPUDevice]]) -> None:
        """Watch these devices from now on. What is known of those that were there before is kept.

        A device that was there, went and is back is not trusted at once, and the less the more often it does so.
        """
        now_s = self._clock()
        wanted = {device.device_id: (backend, device) for backend, device in devices}
        for device_id in sorted(self._watched.keys() - wanted.keys()):
            gone = self._watched.pop(device_id)
            gone.scope.cancel()
            self._gone[device_id] = left(gone.condition, gone.arrived, now_s)
        while len(self._gone) > REMEMBERED_MAX:
            del self._gone[next(iter(self._gone))]
        for device_id, (backend, device) in wanted.items():
            before = self._watched.get(device_id)
            if before is not None:
                before.backend, before.device = backend, device
                continue
            absence = self._gone.pop(device_id, None)
            known = DeviceCondition() if absence is None else came_back(absence, now_s, self._policy)
            self._watched[device_id] = watched = _Watched(backend, device, known)
            self._tell(watched)
            if self._tasks is not None:
                self._tasks.start_soon(self._watch, watched)

    async def run(self) -> None:
        """Check devices when that is due, until cancelled. Each on its own: one that hangs holds up no other.

        Raises:
            RuntimeError: It runs already.
        """
        if self._tasks is not None:
            raise RuntimeError("the devices' health is being watched already")
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                for watched in self._watched.values():
                    tasks.start_soon(self._watch, watched)
                await anyio.sleep_forever()
            finally:
                self._tasks = None

    async def _watch(self, watched: _Watched) -> None:
        with watched.scope:
            while watched.backend.computes:
                await self._until_due(watched)
                evidence = await check_device(watched.backend, watched.device.device_id, source=self._source)
                if evidence is None:
                    return  # It cannot be computed with after all: its readings have to do.
                self._take(watched, evidence)

    async def _until_due(self, watched: _Watched) -> None:
        while True:
            watched.stirred = anyio.Event()
            now_s = self._clock()
            due_s = check_due_s(watched.condition, self._policy)
            is_routine = watched.condition.health == "healthy" and not watched.condition.record.is_suspected
            if due_s <= now_s:
                if not (is_routine and self._is_busy(watched.device.device_id)):
                    return
                due_s = now_s + self._policy.recheck_interval_s
            with anyio.move_on_after(due_s - now_s):
                await watched.stirred.wait()

    def _take(self, watched: _Watched, evidence: Evidence) -> None:
        condition = observe(watched.condition, evidence, self._clock(), self._policy)
        if condition is watched.condition:
            return  # Nothing is new, and nobody is woken for it.
        watched.condition = condition
        watched.stirred.set()
        self._tell(watched)

    def _tell(self, watched: _Watched) -> None:
        """Log and pass on how a device is, where that is another thing than was told last."""
        told = watched.condition.health, watched.condition.reason(self._policy)
        if told == watched.told:
            return
        before, watched.told = watched.told, told
        health, reason = told
        alias = watched.device.local_alias
        if health == "healthy":
            logger.info("{} is healthy again", alias)
        elif health != before[0]:
            logger.warning("{} is {}: {}", alias, health, reason)
        self._on_change(HealthChange(watched.device, health, reason))


def _is_same(address: str, named: str) -> bool:
    """Compare PCI addresses as drivers write them: with or without leading zeroes of the domain, and the function."""
    return _bus_and_device(address) == _bus_and_device(named)


def _bus_and_device(address: str) -> tuple[int, ...] | str:
    parts = address.partition(".")[0].split(":")
    try:
        return tuple(int(part, 16) for part in parts)
    except ValueError:
        return address
