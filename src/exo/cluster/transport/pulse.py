"""Signs of life on a connection: pings, round trips, and how long the peer has been silent. No I/O, no timer."""

import itertools
from collections import deque
from collections.abc import Callable

from exo.cluster.transport.base import Heartbeat

_ROUND_TRIPS_KEPT = 8
_PINGS_KEPT = 16


class Pulse:
    """Only the dialer measures round trips; it tells the listener with its next ping.

    Args:
        heartbeat: How often to look, and what silence is too long.
        is_dialer: Which end this is.
        now_s: The event loop's time, for silences.
        precise_s: A finer clock, for round trips: uvloop's time stands still within a turn and counts whole
            milliseconds.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        *,
        is_dialer: bool,
        now_s: Callable[[], float],
        precise_s: Callable[[], float],
    ) -> None:
        self._heartbeat = heartbeat
        self._is_dialer = is_dialer
        self._now_s = now_s
        self._precise_s = precise_s
        self._last_heard_s = self._last_check_s = now_s()
        self._numbers = itertools.count()
        self._sent_s: dict[int, float] = {}
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS_KEPT)

    @property
    def round_trip_s(self) -> float | None:
        """The shortest of the last few."""
        return min(self._round_trips, default=None)

    @property
    def silent_s(self) -> float:
        """For how long nothing has come from the peer."""
        return self._now_s() - self._last_heard_s

    def heard(self) -> None:
        """Something came from the peer, or could not have come because this side was not reading."""
        self._last_heard_s = self._now_s()

    def silence_s(self) -> float | None:
        """Return how long the peer has been silent, if that is too long. Called at every interval."""
        now_s = self._now_s()
        if now_s - self._last_check_s > 2 * self._heartbeat.ping_interval_s:
            # This process stood still itself (stopped, suspended): what the peer sent meanwhile is not read yet.
            self._last_heard_s = now_s
        self._last_check_s = now_s
        silence_s = now_s - self._last_heard_s
        return silence_s if silence_s >= self._heartbeat.silence_max_s else None

    def ping(self) -> bytes:
        """Return the payload of the next ping."""
        number = next(self._numbers) & 0xFFFFFFFF
        self._sent_s[number] = self._precise_s()
        if len(self._sent_s) > _PINGS_KEPT:
            del self._sent_s[next(iter(self._sent_s))]
        told_us = round((self._round_trips[-1] if self._is_dialer and self._round_trips else 0) * 1e6)
        return number.to_bytes(4, "big") + min(told_us, 0xFFFFFFFF).to_bytes(4, "big")

    def pinged(self, payload: bytes) -> bytes:
        """Take a ping and return the payload of its pong."""
        told_us = int.from_bytes(payload[4:8], "big")
        if told_us:
            self._round_trips.append(told_us / 1e6)
        return payload[:4]

    def ponged(self, payload: bytes) -> None:
        """Take a pong."""
        sent_s = self._sent_s.pop(int.from_bytes(payload[:4], "big"), None)
        if sent_s is not None:
            self._round_trips.append(self._precise_s() - sent_s)
