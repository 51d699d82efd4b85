"""How tokens, keys, wishes and certificates change who may come in."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec.structs import replace

from exo.shared.types import events as e
from exo.shared.types.access import (
    WISH_LIFETIME_S,
    Access,
    ApiKey,
    Approval,
    Certificate,
    Declined,
    JoinToken,
    JoinWish,
    KeyLimits,
    Revocation,
)
from exo.shared.types.ids import NodeId

K = TypeVar("K")
V = TypeVar("V")

DECLINED_MAX = 256
"""How many declined wishes are remembered; the oldest are forgotten first."""


def fold(access: Access, event: e.Decision) -> Access:
    """Return what is decided about access after one more event; one that is not about access changes nothing."""
    change = CHANGES.get(type(event))
    return access if change is None else change(access, event)


def authority_created(access: Access, event: e.AuthorityCreated) -> Access:
    return replace(access, authority_pem=event.certificate_pem)


def token_created(access: Access, event: e.TokenCreated) -> Access:
    """Add the token; those that have run out by then are forgotten, so that they do not gather."""
    token = JoinToken(
        verifier=event.verifier,
        created_at_s=event.created_at_s,
        expires_at_s=event.expires_at_s,
        uses_left=event.uses,
        created_by=event.created_by,
    )
    lasting = {key: one for key, one in access.tokens.items() if one.expires_at_s > event.created_at_s}
    return replace(access, tokens={**lasting, event.token_id: token})


def token_used(access: Access, event: e.TokenUsed) -> Access:
    token = access.tokens.get(event.token_id)
    if token is None:
        return access
    used_by = {**token.used_by, event.node_id: event.fingerprint}
    used = replace(token, uses_left=max(0, token.uses_left - 1), used_by=used_by)
    return replace(access, tokens={**access.tokens, event.token_id: used})


def token_guessed(access: Access, event: e.TokenGuessed) -> Access:
    token = access.tokens.get(event.token_id)
    if token is None:
        return access
    guessed = replace(token, wrong_tries=token.wrong_tries + 1)
    return replace(access, tokens={**access.tokens, event.token_id: guessed})


def token_deleted(access: Access, event: e.TokenDeleted) -> Access:
    return replace(access, tokens=_without(access.tokens, event.token_id))


def key_created(access: Access, event: e.KeyCreated) -> Access:
    key = ApiKey(
        hash=event.hash,
        name=event.name,
        scopes=event.scopes,
        created_at_s=event.created_at_s,
        expires_at_s=event.expires_at_s,
        created_by=event.created_by,
    )
    return replace(access, keys={**access.keys, event.key_id: key})


def key_limited(access: Access, event: e.KeyLimited) -> Access:
    key = access.keys.get(event.key_id)
    if key is None:
        return access
    limits = KeyLimits(
        requests_per_minute=event.requests_per_minute,
        tokens_per_day=event.tokens_per_day,
        device_ids=event.device_ids,
    )
    return replace(access, keys={**access.keys, event.key_id: replace(key, limits=limits)})


def key_deleted(access: Access, event: e.KeyDeleted) -> Access:
    return replace(access, keys=_without(access.keys, event.key_id))


def join_wished(access: Access, event: e.JoinWished) -> Access:
    """Note the wish; those that nobody answered for long are forgotten, so that they do not gather."""
    wish = JoinWish(
        name=event.name, address=event.address, fingerprint=event.fingerprint, asked_at_s=event.asked_at_s
    )
    fresh = {
        key: one for key, one in access.wishes.items() if event.asked_at_s - one.asked_at_s <= WISH_LIFETIME_S
    }
    return replace(
        access,
        wishes={**fresh, event.node_id: wish},
        declined=_without(access.declined, event.node_id),
        approvals=_without(access.approvals, event.node_id),
    )


def join_declined(access: Access, event: e.JoinDeclined) -> Access:
    declined = Declined(fingerprint=event.fingerprint, declined_at_s=event.declined_at_s, reason=event.reason)
    others = _without(access.declined, event.node_id)
    # The order of a dict is that of insertion, and is the same on every node: it comes from the log.
    kept = dict(list(others.items())[-(DECLINED_MAX - 1) :])
    return replace(
        access,
        wishes=_without(access.wishes, event.node_id),
        declined={**kept, event.node_id: declined},
    )


def node_approved(access: Access, event: e.NodeApproved) -> Access:
    approval = Approval(
        fingerprint=event.fingerprint, approved_at_s=event.approved_at_s, approved_by=event.approved_by
    )
    return replace(
        access,
        wishes=_without(access.wishes, event.node_id),
        approvals={**access.approvals, event.node_id: approval},
    )


def certificate_issued(access: Access, event: e.CertificateIssued) -> Access:
    """Admit the node; whatever stood against it or was under way is settled with that."""
    certificate = Certificate(
        serial=event.serial,
        fingerprint=event.fingerprint,
        issued_at_s=event.issued_at_s,
        not_after_s=event.not_after_s,
        pem=event.certificate_pem,
    )
    lasting = tuple(
        one for one in access.certificates.get(event.node_id, ()) if one.not_after_s > event.issued_at_s
    )
    return replace(
        access,
        certificates={**access.certificates, event.node_id: (*lasting, certificate)},
        revoked={key: one for key, one in access.revoked.items() if one.not_after_s > event.issued_at_s},
        wishes=_without(access.wishes, event.node_id),
        approvals=_without(access.approvals, event.node_id),
        declined=_without(access.declined, event.node_id),
        removed=_without(access.removed, event.node_id),
    )


def certificate_revoked(access: Access, event: e.CertificateRevoked) -> Access:
    return _revoke(access, event.node_id, event.reason, serial=event.serial)


def node_removed(access: Access, event: e.NodeRemoved) -> Access:
    revoked = _revoke(access, event.node_id, f"the node was removed: {event.reason}")
    return replace(
        revoked,
        wishes=_without(revoked.wishes, event.node_id),
        approvals=_without(revoked.approvals, event.node_id),
        removed={**revoked.removed, event.node_id: event.reason},
    )


def _revoke(access: Access, node_id: NodeId, reason: str, *, serial: str | None = None) -> Access:
    """Revoke one of the node's certificates, or all of them."""
    held = access.certificates.get(node_id, ())
    gone = [one for one in held if serial is None or one.serial == serial]
    if not gone:
        return access
    kept = tuple(one for one in held if one not in gone)
    certificates = _without(access.certificates, node_id)
    entries = {
        one.serial: Revocation(node_id=node_id, reason=reason, not_after_s=one.not_after_s) for one in gone
    }
    return replace(
        access,
        certificates={**certificates, node_id: kept} if kept else certificates,
        revoked={**access.revoked, **entries},
    )


def _without(held: Mapping[K, V], key: K) -> dict[K, V]:
    return {one: value for one, value in held.items() if one != key}


CHANGES: dict[type, Callable[[Access, Any], Access]] = {
    e.AuthorityCreated: authority_created,
    e.TokenCreated: token_created,
    e.TokenUsed: token_used,
    e.TokenGuessed: token_guessed,
    e.TokenDeleted: token_deleted,
    e.KeyCreated: key_created,
    e.KeyLimited: key_limited,
    e.KeyDeleted: key_deleted,
    e.JoinWished: join_wished,
    e.JoinDeclined: join_declined,
    e.NodeApproved: node_approved,
    e.CertificateIssued: certificate_issued,
    e.CertificateRevoked: certificate_revoked,
    e.NodeRemoved: node_removed,
}
