"""What can go wrong with devices."""

from exo.shared.errors import ExoError


class BackendUnavailableError(ExoError):
    """Raised when a backend's library, driver or devices are missing."""


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
