"""What the master needs of the cluster's authority. Its key is where this is implemented, and nowhere else."""

from typing import Protocol

import msgspec

from exo.shared.types.ids import NodeId


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that was signed. Times are Unix seconds."""

    certificate_pem: str
    serial: str
    """Hexadecimal."""
    not_after_s: float


class Authority(Protocol):
    """Signs the certificates of nodes."""

    async def create(self) -> str:
        """Make the authority's key, keep it, and return its certificate in PEM form.

        Asked again, it returns the certificate of the key it has: what was made may not have been committed.

        Raises:
            AuthorityUnavailableError: The key cannot be kept.
        """
        ...

    async def issue(self, request_der: bytes, node_id: NodeId) -> Issued:
        """Sign a certificate for the key in a request.

        Raises:
            AuthorityUnavailableError: This node does not have the authority's key.
            ExoError: The request cannot be read, names another node, or is not signed with its own key.
        """
        ...
