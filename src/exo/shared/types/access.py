"""Who may come in, as decided: the authority, join tokens, API keys, nodes that wish to join, and their certificates.

Nothing here is a secret of its own use: of tokens and keys there is only what a guess is checked against. All times
are Unix seconds, given by the master that decided; nothing here reads a clock.
"""

from typing import Literal, NewType

import msgspec

from exo.shared.types.ids import DeviceId, NodeId

TokenId = NewType("TokenId", str)
"""Names a join token; part of the token's text, and no secret."""

KeyId = NewType("KeyId", str)
"""Names an API key; part of the key's text, and no secret."""

Scope = Literal["read", "infer", "operate", "admin"]

SCOPES: tuple[Scope, ...] = ("read", "infer", "operate", "admin")

INCLUDED_SCOPES: dict[Scope, frozenset[Scope]] = {
    "read": frozenset({"read"}),
    "infer": frozenset({"infer"}),
    "operate": frozenset({"operate", "read", "infer"}),
    "admin": frozenset(SCOPES),
}
"""What each scope allows. Reading the cluster and using its models do not include each other."""

WRONG_TRIES_MAX = 5
"""So many wrong tries lock a token."""

WISH_LIFETIME_S = 7 * 86400.0
"""How long a wish to join is kept that nobody answers."""


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """What lets a node join without being asked."""

    verifier: str
    """What a proof of the secret is checked with. As good as the secret itself to whoever reads it: never shown."""
    created_at_s: float
    expires_at_s: float
    uses_left: int
    created_by: str
    wrong_tries: int = 0
    used_by: dict[NodeId, str] = {}
    """Node to fingerprint of its key: a node whose answer was lost may ask again."""

    @property
    def is_locked(self) -> bool:
        return self.wrong_tries >= WRONG_TRIES_MAX


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may not do beyond its scopes."""

    requests_per_minute: int | None = None
    """Generations that may begin within a minute of the clock, over all nodes; None: any number."""
    tokens_per_day: int | None = None
    """Of prompts and answers within a day (UTC), over all nodes; None: any number."""
    device_ids: tuple[DeviceId, ...] = ()
    """When not empty: it may use and place only what runs on these devices alone."""

    @property
    def has_quota(self) -> bool:
        """Whether what is done with the key has to be counted."""
        return self.requests_per_minute is not None or self.tokens_per_day is not None


class KeyUsage(msgspec.Struct, frozen=True, array_like=True):
    """What was done with a key through one node, in one minute and one day. Short: it is told often."""

    minute: int
    """Since 1970, in minutes."""
    requests: int
    """Generations that began in that minute."""
    day: int
    """Since 1970, in days of UTC."""
    tokens: int
    """Of that day."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """What lets a program use the API from elsewhere."""

    hash: str
    """SHA-256 of the secret, in hexadecimal: the secret has 256 random bits, which no guessing reaches. Never shown."""
    name: str
    scopes: tuple[Scope, ...]
    created_at_s: float
    expires_at_s: float | None
    created_by: str
    limits: KeyLimits = KeyLimits()


class JoinWish(msgspec.Struct, frozen=True, kw_only=True):
    """A node that asks to join. It asks again until it is answered, and brings its request along each time."""

    name: str
    address: str
    """Where it asked from, for people."""
    fingerprint: str
    """SHA-256 of its public key, in hexadecimal: what is approved is this key, not a name."""
    asked_at_s: float


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """A wish that was granted; the node collects its certificate with the same key."""

    fingerprint: str
    approved_at_s: float
    approved_by: str


class Declined(msgspec.Struct, frozen=True, kw_only=True):
    """A wish that was not granted."""

    fingerprint: str
    declined_at_s: float
    reason: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that the authority gave a node. Public."""

    serial: str
    """Hexadecimal."""
    fingerprint: str
    """SHA-256 of the public key that it is for, in hexadecimal."""
    issued_at_s: float
    not_after_s: float
    pem: str


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a certificate counts no more. Forgotten once the certificate would have run out."""

    node_id: NodeId
    reason: str
    not_after_s: float


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was decided about who may come in."""

    authority_pem: str | None = None
    """The certificate of the cluster's authority, which signs those of the nodes; its key is in no event."""
    tokens: dict[TokenId, JoinToken] = {}
    keys: dict[KeyId, ApiKey] = {}
    wishes: dict[NodeId, JoinWish] = {}
    approvals: dict[NodeId, Approval] = {}
    declined: dict[NodeId, Declined] = {}
    certificates: dict[NodeId, tuple[Certificate, ...]] = {}
    """Of each node those that had not run out when the newest was issued; the newest is last."""
    revoked: dict[str, Revocation] = {}
    """By serial."""
    removed: dict[NodeId, str] = {}
    """Nodes that were removed, with the reason: they come back only with a token or by an approval."""

    def refusal_reason(self, node_id: NodeId, serial: str) -> str | None:
        """Return why a node may not come in with a certificate of the authority, or None when it may.

        That the certificate is the authority's, is in time and names the node is the caller's to check.
        """
        if node_id in self.removed:
            return f"the node was removed: {self.removed[node_id]}"
        revocation = self.revoked.get(serial)
        return f"its certificate was revoked: {revocation.reason}" if revocation is not None else None
