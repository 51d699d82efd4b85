"""What is said when a node asks to be taken in: msgpack messages, each in one frame of at most 16 KiB. Pure.

server -> joiner   EnrolOffer     the cluster's authority (the joiner compares it before it says anything)
joiner -> server   EnrolRequest
server -> joiner   EnrolAnswer    granted, waiting (ask again on the same connection) or refused
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable

import msgspec

from exo.cluster.trust.token import PlainToken, token_id, token_verifier
from exo.shared.types.ids import ClusterId, NodeId
from exo.shared.types.nodes import HostPort

ENROL_FRAME_BYTES_MAX = 16 * 1024
ENROL_TEXT_MAX = 256
"""Characters of a name or the like that a stranger may have stored and shown."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag=True):
    pass


class EnrolOffer(_Message, frozen=True, kw_only=True):
    """First message of the server: whose cluster this is."""

    authority: bytes
    """The authority's certificate in DER."""


class EnrolRequest(_Message, frozen=True, kw_only=True):
    """A node asks for a certificate. Everything in it but a right proof is a stranger's word."""

    node_id: NodeId
    name: str
    platform: str
    exo_version: str
    csr: bytes
    """In DER."""
    namespace: str
    token_id: str | None = None
    proof: bytes | None = None
    """See `make_proof`; None: to be approved by a person."""

    def __post_init__(self) -> None:
        texts = (self.node_id, self.name, self.platform, self.exo_version, self.namespace, self.token_id)
        if any(text is not None and len(text) > ENROL_TEXT_MAX for text in texts):
            raise ValueError(f"a text of more than {ENROL_TEXT_MAX} characters")


class EnrolGranted(_Message, frozen=True, kw_only=True):
    """The node is a member."""

    certificate: bytes
    """In DER."""
    authority: bytes
    """In DER; the same as in the offer."""
    cluster_id: ClusterId


class EnrolWaiting(_Message, frozen=True, kw_only=True):
    """Not decided yet: ask again after a while."""

    text: str
    """For the person who waits, such as how to approve the node."""


class EnrolRefused(_Message, frozen=True, kw_only=True):
    """No, and why."""

    reason: str
    """One sentence for a person, with the next step in it."""
    code: str
    """One word for programs, such as `unknown_token`, `wrong_proof`, `declined`, `other_namespace`, `locked_out`."""


EnrolAnswer = EnrolGranted | EnrolWaiting | EnrolRefused
FromServer = EnrolOffer | EnrolGranted | EnrolWaiting | EnrolRefused


class EnrolOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request came in."""

    address: HostPort
    """The joiner's end of the connection, for lock-outs and for people."""
    server_certificate_sha256: bytes
    """Of the certificate that this node showed on this very connection; a proof is bound to it."""


Enrol = Callable[[EnrolRequest, EnrolOrigin], Awaitable[EnrolAnswer]]
"""Decides about a request, on the node that was asked or, through it, on the master. Checks the proof itself:
`verify_proof`. May be called again and again with the same request while it answers `EnrolWaiting`.
An ExoError that it raises is shown to the joiner."""

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(EnrolRequest)
_from_server = msgspec.msgpack.Decoder(FromServer)


def encode_enrolment(message: EnrolRequest | FromServer) -> bytes:
    return _encoder.encode(message)


def decode_request(data: bytes) -> EnrolRequest:
    """Raises msgspec.MsgspecError or UnicodeDecodeError: it is none that this release knows."""
    return _requests.decode(data)


def decode_from_server(data: bytes) -> FromServer:
    """Raises msgspec.MsgspecError or UnicodeDecodeError: it is none that this release knows."""
    return _from_server.decode(data)


def make_proof(verifier: bytes, request: EnrolRequest, server_certificate_sha256: bytes) -> bytes:
    """Return the HMAC-SHA256 that shows knowledge of a token to one server, for one key and one node.

    Args:
        verifier: See `token_verifier`.
        request: Its node id and certificate request are covered; a `proof` in it is not looked at.
        server_certificate_sha256: Of the certificate that the server shows on this connection, so that a server
            cannot pass the proof on to another.
    """
    fields = (server_certificate_sha256, request.csr, request.node_id.encode())
    text = b"exo enrolment 1" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return hmac.digest(verifier, text, hashlib.sha256)


def verify_proof(verifier: bytes, request: EnrolRequest, server_certificate_sha256: bytes) -> bool:
    """Say whether the request's sender knows the token of this verifier; compares in constant time."""
    if request.proof is None:
        return False
    return hmac.compare_digest(request.proof, make_proof(verifier, request, server_certificate_sha256))


def with_proof(request: EnrolRequest, token: PlainToken, server_certificate_sha256: bytes) -> EnrolRequest:
    """Return the request as somebody makes it who has a token."""
    verifier = token_verifier(token.secret)
    proof = make_proof(verifier, request, server_certificate_sha256)
    return msgspec.structs.replace(request, token_id=token_id(verifier), proof=proof)
