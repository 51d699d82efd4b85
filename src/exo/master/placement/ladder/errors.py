"""What ends the ladder's searches from within."""


class StoppedError(Exception):
    """Raised when the caller's clock, or a limit of work, ends a step before it is done. Never leaves the ladder."""
