"""API keys: `exo-<id>-<secret>`, what is kept of one, and how one is recognised. Pure but for new secrets."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping

import msgspec

from exo.shared.types.access import Access, ApiKey, KeyId

PREFIX = "exo-"
SECRET_BYTES = 32
ID_BYTES = 4
OWNER_ID = "owner"
"""Stands where the id does in the key that a node makes for its own user; no key of the cluster has so short an id."""

KEY_CHARACTERS_MAX = 256


class PlainKey(msgspec.Struct, frozen=True):
    """A key as it was handed out. Its `repr` does not show the secret; `reveal` does."""

    key_id: KeyId
    secret: str

    def reveal(self) -> str:
        """Return the key as a person hands it on."""
        return f"{PREFIX}{self.key_id}-{self.secret}"

    @property
    def hash(self) -> str:
        """What the cluster keeps: SHA-256 in hexadecimal. One round is enough for 256 random bits."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"PlainKey({PREFIX}{self.key_id}-***)"


def create_key(*, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> PlainKey:
    """Return a new key: 8 letters and digits that name it, and 64 that only its holder has."""
    key_id = random_bytes(ID_BYTES).hex()
    return PlainKey(KeyId(key_id), random_bytes(SECRET_BYTES).hex())


def credential(headers: Mapping[str, str]) -> str:
    """Return what the request shows, as `Authorization: Bearer` or `x-api-key`; empty if it shows nothing."""
    kind, _, text = headers.get("authorization", "").strip().partition(" ")
    if kind.lower() == "bearer" and text.strip():
        return text.strip()
    return headers.get("x-api-key", "").strip()


def parse_key(text: str) -> PlainKey | None:
    """Read a key; None if it is none. Many clients insist on some text where no key is needed."""
    if not text.startswith(PREFIX) or len(text) > KEY_CHARACTERS_MAX or not text.isascii():
        return None
    key_id, separator, secret = text.removeprefix(PREFIX).partition("-")
    return PlainKey(KeyId(key_id), secret) if separator and key_id and secret else None


def find_key(access: Access, shown: PlainKey) -> ApiKey | None:
    """Return the cluster's key that was shown, or None; takes as long for an unknown id as for a wrong secret."""
    known = access.keys.get(shown.key_id)
    is_right = hmac.compare_digest(known.hash if known is not None else "0" * 64, shown.hash)
    return known if is_right else None
