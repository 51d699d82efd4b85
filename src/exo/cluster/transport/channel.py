"""What lies between a socket's bytes and frames: nothing on loopback, TLS otherwise. Synchronous, no I/O."""

from abc import ABC, abstractmethod

from exo.cluster.transport.base import MESSAGE_BYTES_MAX
from exo.cluster.transport.framing import Kind, encode_frame
from exo.cluster.transport.greeting import Answer, Greeting
from exo.cluster.trust.certificates import NodeCertificate


class Channel(ABC):
    """One end of a connection as bytes go through it, from the first one on. Not used again once it has raised."""

    is_open = False
    """The peer has proved itself: messages may be exchanged."""
    can_seal = True
    """Frames can be sent already (or still)."""
    certificate: NodeCertificate | None = None
    """The peer's, checked."""
    is_enrolment = False
    """The dialer has no certificate and may ask for one; nothing else."""
    message_bytes_max = MESSAGE_BYTES_MAX

    @abstractmethod
    def begin(self) -> bytes:
        """Return what the dialer sends before it has received anything."""

    @abstractmethod
    def unseal(self, data: bytes) -> bytes:
        """Take bytes from the socket and return the bytes of frames in them.

        Raises:
            HandshakeError: The peer cannot be let in, or what it sends makes no sense.
        """

    @abstractmethod
    def take(self, kind: Kind, payload: bytes) -> Answer | None:
        """Take a frame that came while not open, and return the frame that answers it, if any.

        Raises:
            HandshakeError: As `unseal`.
        """

    @abstractmethod
    def seal(self, data: bytes) -> bytes:
        """Return the socket's bytes for the bytes of frames; only while `can_seal`."""

    @abstractmethod
    def take_pending(self) -> bytes:
        """Return bytes for the socket that receiving has brought about: answers of TLS, also its last words."""


class PlainChannel(Channel):
    """Frames as they are, after the handshake with the host secret."""

    def __init__(self, greeting: Greeting) -> None:
        self._greeting = greeting

    def begin(self) -> bytes:
        opening = self._greeting.opening()
        return encode_frame(*opening) if opening is not None else b""

    def unseal(self, data: bytes) -> bytes:
        return data

    def take(self, kind: Kind, payload: bytes) -> Answer | None:
        answer = self._greeting.take(kind, payload)
        self.is_open = self._greeting.is_done
        return answer

    def seal(self, data: bytes) -> bytes:
        return data

    def take_pending(self) -> bytes:
        return b""
