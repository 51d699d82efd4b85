"""What strangers say when they ask to join: proofs that fit one request only, and bytes that are no message."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.cluster.trust.messages import (
    ENROL_FRAME_BYTES_MAX,
    EnrolGranted,
    EnrolOffer,
    EnrolRefused,
    EnrolRequest,
    EnrolWaiting,
    decode_from_server,
    decode_request,
    encode_enrolment,
    make_proof,
    verify_proof,
    with_proof,
)
from exo.cluster.trust.token import PlainToken, token_id, token_verifier
from exo.shared.types.ids import ClusterId, NodeId

SERVER = hashlib.sha256(b"the server's certificate").digest()
TOKEN = PlainToken("a" * 32, b"s" * 20)
VERIFIER = token_verifier(TOKEN.secret)
REQUEST = EnrolRequest(
    node_id=NodeId("a"),
    name="laptop",
    platform="linux-x86_64",
    exo_version="0.1.0",
    csr=b"csr",
    namespace="default",
)
PROVED = with_proof(REQUEST, TOKEN, SERVER)


def test_who_has_the_token_proves_it_without_sending_it() -> None:
    assert PROVED.token_id == token_id(VERIFIER)
    assert verify_proof(VERIFIER, PROVED, SERVER)
    assert TOKEN.secret not in encode_enrolment(PROVED)
    assert VERIFIER not in encode_enrolment(PROVED)
    assert decode_request(encode_enrolment(PROVED)) == PROVED


def test_without_a_proof_nothing_is_proved() -> None:
    assert not verify_proof(VERIFIER, REQUEST, SERVER)


@given(st.binary(max_size=64))
def test_a_made_up_proof_is_none(proof: bytes) -> None:
    assert not verify_proof(VERIFIER, msgspec.structs.replace(REQUEST, proof=proof), SERVER)


@pytest.mark.parametrize(
    "reused",
    [
        {"node_id": NodeId("b")},
        {"csr": b"another"},
        {"node_id": NodeId("ar"), "csr": b"cs"},
        {"node_id": NodeId(""), "csr": b"csra"},
    ],
)
def test_a_proof_cannot_be_used_for_another_node_or_key(reused: dict[str, object]) -> None:
    assert not verify_proof(VERIFIER, msgspec.structs.replace(PROVED, **reused), SERVER)


def test_a_proof_cannot_be_passed_on_to_another_server_or_checked_with_another_token() -> None:
    assert not verify_proof(VERIFIER, PROVED, hashlib.sha256(b"another").digest())
    assert not verify_proof(token_verifier(b"t" * 20), PROVED, SERVER)


def test_a_proof_of_the_secret_itself_is_none() -> None:
    """The verifier is what counts; mixing the two up must not work by chance."""
    mixed_up = msgspec.structs.replace(REQUEST, proof=make_proof(TOKEN.secret, REQUEST, SERVER))
    assert not verify_proof(VERIFIER, mixed_up, SERVER)


def test_a_stranger_cannot_have_long_texts_kept() -> None:
    for field in ("node_id", "name", "platform", "exo_version", "namespace", "token_id"):
        message = msgspec.to_builtins(PROVED) | {
            "t": "EnrolRequest",
            "csr": b"csr",
            "proof": b"",
            field: "x" * 257,
        }
        with pytest.raises(msgspec.ValidationError, match="256"):
            decode_request(msgspec.msgpack.encode(message))


MESSAGES = [
    PROVED,
    EnrolOffer(authority=b"der"),
    EnrolGranted(certificate=b"der", authority=b"der", cluster_id=ClusterId("c")),
    EnrolWaiting(text="exo node approve a"),
    EnrolRefused(reason="no", code="declined"),
]


@given(st.one_of(st.binary(max_size=2 * ENROL_FRAME_BYTES_MAX), st.data()))
def test_any_bytes_are_a_message_or_are_refused(drawn: bytes | st.DataObject) -> None:
    if isinstance(drawn, bytes):
        data = drawn
    else:
        spoiled = bytearray(encode_enrolment(drawn.draw(st.sampled_from(MESSAGES))))
        for _ in range(drawn.draw(st.integers(1, 4))):
            position = drawn.draw(st.integers(0, len(spoiled) - 1))
            spoiled[position] = drawn.draw(st.integers(0, 255))
        data = bytes(spoiled[: drawn.draw(st.integers(0, len(spoiled)))])
    for decode in (decode_request, decode_from_server):
        try:
            message = decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        assert decode(encode_enrolment(message)) == message
