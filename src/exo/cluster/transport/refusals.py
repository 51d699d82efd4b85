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
    "peer_words",
    "read_refusal",
]

WORDS_BYTES_MAX = 1000
"""Of a reason that one end gives the other."""

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
    "ended_malformed",
    "ended_revoked",
    "ended_identity_changed",
    "ended_truncated",
    *(f"refused_{code}" for code in CODES),
)
"""The keys of `TcpTransport.counts`, all there from the start."""


def peer_words(payload: bytes) -> str:
    """Return what a peer gives as its reason: on one line, without what a terminal would act on, and not too long."""
    text = payload[:WORDS_BYTES_MAX].decode(errors="replace")
    return "".join(character if character.isprintable() else " " for character in text)


def explain_tls_error(error: ssl.SSLError, peer: str) -> HandshakeError:
    """Turn what OpenSSL says of a failed handshake into a sentence and a code."""
    code, sentence = explain_tls_failure(error, peer, "cluster protocol")
    return HandshakeError(sentence, code=code)


def encode_refusal(error: HandshakeError) -> bytes:
    """Return what a peer is told of why it was refused."""
    return f"{error.code}: {error.message}".encode()[:WORDS_BYTES_MAX]


def read_refusal(payload: bytes, peer: str) -> HandshakeError:
    """Return the error that `encode_refusal` told of, as a stranger's word."""
    text = peer_words(payload)
    code, separator, sentence = text.partition(": ")
    is_known = bool(separator) and code in CODES
    return HandshakeError(
        f"{peer} refused: {sentence if is_known else text}",
        is_secret_wrong=code == "other_secret",
        code=code if is_known else None,
        is_told=True,
    )
