"""One end of a TLS 1.3 connection over memory: bytes in, bytes out. The dialer waits for WELCOME or REFUSED.

In TLS 1.3 the dialer's handshake is over before the listener has looked at its certificate; the listener's first frame
tells the dialer what came of that.
"""

import ssl
from collections.abc import Callable

from exo.cluster.errors import HandshakeError
from exo.cluster.transport.channel import Channel
from exo.cluster.transport.framing import FrameError, FrameSplitter, Kind, encode_frame
from exo.cluster.transport.greeting import Answer
from exo.cluster.transport.refusals import explain_tls_error, read_refusal
from exo.cluster.trust.certificates import NodeCertificate
from exo.cluster.trust.messages import ENROL_FRAME_BYTES_MAX
from exo.shared.tls import HANDSHAKE_BYTES_MAX, RECORD_BYTES, TLS_FIRST_BYTE

__all__ = ["CLUSTER_PROTOCOL", "ENROL_PROTOCOL", "TLS_FIRST_BYTE", "CheckPeer", "TlsChannel"]

CLUSTER_PROTOCOL = "exo-cluster/1"
"""What the two ends agree on in TLS (ALPN); another version of the protocol gets another number."""
ENROL_PROTOCOL = "exo-enrol/1"
CheckPeer = Callable[[bytes | None, str | None], NodeCertificate | None]
"""Takes the peer's certificate in DER, which OpenSSL has verified (unless it was told not to), and the protocol that
was agreed on. Returns what the certificate says, or None where none is wanted.

Raises:
    HandshakeError: The peer is not let in.
"""


class TlsChannel(Channel):
    """Both ends.

    Args:
        context: With this side's certificate and whom it trusts.
        is_listener: Which end this is.
        peer: What to call the other end in messages.
        check_peer: Decides about the peer once TLS is done with it.
    """

    can_seal = False

    def __init__(
        self, context: ssl.SSLContext, *, is_listener: bool, peer: str, check_peer: CheckPeer
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_listener)
        self._is_listener = is_listener
        self._peer = peer
        self._check_peer = check_peer
        self._handshake_bytes = 0

    @property
    def peer_der(self) -> bytes | None:
        """The peer's certificate, once TLS is established."""
        return self._tls.getpeercert(binary_form=True)

    def begin(self) -> bytes:
        self._shake_hands()
        return self._outgoing.read()

    def unseal(self, data: bytes) -> bytes:
        if not self.can_seal:
            self._guard(data)
        self._incoming.write(data)
        if not self.can_seal and not self._shake_hands():
            return b""
        return self._read_all()

    def take(self, kind: Kind, payload: bytes) -> Answer | None:
        if not self._is_listener and kind is Kind.WELCOME:
            self.is_open = True
            return None
        if not self._is_listener and kind is Kind.REFUSED:
            raise read_refusal(payload, self._peer)
        raise HandshakeError(f"{self._peer} does not speak exo's cluster protocol (an early {kind.name})")

    def seal(self, data: bytes) -> bytes:
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        return self._outgoing.read()

    def take_pending(self) -> bytes:
        return self._outgoing.read() if self._outgoing.pending else b""

    # --- within -------------------------------------------------------------------------------------------------

    def _guard(self, data: bytes) -> None:
        """Refuse what cannot be the beginning of TLS, in better words than OpenSSL has for it."""
        if not self._handshake_bytes and not self._is_listener and data[:1] not in (b"\x15", b"\x16"):
            raise self._refused_in_plain(data)
        self._handshake_bytes += len(data)
        if self._handshake_bytes > HANDSHAKE_BYTES_MAX:
            raise HandshakeError(f"{self._peer} made too much of its handshake", code="tls_failed")

    def _refused_in_plain(self, data: bytes) -> HandshakeError:
        """Return why a listener hung up that had not even begun with TLS, as far as it says so."""
        try:
            for kind, payload in FrameSplitter().feed(data):
                if kind in (Kind.REFUSED, Kind.GOODBYE):
                    return read_refusal(payload, self._peer)
        except FrameError:
            pass
        return HandshakeError(f"{self._peer} does not speak exo's cluster protocol (nor TLS)")

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise explain_tls_error(error, self._peer) from error
        self.can_seal = True
        protocol = self._tls.selected_alpn_protocol()
        self.is_enrolment = protocol == ENROL_PROTOCOL
        if self.is_enrolment:
            self.message_bytes_max = ENROL_FRAME_BYTES_MAX
        self.certificate = self._check_peer(self.peer_der, protocol)
        if self._is_listener:
            self._tls.write(encode_frame(Kind.WELCOME, b""))
            self.is_open = True
        return True

    def _read_all(self) -> bytes:
        parts: list[bytes] = []
        try:
            while part := self._tls.read(RECORD_BYTES):
                parts.append(part)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError as error:
            self.can_seal = False
            raise explain_tls_error(error, self._peer) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)
