"""How two processes prove to each other that they belong together, before any other frame is accepted.

Within one host: Hello -> Challenge -> Proof. In TLS the certificates are the proof: Hello -> Welcome. Pure: nonces come
from the caller, frames go in and out, nothing is sent here.
"""

from exo.dataplane.errors import HandshakeError
from exo.dataplane.frames import Challenge, Frame, Hello, Proof, Refused, Welcome
from exo.shared.handshake import NONCE_BYTES, prove, verify
from exo.shared.types.ids import InstanceId

PROTOCOL_VERSION = 1
HANDSHAKE_TIMEOUT_S = 10.0

REQUESTS = "requests"
"""Purpose of a connection from an API node to a first stage."""
REPLIES = "replies"
"""Purpose of a connection from a last stage to an API node."""
PROBES = "probes"
"""Purpose of a connection from a node that measures the way to another one."""


def stage_purpose(instance_id: InstanceId, generation: int, rank: int) -> str:
    """Return the purpose of the connection that stage `rank` dials to the stage behind it."""
    return f"stage/{instance_id}/{generation}/{rank}"


def _wire(purpose: str) -> str:
    return f"data/{PROTOCOL_VERSION}/{purpose}"


class Dialler:
    """The side that connects. Send `hello`, hand every frame that comes to `receive`."""

    def __init__(self, *, secret: bytes, nonce: bytes, purpose: str, sender: str) -> None:
        self._secret = secret
        self._nonce = nonce
        self._purpose = purpose
        self.hello = Hello(version=PROTOCOL_VERSION, purpose=purpose, nonce=nonce, sender=sender)
        self.is_done = False

    def receive(self, frame: Frame) -> Proof:
        """Take the listener's challenge and return the last frame of the handshake, to be sent.

        Raises:
            HandshakeError: It is no challenge, or its proof is wrong.
        """
        if not isinstance(frame, Challenge):
            raise HandshakeError(f"the peer answered the handshake with {type(frame).__name__}")
        if len(frame.nonce) != NONCE_BYTES or not verify(
            self._secret,
            frame.proof,
            purpose=_wire(self._purpose),
            prover="listener",
            challenge=self._nonce,
            own_nonce=frame.nonce,
        ):
            raise HandshakeError(
                "the peer does not know this cluster's secret; start both nodes as the same user on one host"
            )
        self.is_done = True
        return Proof(
            proof=prove(
                self._secret,
                purpose=_wire(self._purpose),
                prover="dialer",
                challenge=frame.nonce,
                own_nonce=self._nonce,
            )
        )


class Listener:
    """The side that is connected to. Hand every frame to `receive` until `peer` is set."""

    def __init__(self, *, secret: bytes, nonce: bytes) -> None:
        self._secret = secret
        self._nonce = nonce
        self._hello: Hello | None = None
        self.peer: Hello | None = None
        """What the dialler said of itself; set once it has proved that it knows the secret."""

    @property
    def is_done(self) -> bool:
        return self.peer is not None

    def receive(self, frame: Frame) -> Challenge | None:
        """Take the dialler's next frame and return the answer to be sent, if there is one.

        Raises:
            HandshakeError: It is not the frame that belongs here, or its proof is wrong.
        """
        if self._hello is None:
            frame = _require_hello(frame)
            if len(frame.nonce) != NONCE_BYTES:
                raise HandshakeError(f"a peer's nonce has {len(frame.nonce)} bytes instead of {NONCE_BYTES}")
            self._hello = frame
            return Challenge(
                nonce=self._nonce,
                proof=prove(
                    self._secret,
                    purpose=_wire(frame.purpose),
                    prover="listener",
                    challenge=frame.nonce,
                    own_nonce=self._nonce,
                ),
            )
        if not isinstance(frame, Proof) or not verify(
            self._secret,
            frame.proof,
            purpose=_wire(self._hello.purpose),
            prover="dialer",
            challenge=self._nonce,
            own_nonce=self._hello.nonce,
        ):
            raise HandshakeError(
                f"{self._hello.sender} does not know this cluster's secret; "
                "start both nodes as the same user on one host"
            )
        self.peer = self._hello
        return None


class TlsDialler:
    """The side that connects, in TLS, once it has seen the listener's certificate."""

    def __init__(self, *, purpose: str, sender: str, listener: str) -> None:
        self._listener = listener
        self.hello = Hello(version=PROTOCOL_VERSION, purpose=purpose, nonce=b"", sender=sender)
        self.is_done = False

    def receive(self, frame: Frame) -> None:
        """Take the listener's answer.

        Raises:
            HandshakeError: It is no welcome.
        """
        if isinstance(frame, Refused):
            raise HandshakeError(f"{self._listener} refused: {frame.message}")
        if not isinstance(frame, Welcome):
            raise HandshakeError(f"the peer answered the handshake with {type(frame).__name__}")
        self.is_done = True


class TlsListener:
    """The side that is connected to, in TLS, once it has seen the dialler's certificate."""

    def __init__(self) -> None:
        self.peer: Hello | None = None
        """What the dialler said of itself."""

    @property
    def is_done(self) -> bool:
        return self.peer is not None

    def receive(self, frame: Frame) -> Welcome:
        """Take the dialler's first frame and return the answer to be sent.

        Raises:
            HandshakeError: It is not the frame that belongs here.
        """
        self.peer = _require_hello(frame)
        return Welcome()


def _require_hello(frame: Frame) -> Hello:
    if not isinstance(frame, Hello):
        raise HandshakeError(f"a peer began with {type(frame).__name__} instead of a handshake")
    if frame.version != PROTOCOL_VERSION:
        raise HandshakeError(
            f"a peer speaks version {frame.version} of the data plane, this node version "
            f"{PROTOCOL_VERSION}; run the same release of exo on all nodes"
        )
    return frame


Handshake = Dialler | Listener | TlsDialler | TlsListener
