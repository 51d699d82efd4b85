"""What can go wrong with a measurement."""

from exo.shared.errors import ExoError


class NotMeasurableError(ExoError):
    """Raised when a way cannot be measured: no room on a device, or every transfer came to nothing."""
