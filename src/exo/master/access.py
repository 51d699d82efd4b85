"""State x command -> events, or a refusal: tokens, keys, and members that are removed. Pure: the time is passed in."""

import math
import re
from collections.abc import Iterable, Sequence

from exo.shared.types.access import SCOPES, Scope
from exo.shared.types.commands import (
    CreateKey,
    CreateToken,
    DeleteKey,
    DeleteToken,
    ForgetNode,
    Refusal,
    RemoveNode,
)
from exo.shared.types.events import (
    CertificateRevoked,
    Decision,
    KeyCreated,
    KeyDeleted,
    NodeRemoved,
    TokenCreated,
    TokenDeleted,
)
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State

TOKENS_MAX = 256
KEYS_MAX = 1024
TOKEN_LIFETIME_MAX_S = 30 * 86400.0
KEY_LIFETIME_MAX_S = 10 * 366 * 86400.0
USES_MAX = 1000
TEXT_CHARACTERS_MAX = 128
"""Of names and reasons."""

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
                return _unknown("token", command.token_id, state.access.tokens, "exo token list")
            return [TokenDeleted(token_id=command.token_id)]
        case CreateKey():
            return _create_key(state, command, now_s)
        case DeleteKey():
            if command.key_id not in state.access.keys:
                return _unknown("key", command.key_id, state.access.keys, "exo key list")
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
            f"{node_id} leads the cluster; stop it first, so that another node takes over, then remove it there",
        )
    reason = clean_text(command.reason) or "removed on request"
    revoked: list[Decision] = [
        CertificateRevoked(node_id=node_id, serial=one.serial, reason=f"the node was removed: {reason}")
        for one in certificates
    ]
    return [*revoked, NodeRemoved(node_id=node_id, reason=reason)]


def decide_forgetting(
    state: State, command: ForgetNode, *, own_node_id: NodeId, has_master: bool
) -> tuple[NodeId, ...] | Refusal:
    """Return the voters to give up, so that this node's history is the cluster's; decided where it is asked.

    All other voters are given up together: without any one of them their majority may go on elsewhere, and
    two histories would be the end.

    Args:
        state: As folded here.
        command: Whom the operator names.
        own_node_id: This node, which goes on.
        has_master: A master can be reached, so that nothing has to be given up.
    """
    voters = state.voters
    others = tuple(one for one in (*voters.voters, *voters.replicas) if one != own_node_id)
    named = sorted(set(command.node_ids))
    if not named:
        return refusal(
            422, "nobody_named", "name the nodes that are lost for good: exo node forget NODE --yes"
        )
    for node_id in named:
        if node_id == own_node_id:
            return refusal(
                409, "node_is_self", "a node cannot forget itself; ask on a node that is to go on alone"
            )
        if node_id not in state.nodes and node_id not in others:
            return unknown_node(node_id, state.nodes)
    if has_master:
        return refusal(
            409,
            "has_master",
            "the cluster has a master, so nothing has to be given up; take the nodes out with: "
            + " && ".join(f"exo node remove {node_id}" for node_id in named),
        )
    if own_node_id not in voters.members:
        return refusal(
            409,
            "not_a_voter",
            "this node has no complete copy of the decisions; ask on one that has: "
            f"{', '.join(voters.voters) or 'a voter'}",
        )
    strangers = [node_id for node_id in named if node_id not in others]
    if strangers:
        return refusal(
            409,
            "not_needed",
            f"{', '.join(strangers)} has no vote, so it is not what the cluster waits for; "
            f"those that have one are {', '.join(others) or 'none but this node'}",
        )
    unnamed = [node_id for node_id in others if node_id not in named]
    if unnamed:
        everybody = " ".join(sorted(others))
        return refusal(
            409,
            "others_may_go_on",
            f"{', '.join(unnamed)} may go on without this node; start them, or give all of them up together: "
            f"exo node forget {everybody} --yes",
        )
    return tuple(sorted(others))


def refusal(status: int, code: str, message: str, *, near_matches: Sequence[str] = ()) -> Refusal:
    """Return a refusal; `message` says the next step."""
    return Refusal(status=status, code=code, message=message, near_matches=tuple(near_matches))


def unknown_node(node_id: str, known: Iterable[str]) -> Refusal:
    """Return the refusal for a node that nobody knows."""
    return _unknown("node", node_id, known, "exo node list")


def clean_text(text: str) -> str:
    """Return a text from outside on one line, without what a terminal would act on, and not too long."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown.strip()[:TEXT_CHARACTERS_MAX]


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
    return [
        KeyCreated(
            key_id=command.key_id,
            hash=command.hash,
            name=clean_text(command.name),
            scopes=scopes,
            created_at_s=now_s,
            expires_at_s=None if lifetime_s is None else now_s + lifetime_s,
            created_by=clean_text(command.created_by),
        )
    ]


def _lifetime(lifetime_s: float) -> str:
    return f"{lifetime_s / 86400:g} days" if math.isfinite(lifetime_s) else "for ever"


def _unknown(what: str, name: str, known: Iterable[str], listing: str) -> Refusal:
    begin = name[:4]
    return refusal(
        404,
        f"{what}_not_found",
        f"there is no {what} {clean_text(name)!r}; `{listing}` lists those there are",
        near_matches=[one for one in sorted(set(known)) if begin and one.startswith(begin)][:3],
    )
