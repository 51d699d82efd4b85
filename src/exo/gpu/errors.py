"""What can go wrong with devices."""

from exo.shared.errors import ExoError


class BackendUnavailableError(ExoError):
    """Raised when a backend's library, driver or devices are missing."""


class DeviceLostError(ExoError):
    """Raised when a device that was there no longer answers."""
