"""What can go wrong while nodes talk and agree."""

from exo.shared.errors import ExoError, NoMasterError
from exo.shared.types.nodes import HostPort


class ConnectionLostError(ExoError):
    """Raised when a connection between two nodes has ended; `reason` says why in a few words.

    `is_ended`: one of the two ends is known to have ended it (closed, reset, goodbye). False: the other end fell
    silent or out of reach, and may live on believing in the connection.
    """

    def __init__(self, message: str, *, reason: str | None = None, is_ended: bool = True) -> None:
        super().__init__(message)
        self.reason = reason if reason is not None else message
        self.is_ended = is_ended


class DialError(ExoError):
    """Raised when a peer could not be reached: refused, no answer, or not an address that may be dialled."""

    is_final: bool = False
    """Trying again is of no use: the address may not be dialled at all."""


class HandshakeError(DialError):
    """Raised when one side could not prove to the other that it belongs there, or speaks another protocol.

    `code` is one of `transport.refusals.CODES`, for programs. `is_told`: the other side says so of this one.
    """

    def __init__(
        self,
        message: str,
        *,
        is_secret_wrong: bool = False,
        code: str | None = None,
        is_told: bool = False,
    ) -> None:
        super().__init__(message)
        self.is_told = is_told
        self.is_secret_wrong = is_secret_wrong
        self.code = code or ("other_secret" if is_secret_wrong else "other_protocol")


class NotDiallableError(DialError):
    """Raised when an address is outside what this transport may reach."""

    is_final = True


class UnsendableError(NoMasterError):
    """Raised when something cannot be put into a message: a number beyond 64 bits, text that is no UTF-8, too long."""


class LogWriteError(ExoError):
    """Raised when the log could not be written, so that this node can promise nothing more and has to stop."""

    exit_code = 4


def dial_failure(address: HostPort, reason: str) -> DialError:
    """Return the error that says why a peer could not be reached."""
    return DialError(f"cannot reach the node at {address}: {reason}")


def connection_ended(
    address: HostPort | None, reason: str | None, *, is_ended: bool = True
) -> ConnectionLostError:
    """Return the error that says why a connection is over."""
    return ConnectionLostError(
        f"the connection to {address} ended: {reason}", reason=reason, is_ended=is_ended
    )
