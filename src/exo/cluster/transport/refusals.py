"""Why a peer is not let in: constant words for programs and metrics, sentences for people. Pure."""

import ssl

from exo.cluster.errors import HandshakeError

CODES = (
    "early_certificate",
    "expired_certificate",
    "foreign_certificate",
    "malformed_certificate",
    "no_certificate",
    "no_enrolment",
    "no_identity",
    "other_protocol",
    "other_secret",
    "plain_from_afar",
    "revoked_certificate",
    "tls_failed",
    "too_many",
    "too_slow",
)
"""What `HandshakeError.code` can be, and with `refused_` in front what is counted."""

COUNTED = (
    "abandoned",
    "accepted_enrolment",
    "accepted_plain",
    "accepted_tls",
    "ended_expired",
    "ended_revoked",
    "ended_identity_changed",
    *(f"refused_{code}" for code in CODES),
)
"""The keys of `TcpTransport.counts`, all there from the start."""

_CLOCKS = "if it was made lately, compare the clocks of the two hosts"
_SENTENCES = {
    "expired_certificate": f"has expired; {_CLOCKS}, otherwise that node has to join again: exo join",
    "early_certificate": f"is not valid yet; {_CLOCKS}",
    "foreign_certificate": "is from the authority of another cluster; a node joins this one with exo join",
}
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
ACCESS_DENIED_ALERT = b"\x15\x03\x03\x00\x02\x02\x31"
"""The fatal TLS alert `access_denied` as a record, for who has nothing to begin TLS with."""


def certificate_refused(peer: str, code: str) -> HandshakeError:
    """Return the error that says what is wrong with a peer's certificate."""
    return HandshakeError(f"the certificate of {peer} {_SENTENCES[code]}", code=code)


def explain_tls_error(error: ssl.SSLError, peer: str) -> HandshakeError:
    """Turn what OpenSSL says of a failed handshake into a sentence and a code."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return certificate_refused(peer, _VERIFY_CODES.get(error.verify_code, "foreign_certificate"))
    reason = error.reason or str(error)
    for alert, (code, sentence) in _ALERTS.items():
        if reason.endswith(alert):
            return HandshakeError(f"{peer} refused: {sentence}", code=code)
    if "ALERT" in reason:
        return HandshakeError(f"{peer} refused in TLS: {_words(reason)}", code="tls_failed")
    return HandshakeError(
        f"{peer} does not speak exo's cluster protocol ({_words(reason)})", code="other_protocol"
    )


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()


def encode_refusal(error: HandshakeError) -> bytes:
    """Return what a peer is told of why it was refused."""
    return f"{error.code}: {error.message}".encode()[:1000]


def read_refusal(payload: bytes, peer: str) -> HandshakeError:
    """Return the error that `encode_refusal` told of, as a stranger's word."""
    text = payload.decode(errors="replace")
    code, separator, sentence = text.partition(": ")
    is_known = bool(separator) and code in CODES
    return HandshakeError(
        f"{peer} refused: {sentence if is_known else text}",
        is_secret_wrong=code == "other_secret",
        code=code if is_known else None,
    )
