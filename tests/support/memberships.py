"""Certificates for tests: a cluster's authority, and nodes that it took in, on real files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from exo.cluster.trust.authority import (
    CERTIFICATE_LIFE,
    Authority,
    create_authority,
    issue_certificate,
)
from exo.cluster.trust.identity import TlsIdentity
from exo.cluster.trust.key_store import KeyStore
from exo.shared.types.ids import ClusterId, NodeId


def utc_now() -> datetime:
    return datetime.now(UTC)


class Membership:
    """A cluster that takes in whom the test wants."""

    def __init__(self, directory: Path, cluster_id: str = "c1") -> None:
        self._directory = directory / cluster_id
        self.authority: Authority = create_authority(ClusterId(cluster_id), now=utc_now())

    def store(self, node_id: str) -> KeyStore:
        """Return the keys of a node, each in a home of its own."""
        home = self._directory / node_id
        home.mkdir(parents=True, exist_ok=True)
        return KeyStore(home)

    def identity(
        self, node_id: str = "a", *, at: datetime | None = None, life: timedelta = CERTIFICATE_LIFE
    ) -> TlsIdentity:
        """Return a node's identity, with a certificate that was given at a certain time."""
        store = self.store(node_id)
        certificate_pem = issue_certificate(
            self.authority,
            store.create_request(NodeId(node_id)),
            NodeId(node_id),
            now=at or utc_now(),
            life=life,
        )
        store.save_membership(certificate_pem=certificate_pem, authority_pem=self.authority.certificate_pem)
        identity = store.load_identity(NodeId(node_id))
        assert identity is not None
        return identity
