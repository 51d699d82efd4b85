"""The seam of device backends: what a device is, how it is, and (later) its memory."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from exo.shared.types.devices import Backend, DeviceGPUState, GPUDevice


class GPUBackend(ABC):
    """One way to reach devices of one kind. Calls may block for milliseconds: use a thread from async code."""

    name: Backend

    @abstractmethod
    def initialize(self) -> None:
        """Find the library, the driver and the devices.

        Raises:
            BackendUnavailableError: Something is missing; the message says what, and how to install it.
        """

    @abstractmethod
    def shutdown(self) -> None:
        """Release what `initialize` took. May be called twice."""

    @abstractmethod
    def list_devices(self) -> Sequence[GPUDevice]:
        """The devices found, in a stable order."""

    @abstractmethod
    def read_state(self, device: GPUDevice, *, now: str) -> DeviceGPUState:
        """The device's telemetry at this moment; what it does not tell is None.

        Args:
            device: One of `list_devices()`.
            now: ISO 8601 UTC time to stamp the reading with.

        Raises:
            DeviceLostError: The device no longer answers.
        """
