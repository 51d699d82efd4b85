"""Join tokens: `exo1.<hash of the cluster's authority>.<secret>`, and what a cluster keeps of one. Pure.

The hash lets the joiner recognise the cluster before it says anything; the secret lets the cluster recognise the
joiner. A cluster keeps neither: only the verifier, from which the secret cannot be found.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable

import msgspec

from exo.cluster.trust.errors import TokenError

PREFIX = "exo1"
SECRET_BYTES = 20
HASH_BYTES = 20
_PART_CHARACTERS = 32
"""20 bytes in base32, which fills it exactly."""
_PART = re.compile(rf"[a-z2-7]{{{_PART_CHARACTERS}}}")


class PlainToken(msgspec.Struct, frozen=True):
    """A token that was read or made. Its `repr` and its `str` do not show the secret; `reveal` does."""

    authority_hash: str
    """See `authority_hash`."""
    secret: bytes

    def reveal(self) -> str:
        """Return the token as a person hands it on."""
        return f"{PREFIX}.{self.authority_hash}.{_encode(self.secret)}"

    def __repr__(self) -> str:
        return f"PlainToken({PREFIX}.{self.authority_hash}.***)"


def authority_hash(certificate_der: bytes) -> str:
    """Return the first 160 bits of a certificate's SHA-256 in lower-case base32: 32 letters and digits.

    The authority's is shown to people wherever they have to recognise a cluster.
    """
    return _encode(hashlib.sha256(certificate_der).digest()[:HASH_BYTES])


def create_token(
    authority_der: bytes, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> PlainToken:
    """Return a new token for the cluster of this authority."""
    return PlainToken(authority_hash(authority_der), random_bytes(SECRET_BYTES))


def parse_token(text: str) -> PlainToken:
    """Read a token; upper case and white space around it do no harm.

    Raises:
        TokenError: It is none; the message says what is wrong with it, without repeating the secret.
    """
    parts = "".join(text.split()).lower().split(".")
    again = "copy it again from where `exo token create` showed it"
    if parts[0] != PREFIX:
        newer = re.fullmatch(r"exo\d+", parts[0]) is not None
        raise TokenError(
            f"this token begins with {parts[0]!r} and needs a newer release of exo; upgrade this node"
            if newer
            else f"this is no join token: one begins with {PREFIX!r}; {again}"
        )
    if len(parts) != 3:
        raise TokenError(
            f"this token has {len(parts)} parts where {PREFIX}.HASH.SECRET has 3: it was cut off or doubled; {again}"
        )
    for part, name in zip(parts[1:], ("second", "third"), strict=True):
        if len(part) != _PART_CHARACTERS:
            raise TokenError(
                f"the {name} part of this token is {len(part)} characters long, {_PART_CHARACTERS} were expected: "
                f"it was cut off or doubled; {again}"
            )
        if not _PART.fullmatch(part):
            raise TokenError(
                f"the {name} part of this token has characters that no token has (a to z and 2 to 7 only); {again}"
            )
    return PlainToken(parts[1], base64.b32decode(parts[2].upper()))


def token_verifier(secret: bytes) -> bytes:
    """Return what a cluster keeps of a token: 32 bytes from which the secret cannot be found.

    The secret is random and long, so one HMAC is enough; what slows down guessing of passwords would add nothing.
    Whoever has the verifier can prove knowledge of the token to that cluster: it is no secret less than the token
    is, and is kept where the authority's key is.
    """
    return hmac.digest(secret, b"exo join token verifier 1", hashlib.sha256)


def token_id(verifier: bytes) -> str:
    """Return the short name of a token, 12 letters and digits, which may be shown, logged and sent."""
    return _encode(hmac.digest(verifier, b"exo join token id 1", hashlib.sha256)[:10])[:12]


def _encode(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()
