"""The handshake: both sides prove the secret, and nothing else is taken before."""

import pytest

from exo.dataplane.errors import HandshakeError
from exo.dataplane.frames import Challenge, Close, Hello, Proof
from exo.dataplane.handshake import REPLIES, REQUESTS, Dialler, Listener
from exo.shared.types.ids import RequestId

SECRET = b"s" * 32


def pair(dialler_secret: bytes = SECRET, listener_secret: bytes = SECRET) -> tuple[Dialler, Listener]:
    return (
        Dialler(secret=dialler_secret, nonce=b"d" * 32, purpose=REQUESTS, sender="node-a"),
        Listener(secret=listener_secret, nonce=b"l" * 32),
    )


def challenge(listener: Listener, hello: Hello) -> Challenge:
    answer = listener.receive(hello)
    assert answer is not None
    return answer


def test_both_sides_come_to_trust_each_other() -> None:
    dialler, listener = pair()
    proof = dialler.receive(challenge(listener, dialler.hello))
    assert listener.peer is None
    assert listener.receive(proof) is None
    assert listener.peer is not None
    assert listener.peer.sender == "node-a"
    assert listener.peer.purpose == REQUESTS


def test_the_dialler_refuses_a_listener_with_another_secret() -> None:
    dialler, listener = pair(listener_secret=b"x" * 32)
    with pytest.raises(HandshakeError, match="secret"):
        dialler.receive(challenge(listener, dialler.hello))


def test_the_listener_refuses_a_dialler_with_another_secret() -> None:
    dialler, listener = pair(dialler_secret=b"x" * 32)
    challenge(listener, dialler.hello)
    with pytest.raises(HandshakeError, match="node-a does not know"):
        listener.receive(Proof(proof=b"\0" * 32))
    assert listener.peer is None


def test_a_challenge_cannot_be_reflected() -> None:
    dialler, listener = pair()
    reflected = challenge(listener, dialler.hello)
    with pytest.raises(HandshakeError):
        listener.receive(Proof(proof=reflected.proof))


def test_a_proof_for_another_purpose_is_worth_nothing() -> None:
    dialler, listener = pair()
    other = Dialler(secret=SECRET, nonce=b"d" * 32, purpose=REPLIES, sender="node-a")
    answer = challenge(listener, other.hello)
    with pytest.raises(HandshakeError):
        dialler.receive(answer)


@pytest.mark.parametrize("nonce", [b"", b"short", b"d" * 33])
def test_a_nonce_of_another_length_is_refused(nonce: bytes) -> None:
    with pytest.raises(HandshakeError, match="nonce"):
        pair()[1].receive(Hello(version=1, purpose=REQUESTS, nonce=nonce, sender="x"))


def test_another_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(HandshakeError, match=r"version 7 .* version 1"):
        pair()[1].receive(Hello(version=7, purpose=REQUESTS, nonce=b"d" * 32, sender="x"))


def test_nothing_but_hello_is_taken_first() -> None:
    with pytest.raises(HandshakeError, match="Close"):
        pair()[1].receive(Close(request_id=RequestId("r")))


def test_nothing_but_a_challenge_answers_a_hello() -> None:
    with pytest.raises(HandshakeError, match="Close"):
        pair()[0].receive(Close(request_id=RequestId("r")))
