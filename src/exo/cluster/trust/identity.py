"""What a node shows of itself in TLS."""

from pathlib import Path

import msgspec

from exo.cluster.trust.certificates import NodeCertificate, to_der
from exo.cluster.trust.token import authority_hash


class TlsIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A node's certificate, where it lies, and whom the node trusts.

    Files, because Python's `ssl` reads certificates and keys from nothing else; so the key is never in two places.
    """

    certificate: NodeCertificate
    certificate_file: Path
    key_file: Path
    authority_pem: str

    @property
    def authority_der(self) -> bytes:
        return to_der(self.authority_pem)

    @property
    def authority_hash(self) -> str:
        """What tokens of this cluster begin with, and what people compare."""
        return authority_hash(self.authority_der)
