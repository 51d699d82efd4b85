"""One end of a connection as both event loops use it, in asyncio and in a stage's own: bytes in, frames out.

Until frames may flow it takes nothing long from the peer. It sends nothing itself and waits for nothing.
"""

from collections.abc import Callable, Iterator

from exo.dataplane.codec import (
    HANDSHAKE_HEADER_BYTES_MAX,
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Buffer,
    FrameDecoder,
    Received,
    encode,
)
from exo.dataplane.errors import DataPlaneError
from exo.dataplane.frames import Hello, Ping, Refused
from exo.dataplane.handshake import Dialler, Handshake, Listener, TlsDialler, TlsListener
from exo.dataplane.identity import PeerCertificate
from exo.dataplane.tls_pipe import TlsPipe
from exo.shared.types.ids import NodeId

Way = tuple[Handshake, TlsPipe | None]
Send = Callable[[bytes], None]


class Opening:
    """See the module.

    Args:
        handshake: This side's part; None on the listening side where the first byte decides.
        tls: Through which all bytes go; None: plain.
        choose: Takes the first byte that came and returns how to go on.
        require_welcome: Takes the peer's certificate, and raises HandshakeError where it is not welcome.
        on_refused: Told on the listening side why a peer was not let in.
    """

    def __init__(
        self,
        handshake: Handshake | None,
        tls: TlsPipe | None = None,
        *,
        choose: Callable[[int], Way] | None = None,
        require_welcome: Callable[[PeerCertificate], None] = lambda certificate: None,
        on_refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._handshake = handshake
        self._choose = choose
        self._require_welcome = require_welcome
        self._on_refused = on_refused
        self.tls = tls
        self.decoder = FrameDecoder(header_bytes_max=HANDSHAKE_HEADER_BYTES_MAX, payload_bytes_max=0)
        self.certificate: PeerCertificate | None = None
        """The peer's; None on plain connections."""
        self.is_done = False

    @property
    def is_dialled(self) -> bool:
        return isinstance(self._handshake, Dialler | TlsDialler)

    @property
    def peer(self) -> Hello | None:
        """What a dialler said of itself, once it has proved that it may; None on the dialling side."""
        handshake = self._handshake
        return handshake.peer if isinstance(handshake, Listener | TlsListener) else None

    @property
    def node_id(self) -> NodeId | None:
        """The peer's node, by its certificate; None on plain connections: there it is somebody of this host."""
        return None if self.certificate is None else self.certificate.node_id

    def first_bytes(self) -> bytes:
        """Return what the dialling side sends first; nothing on the listening side."""
        if self.tls is not None:
            self.tls.begin()
            return self.tls.take_pending()
        return encode(self._handshake.hello) if isinstance(self._handshake, Dialler) else b""

    def receive(self, data: Buffer, send: Send) -> bool:
        """Take bytes in, send the answers, and say whether the handshake is done.

        What came behind the handshake is kept: ask for it with `frames(b"")`.

        Raises:
            DataPlaneError: The peer does not prove itself, or sends something else.
        """
        try:
            return self._receive(data, send)
        except DataPlaneError as error:
            if not self.is_dialled:
                self._on_refused(error.message)
            raise

    def _receive(self, data: Buffer, send: Send) -> bool:
        if self._choose is not None and len(data):
            choose, self._choose = self._choose, None
            self._handshake, self.tls = choose(data[0])
        if self._handshake is None:
            return False
        if self.tls is None:
            return self._greet(self._handshake, data, send)
        try:
            return self._greet(self._handshake, self._decrypt(self.tls, data), self.tls.write)
        except DataPlaneError as error:
            if self.tls.is_established and not self.is_dialled:
                self.tls.write(encode(Refused(message=error.message)))
            raise
        finally:
            pending = self.tls.take_pending()
            if pending:
                send(pending)

    def _decrypt(self, tls: TlsPipe, data: Buffer) -> bytes:
        if self.certificate is not None:
            tls.put(data)
        else:
            self.certificate = tls.receive_handshake(data)
            if self.certificate is None:
                return b""
            self._require_welcome(self.certificate)
            if isinstance(self._handshake, TlsDialler):
                tls.write(encode(self._handshake.hello))
        return tls.read()

    def _greet(self, handshake: Handshake, data: Buffer, answer_with: Callable[[bytes], None]) -> bool:
        while not self.is_done:
            found = self.decoder.feed_one(data)
            if found is None:
                more = self.tls.read() if self.tls is not None and self.tls.is_established else b""
                if not more:
                    return False
                data = more
                continue
            data = b""
            answer = handshake.receive(found[0])
            if answer is not None:
                answer_with(encode(answer))
            self.is_done = handshake.is_done
        self.decoder.allow(header_bytes_max=HEADER_BYTES_MAX, payload_bytes_max=PAYLOAD_BYTES_MAX)
        return True

    def frames(self, data: Buffer) -> Iterator[Received]:
        """Take bytes in, once the handshake is done, and give the frames they complete, but pings.

        Raises:
            DataPlaneError: They are no frames.
        """
        for received in self._frames(data):
            if not isinstance(received[0], Ping):
                yield received

    def _frames(self, data: Buffer) -> Iterator[Received]:
        decoder, tls = self.decoder, self.tls
        if tls is None:
            yield from decoder.feed(data)
            return
        tls.put(data)
        yield from decoder.feed(b"")
        while True:
            room = decoder.room
            if room is None:
                plain = tls.read()
                if not plain:
                    return
                yield from decoder.feed(plain)
            else:
                size_bytes = tls.read_into(room)
                if not size_bytes:
                    return
                received = decoder.filled(size_bytes)
                if received is not None:
                    yield received

    def seal(self, data: bytes) -> bytes:
        """Return bytes as they go to the socket."""
        if self.tls is None:
            return data
        self.tls.write(data)
        return self.tls.take_pending()
