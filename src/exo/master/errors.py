"""What can go wrong while the master decides."""

from exo.shared.errors import ExoError


class AuthorityUnavailableError(ExoError):
    """Raised when the node that leads does not have the key of the cluster's authority, or cannot keep one."""


class BasisUnreadableError(ExoError):
    """Raised when what a decision was made on cannot be read: it is damaged, or of another release."""
