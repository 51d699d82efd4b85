"""OpenSSL's settings for this node: TLS 1.3 only, certificates of the cluster's authority only, no resumption."""

import ssl

from exo.cluster.transport.tls_channel import CLUSTER_PROTOCOL, ENROL_PROTOCOL
from exo.cluster.trust.identity import TlsIdentity
from exo.shared.tls import show_certificate, strict_context


class TlsContexts:
    """For both directions, made once for an identity.

    Raises:
        ConfigurationError: The certificate or the key cannot be used.
    """

    def __init__(self, identity: TlsIdentity) -> None:
        self.listening = strict_context(ssl.PROTOCOL_TLS_SERVER, [CLUSTER_PROTOCOL, ENROL_PROTOCOL])
        self.dialling = strict_context(ssl.PROTOCOL_TLS_CLIENT, [CLUSTER_PROTOCOL])
        # A node that wants to join has no certificate yet; whoever shows one has to show a good one.
        self.listening.verify_mode = ssl.CERT_OPTIONAL
        self.dialling.verify_mode = ssl.CERT_REQUIRED
        for context in (self.listening, self.dialling):
            show_certificate(
                context,
                certificate_file=identity.certificate_file,
                key_file=identity.key_file,
                authority_pem=identity.authority_pem,
            )


def enrolment_context(authority_pem: str | None) -> ssl.SSLContext:
    """Return the settings of a node that has no certificate yet.

    Args:
        authority_pem: Whom it trusts. None: it only looks whose the cluster is, believes nothing and says nothing.
    """
    context = strict_context(ssl.PROTOCOL_TLS_CLIENT, [ENROL_PROTOCOL])
    if authority_pem is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority_pem)
    return context
