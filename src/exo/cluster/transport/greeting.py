"""The handshake at the beginning of a connection. Pure: frames in, frames out.

    dialer   -> listener   HELLO      magic, version, nonce
    listener -> dialer     CHALLENGE  nonce, proof        (or REFUSED: why)
    dialer   -> listener   PROOF      proof               (messages may follow at once)

The listener proves itself first, so that nobody who only listens learns anything that it could use.
"""

import struct
from typing import Literal

from exo.cluster.errors import HandshakeError
from exo.cluster.transport.framing import Kind
from exo.cluster.transport.refusals import read_refusal
from exo.shared.handshake import NONCE_BYTES, prove, verify

MAGIC = b"EXOC"
VERSION = 1
PURPOSE = "cluster"
_HELLO = struct.Struct(f">4sH{NONCE_BYTES}s")
_SECRET_HINT = "it belongs to another user, or was started with another EXO_HOST_SECRET_FILE"

Answer = tuple[Kind, bytes]


class Greeting:
    """One side of a handshake; `is_done` once the other side has proved itself."""

    def __init__(
        self, secret: bytes, *, side: Literal["dialer", "listener"], nonce: bytes, peer: str
    ) -> None:
        self._secret = secret
        self._side: Literal["dialer", "listener"] = side
        self._nonce = nonce
        self._peer = peer
        self._peer_nonce: bytes | None = None
        self.is_done = False

    def opening(self) -> Answer | None:
        """Return what this side sends before it has received anything."""
        return (Kind.HELLO, _HELLO.pack(MAGIC, VERSION, self._nonce)) if self._side == "dialer" else None

    def take(self, kind: Kind, payload: bytes) -> Answer | None:
        """Take the other side's frame and return this side's answer, if any.

        Raises:
            HandshakeError: The other side did not prove itself; the message may be sent to it as REFUSED.
        """
        if kind is Kind.REFUSED:
            raise read_refusal(payload, self._peer)
        if self._side == "dialer" and kind is Kind.CHALLENGE and len(payload) == 2 * NONCE_BYTES:
            self._peer_nonce, proof = payload[:NONCE_BYTES], payload[NONCE_BYTES:]
            self._require_proof(proof, "listener")
            return Kind.PROOF, self._prove("dialer")
        if self._side == "listener" and kind is Kind.HELLO and self._peer_nonce is None:
            return self._challenge(payload)
        if self._side == "listener" and kind is Kind.PROOF and self._peer_nonce is not None:
            self._require_proof(payload, "dialer")
            return None
        raise self._error(f"{self._peer} does not speak exo's cluster protocol")

    def _challenge(self, payload: bytes) -> Answer:
        if len(payload) < 6 or payload[:4] != MAGIC:
            raise self._error(f"{self._peer} does not speak exo's cluster protocol")
        version = int.from_bytes(payload[4:6], "big")
        if version != VERSION or len(payload) != _HELLO.size:
            raise self._error(
                f"{self._peer} speaks version {version} of the cluster protocol, this node {VERSION}; "
                "run the same release of exo on both"
            )
        self._peer_nonce = payload[6:]
        return Kind.CHALLENGE, self._nonce + self._prove("listener")

    def _prove(self, prover: str) -> bytes:
        assert self._peer_nonce is not None
        return prove(
            self._secret, purpose=PURPOSE, prover=prover, challenge=self._peer_nonce, own_nonce=self._nonce
        )

    def _require_proof(self, proof: bytes, prover: str) -> None:
        assert self._peer_nonce is not None
        if not verify(
            self._secret,
            proof,
            purpose=PURPOSE,
            prover=prover,
            challenge=self._nonce,
            own_nonce=self._peer_nonce,
        ):
            raise HandshakeError(
                f"{self._peer} has another host secret: {_SECRET_HINT}", is_secret_wrong=True
            )
        self.is_done = True

    def _error(self, message: str) -> HandshakeError:
        return HandshakeError(message, is_secret_wrong=False)
