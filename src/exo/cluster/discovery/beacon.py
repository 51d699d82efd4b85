"""The beacon's bytes: a node's facts under the host secret. Pure.

magic "EXOB" (4), version (u8), HMAC-SHA256 of what follows (32), msgpack of ClusterFacts
"""

import hashlib
import hmac
from typing import Literal

import msgspec

from exo.cluster.facts import ClusterFacts

MAGIC = b"EXOB"
VERSION = 1
BEACON_BYTES_MAX = 1200
"""Fits one packet of any network in use."""

NAME_LENGTH_MAX = 64
"""Characters of a host's name that a beacon carries: for people, who get the rest from the state."""

_HEAD = len(MAGIC) + 1
_MAC_BYTES = 32
_decoder = msgspec.msgpack.Decoder(ClusterFacts)
_encoder = msgspec.msgpack.Encoder()

BeaconFault = Literal["malformed", "other_version", "other_secret"]


def encode_beacon(secret: bytes, facts: ClusterFacts) -> bytes:
    payload = _encoder.encode(msgspec.structs.replace(facts, name=facts.name[:NAME_LENGTH_MAX]))
    return MAGIC + bytes([VERSION]) + _mac(secret, payload) + payload


def decode_beacon(secret: bytes, data: bytes) -> ClusterFacts | BeaconFault:
    """Return the facts of a beacon made with this secret, or what is wrong with it."""
    if len(data) <= _HEAD + _MAC_BYTES or data[: len(MAGIC)] != MAGIC:
        return "malformed"
    if data[len(MAGIC)] != VERSION:
        return "other_version"
    mac, payload = data[_HEAD : _HEAD + _MAC_BYTES], data[_HEAD + _MAC_BYTES :]
    if not hmac.compare_digest(mac, _mac(secret, payload)):
        return "other_secret"
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError:
        return "malformed"


def _mac(secret: bytes, payload: bytes) -> bytes:
    # The prefix keeps a beacon's code from being of use anywhere else that the secret is used.
    return hmac.digest(secret, b"exo\0beacon\0" + payload, hashlib.sha256)
