"""One end of a TLS 1.3 connection over memory: bytes from the socket in, bytes for the socket out. Waits for nothing.

The event loop of the API node and that of a stage both use it. OpenSSL's own sockets would make two system calls for
every record received, and cannot be told apart from plain connections by the first byte.
"""

import ssl
from typing import Any, cast

from exo.dataplane.codec import Buffer
from exo.dataplane.errors import HandshakeError, ProtocolError
from exo.dataplane.identity import DataIdentity, PeerCertificate
from exo.shared.tls import (
    HANDSHAKE_BYTES_MAX,
    NODE_URI,
    RECORD_BYTES,
    TLS_ALERT_BYTE,
    TLS_FIRST_BYTE,
    explain_tls_failure,
    show_certificate,
    strict_context,
)
from exo.shared.types.ids import NodeId

DATA_PROTOCOL = "exo-data/1"
"""What the two ends agree on in TLS (ALPN); another version of the protocol gets another number."""


class TlsContexts:
    """OpenSSL's settings for both directions, made once for an identity.

    Raises:
        ConfigurationError: The certificate or the key cannot be used.
    """

    def __init__(self, identity: DataIdentity) -> None:
        self.listening = strict_context(ssl.PROTOCOL_TLS_SERVER, [DATA_PROTOCOL])
        self.dialling = strict_context(ssl.PROTOCOL_TLS_CLIENT, [DATA_PROTOCOL])
        for context in (self.listening, self.dialling):
            context.verify_mode = ssl.CERT_REQUIRED
            show_certificate(
                context,
                certificate_file=identity.certificate_file,
                key_file=identity.key_file,
                authority_pem=identity.authority_pem,
            )


class TlsPipe:
    """Both ends.

    Args:
        context: With this side's certificate and whom it trusts.
        is_listener: Which end this is.
        peer: What to call the other end in messages.
    """

    def __init__(self, context: ssl.SSLContext, *, is_listener: bool, peer: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_listener)
        self._is_listener = is_listener
        self._peer = peer
        self._handshake_bytes = 0
        self.is_established = False

    # --- handshake ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the dialler's first bytes; see `take_pending`."""
        self._shake_hands()

    def receive_handshake(self, data: Buffer) -> PeerCertificate | None:
        """Take bytes in and return the peer's certificate, once both ends are sure of each other's.

        Raises:
            HandshakeError: The peer is no node of this cluster. What may be pending still says so to it.
        """
        if not self._handshake_bytes and data and data[0] not in (TLS_FIRST_BYTE, TLS_ALERT_BYTE):
            raise HandshakeError(
                f"{self._peer} does not speak TLS; it has no certificate of a cluster, or something else listens there"
            )
        self._handshake_bytes += len(data)
        if self._handshake_bytes > HANDSHAKE_BYTES_MAX:
            raise HandshakeError(f"{self._peer} made too much of its handshake")
        self._incoming.write(data)
        if not self._shake_hands():
            return None
        if self._tls.selected_alpn_protocol() != DATA_PROTOCOL:
            raise HandshakeError(
                f"{self._peer} speaks another version of the data plane; run the same release of exo on all nodes"
            )
        return read_peer_certificate(self._tls.getpeercert(), self._peer)

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise self._explained(error) from error
        self.is_established = True
        return True

    def _explained(self, error: ssl.SSLError) -> HandshakeError:
        return HandshakeError(explain_tls_failure(error, self._peer, "data plane")[1])

    # --- afterwards ---------------------------------------------------------------------------------------------

    def put(self, data: Buffer) -> None:
        """Take bytes from the socket in."""
        self._incoming.write(data)

    def read(self) -> bytes:
        """Return what one record holds of what was taken in; nothing when there is no whole one.

        Raises:
            ProtocolError: The bytes are not the peer's.
            HandshakeError: In its first answer the peer says that it does not want this node.
        """
        try:
            return self._tls.read(RECORD_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return b""
        except ssl.SSLError as error:
            raise self._broken(error) from error

    def read_into(self, room: memoryview) -> int:
        """Put what one record holds into `room`, as much as fits, and return how much that was; see `read`."""
        try:
            return cast(int, self._tls.read(len(room), room))  # With a buffer `ssl` returns how much it read.
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return 0
        except ssl.SSLError as error:
            raise self._broken(error) from error

    def _broken(self, error: ssl.SSLError) -> HandshakeError | ProtocolError:
        # In TLS 1.3 a listener looks at the dialler's certificate when the dialler is done already.
        if not self._is_listener and "ALERT" in (error.reason or ""):
            return self._explained(error)
        return ProtocolError(f"{self._peer} sent something that is not TLS: {error.reason or error}")

    def write(self, data: Buffer) -> None:
        """Encrypt; the bytes for the socket are pending then."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]

    def take_pending(self) -> bytes:
        """Return what has to be sent; it may be something that OpenSSL has to say."""
        return self._outgoing.read() if self._outgoing.pending else b""


def read_peer_certificate(told: Any, peer: str) -> PeerCertificate:
    """Read what `ssl` tells of a verified certificate.

    Raises:
        HandshakeError: It is not one of a node.
    """
    names = [value for part in told.get("subject", ()) for key, value in part if key == "commonName"]
    ids = {
        value.removeprefix(NODE_URI)
        for kind, value in told.get("subjectAltName", ())
        if kind == "URI" and value.startswith(NODE_URI)
    }
    if len(names) != 1 or ids != set(names) or not names[0]:
        raise HandshakeError(f"the certificate of {peer} does not name exactly one node")
    return PeerCertificate(node_id=NodeId(names[0]), serial=format(int(told["serialNumber"], 16), "x"))
