"""State x command -> events, or a refusal: tokens, keys, and members that are removed. Pure: the time is passed in."""

import math
import re

from exo.master.key_limits import limits_refusal
from exo.shared.refusals import clean_text, refusal, unknown, unknown_node
from exo.shared.types.access import SCOPES, KeyLimits, Scope
from exo.shared.types.commands import (
    CreateKey,
    CreateToken,
    DeleteKey,
    DeleteToken,
    Refusal,
    RemoveNode,
)
from exo.shared.types.events import (
    CertificateRevoked,
    Decision,
    KeyCreated,
    KeyDeleted,
    KeyLimited,
    NodeRemoved,
    TokenCreated,
    TokenDeleted,
)
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters

TOKENS_MAX = 256
KEYS_MAX = 1024
TOKEN_LIFETIME_MAX_S = 30 * 86400.0
KEY_LIFETIME_MAX_S = 10 * 366 * 86400.0
USES_MAX = 1000

_TOKEN_ID = re.compile(r"[a-z2-7]{12}")
_KEY_ID = re.compile(r"[a-z0-9]{4,32}")
SHA256_HEX = re.compile(r"[0-9a-f]{64}")

TokenOrKeyCommand = CreateToken | DeleteToken | CreateKey | DeleteKey
Decided = list[Decision] | Refusal


def decide_token_or_key(state: State, command: TokenOrKeyCommand, now_s: float) -> Decided:
    """Return the events that carry the command out on this state. `now_s` is in Unix seconds."""
    match command:
        case CreateToken():
            return _create_token(state, command, now_s)
        case DeleteToken():
            if command.token_id not in state.access.tokens:
                return unknown("token", command.token_id, state.access.tokens, "exo token list")
            return [TokenDeleted(token_id=command.token_id)]
        case CreateKey():
            return _create_key(state, command, now_s)
        case DeleteKey():
            if command.key_id not in state.access.keys:
                return unknown("key", command.key_id, state.access.keys, "exo key list")
            return [KeyDeleted(key_id=command.key_id)]


def decide_removal(state: State, command: RemoveNode) -> Decided:
    """Return the events that end a membership; also of a node that has a certificate and never came."""
    node_id = command.node_id
    certificates = state.access.certificates.get(node_id, ())
    if node_id not in state.nodes and not certificates:
        if node_id in state.access.wishes:
            return refusal(
                409,
                "node_not_member",
                f"{node_id} is no member yet, it wishes to become one; decline it: exo node decline {node_id}",
            )
        return unknown_node(node_id, [*state.nodes, *state.access.certificates])
    if node_id == state.master_node_id:
        return refusal(
            409,
            "node_leads",
            f"{_name(state, node_id)} leads the cluster; {_hand_over(state, node_id)}",
        )
    needed = _needed_vote(state, node_id)
    if needed is not None:
        return needed
    reason = clean_text(command.reason) or "removed on request"
    revoked: list[Decision] = [
        CertificateRevoked(node_id=node_id, serial=one.serial, reason=f"the node was removed: {reason}")
        for one in certificates
    ]
    return [*revoked, NodeRemoved(node_id=node_id, reason=reason)]


def _needed_vote(state: State, node_id: NodeId) -> Refusal | None:
    """Refuse where the other voters could decide nothing any more, not even that this one votes no longer.

    Whoever learns that it was removed agrees to nothing further.
    """
    voters = state.voters.voters
    rest = Voters(voters=tuple(one for one in voters if one != node_id))
    connected = {one for one, node in state.nodes.items() if node.is_connected}
    away = [one for one in rest.voters if one not in connected]
    here = len(rest.voters) - len(away)
    if node_id not in voters or node_id not in connected or here >= rest.majority:
        return None
    return refusal(
        409,
        "vote_needed",
        f"without {node_id} nothing could be decided: {here} of the other {len(rest.voters)} voters would be there, "
        f"{rest.majority - here} too few; start {' or '.join(away)} first, or remove those that will not be back",
    )


def _hand_over(state: State, master: NodeId) -> str:
    """Return how a master can be removed after all."""
    others = [node_id for node_id, node in state.nodes.items() if node.is_connected and node_id != master]
    if not others:
        return "start another node first, which takes over when this one is stopped; then remove it there"
    return (
        "stop it first: another node takes over at once; then ask that one, such as "
        f"{_name(state, others[0])}: exo node remove {master}"
    )


def _name(state: State, node_id: NodeId) -> str:
    return clean_text(state.nodes[node_id].identity.name)


def _create_token(state: State, command: CreateToken, now_s: float) -> Decided:
    tokens = state.access.tokens
    lasting = sum(1 for token in tokens.values() if token.expires_at_s > now_s)
    if command.token_id in tokens:
        return refusal(409, "token_exists", f"there is a token {command.token_id} already; ask for another")
    if not _TOKEN_ID.fullmatch(command.token_id) or not SHA256_HEX.fullmatch(command.verifier):
        return refusal(422, "token_malformed", "the token is malformed; create it with: exo token create")
    if not 0 < command.lifetime_s <= TOKEN_LIFETIME_MAX_S:
        return refusal(
            422,
            "lifetime_out_of_range",
            f"a token lasts up to {TOKEN_LIFETIME_MAX_S / 86400:g} days, not {_lifetime(command.lifetime_s)}; "
            "ask for less",
        )
    if not 1 <= command.uses <= USES_MAX:
        return refusal(
            422, "uses_out_of_range", f"a token has 1 to {USES_MAX} uses, not {command.uses}; ask for others"
        )
    if lasting >= TOKENS_MAX:
        return refusal(
            409,
            "too_many_tokens",
            f"there are {lasting} tokens, which is the limit; delete one: exo token delete ID",
        )
    return [
        TokenCreated(
            token_id=command.token_id,
            verifier=command.verifier,
            created_at_s=now_s,
            expires_at_s=now_s + command.lifetime_s,
            uses=command.uses,
            created_by=clean_text(command.created_by),
        )
    ]


def _create_key(state: State, command: CreateKey, now_s: float) -> Decided:
    keys = state.access.keys
    if command.key_id in keys:
        return refusal(409, "key_exists", f"there is a key {command.key_id} already; ask for another")
    if not _KEY_ID.fullmatch(command.key_id) or not SHA256_HEX.fullmatch(command.hash):
        return refusal(422, "key_malformed", "the key is malformed; create it with: exo key create")
    wanted: set[str] = set(command.scopes)
    scopes: tuple[Scope, ...] = tuple(scope for scope in SCOPES if scope in wanted)
    if not scopes:
        return refusal(
            422,
            "no_scope",
            f"a key needs at least one scope of {', '.join(SCOPES)}: exo key create --scope infer",
        )
    lifetime_s = command.lifetime_s
    if lifetime_s is not None and not 0 < lifetime_s <= KEY_LIFETIME_MAX_S:
        return refusal(
            422,
            "lifetime_out_of_range",
            f"a key lasts up to {KEY_LIFETIME_MAX_S / 86400:g} days, not {_lifetime(lifetime_s)}; "
            "ask for less, or leave it out for a key that lasts until it is deleted",
        )
    if len(keys) >= KEYS_MAX:
        return refusal(
            409,
            "too_many_keys",
            f"there are {len(keys)} keys, which is the limit; delete one: exo key delete ID",
        )
    limits = command.limits
    refused = limits_refusal(state, scopes, limits)
    if refused is not None:
        return refused
    limited: list[Decision] = [
        KeyLimited(
            key_id=command.key_id,
            requests_per_minute=limits.requests_per_minute,
            tokens_per_day=limits.tokens_per_day,
            device_ids=tuple(dict.fromkeys(limits.device_ids)),
        )
    ]
    return [
        KeyCreated(
            key_id=command.key_id,
            hash=command.hash,
            name=clean_text(command.name),
            scopes=scopes,
            created_at_s=now_s,
            expires_at_s=None if lifetime_s is None else now_s + lifetime_s,
            created_by=clean_text(command.created_by),
        ),
        *(limited if limits != KeyLimits() else ()),
    ]


def _lifetime(lifetime_s: float) -> str:
    return f"{lifetime_s / 86400:g} days" if math.isfinite(lifetime_s) else "for ever"
