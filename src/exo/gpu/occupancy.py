"""Which devices of a driver are there, under which index, and which thread is whose while they come and go."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from loguru import logger

from exo.gpu.countdown import Countdown
from exo.gpu.description import describe
from exo.gpu.driver import FoundDevice
from exo.gpu.driver_call import DriverCall
from exo.gpu.driver_thread import DriverThread
from exo.gpu.errors import DeviceLostError, DeviceNotFoundError, DriverError
from exo.gpu.plausibility import Complaint
from exo.shared.errors import ExoError
from exo.shared.types.devices import Backend, GPUDevice
from exo.shared.types.ids import DeviceId, NodeId

T = TypeVar("T")


class Occupant:
    """A device that is there, or was."""

    def __init__(self, device: GPUDevice, index: int, thread: DriverThread) -> None:
        self.device = device
        self.index = index
        self.thread = thread
        self.is_there = True
        self.stay = 1
        """Counts how often it came."""
        self._told: set[str] = set()

    @property
    def alias(self) -> str:
        """Its name for people."""
        return f"{self.device.local_alias} ({self.device.name})"

    async def call(
        self,
        function: Callable[[], T],
        *,
        doing: str,
        timeout_s: float,
        discard: Callable[[T], object] | None = None,
        is_never_skipped: bool = False,
    ) -> T:
        """Run a driver's call on the device's thread; see `DriverThread.call`.

        Raises:
            DriverError: It failed with an error that is none of ours.
        """
        return await self.thread.call(
            explained(function, f"{self.alias}: {doing} failed"),
            doing=doing,
            timeout_s=timeout_s,
            discard=discard,
            is_never_skipped=is_never_skipped,
        )

    def begin(
        self, function: Callable[[], T], *, doing: str, timeout_s: float, together: Countdown
    ) -> DriverCall:
        """Have a driver's call begin; see `DriverThread.begin`.

        Raises:
            DeviceHangError: A call before it has not returned in time.
        """
        return self.thread.begin(
            explained(function, f"{self.alias}: {doing} failed"),
            doing=doing,
            timeout_s=timeout_s,
            together=together,
        )

    def complain(self, complaints: Sequence[Complaint]) -> None:
        """Log what the driver said that cannot be true: once for each field."""
        for one in complaints:
            if one.field not in self._told:
                self._told.add(one.field)
                logger.warning("{} says nonsense, which is not used: {}: {}", self.alias, one.field, one.text)


class Occupants:
    """All devices that a driver ever had. A thread stays with its device, even through an absence."""

    def __init__(self, backend: Backend, node_id: NodeId, clock: Callable[[], float]) -> None:
        self._backend: Backend = backend
        self._node_id = node_id
        self._clock = clock
        self._by_id: dict[DeviceId, Occupant] = {}

    def devices(self) -> tuple[GPUDevice, ...]:
        """Return those that are there, in the driver's order."""
        there = [one for one in self._by_id.values() if one.is_there]
        return tuple(one.device for one in sorted(there, key=lambda one: one.index))

    def update(self, found: Sequence[FoundDevice], *, computes: bool) -> None:
        """Take over what the driver found now."""
        devices = describe(found, self._backend, self._node_id, "full" if computes else "monitoring")
        for one in self._by_id.values():
            if one.is_there and one.device.device_id not in {device.device_id for device in devices}:
                one.is_there = False
        for device, described in zip(devices, found, strict=True):
            known = self._by_id.get(device.device_id)
            if known is None:
                thread = DriverThread(device.local_alias, self._clock)
                self._by_id[device.device_id] = Occupant(device, described.index, thread)
                continue
            known.device, known.index = device, described.index
            known.thread.name = device.local_alias
            if not known.is_there:
                known.is_there = True
                known.stay += 1

    def of(self, device_id: DeviceId) -> Occupant:
        """Return a device that is there.

        Raises:
            DeviceNotFoundError: There never was one with this id.
            DeviceLostError: It is gone.
        """
        found = self._by_id.get(device_id)
        if found is None:
            raise DeviceNotFoundError(f"this node has no device {device_id}; `exo status` lists what it has")
        if not found.is_there:
            raise DeviceLostError(f"{found.alias} is gone: its driver does not list it any more")
        return found

    def any(self, device_id: DeviceId) -> Occupant:
        """Return a device whether or not it is there still."""
        return self._by_id[device_id]

    def retire(self) -> list[Occupant]:
        """Return all, and have none any more."""
        all_of_them = list(self._by_id.values())
        for one in all_of_them:
            one.is_there = False
        return all_of_them


def explained(function: Callable[[], T], failed: str, kind: type[ExoError] = DriverError) -> Callable[[], T]:
    """Return the function with every error that is none of ours turned into one with a sentence."""

    def call() -> T:
        try:
            return function()
        except ExoError:
            raise
        except Exception as error:
            said = str(error).strip() or type(error).__name__
            raise kind(f"{failed}: {said}") from error

    return call
