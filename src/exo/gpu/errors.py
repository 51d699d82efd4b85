"""What can go wrong with devices."""

from exo.shared.errors import ExoError


class BackendUnavailableError(ExoError):
    """Raised when a backend's library, driver or devices are missing.

    Attributes:
        install_command: What brings the missing piece, ready to be typed; empty where the message says all.
        is_absent: Nothing speaks for such a device being here, as on most machines.
    """

    def __init__(self, message: str, *, install_command: str = "", is_absent: bool = False) -> None:
        super().__init__(message)
        self.install_command = install_command
        self.is_absent = is_absent


class DeviceLostError(ExoError):
    """Raised when a device that was there no longer answers."""


class DeviceHangError(DeviceLostError):
    """Raised when a call into a device's driver has not returned in time, and while it still has not."""


class DeviceNotFoundError(ExoError):
    """Raised when a device is asked for that this backend does not have."""


class OutOfDeviceMemoryError(ExoError):
    """Raised when a device has less free memory than was asked for."""


class FreedMemoryError(ExoError):
    """Raised when device memory is used after it was given back, or by a backend that it is not of."""


class NotComputingError(ExoError):
    """Raised when a device can be watched but not computed with, or not in the precision asked for."""


class NotEnoughGPUsError(ExoError):
    """Raised when fewer GPUs can be used than were asked for."""


class GPUTakenError(ExoError):
    """Raised when a certain GPU is asked for that others hold, or that cannot be used."""


class MemoryRangeError(ExoError):
    """Raised when a copy or a product would go beyond the end of a device's memory, or mixes two devices' memory."""


class DriverError(ExoError):
    """Raised when a driver fails in a way that no other of these errors describes."""
