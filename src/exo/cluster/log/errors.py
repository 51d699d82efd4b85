"""What can go wrong while a log is read."""

from exo.shared.errors import ExoError


class LogReplacedError(ExoError):
    """Raised when entries that were being read have been compacted or cut off meanwhile: begin again."""
