"""What a node's two ports for other hosts, cluster and data plane, have in common in TLS."""

import ssl
from collections.abc import Sequence
from pathlib import Path

from exo.shared.errors import ConfigurationError

NODE_URI = "exo://node/"
"""In front of the node's id, in the subject alternative name of its certificate."""
TLS_FIRST_BYTE = 22
"""With it begins whoever dials in TLS: the record of a handshake."""
TLS_ALERT_BYTE = 21
"""With it begins a listener that has nothing to begin TLS with."""
ACCESS_DENIED_ALERT = b"\x15\x03\x03\x00\x02\x02\x31"
"""What such a listener says: the fatal alert `access_denied` as a record."""
RECORD_BYTES = 16 * 1024
"""The longest record; a read returns at most one."""
HANDSHAKE_BYTES_MAX = 64 * 1024
"""A stranger cannot make OpenSSL keep more than this."""

_CLOCKS = "if it was made lately, compare the clocks of the two hosts"
CERTIFICATE_SENTENCES = {
    "expired_certificate": f"has expired; {_CLOCKS}, otherwise that node has to join again: exo join",
    "early_certificate": f"is not valid yet; {_CLOCKS}",
    "foreign_certificate": "is from the authority of another cluster; a node joins this one with exo join",
}
"""What is wrong with a certificate, after `the certificate of ...`."""
_VERIFY_CODES = {9: "early_certificate", 10: "expired_certificate"}
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL; all others: not signed as it should be."""
_ALERTS = {
    "CERTIFICATE_EXPIRED": (
        "expired_certificate",
        f"it says that this node's certificate has expired; {_CLOCKS}",
    ),
    "UNKNOWN_CA": (
        "foreign_certificate",
        "it does not know the authority of this node's certificate: it belongs to another cluster",
    ),
    "BAD_CERTIFICATE": (
        "early_certificate",
        f"it finds this node's certificate not valid, or not valid yet; {_CLOCKS}",
    ),
    "ACCESS_DENIED": ("no_identity", "it has no certificate of a cluster yet"),
}


def strict_context(protocol: int, agreed: Sequence[str]) -> ssl.SSLContext:
    """Return OpenSSL's settings as all of exo's connections have them: TLS 1.3 only, and no resumption.

    Args:
        protocol: `ssl.PROTOCOL_TLS_SERVER` or `ssl.PROTOCOL_TLS_CLIENT`.
        agreed: Names of the protocols that may be spoken inside (ALPN), best first.
    """
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # Certificates name nodes, not hosts.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(list(agreed))
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # A resumed session would let a certificate in that has expired or was revoked meanwhile.
        context.num_tickets = 0
    return context


def show_certificate(
    context: ssl.SSLContext, *, certificate_file: Path | str, key_file: Path | str, authority_pem: str
) -> None:
    """Have a context show a node's certificate, and trust the authority of the node's cluster.

    Raises:
        ConfigurationError: The certificate or the key cannot be used.
    """
    try:
        context.load_verify_locations(cadata=authority_pem)
        context.load_cert_chain(certificate_file, key_file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"cannot use this node's certificate {certificate_file}: {error}; join the cluster again"
        ) from error


def explain_tls_failure(error: ssl.SSLError, peer: str, protocol_name: str) -> tuple[str, str]:
    """Turn what OpenSSL says of a failed handshake into a constant word for programs and a sentence for people.

    Args:
        error: What OpenSSL raised.
        peer: What to call the other end.
        protocol_name: What the other end was expected to speak, such as `cluster protocol`.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        code = _VERIFY_CODES.get(error.verify_code, "foreign_certificate")
        return code, f"the certificate of {peer} {CERTIFICATE_SENTENCES[code]}"
    reason = error.reason or str(error)
    for alert, (code, sentence) in _ALERTS.items():
        if reason.endswith(alert):
            return code, f"{peer} refused: {sentence}"
    words = reason.replace("_", " ").lower()
    if "ALERT" in reason:
        return "tls_failed", f"{peer} refused in TLS: {words}"
    return "other_protocol", f"{peer} does not speak exo's {protocol_name} ({words})"
