"""What can go wrong with certificates, tokens and joining."""

from exo.shared.errors import ExoError


class TokenError(ExoError):
    """Raised when a text is no join token."""

    exit_code = 2


class CertificateError(ExoError):
    """Raised when a certificate, a key or a request for a certificate cannot be used."""


class EnrolmentError(ExoError):
    """Raised when a node was not taken into a cluster; `code` says why in one word, for programs."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class WrongAuthorityError(EnrolmentError):
    """Raised when a node shows another authority than the token, or the visit before, said. Nothing was sent to it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="wrong_authority")
