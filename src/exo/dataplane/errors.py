"""What can go wrong on the data plane."""

from exo.shared.errors import ExoError


class DataPlaneError(ExoError):
    """Raised when tokens or activations cannot travel."""


class ProtocolError(DataPlaneError):
    """Raised when bytes from a peer are no frames, or a frame comes that has no place there."""


class HandshakeError(DataPlaneError):
    """Raised when a peer does not prove that it knows the secret, or speaks another version."""


class StageUnreachableError(DataPlaneError):
    """Raised when a request's first stage cannot be reached, or is lost before it answered."""


class NodeUnreachableError(DataPlaneError):
    """Raised when another node's data plane cannot be reached, or is lost while it is used."""


class ProbeRefusedError(DataPlaneError):
    """Raised when another node does not take part in a measurement now."""


class GenerationRejected(DataPlaneError):
    """Raised when the first stage refuses a request. `status` is the HTTP status that says why."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class GenerationFailedError(DataPlaneError):
    """Raised when a request that was accepted ends with an error."""

    def __init__(self, code: str, message: str, is_retriable: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.is_retriable = is_retriable
