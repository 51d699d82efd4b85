"""Notices within two seconds that another host is gone, by what its system acknowledges.

Its process need not answer: a stage may be inside its engine for a minute, and is alive. While nothing is on its way
there, a small frame is sent, so that there is something to acknowledge. Linux only; elsewhere the system's keep-alive
takes about 25 s. TCP_USER_TIMEOUT would not do: it also ends connections to a peer that has no room for more.
"""

import socket
import struct
import sys
from typing import Literal, NamedTuple

CHECK_INTERVAL_S = 0.25
PING_INTERVAL_S = 0.5
SILENCE_MAX_S = 1.25
"""In which TCP sends what is not acknowledged three times more. With both intervals it makes two seconds."""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_TCP_INFO_FIELDS = struct.Struct("=24xI24xII")
"""Of Linux's `struct tcp_info`: tcpi_unacked, tcpi_last_data_recv, tcpi_last_ack_recv."""


def keep_alive(raw: socket.socket) -> None:
    """Make a dead host's silence end an idle connection: within about 25 s where the system lets us say so."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        option = getattr(socket, name, None)
        if option is not None:
            raw.setsockopt(socket.IPPROTO_TCP, option, value)


class Heard(NamedTuple):
    """What the system knows of the other host."""

    unacknowledged: int
    """Segments that are on their way there. What waits because the peer has no room is not."""
    silent_s: float
    """Since it last sent anything, be it an acknowledgement."""


def listen_to(raw: socket.socket) -> Heard | None:
    """Ask the system; None: it does not say."""
    if _TCP_INFO is None:
        return None
    try:
        data = raw.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_FIELDS.size)
    except OSError:
        return None
    if len(data) < _TCP_INFO_FIELDS.size:
        return None
    unacknowledged, data_ms, acknowledgement_ms = _TCP_INFO_FIELDS.unpack(data)
    return Heard(unacknowledged, min(data_ms, acknowledgement_ms) / 1000)


class Pulse:
    """One connection's. Pure: it is told the time."""

    def __init__(self) -> None:
        self._waiting_since_s: float | None = None
        """The time at which something was first seen on its way, of which nothing has been heard since."""
        self._pinged_at_s = float("-inf")

    def check(self, now_s: float, heard: Heard | None) -> Literal["lost", "ping"] | None:
        """Return what to do: take the peer for lost, send a ping, or nothing.

        Args:
            now_s: Monotonic seconds.
            heard: What the system says now.
        """
        if heard is None:
            return None
        if not heard.unacknowledged:
            self._waiting_since_s = None
            if now_s - self._pinged_at_s < PING_INTERVAL_S:
                return None
            self._pinged_at_s = self._waiting_since_s = now_s
            return "ping"
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if min(now_s - self._waiting_since_s, heard.silent_s) >= SILENCE_MAX_S:
            return "lost"
        return None
