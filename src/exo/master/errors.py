"""What can go wrong while the master decides."""

from exo.shared.errors import ExoError


class AuthorityUnavailableError(ExoError):
    """Raised when the node that leads does not have the key of the cluster's authority, or cannot keep one."""
