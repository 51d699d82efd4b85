"""What both kinds of connection, in asyncio and in a stage's own loop, do alike until frames may flow."""

import socket
from collections.abc import Callable

from exo.dataplane.codec import (
    HANDSHAKE_HEADER_BYTES_MAX,
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Buffer,
    FrameDecoder,
    encode,
)
from exo.dataplane.frames import Hello
from exo.dataplane.handshake import Dialler, Listener

STRANGERS_MAX = 64
"""Connections that have not proved anything yet; more are turned away."""
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}


def keep_alive(raw: socket.socket) -> None:
    """Make a dead host's silence end the connection: within about 25 s where the system lets us say so."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        option = getattr(socket, name, None)
        if option is not None:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)


class Opening:
    """One connection's handshake as bytes, and its decoder, which takes nothing long before the handshake is done.

    Args:
        handshake: This side's part.
    """

    def __init__(self, handshake: Dialler | Listener) -> None:
        self._handshake = handshake
        self.decoder = FrameDecoder(header_bytes_max=HANDSHAKE_HEADER_BYTES_MAX, payload_bytes_max=0)
        self.is_done = False
        self.peer: Hello | None = None
        """What a dialler said of itself, once it has proved that it may; None on the dialling side."""

    @property
    def first_bytes(self) -> bytes:
        """What the dialling side sends first; nothing on the listening side."""
        return encode(self._handshake.hello) if isinstance(self._handshake, Dialler) else b""

    def receive(self, data: Buffer, send: Callable[[bytes], None]) -> bool:
        """Take bytes in, send the answers, and say whether the handshake is done.

        What came behind the handshake is in `decoder` then: ask it with `feed(b"")`.

        Raises:
            DataPlaneError: The peer does not prove itself, or sends something else.
        """
        handshake = self._handshake
        while not self.is_done:
            found = self.decoder.feed_one(data)
            if found is None:
                return False
            data = b""
            answer = handshake.receive(found[0])
            if answer is not None:
                send(encode(answer))
            if isinstance(handshake, Listener):
                self.peer = handshake.peer
            self.is_done = isinstance(handshake, Dialler) or self.peer is not None
        self.decoder.allow(header_bytes_max=HEADER_BYTES_MAX, payload_bytes_max=PAYLOAD_BYTES_MAX)
        return True
