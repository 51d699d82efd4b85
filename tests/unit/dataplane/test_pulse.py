"""The pulse: who is gone is noticed in time, and who is only slow, busy or full is not taken for gone."""

import socket
import sys

import pytest

from exo.dataplane.pulse import (
    CHECK_INTERVAL_S,
    PING_INTERVAL_S,
    SILENCE_MAX_S,
    Heard,
    Pulse,
    listen_to,
)

NOTICED_S = 2.0


class Wire:
    """A connection in virtual time: what is sent is acknowledged at once while `is_whole`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.is_whole = True
        self.pulse = Pulse()
        self.pings = 0
        self.lost_at_s: float | None = None
        self.unacknowledged = 0
        self.heard_at_s = 100.0

    def run(self, duration_s: float) -> None:
        end_s = self.now_s + duration_s
        while self.now_s < end_s and self.lost_at_s is None:
            self.now_s += CHECK_INTERVAL_S
            advice = self.pulse.check(self.now_s, Heard(self.unacknowledged, self.now_s - self.heard_at_s))
            if advice == "ping":
                self.pings += 1
                self.send()
            elif advice == "lost":
                self.lost_at_s = self.now_s

    def send(self) -> None:
        if self.is_whole:
            self.heard_at_s = self.now_s
        else:
            self.unacknowledged += 1


def test_an_idle_connection_is_pinged_and_stays() -> None:
    wire = Wire()
    wire.run(60)
    assert wire.lost_at_s is None
    assert wire.pings == pytest.approx(60 / PING_INTERVAL_S, abs=1)


@pytest.mark.parametrize("idle_s", [0.25, 1.0, 1.25, 7.5])
def test_a_cut_is_noticed_within_two_seconds_when_nothing_is_said(idle_s: float) -> None:
    wire = Wire()
    wire.run(idle_s)
    wire.is_whole = False
    cut_at_s = wire.now_s
    wire.run(10)
    assert wire.lost_at_s is not None
    assert wire.lost_at_s - cut_at_s <= NOTICED_S


def test_a_cut_is_noticed_sooner_while_something_is_on_its_way() -> None:
    wire = Wire()
    wire.run(3)
    wire.is_whole = False
    wire.send()
    cut_at_s = wire.now_s
    wire.run(10)
    assert wire.lost_at_s is not None
    assert wire.lost_at_s - cut_at_s <= SILENCE_MAX_S + CHECK_INTERVAL_S


def test_a_long_silence_before_something_is_sent_does_not_count() -> None:
    pulse = Pulse()
    # This side was busy for a minute, neither pinging nor looking.
    assert pulse.check(60.0, Heard(1, 60.0)) is None
    assert pulse.check(60.0 + SILENCE_MAX_S - 0.01, Heard(1, 60.0 + SILENCE_MAX_S)) is None
    assert pulse.check(60.0 + SILENCE_MAX_S, Heard(1, 60.0 + SILENCE_MAX_S)) == "lost"


def test_a_transfer_that_is_never_done_but_acknowledged_goes_on() -> None:
    pulse = Pulse()
    for step in range(1000):
        assert pulse.check(step * CHECK_INTERVAL_S, Heard(40, 0.1)) is None


def test_a_peer_without_room_is_not_lost() -> None:
    pulse = Pulse()
    # Nothing is on its way: it all waits here. Its host answers probes, ever more rarely.
    for step in range(1000):
        assert pulse.check(step * CHECK_INTERVAL_S, Heard(0, step * CHECK_INTERVAL_S)) in (None, "ping")


def test_where_the_system_does_not_say_nothing_is_done() -> None:
    assert Pulse().check(1.0, None) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is not acknowledged")
def test_the_system_knows_what_is_on_its_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as near, server.accept()[0] as far:
            near.sendall(b"x")
            assert far.recv(10) == b"x"
            heard = listen_to(near)
            assert heard is not None
            assert heard.unacknowledged == 0
            assert heard.silent_s < 5
        assert listen_to(near) is None
