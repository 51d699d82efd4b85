"""Why a peer is not let in: constant words for programs and metrics, sentences for people. Pure."""

import ssl

from exo.cluster.errors import HandshakeError
from exo.shared.tls import ACCESS_DENIED_ALERT, explain_tls_failure

__all__ = [
    "ACCESS_DENIED_ALERT",
    "CODES",
    "COUNTED",
    "encode_refusal",
    "explain_tls_error",
    "read_refusal",
]

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


def explain_tls_error(error: ssl.SSLError, peer: str) -> HandshakeError:
    """Turn what OpenSSL says of a failed handshake into a sentence and a code."""
    code, sentence = explain_tls_failure(error, peer, "cluster protocol")
    return HandshakeError(sentence, code=code)


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
