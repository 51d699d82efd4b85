"""What can go wrong with NVIDIA's driver alone."""

from exo.gpu.errors import BackendUnavailableError


class OldDriverError(BackendUnavailableError):
    """Raised when there is a driver, but one that is too old for anything here."""
