"""Proof of a shared secret between two processes, without sending it. Pure: nonces come from the caller."""

import hashlib
import hmac

NONCE_BYTES = 32


def prove(secret: bytes, *, purpose: str, prover: str, challenge: bytes, own_nonce: bytes) -> bytes:
    """Return the HMAC-SHA256 that answers `challenge`.

    Args:
        secret: The secret that both sides know.
        purpose: What the connection is for, so that a proof for one wire is worth nothing on another.
        prover: Who proves (`dialer` or `listener`), so that a proof cannot be reflected.
        challenge: The other side's nonce, 32 bytes.
        own_nonce: The nonce this side sent, 32 bytes.
    """
    text = b"\0".join((b"exo", purpose.encode(), prover.encode(), challenge, own_nonce))
    return hmac.digest(secret, text, hashlib.sha256)


def verify(
    secret: bytes, proof: bytes, *, purpose: str, prover: str, challenge: bytes, own_nonce: bytes
) -> bool:
    """Say whether `proof` is what `prover` would have made; compares in constant time.

    `challenge` and `own_nonce` are as the prover saw them.
    """
    wanted = prove(secret, purpose=purpose, prover=prover, challenge=challenge, own_nonce=own_nonce)
    return hmac.compare_digest(proof, wanted)
