"""Round trips are told when they are new, have changed, or were told long ago; and never more often than that."""

import pytest

from exo.cluster.board import Board
from exo.cluster.lane import Lane
from exo.cluster.round_trips import INTERVAL_MIN_S, RoundTrips
from exo.cluster.transport.base import Connection
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort
from support.states import cluster, identity

A, B = NodeId("a"), NodeId("b")
REFRESH_S = 30.0


class Link(Connection):
    def __init__(self, host: str) -> None:
        self.host = host
        self.round_trip: float | None = None

    @property
    def peer_address(self) -> HostPort:
        return HostPort(self.host, 1)

    @property
    def peer_node_id(self) -> NodeId | None:
        return B

    @property
    def round_trip_s(self) -> float | None:
        return self.round_trip

    async def send(self, message: bytes) -> None:
        raise AssertionError

    async def receive(self) -> bytes:
        raise AssertionError

    def close(self, reason: str) -> None:
        raise AssertionError


class Story:
    def __init__(self, host: str) -> None:
        self.now_s = 0.0
        self.board = Board(A, feed_backlog=8, is_checking_invariants=True)
        self.board.replace(cluster(identity("a"), identity("b")))
        self.lane = Lane(self.board, A, "boot-1")
        self.link = Link(host)
        self.round_trips = RoundTrips(self.board, self.lane, A, lambda: self.now_s, refresh_s=REFRESH_S)

    def at(self, now_s: float, round_trip_s: float | None) -> tuple[str, float | None, int] | None:
        """Look at this time; return the link as the state has it then."""
        self.now_s, self.link.round_trip = now_s, round_trip_s
        self.round_trips.check([(B, self.link)])
        self.lane.flush_own(is_leading=True, is_following=False)
        live = self.board.state.live.get(A)
        link = live.links.get(B) if live is not None else None
        return None if link is None else (link.link_type, link.latency_ms, link.measurement_count)


@pytest.mark.parametrize(("host", "kind"), [("127.0.0.1", "loopback"), ("192.0.2.1", "unknown")])
def test_what_is_news_is_told(host: str, kind: str) -> None:
    story = Story(host)
    assert story.at(0, None) is None, "nothing was measured yet"
    assert story.at(1, 0.010) == (kind, 5.0, 1)
    assert story.at(2, 0.020) == (kind, 5.0, 1), "too soon"
    assert story.at(1 + INTERVAL_MIN_S, 0.011) == (kind, 5.0, 1), "noise"
    assert story.at(2 + INTERVAL_MIN_S, 0.020) == (kind, 10.0, 2)
    assert story.at(2 + INTERVAL_MIN_S + REFRESH_S, 0.020) == (kind, 10.0, 3), "told long ago"
