"""Shapes of who may come in: nodes and wishes, join tokens, API keys, the audit log. Never a verifier or a hash."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from exo.api.schemas.base import Shape, Text, Wish
from exo.api.schemas.cluster import AddressView
from exo.shared.types.access import Scope

DAY_S = 86400.0

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[Text, StringConstraints(max_length=128)]
DeviceName = Annotated[Text, StringConstraints(min_length=1, max_length=512)]

# As the master has them.
REQUESTS_MAX = 1_000_000
TOKENS_MAX = 1_000_000_000_000
DEVICES_MAX = 256


class TokenWish(Wish):
    """A join token to be made."""

    lifetime_s: Seconds = 3600.0
    """Up to 30 days."""
    uses: Annotated[int, Field(ge=1, le=1000)] = 1
    """So many nodes may join with it."""


class TokenView(Shape):
    token_id: str
    created_at: str
    """ISO 8601, UTC."""
    expires_at: str
    uses_left: int
    wrong_tries: int
    is_locked: bool
    """Five wrong tries lock it."""
    used_by: list[str]
    """Nodes that joined with it."""
    created_by: str


class TokenMade(TokenView):
    """The only answer that has the token itself."""

    token: str
    """`exo1.<hash of the cluster's authority>.<secret>`: for `exo join`."""
    index: int


class TokenList(Shape):
    tokens: list[TokenView]


class KeyWish(Wish):
    """An API key to be made."""

    scopes: Annotated[list[Scope], Field(min_length=1)]
    """`operate` includes `read` and `infer`; `admin` includes all."""
    name: Name = ""
    """For people."""
    lifetime_s: Seconds | None = None
    """Null: until it is deleted."""
    requests_per_minute: Annotated[int, Field(ge=1, le=REQUESTS_MAX)] | None = None
    """Generations that may begin in a minute of the clock, over all nodes; null: any number."""
    tokens_per_day: Annotated[int, Field(ge=1, le=TOKENS_MAX)] | None = None
    """Of prompts and answers in a day (UTC), over all nodes; null: any number."""
    device_ids: Annotated[list[DeviceName], Field(max_length=DEVICES_MAX)] = []
    """When not empty: it may use and place only what runs on these devices alone."""


class KeyView(Shape):
    key_id: str
    name: str
    scopes: list[Scope]
    created_at: str
    """ISO 8601, UTC."""
    expires_at: str | None
    is_expired: bool
    created_by: str
    requests_per_minute: int | None
    """Null: any number."""
    tokens_per_day: int | None
    """Null: any number."""
    device_ids: list[str]
    """Empty: all."""


class KeyMade(KeyView):
    """The only answer that has the key itself."""

    key: str
    """`exo-<id>-<secret>`: for `Authorization: Bearer` or `x-api-key`."""
    index: int


class KeyList(Shape):
    keys: list[KeyView]


class MemberView(Shape):
    """A member of the cluster."""

    node_id: str
    name: str
    cluster_address: AddressView
    is_connected: bool
    left_reason: str | None
    is_master: bool
    is_voter: bool
    """Its copy of the decisions counts."""
    certificate_expires_at: str | None
    """ISO 8601, UTC. Null: it came in as another node of the same user on the same host."""


class WishView(Shape):
    """A node that wants to join."""

    node_id: str
    name: str
    address: str
    fingerprint: str
    """SHA-256 of its key; the node shows the same at its start."""
    asked_at: str
    """ISO 8601, UTC."""


class NodeList(Shape):
    """Members, and nodes that want to become some."""

    nodes: list[MemberView]
    """Sorted by `node_id`."""
    wishes: list[WishView]
    """Oldest first."""
    authority_hash: str | None
    """What join tokens of this cluster begin with; null while there is no authority."""


class ApprovalWish(Wish):
    fingerprint: Annotated[Text, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The key that was looked at: another that asks under the same id is not let in. Null: whichever asks."""


class DeclineWish(Wish):
    reason: Name = ""
    """Shown to the node."""


class ForgetWish(Wish):
    """Voters to be given up for good."""

    node_ids: Annotated[list[Text], Field(min_length=1, max_length=16)]
    is_loss_accepted: Literal[True]
    """What only those nodes had is lost, and they come back as newcomers only."""


class Decided(Shape):
    """It is decided."""

    index: int


class JoinWish(Wish):
    """A cluster that this node is to join."""

    token: Annotated[Text, StringConstraints(min_length=1, max_length=512)] | None = None
    """Null: the node asks without one, and waits until somebody there approves it."""
    address: Annotated[Text, StringConstraints(max_length=512)] | None = None
    """`HOST:PORT` of one of its nodes; null: one that is found and has the token's authority, or the only one found."""


class JoinNoted(Shape):
    """What it is to join with lies ready for this node."""

    authority_hash: str | None
    """Of the cluster that the token is for; null without a token."""
    is_used_now: bool
    """False: when the node starts next."""


class AuditEntry(Shape):
    """One line of the audit log."""

    seq: int
    at: str
    """ISO 8601, UTC."""
    who: str
    address: str
    what: str
    details: dict[str, Any]
    result: str
    index: int | None
    code: str | None
    previous: str
    """SHA-256 of the line before."""


class AuditList(Shape):
    entries: list[AuditEntry]
    """Oldest first."""


class AuditVerification(Shape):
    """Whether every line follows the one before it."""

    is_whole: bool
    line_count: int
    first_seq: int | None
    last_seq: int | None
    problems: list[str]
