"""Who may come in, as the outside sees it: without what guesses of tokens and keys are checked against."""

from typing import Any

from msgspec.structs import replace

from exo.api.context import utc_text
from exo.cluster.trust.certificates import to_der
from exo.cluster.trust.token import authority_hash
from exo.shared.types.access import ApiKey, JoinToken, KeyId, TokenId
from exo.shared.types.events import (
    Decision,
    InstanceCreated,
    InstanceMoved,
    KeyCreated,
    LogEntry,
    TelemetryFrame,
    TokenCreated,
)
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State

View = dict[str, Any]


def without_secrets(item: LogEntry | TelemetryFrame) -> LogEntry | TelemetryFrame:
    """Return an item of the feed as everybody may see it who may read the cluster.

    What a plan was decided on is no secret, but packed for `why` alone, and the larger part of the event.
    """
    if not isinstance(item, LogEntry):
        return item
    event: Decision | None = None
    match item.event:
        case TokenCreated():
            event = replace(item.event, verifier="")
        case KeyCreated():
            event = replace(item.event, hash="")
        case InstanceCreated():
            event = replace(item.event, instance=replace(item.event.instance, basis=b""))
        case InstanceMoved():
            event = replace(item.event, basis=b"")
        case _:
            return item
    return replace(item, event=event)


def token(token_id: TokenId, value: JoinToken) -> View:
    """Return the shape `TokenView`."""
    return {
        "token_id": token_id,
        "created_at": utc_text(value.created_at_s),
        "expires_at": utc_text(value.expires_at_s),
        "uses_left": value.uses_left,
        "wrong_tries": value.wrong_tries,
        "is_locked": value.is_locked,
        "used_by": sorted(value.used_by),
        "created_by": value.created_by,
    }


def key(key_id: KeyId, value: ApiKey, now_s: float) -> View:
    """Return the shape `KeyView`."""
    expires_at_s = value.expires_at_s
    return {
        "key_id": key_id,
        "name": value.name,
        "scopes": value.scopes,
        "created_at": utc_text(value.created_at_s),
        "expires_at": None if expires_at_s is None else utc_text(expires_at_s),
        "is_expired": expires_at_s is not None and expires_at_s <= now_s,
        "created_by": value.created_by,
        "requests_per_minute": value.limits.requests_per_minute,
        "tokens_per_day": value.limits.tokens_per_day,
        "device_ids": value.limits.device_ids,
    }


def authority(state: State) -> str | None:
    """Return what tokens of this cluster begin with, or None while there is no authority."""
    pem = state.access.authority_pem
    return None if pem is None else authority_hash(to_der(pem))


def members(state: State, master: NodeId | None) -> View:
    """Return the shape `NodeList`, with the master that the answering node can reach."""
    access = state.access
    wishes = [
        {
            "node_id": node_id,
            "name": wish.name,
            "address": wish.address,
            "fingerprint": wish.fingerprint,
            "asked_at": utc_text(wish.asked_at_s),
        }
        for node_id, wish in sorted(access.wishes.items(), key=lambda one: (one[1].asked_at_s, one[0]))
    ]
    return {
        "nodes": [_member(state, node_id, master) for node_id in sorted(state.nodes)],
        "wishes": wishes,
        "authority_hash": authority(state),
    }


def _member(state: State, node_id: NodeId, master: NodeId | None) -> View:
    node = state.nodes[node_id]
    certificates = state.access.certificates.get(node_id, ())
    return {
        "node_id": node_id,
        "name": node.identity.name,
        "cluster_address": node.identity.cluster_address,
        "is_connected": node.is_connected,
        "left_reason": node.left_reason,
        "is_master": node_id == master,
        "is_voter": node_id in state.voters.members,
        "certificate_expires_at": utc_text(certificates[-1].not_after_s) if certificates else None,
    }
