"""The cluster's authority: makes itself a key once, and signs the certificates of the nodes. Pure but for new keys.

Keys are on the curve P-256: every TLS library has it, its signatures are short and quick, and modes of OpenSSL that
leave Ed25519 out keep it.
"""

from datetime import datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from exo.cluster.trust.certificates import (
    UNREADABLE,
    is_node_id,
    key_fingerprint,
    public_bytes,
    to_der,
)
from exo.cluster.trust.errors import CertificateError
from exo.shared.tls import NODE_URI
from exo.shared.types.ids import ClusterId, NodeId

AUTHORITY_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=30)
BACKDATED = timedelta(hours=1)
"""How much slower than the signer's another node's clock may be and still find a new certificate valid."""


class Authority(msgspec.Struct, frozen=True, kw_only=True):
    """The key that makes nodes members. Held by the voters; its `repr` does not show the key."""

    certificate_pem: str
    key_pem: str

    @property
    def certificate_der(self) -> bytes:
        return to_der(self.certificate_pem)

    def require_pair(self) -> None:
        """Check that the key is the certificate's.

        Raises:
            CertificateError: It is not, or one of them is damaged.
        """
        certificate = x509.load_der_x509_certificate(self.certificate_der)
        if public_bytes(certificate.public_key()) != public_key_of(self.key_pem):
            raise CertificateError("the authority's key and its certificate do not belong together")

    def __repr__(self) -> str:
        return f"Authority({self.certificate_pem!r}, ***)"


def create_key() -> str:
    """Return a new private key in PEM form."""
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        .decode()
    )


def create_authority(cluster_id: ClusterId, *, now: datetime) -> Authority:
    """Return a new authority for a cluster, valid for ten years. `now` is aware of its time zone."""
    key_pem = create_key()
    key = _load_key(key_pem)
    name = _name(f"exo cluster {cluster_id}"[:64])
    certificate = (
        _builder(key.public_key(), now - BACKDATED, now + AUTHORITY_LIFE)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate_pem=_pem(certificate), key_pem=key_pem)


def create_request(key_pem: str, node_id: NodeId) -> bytes:
    """Return a request for a certificate (CSR, in DER) for a node, signed with its key.

    Raises:
        CertificateError: The key is damaged.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(node_id))
    request = builder.sign(_load_key(key_pem), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def issue_certificate(
    authority: Authority,
    request_der: bytes,
    node_id: NodeId,
    *,
    now: datetime,
    life: timedelta = CERTIFICATE_LIFE,
) -> str:
    """Return a certificate in PEM form that makes a node a member, as client and as server.

    Whether the node may be one is the caller's business; that it has the key is proved by the request's signature.

    Args:
        authority: Who signs.
        request_der: What `create_request` made on the node.
        node_id: The node's id; the request must name the same.
        now: The time, aware of its zone.
        life: How long the certificate is valid from now.

    Raises:
        CertificateError: The request is damaged, is for another node, or has a key of another kind than P-256.
    """
    if not is_node_id(node_id):
        raise CertificateError(f"{node_id!r} is no node id: letters, digits, - and _ only, 64 at most")
    public_key = _requested_key(request_der, node_id)
    signer = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
    signer_key = _load_key(authority.key_pem)
    issuer_id = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(public_key, now - BACKDATED, min(now + life, signer.not_valid_after_utc))
        .subject_name(_name(node_id))
        .issuer_name(signer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(NODE_URI + node_id)]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False
        )
        .sign(signer_key, hashes.SHA256())
    )
    return _pem(certificate)


def request_fingerprint(request_der: bytes, node_id: NodeId) -> str:
    """Return the SHA-256 of the public key of a request, in hexadecimal: what a person approves.

    Raises:
        CertificateError: As `issue_certificate` would.
    """
    return key_fingerprint(_requested_key(request_der, node_id))


def _requested_key(request_der: bytes, node_id: NodeId) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_der_x509_csr(request_der)
        names = [name.value for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        is_signed = request.is_signature_valid
        public_key = request.public_key()
    except UNREADABLE as error:
        raise CertificateError("the request for a certificate cannot be read") from error
    if not is_signed:
        raise CertificateError("the request for a certificate is not signed with the key that it names")
    if names != [node_id]:
        raise CertificateError(f"the request for a certificate does not name the node {node_id}")
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(
        public_key.curve, ec.SECP256R1
    ):
        raise CertificateError("the request for a certificate has a key of another kind than P-256")
    return public_key


def _load_key(key_pem: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    except UNREADABLE as error:
        raise CertificateError("the private key is damaged") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the private key is of another kind than P-256")
    return key


def public_key_of(key_pem: str) -> bytes:
    """Return the public half of a private key, encoded as in `certificates.public_bytes`.

    Raises:
        CertificateError: The key is damaged.
    """
    return public_bytes(_load_key(key_pem).public_key())


def _builder(
    public_key: ec.EllipticCurvePublicKey, valid_from: datetime, valid_until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid_from)
        .not_valid_after(valid_until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
