"""Reading certificates of nodes: whose, until when, and when to ask for a new one. Pure."""

import hashlib
import re
from datetime import datetime

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import NameOID

from exo.cluster.trust.errors import CertificateError
from exo.shared.tls import NODE_URI
from exo.shared.types.ids import NodeId

_NODE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""As `load_node_id` makes and takes them; 64 is also the most that a certificate's common name may have."""
RENEW_AFTER = 2 / 3
"""The part of a certificate's life after which the node asks for the next one."""


UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for bytes that are not what they should be; few of these have a common base."""


class NodeCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's certificate says. Whether the authority really signed it is for TLS to check."""

    node_id: NodeId
    serial: str
    """Hexadecimal, as it stands in a revocation."""
    valid_from: datetime
    valid_until: datetime
    sha256: bytes
    """Of the whole certificate in DER."""
    fingerprint: str
    """SHA-256 of the public key, in hexadecimal: the same for every certificate of one key, and for its request."""

    def is_valid_at(self, now: datetime) -> bool:
        return self.valid_from <= now <= self.valid_until


def is_node_id(text: str) -> bool:
    """Say whether a certificate may name a node so."""
    return _NODE_ID.fullmatch(text) is not None


def read_node_certificate(certificate_der: bytes) -> NodeCertificate:
    """Read a node's certificate.

    Raises:
        CertificateError: It cannot be read, names no node, or its two names differ.
    """
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = certificate.public_key()
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except UNREADABLE as error:
        raise CertificateError("this is no node's certificate of exo: it cannot be read") from error
    ids = {
        uri.removeprefix(NODE_URI)
        for uri in alternatives.get_values_for_type(x509.UniformResourceIdentifier)
        if uri.startswith(NODE_URI)
    }
    name = names[0].value if len(names) == 1 else None
    if not isinstance(name, str) or ids != {name} or not is_node_id(name):
        raise CertificateError("this is no node's certificate of exo: it does not name exactly one node")
    return NodeCertificate(
        node_id=NodeId(name),
        serial=format(certificate.serial_number, "x"),
        valid_from=certificate.not_valid_before_utc,
        valid_until=certificate.not_valid_after_utc,
        sha256=sha256_of(certificate_der),
        fingerprint=key_fingerprint(key),
    )


def renewal_due(certificate: NodeCertificate, now: datetime) -> bool:
    """Say whether two thirds of the certificate's life are over."""
    life = certificate.valid_until - certificate.valid_from
    return now >= certificate.valid_from + RENEW_AFTER * life


def to_der(certificate_pem: str) -> bytes:
    """Return the first certificate of a PEM text in DER.

    Raises:
        CertificateError: There is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    except UNREADABLE as error:
        raise CertificateError("this is no certificate in PEM form") from error
    return certificate.public_bytes(serialization.Encoding.DER)


def to_pem(certificate_der: bytes) -> str:
    """Return a certificate in PEM form.

    Raises:
        CertificateError: The bytes are none.
    """
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
    except UNREADABLE as error:
        raise CertificateError("this is no certificate in DER form") from error
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def require_issued(
    certificate_der: bytes, *, authority_der: bytes, node_id: NodeId, public_key_der: bytes
) -> NodeCertificate:
    """Check a certificate that this node was given for its own.

    Raises:
        CertificateError: It is for another node or key, or from another authority.
    """
    read = read_node_certificate(certificate_der)
    certificate = x509.load_der_x509_certificate(certificate_der)
    try:
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(authority_der))
    except (*UNREADABLE, InvalidSignature) as error:
        raise CertificateError("the certificate is not signed by the cluster's authority") from error
    if read.node_id != node_id:
        raise CertificateError(f"the certificate is for the node {read.node_id}, this node is {node_id}")
    if public_bytes(certificate.public_key()) != public_key_der:
        raise CertificateError("the certificate is for another key than this node's")
    return read


def public_bytes(key: PublicKeyTypes) -> bytes:
    """Return a public key in its usual encoding, to compare it with another."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def sha256_of(certificate_der: bytes) -> bytes:
    """Return the SHA-256 of a whole certificate."""
    return hashlib.sha256(certificate_der).digest()


def key_fingerprint(key: PublicKeyTypes) -> str:
    """Return the SHA-256 of a public key in hexadecimal."""
    return hashlib.sha256(public_bytes(key)).hexdigest()
