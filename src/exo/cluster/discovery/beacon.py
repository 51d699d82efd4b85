"""The beacon's bytes: what anybody may see of a node, and its facts for those who share a key with it. Pure.

magic "EXOB" (4), version (u8), number of codes (u8), one code of 16 bytes for each of the sender's keys, length of the
clear part (u16, big-endian), the clear part (msgpack of BeaconHead), the rest of ClusterFacts (msgpack of a map)

A code is HMAC-SHA256, cut to half its length (RFC 2104, section 5), of everything behind the codes. The layout up to
the end of the clear part stays in later versions, so that a node can say who it is that it does not understand.
Nothing here is secret: a code proves who made the beacon, it hides nothing.
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec

from exo.cluster.facts import ClusterFacts
from exo.shared.types.nodes import HostPort

MAGIC = b"EXOB"
TEST_MAGIC = b"EXOT"
"""Begins what `exo doctor` sends to itself through the group: nodes pass it over."""
VERSION = 2
BEACON_BYTES_MAX = 1200
"""Fits one packet of any network in use."""

NAME_LENGTH_MAX = 64
"""Characters of a host's name that a beacon carries: for people, who get the rest from the state."""
KEYS_MAX = 4

_FIXED = len(MAGIC) + 2
_CODE_BYTES = 16
_Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]


class BeaconHead(msgspec.Struct, frozen=True, kw_only=True):
    """The clear part: what a stranger may see. Unproven, so a stranger should believe none of it."""

    namespace: Annotated[str, msgspec.Meta(max_length=128)]
    node_id: _Id
    name: Annotated[str, msgspec.Meta(max_length=NAME_LENGTH_MAX)]
    cluster_address: HostPort
    cluster_id: _Id | None
    exo_version: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.+!_-]{1,64}\Z")]
    sent_at_s: float
    """The sender's wall clock, in seconds since 1970: for finding clocks that are wrong."""


class Heard(msgspec.Struct, frozen=True):
    """A beacon made with one of the hearer's keys."""

    facts: ClusterFacts
    sent_at_s: float


class Stranger(msgspec.Struct, frozen=True):
    """A beacon that is whole, and cannot be believed or understood."""

    head: BeaconHead
    fault: Literal["other_secret", "other_version"]


BeaconFault = Literal["malformed", "other_version"]

_encoder = msgspec.msgpack.Encoder()
_head_decoder = msgspec.msgpack.Decoder(BeaconHead)
_SHARED_FIELDS = tuple(name for name in BeaconHead.__struct_fields__ if name != "sent_at_s")


def encode_beacon(keys: Sequence[bytes], facts: ClusterFacts, *, now_s: float) -> bytes:
    """Return the beacon under all of these keys; `now_s` is the wall clock. Its length is for the caller to check."""
    fields = msgspec.structs.asdict(facts)
    shared = {name: fields.pop(name) for name in _SHARED_FIELDS}
    shared["name"] = shared["name"][:NAME_LENGTH_MAX]
    clear = _encoder.encode(BeaconHead(**shared, sent_at_s=round(now_s, 3)))
    payload = len(clear).to_bytes(2, "big") + clear + _encoder.encode(fields)
    codes = [_code(key, VERSION, payload) for key in keys[:KEYS_MAX]]
    return MAGIC + bytes([VERSION, len(codes)]) + b"".join(codes) + payload


def decode_beacon(keys: Sequence[bytes], data: bytes) -> Heard | Stranger | BeaconFault:
    """Return what a beacon says to somebody with these keys, or what is wrong with it."""
    if len(data) <= _FIXED or len(data) > BEACON_BYTES_MAX or data[: len(MAGIC)] != MAGIC:
        return "malformed"
    version, code_count = data[len(MAGIC)], data[len(MAGIC) + 1]
    payload = data[_FIXED + code_count * _CODE_BYTES :]
    clear_end = 2 + int.from_bytes(payload[:2], "big")
    clear = payload[2:clear_end]
    head = _decode_head(clear) if code_count <= KEYS_MAX and len(payload) >= clear_end else None
    if head is None:
        return "other_version" if version != VERSION else "malformed"
    if version != VERSION:
        return Stranger(head, "other_version")
    codes = [
        data[start : start + _CODE_BYTES]
        for start in range(_FIXED, _FIXED + code_count * _CODE_BYTES, _CODE_BYTES)
    ]
    wanted = [_code(key, version, payload) for key in keys[:KEYS_MAX]]
    if not any(hmac.compare_digest(code, mine) for code in codes for mine in wanted):
        return Stranger(head, "other_secret")
    facts = _decode_facts(clear, payload[clear_end:])
    return Heard(facts, head.sent_at_s) if facts is not None else "malformed"


def _decode_head(clear: bytes) -> BeaconHead | None:
    try:
        head = _head_decoder.decode(clear)
    except (msgspec.DecodeError, ValueError, RecursionError):  # It comes from anybody.
        return None
    address = head.cluster_address
    return head if 0 < address.port < 65536 and 0 < len(address.host) <= 255 else None


def _decode_facts(clear: bytes, rest: bytes) -> ClusterFacts | None:
    try:
        shared = cast("dict[str, Any]", msgspec.msgpack.decode(clear))
        fields = cast("dict[str, Any]", msgspec.msgpack.decode(rest))
        return msgspec.convert({**fields, **shared}, ClusterFacts)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError):
        return None


def _code(key: bytes, version: int, payload: bytes) -> bytes:
    # The prefix keeps a beacon's code from being of use anywhere else that the key is used.
    text = b"exo\0beacon\0" + bytes([version]) + payload
    return hmac.digest(key, text, hashlib.sha256)[:_CODE_BYTES]
