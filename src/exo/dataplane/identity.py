"""What a node shows of itself to other hosts, and whom it lets in no more. Stage processes get it, too."""

import msgspec

from exo.shared.types.ids import NodeId


class DataIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A node's certificate, where it lies, and whom the node trusts. Files, so that the key is never in two places."""

    certificate_file: str
    key_file: str
    authority_pem: str
    """The certificate of the cluster's authority; no secret."""


class DataTrust(msgspec.Struct, frozen=True, kw_only=True):
    """All that changes while a node runs of who may talk to it over the data plane."""

    identity: DataIdentity | None = None
    """None: this node talks to its own host only."""
    removed_node_ids: frozenset[NodeId] = frozenset()
    revoked_serials: frozenset[str] = frozenset()
    """Of certificates; hexadecimal, as they stand in the cluster's state."""


class PeerCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """What the certificate of a peer says, which OpenSSL has found to be the authority's and in its time."""

    node_id: NodeId
    serial: str

    def is_revoked(self, trust: DataTrust) -> bool:
        return self.node_id in trust.removed_node_ids or self.serial in trust.revoked_serials
