"""State x a node that wants to join -> let in, let wait, or refused with the reason. Pure: the time is passed in."""

from collections.abc import Sequence

import msgspec

from exo.master.access import SHA256_HEX, Decided
from exo.shared.refusals import clean_text, refusal, unknown_node
from exo.shared.types.access import WISH_LIFETIME_S, WRONG_TRIES_MAX, Certificate
from exo.shared.types.commands import ApproveNode, DeclineNode, EnrolNode, Refusal
from exo.shared.types.events import (
    Decision,
    JoinDeclined,
    JoinWished,
    NodeApproved,
    TokenGuessed,
    TokenUsed,
)
from exo.shared.types.state import State

WISHES_MAX = 64
"""Anybody who reaches the cluster's port can wish: more than a person would look at are not kept."""
APPROVAL_LIFETIME_S = 86400.0
DECLINED_FOR_S = 3600.0
"""How long a node that was declined is not shown again."""
CERTIFICATES_MAX = 8
"""Of one node at a time: one that is renewed when two thirds of it are over has two at most."""
REQUEST_BYTES_MAX = 8192
NODE_ID_CHARACTERS_MAX = 64


class Admit(msgspec.Struct, frozen=True, kw_only=True):
    """Sign a certificate, and commit it together with these events."""

    events: tuple[Decision, ...] = ()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The node has a good certificate for this key: it did not get the answer, or lost it."""

    certificate: Certificate


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody has to approve it first."""

    events: tuple[Decision, ...] = ()


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """Refuse it, and commit these events."""

    refusal: Refusal
    events: tuple[Decision, ...] = ()


Verdict = Admit | Held | Wait | Reject


def decide_enrolment(state: State, command: EnrolNode, now_s: float) -> Verdict:
    """Return what becomes of a node that asks for a certificate. `now_s` is in Unix seconds."""
    malformed = _malformed(command)
    if malformed is not None:
        return Reject(refusal=malformed)
    match command.proof:
        case "certificate":
            return _renewal(state, command, now_s)
        case "token":
            return _with_token(state, command, now_s)
        case "host_secret":
            return _with_host_secret(state, command, now_s)
        case "none":
            return _wish(state, command, now_s)


def decide_approval(state: State, command: ApproveNode, now_s: float) -> Decided:
    """Return the events that let a node join that wishes to."""
    wish = state.access.wishes.get(command.node_id)
    if wish is None:
        return _no_wish(state, command)
    if command.fingerprint is not None and command.fingerprint != wish.fingerprint:
        return refusal(
            409,
            "other_key",
            f"the node that asks as {command.node_id} has another key now; look again: exo node list",
        )
    if now_s - wish.asked_at_s > WISH_LIFETIME_S:
        return refusal(
            409,
            "wish_too_old",
            f"{command.node_id} asked more than {WISH_LIFETIME_S / 86400:g} days ago; start it again, "
            "then approve it",
        )
    return [
        NodeApproved(
            node_id=command.node_id,
            fingerprint=wish.fingerprint,
            approved_at_s=now_s,
            approved_by=clean_text(command.approved_by),
        )
    ]


def decide_decline(state: State, command: DeclineNode, now_s: float) -> Decided:
    """Return the events that end a node's wish."""
    wish = state.access.wishes.get(command.node_id)
    if wish is None:
        return _no_wish(state, command)
    return [
        JoinDeclined(
            node_id=command.node_id,
            fingerprint=wish.fingerprint,
            declined_at_s=now_s,
            reason=clean_text(command.reason) or "declined",
        )
    ]


def _no_wish(state: State, command: ApproveNode | DeclineNode) -> Refusal:
    node_id = command.node_id
    if node_id in state.access.approvals:
        return refusal(
            409, "already_approved", f"{node_id} is approved already and joins when it asks again; start it"
        )
    if node_id in state.nodes or node_id in state.access.certificates:
        return refusal(
            409, "already_member", f"{node_id} is a member already; to take it out: exo node remove {node_id}"
        )
    return unknown_node(node_id, state.access.wishes)


def _malformed(command: EnrolNode) -> Refusal | None:
    is_id = command.node_id.replace("-", "").replace("_", "")
    if not (is_id.isascii() and is_id.isalnum()) or len(command.node_id) > NODE_ID_CHARACTERS_MAX:
        return refusal(
            422, "node_id_malformed", "the node's id is malformed; delete it there and start again"
        )
    if not SHA256_HEX.fullmatch(command.fingerprint):
        return refusal(422, "fingerprint_malformed", "the key's fingerprint is malformed; try again")
    if not 0 < len(command.request_der) <= REQUEST_BYTES_MAX:
        return refusal(
            422,
            "request_too_long",
            f"the request for a certificate has {len(command.request_der)} bytes, {REQUEST_BYTES_MAX} are the most; "
            "use the same release of exo on both nodes",
        )
    return None


def _renewal(state: State, command: EnrolNode, now_s: float) -> Verdict:
    """A member asks for its next certificate, over a connection that its present one protects."""
    if not command.is_proven:
        return _rejected(403, "certificate_wrong", "the certificate does not belong to this node; join again")
    if command.node_id in state.access.removed:
        return _removed(state, command)
    lasting = _lasting(state, command, now_s)
    if not lasting:
        # A voter signs one for itself where all of them had run out, with nobody to renew them.
        before = state.access.certificates.get(command.node_id, ())
        if any(one.fingerprint == command.fingerprint for one in before):
            return Admit()
        return _rejected(403, "certificate_over", "this node has no certificate that counts; join it again")
    newest = lasting[-1]
    if newest.fingerprint == command.fingerprint and now_s - newest.issued_at_s < _half_life_s(newest):
        return Held(certificate=newest)
    return _too_many(lasting) or Admit()


def _too_many(lasting: Sequence[Certificate]) -> Reject | None:
    if len(lasting) < CERTIFICATES_MAX:
        return None
    return _rejected(
        429,
        "renewed_too_often",
        f"this node has {len(lasting)} certificates that still count, which is the limit; "
        "use one of them until the oldest runs out",
    )


def _with_token(state: State, command: EnrolNode, now_s: float) -> Verdict:
    token = None if command.token_id is None else state.access.tokens.get(command.token_id)
    if command.token_id is None or token is None:
        return _rejected(
            403,
            "token_unknown",
            "this token is not known here, or was deleted; ask for one: exo token create",
        )
    if token.is_locked:
        return _rejected(
            403,
            "token_locked",
            f"this token is locked after {WRONG_TRIES_MAX} wrong tries; ask for another: exo token create",
        )
    if token.expires_at_s <= now_s:
        return _rejected(403, "token_expired", "this token has run out; ask for another: exo token create")
    if not command.is_proven:
        left = WRONG_TRIES_MAX - token.wrong_tries - 1
        guessed = TokenGuessed(
            token_id=command.token_id, node_id=command.node_id, address=clean_text(command.address)
        )
        what = f"{left} tries are left" if left else "it is locked now"
        message = (
            f"this is not the token's secret, {what}; copy it again, or ask for another: exo token create"
        )
        return Reject(refusal=refusal(403, "token_wrong", message), events=(guessed,))
    held = _held(state, command, now_s)
    if held is not None:
        return held
    taken = _taken(state, command, now_s)
    if taken is not None:
        return Reject(refusal=taken)
    if command.node_id in token.used_by:
        if command.node_id in state.access.removed:
            return _removed(state, command)
        if token.used_by[command.node_id] == command.fingerprint:
            # Its certificate has run out; the use was its own.
            return Admit()
    if token.uses_left < 1:
        return _rejected(403, "token_used_up", "this token has been used; ask for another: exo token create")
    used = TokenUsed(token_id=command.token_id, node_id=command.node_id, fingerprint=command.fingerprint)
    return Admit(events=(used,))


def _with_host_secret(state: State, command: EnrolNode, now_s: float) -> Verdict:
    """Another node of the same user on the same host."""
    if not command.is_proven:
        return _rejected(
            403, "host_secret_wrong", "this node does not have the secret of this host's user; use a token"
        )
    if command.node_id in state.access.removed:
        return _wish(state, command, now_s)
    held = _held(state, command, now_s)
    if held is not None:
        return held
    # A member without a certificate came in by this same secret before there were certificates. One whose certificate
    # is for this key is that node itself, which has it renewed.
    lasting = _lasting(state, command, now_s)
    if lasting and all(one.fingerprint != command.fingerprint for one in lasting):
        return Reject(refusal=_taken_refusal(command))
    return _too_many(lasting) or Admit()


def _wish(state: State, command: EnrolNode, now_s: float) -> Verdict:
    """Nothing speaks for the node: somebody has to look at it."""
    access, node_id = state.access, command.node_id
    held = _held(state, command, now_s)
    if held is not None:
        return held
    taken = _taken(state, command, now_s)
    if taken is not None:
        return Reject(refusal=taken)
    approval = access.approvals.get(node_id)
    if approval is not None and now_s - approval.approved_at_s <= APPROVAL_LIFETIME_S:
        if approval.fingerprint == command.fingerprint:
            return Admit()
        return Reject(refusal=_other_key(command))
    declined = access.declined.get(node_id)
    if declined is not None and now_s - declined.declined_at_s < DECLINED_FOR_S:
        left_s = declined.declined_at_s + DECLINED_FOR_S - now_s
        return _rejected(
            403,
            "join_declined",
            f"this node's wish to join was declined: {declined.reason}; use a token, "
            f"or ask again in {-(-left_s // 60):.0f} min",
        )
    wish = access.wishes.get(node_id)
    if wish is not None and now_s - wish.asked_at_s <= WISH_LIFETIME_S:
        return Wait() if wish.fingerprint == command.fingerprint else Reject(refusal=_other_key(command))
    waiting = sum(1 for one in access.wishes.values() if now_s - one.asked_at_s <= WISH_LIFETIME_S)
    if waiting >= WISHES_MAX:
        return _rejected(
            429,
            "too_many_wishes",
            f"{waiting} nodes wait to be let in, which is the limit; use a token, or have some of them "
            "approved or declined: exo node list",
        )
    wished = JoinWished(
        node_id=node_id,
        name=clean_text(command.name),
        address=clean_text(command.address),
        fingerprint=command.fingerprint,
        asked_at_s=now_s,
    )
    return Wait(events=(wished,))


def _lasting(state: State, command: EnrolNode, now_s: float) -> tuple[Certificate, ...]:
    """Return the node's certificates that have not run out; the newest is last."""
    held = state.access.certificates.get(command.node_id, ())
    return tuple(one for one in held if one.not_after_s > now_s)


def _held(state: State, command: EnrolNode, now_s: float) -> Held | None:
    """Return the certificate that the node has for this very key, with half of its life left."""
    for one in reversed(_lasting(state, command, now_s)):
        if one.fingerprint == command.fingerprint and now_s - one.issued_at_s < _half_life_s(one):
            return Held(certificate=one)
    return None


def _half_life_s(certificate: Certificate) -> float:
    return (certificate.not_after_s - certificate.issued_at_s) / 2


def _taken(state: State, command: EnrolNode, now_s: float) -> Refusal | None:
    """Refuse a stranger who asks under the id of a member: who has the id keeps it."""
    lasting = _lasting(state, command, now_s)
    is_same_key = any(one.fingerprint == command.fingerprint for one in lasting)
    is_member = bool(lasting) or command.node_id in state.nodes
    has_come_before = any(
        one.fingerprint == command.fingerprint for one in state.access.certificates.get(command.node_id, ())
    )
    if is_member and not is_same_key and not (has_come_before and not lasting):
        return _taken_refusal(command)
    return None


def _taken_refusal(command: EnrolNode) -> Refusal:
    return refusal(
        409,
        "node_id_taken",
        f"{command.node_id} is a member with another key; if this is that node and it lost its keys, take the old "
        f"one out first: exo node remove {command.node_id}",
    )


def _removed(state: State, command: EnrolNode) -> Reject:
    return _rejected(
        403,
        "node_removed",
        f"this node was removed: {state.access.removed[command.node_id]}; join again with a new token, "
        "or ask without one and be approved",
    )


def _other_key(command: EnrolNode) -> Refusal:
    return refusal(
        409,
        "other_key",
        f"another key asked to join as {command.node_id} before; have that one declined first: "
        f"exo node decline {command.node_id}",
    )


def _rejected(status: int, code: str, message: str) -> Reject:
    return Reject(refusal=refusal(status, code, message))
