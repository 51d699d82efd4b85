"""Reads the node's devices at an interval and turns what changed into telemetry events."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

import anyio
import msgspec
from loguru import logger

from exo.gpu.backend import BegunReading, GPUBackend
from exo.gpu.countdown import Countdown
from exo.gpu.driver_call import DriverCall
from exo.gpu.driver_thread import DriverThread
from exo.gpu.errors import DeviceHangError, DeviceLostError
from exo.gpu.inventory import UsedDevice
from exo.gpu.reading import DeviceReading
from exo.shared.errors import ExoError
from exo.shared.types.devices import (
    DeviceGPUState,
    DeviceRefusal,
    GPUDevice,
    Health,
    NodePerformanceProfile,
    ThermalStatus,
)
from exo.shared.types.events import DeviceGPUStateUpdated, NodeProfileUpdated, Telemetry
from exo.shared.types.ids import DeviceId, NodeId
from exo.worker.device_states import (
    HostReading,
    Thresholds,
    has_changed,
    node_profile,
    profile_changed,
    state_of,
)
from exo.worker.host_reader import HostReader

SOONEST_S = 0.1
"""Between two collections."""
HOST_TIMEOUT_S = 10.0
"""Until the system is said to hang that does not tell the host's memory."""

Publish = Callable[[Sequence[Telemetry]], None]


class GPUTelemetryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How often devices are read, and what of it is told."""

    is_enabled: bool = True
    interval_s: float = 2.0
    heartbeat_s: float = 10.0
    """A reading that did not change is told all the same this long after the last one."""
    patience_s: float = 0.07
    """A collection waits so long; what a slow device says then is told with the next one."""
    thresholds: Thresholds = Thresholds()

    @staticmethod
    def from_environment(interval_s: float) -> "GPUTelemetryConfig":
        """The defaults; `EXO_GPU_TELEMETRY=0` turns the readings of devices off, not those of the host."""
        told = os.environ.get("EXO_GPU_TELEMETRY", "").strip().lower()
        return GPUTelemetryConfig(is_enabled=told not in {"0", "false", "no", "off"}, interval_s=interval_s)


class HealthJudge(Protocol):
    """What the collector needs of those who judge devices (`gpu.health_watch.HealthWatch`)."""

    def observe_reading(self, device_id: DeviceId, reading: DeviceReading) -> None:
        """Take in that a device was read."""
        ...

    def observe_error(self, device_id: DeviceId, error: BaseException) -> object:
        """Take in that it could not be read."""
        ...

    def health(self, device_id: DeviceId) -> tuple[Health, str | None]:
        """Return its health with the reason why it is not better."""
        ...


class HeatJudge(Protocol):
    """What the collector needs of those who govern heat (`worker.heat_watch.HeatWatch`)."""

    def observe_reading(self, device: GPUDevice, reading: DeviceReading) -> None:
        """Take in what a device said."""
        ...

    def look(self) -> None:
        """Take in that time has passed."""
        ...

    def status(self, device_id: DeviceId) -> ThermalStatus | None:
        """Return how its heat is governed; None where it is not."""
        ...

    def forget_all_but(self, there: Collection[DeviceId]) -> None:
        """Take in which devices there are."""
        ...


class GPUTelemetryCollector:
    """Reads all devices at once. Each has a thread of its own, so that none holds up the others or the event loop.

    Args:
        node_id: This node.
        devices: Gives the devices as they are now.
        health: Judges them by what they say.
        heat: Governs their heat; None: nobody does.
        publish: Takes the events.
        config: How often, and what.
        clock: Monotonic seconds.
        now: ISO 8601 UTC time.
        refused: Gives the devices that are there and are not used.
        read_host: Reads the host; None: this one. May block; of one thread at a time.
        on_lost: Called when a device is lost: it is time to look which ones are there.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        devices: Callable[[], Sequence[UsedDevice]],
        health: HealthJudge,
        publish: Publish,
        config: GPUTelemetryConfig,
        clock: Callable[[], float],
        now: Callable[[], str],
        on_lost: Callable[[], None] = lambda: None,
        heat: HeatJudge | None = None,
        refused: Callable[[], tuple[DeviceRefusal, ...]] = lambda: (),
        read_host: Callable[[], HostReading] | None = None,
    ) -> None:
        self._node_id = node_id
        self._devices = devices
        self._health = health
        self._heat = heat
        self._refused = refused
        self._read_host = HostReader(clock).read if read_host is None else read_host
        self._publish = publish
        self._config = config
        self._clock = clock
        self._now = now
        self._on_lost = on_lost
        self._late: dict[DeviceId, asyncio.Task[None]] = {}
        """Devices that did not answer in time, each with who waits for it."""
        self._states: dict[DeviceId, DeviceGPUState] = {}
        self._fresh: set[DeviceId] = set()
        """Devices that were read since the last collection."""
        self._told: dict[DeviceId, tuple[DeviceGPUState, float]] = {}
        self._told_profile: tuple[NodePerformanceProfile, float] | None = None
        self._is_monitoring = False
        self._is_collecting = False
        self._is_wanted = anyio.Event()
        self._host_thread = DriverThread("host")
        self._host_call: DriverCall | None = None
        self._host: HostReading | None = None
        self._is_host_complaint_told = False

    async def collect_device_state(self, backend: GPUBackend, device: GPUDevice) -> DeviceGPUState:
        """Read one device now. One that does not answer has no values, and its health says why."""
        return self._judged(device, await _answer(backend.read_device(device.device_id)), self._now())

    async def collect(self) -> list[Telemetry]:
        """Read everything once; return events for what changed enough, or was not told for long."""
        used = self._devices() if self._config.is_enabled else ()
        await self._read_all(used)
        at_s = self._clock()
        events: list[Telemetry] = []
        for one in used:
            state = self._states.get(one.device.device_id)
            if state is not None and state.device_id in self._fresh and self._is_worth_telling(state, at_s):
                self._told[state.device_id] = state, at_s
                events.append(DeviceGPUStateUpdated(state=state))
        self._fresh.clear()
        self._forget_all_but({one.device.device_id for one in used})
        if self._heat is not None:
            self._heat.look()
        if self._host is not None:
            # What there is is known without having been read.
            known = [(one.device, self._states.get(one.device.device_id)) for one in self._devices()]
            events += self._profile_events(node_profile(known, self._host, self._refused()), at_s)
        return events

    async def _read_all(self, used: Sequence[UsedDevice]) -> None:
        """Read devices and host at once, and take in what comes in time; the rest is taken in when it comes."""
        until_s = anyio.current_time() + self._config.patience_s
        begun_at = self._now()
        """Nothing that is read now is older."""
        together = Countdown()
        under_way: dict[DeviceId, tuple[UsedDevice, BegunReading]] = {}
        try:
            for one in used:
                # Who did not answer in time before is not waited for again: the others are told the sooner.
                if one.device.device_id not in self._late:
                    try:
                        reading = one.backend.begin_reading(one.device.device_id, together)
                    except ExoError as error:
                        self._keep(self._judged(one.device, error, begun_at))
                    else:
                        under_way[one.device.device_id] = one, reading
            if self._host_call is None:
                self._host_call = self._begin_host(together)
            await together.wait(max(0.0, until_s - anyio.current_time()))
            for one, reading in [pair for pair in under_way.values() if pair[1].is_done]:
                del under_way[one.device.device_id]
                self._keep(self._judged(one.device, await _answer(reading.outcome()), begun_at))
        finally:
            for one, reading in under_way.values():
                self._late[one.device.device_id] = asyncio.create_task(self._wait_for(one, reading))
        # The first one is waited for: without it there is nothing to tell of the host.
        call = self._host_call
        if call is not None and (call.is_done or self._host is None):
            self._host_call = None
            try:
                self._host = await self._host_thread.outcome(call)
            except (OSError, ExoError) as error:
                if not self._is_host_complaint_told:
                    self._is_host_complaint_told = True
                    logger.warning(
                        "could not read this host's telemetry, what was read last stands: {}", error
                    )

    def _begin_host(self, together: Countdown) -> DriverCall | None:
        try:
            return self._host_thread.begin(
                self._read_host, doing="reading its memory", timeout_s=HOST_TIMEOUT_S, together=together
            )
        except DeviceHangError:
            return None

    async def start_monitoring(self) -> None:
        """Collect at the interval until cancelled.

        Raises:
            RuntimeError: It is being monitored already.
        """
        if self._is_monitoring:
            raise RuntimeError("these devices are being monitored already")
        if not self._config.is_enabled:
            logger.info("GPU telemetry is off (EXO_GPU_TELEMETRY=0); the host's memory is still told")
        self._is_monitoring = True
        try:
            while True:
                self._is_wanted = anyio.Event()
                self._is_collecting = True
                try:
                    events = await self.collect()
                finally:
                    self._is_collecting = False
                if events:
                    self._publish(events)
                await self._pause()
        finally:
            self._is_monitoring = False
            for waiting in self._late.values():
                waiting.cancel()
            self._host_thread.stop()

    def collect_soon(self) -> None:
        """Collect again before its time, as something happened that is to be told; during a collection: it is in it."""
        if not self._is_collecting:
            self._is_wanted.set()

    async def _pause(self) -> None:
        """Wait until it is time, or somebody wants it earlier; never again at once, however often they want it."""
        interval_s = self._config.interval_s
        await anyio.sleep(min(SOONEST_S, interval_s))
        with anyio.move_on_after(max(0.0, interval_s - SOONEST_S)):
            await self._is_wanted.wait()

    async def _wait_for(self, one: UsedDevice, reading: BegunReading) -> None:
        try:
            self._keep(self._judged(one.device, await _answer(reading.outcome()), self._now()))
        finally:
            self._late.pop(one.device.device_id, None)

    def _judged(self, device: GPUDevice, said: DeviceReading | ExoError, at: str) -> DeviceGPUState:
        """Have a device judged by what it said, or why it said nothing, and return its state then."""
        reading = None if isinstance(said, ExoError) else said
        if reading is not None:
            self._health.observe_reading(device.device_id, reading)
            if self._heat is not None:
                self._heat.observe_reading(device, reading)
        elif isinstance(said, ExoError):
            self._health.observe_error(device.device_id, said)
            if isinstance(said, DeviceLostError) and not isinstance(said, DeviceHangError):
                self._on_lost()
        health = self._health.health(device.device_id)
        thermal = self._heat.status(device.device_id) if self._heat is not None else None
        return state_of(device, self._node_id, reading, health=health, now=at, thermal=thermal)

    def _keep(self, state: DeviceGPUState) -> None:
        self._states[state.device_id] = state
        self._fresh.add(state.device_id)

    def _is_worth_telling(self, state: DeviceGPUState, at_s: float) -> bool:
        told = self._told.get(state.device_id)
        if told is None or at_s - told[1] >= self._config.heartbeat_s:
            return True
        return has_changed(told[0], state, self._config.thresholds)

    def _profile_events(self, profile: NodePerformanceProfile, at_s: float) -> list[Telemetry]:
        told = self._told_profile
        is_due = told is None or at_s - told[1] >= self._config.heartbeat_s
        if not is_due and told is not None and not profile_changed(told[0], profile, self._config.thresholds):
            return []
        self._told_profile = profile, at_s
        return [NodeProfileUpdated(node_id=self._node_id, profile=profile)]

    def _forget_all_but(self, there: set[DeviceId]) -> None:
        for device_id in self._states.keys() - there:
            del self._states[device_id]
            self._told.pop(device_id, None)
        if self._heat is not None:
            self._heat.forget_all_but(there)


async def _answer(reading: Awaitable[DeviceReading]) -> DeviceReading | ExoError:
    """Return what a device says, or why it says nothing."""
    try:
        return await reading
    except ExoError as error:
        return error
