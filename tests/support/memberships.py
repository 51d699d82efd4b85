"""Certificates for tests: a cluster's authority, and nodes that it took in, on real files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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


def odd_certificate(
    membership: Membership, key_pem: str, *, name: str = "a", uris: tuple[str, ...] = ("exo://node/a",)
) -> str:
    """Return a certificate that the authority signed and exo would never ask for."""
    authority = x509.load_pem_x509_certificate(membership.authority.certificate_pem.encode())
    authority_key = serialization.load_pem_private_key(membership.authority.key_pem.encode(), None)
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(utc_now() - timedelta(days=1))
        .not_valid_after(utc_now() + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
    )
    if uris:
        alternatives = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
