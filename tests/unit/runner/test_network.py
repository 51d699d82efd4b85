"""The stage process's sockets: two networks in one process, turned by the test."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from exo.dataplane import frames as f
from exo.dataplane.codec import encode
from exo.dataplane.errors import ProtocolError
from exo.dataplane.gate import STRANGERS_MAX
from exo.dataplane.handshake import REPLIES, REQUESTS
from exo.shared.types.ids import RequestId
from exo.shared.types.nodes import HostPort
from exo.worker.runner.network import RECEIVE_BYTES, Connection, Network

SECRET = b"k" * 32


class Side:
    """A network and what happened to it."""

    def __init__(self, secret: bytes = SECRET) -> None:
        self.network = Network("127.0.0.1", secret=secret, sender="me")
        self.frames: list[tuple[f.Frame, bytes]] = []
        self.opened: list[Connection] = []
        self.lost: list[tuple[Connection, str]] = []
        self.network.on_frame = lambda _, frame, payload: self.frames.append((frame, payload))
        self.network.on_open = self.opened.append
        self.network.on_lost = lambda connection, reason: self.lost.append((connection, reason))


@contextmanager
def sides(first: bytes = SECRET, second: bytes = SECRET) -> Iterator[tuple[Side, Side]]:
    one, other = Side(first), Side(second)
    try:
        yield one, other
    finally:
        one.network.close()
        other.network.close()


def turn_until(condition: Callable[[], bool], *turned: Side) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        for side in turned:
            side.network.poll(0.001)


def big(number: int) -> f.Activation:
    return f.Activation(
        request_id=RequestId("r"), position=number, shape=(1, 1, 1), dtype="float32", wants_token=False
    )


def test_frames_arrive_in_order_with_their_payloads() -> None:
    with sides() as (one, other):
        to_other = one.network.dial(other.network.address, REPLIES, "other")
        # Sent before anything is connected: it waits for the handshake.
        sent = [(big(number), bytes([number]) * 1000) for number in range(50)]
        for frame, payload in sent:
            to_other.send(frame, payload)
        turn_until(lambda: len(other.frames) == 50, one, other)
        assert other.frames == sent
        assert other.opened[0].peer is not None
        assert (other.opened[0].peer.purpose, other.opened[0].peer.sender) == (REPLIES, "me")
        assert not to_other.backlog_bytes


def test_a_payload_larger_than_every_buffer() -> None:
    with sides() as (one, other):
        to_other = one.network.dial(other.network.address, REPLIES, "other")
        turn_until(lambda: to_other.is_open, one, other)
        payload = bytes(range(256)) * (RECEIVE_BYTES // 16)
        to_other.send(big(1), payload)
        to_other.send(big(2))
        assert to_other.backlog_bytes > 0
        turn_until(lambda: len(other.frames) == 2, one, other)
        assert other.frames == [(big(1), payload), (big(2), b"")]
        assert to_other.backlog_bytes == 0


def test_whoever_does_not_read_holds_the_sender_back() -> None:
    with sides() as (one, other):
        to_other = one.network.dial(other.network.address, REPLIES, "other")
        turn_until(lambda: len(other.opened) == 1 and to_other.is_open, one, other)
        other.opened[0].read_or_pause(False)
        for number in range(400):
            to_other.send(big(number), bytes(100_000))
        for _ in range(50):
            one.network.poll(0)
            other.network.poll(0)
        assert other.frames == []
        assert to_other.backlog_bytes > 1_000_000
        other.opened[0].read_or_pause(True)
        turn_until(lambda: len(other.frames) == 400, one, other)
        assert [frame.position for frame, _ in other.frames if isinstance(frame, f.Activation)] == list(
            range(400)
        )


def test_a_stranger_with_another_secret_gets_nowhere() -> None:
    with sides(second=b"other" * 7) as (one, other):
        to_other = one.network.dial(other.network.address, REPLIES, "other")
        to_other.send(big(1))
        turn_until(lambda: bool(one.lost) and bool(other.lost), one, other)
        assert "secret" in one.lost[0][1]
        assert (other.frames, other.opened) == ([], [])


@pytest.mark.parametrize(
    "sent", [encode(f.Close(request_id=RequestId("r"))), b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n"]
)
def test_garbage_closes_the_connection(sent: bytes) -> None:
    with sides() as (one, _):
        with socket.create_connection((one.network.address.host, one.network.address.port)) as stranger:
            stranger.sendall(sent)
            turn_until(lambda: bool(one.lost), one)
            stranger.settimeout(5)
            try:
                assert stranger.recv(100) == b""
            except ConnectionResetError:
                pass
        assert one.frames == []


def test_a_frame_that_is_refused_closes_the_connection() -> None:
    with sides() as (one, other):

        def refuse(*_: object) -> None:
            raise ProtocolError("not here")

        other.network.on_frame = refuse
        one.network.dial(other.network.address, REQUESTS, "other").send(big(1))
        turn_until(lambda: bool(other.lost) and bool(one.lost), one, other)
        assert other.lost[0][1] == "not here"


def test_a_peer_that_goes_away_is_noticed_at_once() -> None:
    with sides() as (one, other):
        to_other = one.network.dial(other.network.address, REPLIES, "other")
        turn_until(lambda: to_other.is_open, one, other)
        other.network.close()
        turn_until(lambda: bool(one.lost), one)
        assert one.lost[0][0] is to_other
        to_other.send(big(1))  # Without effect, and no error.
        one.network.poll(0)
        assert len(one.lost) == 1
        other.network = Network("127.0.0.1", secret=SECRET, sender="again")


@pytest.mark.parametrize("address", [HostPort("127.0.0.1", 1), HostPort("no.such.host.invalid", 80)])
def test_nobody_there_is_told_by_the_next_poll(address: HostPort) -> None:
    with sides() as (one, _):
        connection = one.network.dial(address, REPLIES, "nobody")
        connection.send(big(1))
        assert one.lost == []
        turn_until(lambda: bool(one.lost), one)
        assert one.lost[0][0] is connection
        assert one.lost[0][1]


def test_a_silent_stranger_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exo.worker.runner.network.HANDSHAKE_TIMEOUT_S", 0.05)
    with sides() as (one, _):
        address = (one.network.address.host, one.network.address.port)
        with socket.create_connection(address) as stranger:
            # Waiting for ever still wakes up for this.
            one.network.poll(None)
            while not one.lost:
                one.network.poll(None)
            assert "no handshake" in one.lost[0][1]
            stranger.settimeout(5)
            assert stranger.recv(1) == b""


def test_too_many_strangers_are_turned_away() -> None:
    with sides() as (one, other):
        address = (one.network.address.host, one.network.address.port)
        strangers = [socket.create_connection(address) for _ in range(STRANGERS_MAX + 5)]
        try:
            for _ in range(STRANGERS_MAX + 10):
                one.network.poll(0)
            strangers[-1].settimeout(5)
            try:
                assert strangers[-1].recv(1) == b""
            except ConnectionResetError:
                pass
            strangers[0].setblocking(False)
            with pytest.raises(BlockingIOError):
                strangers[0].recv(1)
        finally:
            for stranger in strangers:
                stranger.close()
        # With the crowd gone there is room again.
        turn_until(lambda: len(one.lost) == STRANGERS_MAX, one)
        to_one = other.network.dial(one.network.address, REPLIES, "one")
        turn_until(lambda: to_one.is_open, one, other)


def test_flushing_waits_for_the_peer_but_not_for_ever() -> None:
    with sides() as (one, other):
        to_other = one.network.dial(other.network.address, REPLIES, "other")
        turn_until(lambda: to_other.is_open, one, other)
        for number in range(300):
            to_other.send(big(number), bytes(100_000))
        began = time.monotonic()
        one.network.flush(0.05)
        assert 0.04 < time.monotonic() - began < 5
        assert to_other.backlog_bytes > 0


def test_a_wakeup_ends_the_wait() -> None:
    with sides() as (one, _):
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            one.network.watch_wakeups(reader)
            writer.send(b"!")
            one.network.poll(None)
            one.network.poll(0)
            with pytest.raises(BlockingIOError):
                reader.recv(1)
