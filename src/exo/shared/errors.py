"""What can go wrong in any room. `ExoError.message` is one sentence for people, with the next step in it."""


class ExoError(Exception):
    """Raised when something failed that a person can do something about."""

    exit_code: int = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(ExoError):
    """Raised when a setting cannot be used: a bad address, an unwritable directory, a port in use."""

    exit_code = 2


class LogOrderError(ExoError):
    """Raised when an event does not follow the one before it: a gap or a repetition in the log."""

    def __init__(self, *, expected_index: int, got_index: int) -> None:
        super().__init__(f"the log's next event should have index {expected_index}, not {got_index}")
        self.expected_index = expected_index
        self.got_index = got_index


class LogCorruptError(ExoError):
    """Raised when the log on disk is damaged in the middle, or was written by a newer release."""

    exit_code = 3


class LogNewerError(LogCorruptError):
    """Raised when the log on disk is whole, and was written by a newer release: it stays where it is for that one."""


class NoMasterError(ExoError):
    """Raised when a decision is wanted and no master can be reached."""


class NotReadyError(ExoError):
    """Raised when an instance did not become ready within the time given."""
