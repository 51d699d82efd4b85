"""OpenSSL's settings for this node: TLS 1.3 only, certificates of the cluster's authority only, no resumption."""

import ssl

from exo.cluster.transport.tls_channel import CLUSTER_PROTOCOL, ENROL_PROTOCOL
from exo.cluster.trust.identity import TlsIdentity
from exo.shared.errors import ConfigurationError


class TlsContexts:
    """For both directions, made once for an identity.

    Raises:
        ConfigurationError: The certificate or the key cannot be used.
    """

    def __init__(self, identity: TlsIdentity) -> None:
        self.listening = _context(ssl.PROTOCOL_TLS_SERVER, [CLUSTER_PROTOCOL, ENROL_PROTOCOL])
        self.dialling = _context(ssl.PROTOCOL_TLS_CLIENT, [CLUSTER_PROTOCOL])
        # A node that wants to join has no certificate yet; whoever shows one has to show a good one.
        self.listening.verify_mode = ssl.CERT_OPTIONAL
        self.dialling.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would let a certificate in that has expired or was revoked meanwhile.
        self.listening.num_tickets = 0
        try:
            for context in (self.listening, self.dialling):
                context.load_verify_locations(cadata=identity.authority_pem)
                context.load_cert_chain(identity.certificate_file, identity.key_file)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot use this node's certificate {identity.certificate_file}: {error}; join the cluster again"
            ) from error


def enrolment_context(authority_pem: str | None) -> ssl.SSLContext:
    """Return the settings of a node that has no certificate yet.

    Args:
        authority_pem: Whom it trusts. None: it only looks whose the cluster is, believes nothing and says nothing.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, [ENROL_PROTOCOL])
    if authority_pem is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority_pem)
    return context


def _context(protocol: int, agreed: list[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # Certificates name nodes, not hosts.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(agreed)
    return context
