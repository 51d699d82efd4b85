"""What can go wrong while nodes talk and agree."""

from exo.shared.errors import ExoError


class ConnectionLostError(ExoError):
    """Raised when a connection between two nodes has ended; the message says why."""


class DialError(ExoError):
    """Raised when a peer could not be reached: refused, no answer, or not an address that may be dialled."""


class HandshakeError(DialError):
    """Raised when the other side could not prove that it knows the host secret, or speaks another protocol."""

    def __init__(self, message: str, *, is_secret_wrong: bool) -> None:
        super().__init__(message)
        self.is_secret_wrong = is_secret_wrong


class LogWriteError(ExoError):
    """Raised when the log could not be written, so that this node can promise nothing more and has to stop."""

    exit_code = 4
