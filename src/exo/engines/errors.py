"""What can go wrong in an engine. `is_permanent` says that starting again cannot mend it."""

from exo.shared.errors import ExoError


class EngineError(ExoError):
    """Raised when an engine cannot do what it is asked."""

    is_permanent: bool = False


class EngineUnavailableError(EngineError):
    """Raised when an engine, or its support for a device, is not installed here."""

    is_permanent = True


class ModelFilesError(EngineError):
    """Raised when a file or a tensor of a model is missing, truncated or no such thing at all."""

    is_permanent = True


class UnsupportedModelError(EngineError):
    """Raised when the engine cannot run this family of models, or cannot split it into stages."""

    is_permanent = True


class PromptError(EngineError):
    """Raised when messages or text cannot become tokens: the request is at fault, not the engine."""
