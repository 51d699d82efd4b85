"""Finds the devices of all backends that work, at once and in time; what is late is taken in when it comes."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

import anyio
import anyio.to_thread
from loguru import logger
from msgspec.structs import replace

from exo.gpu.backend import GPUBackend
from exo.gpu.errors import BackendUnavailableError, DeviceHangError
from exo.gpu.factory import DriverMaker, GPUBackendFactory
from exo.gpu.inventory import (
    Inventory,
    MissingBackend,
    RefusedDevice,
    UsedDevice,
    settle_claims,
    signature,
)
from exo.gpu.numbering import assigned
from exo.gpu.registry import DeviceRegistry, Measurement
from exo.gpu.verification import Verdict, verify
from exo.shared.errors import ExoError
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import DeviceId

FIRST_LOOK_S = 2.0
"""A node's start waits so long for its drivers, and about as long again at the worst for what they find."""
CHECKS_S = 0.8
LATER_LOOK_S = 5.0
REFUSED_AGAIN_S = 300.0
"""A device that computed wrongly is tried again after so long."""
_FAREWELL_S = 1.0


class _Tried:
    """A backend that is tried, and what became of it."""

    def __init__(self, maker: DriverMaker) -> None:
        self.maker = maker
        self.backend: GPUBackend | None = None
        self.is_working = False
        self.missing: MissingBackend | None = None
        self.is_told_missing = False
        self.is_told_late = False
        self.devices: Sequence[GPUDevice] = ()
        self.attempt: asyncio.Task[None] | None = None


class GPUDiscoveryService:
    """The devices of this node. Used from one event loop, as an asynchronous context: it looks when it is entered.

    Args:
        factory: Makes the backends.
        registry: Remembers what was verified; None: everything is verified at every start.
        first_look_s: How long the first look waits for drivers.
        checks_s: How long it waits for devices to show that they compute right.
        clock: Monotonic seconds.
        source: Of what they have to compute.
    """

    def __init__(
        self,
        factory: GPUBackendFactory,
        *,
        registry: DeviceRegistry | None = None,
        first_look_s: float = FIRST_LOOK_S,
        checks_s: float = CHECKS_S,
        clock: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
    ) -> None:
        self._factory = factory
        self._registry = registry
        self._first_look_s = first_look_s
        self._checks_s = checks_s
        self._clock = clock
        self._source = source or random.Random()
        self._tried = [_Tried(maker) for maker in factory.makers]
        self._verdicts: dict[DeviceId, tuple[GPUDevice, Verdict, float]] = {}
        self._checks: dict[DeviceId, asyncio.Task[None]] = {}
        self._measured: dict[DeviceId, tuple[GPUDevice, Measurement]] = {}
        self._numbers: dict[DeviceId, int] = {}
        """Of GPUs, also of those that are away or were refused: they may come."""
        self._looking = anyio.Lock()
        self.inventory = Inventory()
        """What was found at the last look."""

    async def __aenter__(self) -> Self:
        await self.discover()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def discover(self) -> Inventory:
        """Look for the first time; returns within 3 s, whatever the drivers do."""
        return await self._look(self._first_look_s, self._checks_s, self._registry)

    async def look_again(self) -> Inventory:
        """Look for devices that came or went, and for backends that were late."""
        return await self._look(LATER_LOOK_S, LATER_LOOK_S)

    async def note_measured(self, device_id: DeviceId, measurement: Measurement) -> None:
        """Tell with a device, from the next look on, what was measured on it; remember it for the next start."""
        verdict = self._verdicts.get(device_id)
        if verdict is None:
            return  # It is gone.
        device = verdict[0]
        self._measured[device_id] = (device, measurement)
        if self._registry is not None:
            async with self._looking:
                await anyio.to_thread.run_sync(self._registry.note_measured, device, measurement)

    async def shutdown(self) -> None:
        """Release every backend. May be called twice."""
        attempts = [one.attempt for one in self._tried if one.attempt is not None]
        unfinished = [one for one in (*attempts, *self._checks.values()) if not one.done()]
        for task in unfinished:
            task.cancel()
        with anyio.CancelScope(shield=True):
            if unfinished:
                await asyncio.wait(unfinished, timeout=_FAREWELL_S)
            async with anyio.create_task_group() as tasks:
                for tried in self._tried:
                    if tried.backend is not None:
                        tasks.start_soon(tried.backend.shutdown)
        self.inventory = Inventory()

    async def _look(
        self, drivers_s: float, checks_s: float, memory: DeviceRegistry | None = None
    ) -> Inventory:
        async with self._looking:
            # What does not end in time goes on, and counts at a later look: nothing that was begun is lost.
            for tried in self._tried:
                if tried.attempt is None or tried.attempt.done():
                    tried.attempt = asyncio.create_task(self._try(tried))
            await _ended((one.attempt for one in self._tried), drivers_s)
            for tried in self._tried:
                if tried.missing is None and not tried.is_working:
                    reason = f"its driver did not answer within {drivers_s:g} s; it is used when it does"
                    tried.missing = MissingBackend(name=tried.maker.name, reason=reason, is_late=True)
                _tell_missing(tried)
            claims = [(one.backend, one.devices) for one in self._tried if one.backend is not None]
            candidates, claimed = settle_claims(claims)
            there = {one.device.device_id for one in candidates}
            # One that comes back has to show again that it computes right.
            self._verdicts = {key: value for key, value in self._verdicts.items() if key in there}
            unsettled = [one for one in candidates if self._is_unsettled(one.device)]
            if memory is not None:
                unsettled = await anyio.to_thread.run_sync(self._recall, memory, unsettled)
            for one in unsettled:
                if one.device.device_id not in self._checks:
                    self._checks[one.device.device_id] = asyncio.create_task(self._check(one))
            await _ended(self._checks.values(), checks_s)
            self.inventory = self._judged(candidates, claimed)
            if self._registry is not None:
                right = [one for one, verdict, _ in self._verdicts.values() if verdict.outcome == "right"]
                await anyio.to_thread.run_sync(self._registry.remember, right)
            return self.inventory

    async def _try(self, tried: _Tried) -> None:
        """Start a backend that was not started, or look again at the devices of one that was."""
        if tried.missing is not None and not tried.missing.is_late:
            return
        try:
            if tried.backend is None:
                # Its module is imported, and what that imports takes a while on a cold disk.
                tried.backend = await anyio.to_thread.run_sync(self._factory.make, tried.maker)
            if not tried.is_working:
                await tried.backend.initialize()
                tried.is_working, tried.missing = True, None
                tried.devices = await tried.backend.list_devices()
            else:
                tried.devices = await tried.backend.refresh_devices()
        except Exception as error:
            if tried.is_working:
                # Its devices are read all the same, and say for themselves that they do not answer.
                logger.debug("{} could not be looked at again: {}", tried.maker.name, error)
                return
            tried.missing = _missing(tried.maker, error)

    def _recall(self, memory: DeviceRegistry, devices: Sequence[UsedDevice]) -> list[UsedDevice]:
        """Take over what an earlier start saw, and return the devices that it did not see."""
        known = [one for one in devices if memory.knows(one.device)]
        for one in devices:
            measurement = memory.measured(one.device)
            if measurement is not None:
                self._measured[one.device.device_id] = (one.device, measurement)
        for one in known:
            self._verdicts[one.device.device_id] = (one.device, Verdict("right"), self._clock())
        return [one for one in devices if one not in known]

    async def _check(self, one: UsedDevice) -> None:
        try:
            verdict = await verify(one.backend, one.device.device_id, source=self._source)
            self._verdicts[one.device.device_id] = (one.device, verdict, self._clock())
        finally:
            self._checks.pop(one.device.device_id, None)

    def _is_unsettled(self, device: GPUDevice) -> bool:
        before = self._verdicts.get(device.device_id)
        if before is None or signature(before[0]) != signature(device):
            return True
        return before[1].outcome == "wrong" and self._clock() - before[2] >= REFUSED_AGAIN_S

    def _judged(self, candidates: Sequence[UsedDevice], claimed: Sequence[RefusedDevice]) -> Inventory:
        self._numbers = assigned([one.device for one in candidates], self._numbers)
        used: list[UsedDevice] = []
        refused = list(claimed)
        for one in candidates:
            _, verdict, _ = self._verdicts.get(one.device.device_id, (None, None, 0.0))
            if verdict is None and one.backend.name != "cpu":
                reason = "its check has not ended yet; it is used when it has"
                refused.append(RefusedDevice(one.device, "unchecked", reason))
            elif verdict is not None and verdict.outcome == "wrong":
                kind = "hanging" if verdict.is_hang else "wrong"
                refused.append(RefusedDevice(one.device, kind, f"its check failed: {verdict.reason}"))
            else:
                numbered = replace(one.device, number=self._numbers.get(one.device.device_id))
                used.append(UsedDevice(one.backend, self._with_measurement(numbered)))
        for one in refused:
            if self.inventory.why_not(one.device.device_id) != one.reason:
                level = "DEBUG" if one.kind == "duplicate" else "WARNING"
                logger.log(
                    level, "{} ({}) is not used: {}", one.device.local_alias, one.device.name, one.reason
                )
        return Inventory(
            used=tuple(sorted(used, key=lambda one: one.device.device_id)),
            refused=tuple(refused),
            missing=tuple(one.missing for one in self._tried if one.missing is not None),
        )

    def _with_measurement(self, device: GPUDevice) -> GPUDevice:
        measured = self._measured.get(device.device_id)
        if measured is None or signature(measured[0]) != signature(device):
            return device
        return replace(
            device,
            measured_memory_bandwidth_bytes_per_s=measured[1].memory_bandwidth_bytes_per_s,
            measured_flops_per_s=measured[1].flops_per_s,
        )


async def _ended(tasks: Iterable["asyncio.Task[None] | None"], timeout_s: float) -> None:
    unfinished = [one for one in tasks if one is not None and not one.done()]
    if unfinished:
        await asyncio.wait(unfinished, timeout=timeout_s)


def _missing(maker: DriverMaker, error: Exception) -> MissingBackend:
    command = error.install_command if isinstance(error, BackendUnavailableError) else ""
    is_absent = isinstance(error, BackendUnavailableError) and error.is_absent
    is_late = isinstance(error.__cause__, DeviceHangError)
    if isinstance(error, ExoError):
        reason = error.message
    else:
        reason = f"{maker.name} cannot be used: {str(error).strip() or type(error).__name__}"
    return MissingBackend(
        name=maker.name, reason=reason, install_command=command, is_late=is_late, is_absent=is_absent
    )


def _tell_missing(tried: _Tried) -> None:
    """Log why a backend is not used: once, and once more where it was late before."""
    missing = tried.missing
    if missing is None or tried.is_told_missing or (missing.is_late and tried.is_told_late):
        return
    tried.is_told_late = missing.is_late
    tried.is_told_missing = not missing.is_late
    hint = f"; install it with: {missing.install_command}" if missing.install_command else ""
    level = "DEBUG" if missing.is_absent and not tried.maker.is_chosen else "WARNING"
    logger.log(level, "{} is not used: {}{}", missing.name, missing.reason, hint)
